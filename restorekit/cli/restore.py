"""``restorekit restore``: images in, restored images out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from restorekit.cli.output import (
    AsJson,
    Device,
    LicensePolicy,
    Offline,
    Precision,
    Settings,
    complain,
    download_of,
    download_progress,
    note,
    say,
    say_json,
)
from restorekit.config import PipelineSpec, TileSpec, check, one_step
from restorekit.errors import OutputError, RestoreKitError

if TYPE_CHECKING:
    from restorekit.batch import Job
    from restorekit.pipeline import Pipeline


@dataclass(frozen=True)
class Saving:
    """How results are written."""

    quality: int
    bit_depth: Literal["keep", 8, 16]
    strip: bool
    compare: bool


def restore(
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Files, folders or patterns.", show_default=False)
    ] = None,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="File for one input, folder for several.", show_default=False),
    ] = Path("restored"),
    more_inputs: Annotated[
        list[str] | None, typer.Option("-i", "--input", help="The same as INPUTS.")
    ] = None,
    pipeline: Annotated[
        str, typer.Option("-p", "--pipeline", help="Name of a preset, or a YAML file.")
    ] = "auto",
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="One backbone instead, as NAME or NAME/WEIGHTS.")
    ] = None,
    settings: Settings = None,
    device: Device = "auto",
    dtype: Precision = "auto",
    tile: Annotated[str, typer.Option("-t", "--tile", help="auto, 0 for whole images, or pixels.")] = "auto",
    tile_overlap: Annotated[str, typer.Option(help="auto, or pixels shared by neighbouring tiles.")] = "auto",
    seed: Annotated[int | None, typer.Option(help="Of networks that draw random numbers.")] = None,
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Look into folders within folders.")
    ] = False,
    form: Annotated[
        Literal["keep", "png", "jpg", "jpeg", "webp", "tiff"],
        typer.Option("--format", help="Of files in a folder."),
    ] = "keep",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG and WebP.")] = 95,
    bit_depth: Annotated[
        Literal["keep", "8", "16"], typer.Option(help="Where the format can hold them.")
    ] = "keep",
    metadata: Annotated[
        Literal["keep", "strip"], typer.Option(help="Profile, EXIF, XMP, resolution.")
    ] = "keep",
    suffix: Annotated[str, typer.Option(help="Put after the stem of every output name.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave out what is done.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written, and stop.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also write NAME.compare.png, before and after.")
    ] = False,
    license_policy: LicensePolicy = None,
    offline: Offline = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Restore images.

    Inputs that do not exist are refused before any is restored. Those that fail are named, and do not stop
    the others (exit code 3).
    """
    from restorekit.batch import collect
    from restorekit.files import ensure_writable
    from restorekit.plan import parts

    ending = "" if form == "keep" else f".{form}"
    named = [*(inputs or []), *(more_inputs or [])]
    jobs = collect(named, output, recursive=recursive, suffix=suffix, ending=ending)
    existing = [job for job in jobs if job.target.exists()]
    if skip_existing:
        jobs = [job for job in jobs if job not in existing]
    elif existing and not overwrite:
        others = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise OutputError(
            f"{existing[0].target}{others} exists", "add --overwrite or --skip-existing, or change -o"
        )
    spec = PipelineSpec.load(one_step(model) if model else pipeline, settings or [])
    tiles = _tiles(spec.tile, tile, tile_overlap)
    if dry_run:
        for job in jobs:
            say(f"{job.source} -> {job.target}")
        for part in (part for step in parts(spec) for part in step):
            if part.to_download != 0:
                facts = part.facts()
                note(f"{part.where}: {facts['weights']} to be downloaded{download_of(part.to_download)}")
        return
    for folder in {job.target.parent for job in jobs}:
        ensure_writable(folder)

    from restorekit.contracts import Verdict
    from restorekit.pipeline import Pipeline
    from restorekit.runtime import tune_allocator

    tune_allocator()
    with download_progress(show=not quiet and not as_json) as downloading:
        chain = Pipeline.build(
            spec,
            device,
            dtype,
            license_policy=license_policy,
            offline=offline,
            downloading=downloading,
        )
    depths: dict[str, Literal["keep", 8, 16]] = {"keep": "keep", "8": 8, "16": 16}
    saving = Saving(quality, depths[bit_depth], metadata == "strip", compare)
    records, failed = _run(chain, jobs, tiles, seed, saving, show=not quiet and not as_json)
    if as_json:
        say_json(records)
    else:
        for record in (record for record in records if "error" not in record):
            verdicts = (step["verdict"] for step in record["steps"] if step["verdict"])
            said = "".join(f"   {Verdict(**verdict)}" for verdict in verdicts)
            say(f"{record['output']}   {record['seconds']:.1f} s{said}")
    if failed:
        note(f"{failed} of {len(jobs)} inputs failed")
        raise typer.Exit(2 if len(jobs) == 1 else 3)


def _tiles(spec: TileSpec, size: str, overlap: str) -> TileSpec:
    """Return the pipeline's tiles with those of the command line on top."""
    given = {"size": size, "overlap": overlap}
    document: dict[str, Any] = spec.model_dump()
    document |= {
        key: int(text) if text.isdecimal() else text for key, text in given.items() if text != "auto"
    }
    return check(TileSpec, document, "--tile")


def _run(
    chain: Pipeline, jobs: list[Job], tiles: TileSpec, seed: int | None, saving: Saving, *, show: bool
) -> tuple[list[dict[str, Any]], int]:
    """Restore every job; return a record each, and how many failed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    records: list[dict[str, Any]] = []
    failed = 0
    with Progress(*columns, console=Console(stderr=True), disable=not show, transient=True) as progress:
        images = progress.add_task("images", total=len(jobs), visible=len(jobs) > 1)
        tiles_task = progress.add_task("tiles", total=None)
        for job in jobs:
            progress.update(tiles_task, description=job.source.name, completed=0, total=None)

            def report(name: str, done: int, total: int) -> None:
                progress.update(tiles_task, completed=done, total=total)

            try:
                records.append(_one(chain, job, tiles, seed, saving, report))
            except RestoreKitError as error:
                failed += 1
                complain(error, str(job.source) if str(job.source) not in error.message else "")
                records.append({"input": str(job.source), "error": error.message, "hint": error.hint})
            progress.advance(images)
    return records, failed


def _one(
    chain: Pipeline,
    job: Job,
    tiles: TileSpec,
    seed: int | None,
    saving: Saving,
    report: Callable[[str, int, int], None],
) -> dict[str, Any]:
    from restorekit.compare import comparison
    from restorekit.files import replacing
    from restorekit.image import Image

    degraded = Image.of(job.source)
    result = chain(degraded, tile=tiles, seed=seed, progress=report)
    # Outputs that exist were refused before anything ran, or the user asked to replace them.
    image = replace(result.image, meta=type(result.image.meta)()) if saving.strip else result.image
    image.save(job.target, overwrite=True, quality=saving.quality, bit_depth=saving.bit_depth)
    for warning in result.warnings:
        note(f"{job.source}: {warning}")
    facts: dict[str, Any] = {
        "input": str(job.source),
        "output": str(job.target),
        **json.loads(result.to_json()),
    }
    if saving.compare:
        picture = job.target.with_suffix(".compare.png")
        with replacing(picture) as temporary:
            names = " + ".join(step.component for step in result.steps)
            comparison(degraded.to_pil(), result.to_pil(), ("degraded", f"restored by {names}")).save(
                temporary
            )
        facts["comparison"] = str(picture)
    return facts
