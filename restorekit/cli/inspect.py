"""``restorekit inspect``: what the components of a pipeline make of an image, in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restorekit.cli.output import (
    Device,
    LicensePolicy,
    Offline,
    Precision,
    Settings,
    download_progress,
    note,
    say,
)
from restorekit.config import PipelineSpec
from restorekit.errors import OutputError


def inspect(
    image: Annotated[Path, typer.Argument(help="Degraded image.", show_default=False)],
    pipeline: Annotated[
        str, typer.Option("-p", "--pipeline", help="Name of a preset, or a YAML file.")
    ] = "auto",
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the picture, NAME.maps.png.")
    ] = Path("inspected"),
    settings: Settings = None,
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a picture that exists.")] = False,
    license_policy: LicensePolicy = None,
    offline: Offline = None,
) -> None:
    """Draw the maps inside a pipeline's components: masks, attention, what was added."""
    from restorekit.files import ensure_writable, replacing

    target = output / f"{image.stem}.maps.png"
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists", "add --overwrite, or change -o")
    spec = PipelineSpec.load(pipeline, settings or [])
    ensure_writable(output)

    from restorekit.image import Image
    from restorekit.mapsheet import sheet
    from restorekit.pipeline import Pipeline

    degraded = Image.of(image)
    with download_progress() as downloading:
        chain = Pipeline.build(
            spec, device, dtype, license_policy=license_policy, offline=offline, downloading=downloading
        )
    restored, looks = chain.look(degraded)
    if not any(looks.values()):
        note("no component of this pipeline offers maps; the picture shows the images alone")
    with replacing(target) as temporary:
        sheet(degraded.pixels, restored.pixels, looks).save(temporary)
    say(str(target))
