"""``restorekit degrade``: clean images in, degraded images and what was done to them out."""

from __future__ import annotations

from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from restorekit.cli.output import AsJson, Device, complain, counting, note, say, say_json
from restorekit.config import check, read_yaml, split_setting
from restorekit.errors import ConfigError, ImageError, OutputError, RestoreKitError

if TYPE_CHECKING:
    import torch

    from restorekit.batch import Job
    from restorekit.degradations.catalogue import Kind
    from restorekit.degradations.spec import RecipeSpec


def degrade(
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Clean files, folders or patterns.", show_default=False)
    ] = None,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="File for one input, folder for several.", show_default=False),
    ] = Path("degraded"),
    kind: Annotated[
        str | None, typer.Option("-k", "--kind", help="Name of a degradation, as --list prints it.")
    ] = None,
    strength: Annotated[
        Literal["mild", "medium", "severe"] | None, typer.Option(help="Of --kind.", show_default="medium")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Parameter of --kind, as sigma=30, or a range, as sigma=[5,50]."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file that composes several, instead of --kind.")
    ] = None,
    depth: Annotated[
        Path | None,
        typer.Option(help="Depth map for haze, white is far: a file, or a folder with one of the same stem."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="With a file's name, decides all that is random.")] = 0,
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Look into folders within folders.")
    ] = False,
    form: Annotated[
        Literal["keep", "png", "jpg", "jpeg", "webp", "tiff"],
        typer.Option("--format", help="Of files in a folder."),
    ] = "png",
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG and WebP files.")] = 95,
    suffix: Annotated[str, typer.Option(help="Put after the stem of every output name.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(help="Instead, write one picture of every degradation, or of --kind, in all strengths."),
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="Print degradations with parameters, strengths and sources.")
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Degrade clean images; the same seed and file name give the same image, in whatever company."""
    if listing:
        _list(as_json)
        return
    if sheet and (recipe or strength or settings or depth):
        hint = "leave out --recipe, --strength, --set and --depth"
        raise ConfigError("--sheet", "a sheet shows every degradation, or --kind, in all strengths", hint)
    spec = None if sheet and not kind else _spec(kind, strength, settings or [], recipe)
    if depth and spec and "haze" not in spec.names():
        raise ConfigError("--depth", "nothing here is haze", "add --kind haze, or leave --depth out")

    from restorekit.batch import collect
    from restorekit.files import ensure_writable

    ending = "" if form == "keep" else f".{form}"
    jobs = collect(inputs or [], output, recursive=recursive, suffix=suffix, ending=ending)
    if sheet:
        _write_sheet(jobs, sheet, kind, seed, quality, overwrite=overwrite)
        return
    assert spec is not None
    existing = [job.target for job in jobs if job.target.exists()]
    if existing and not overwrite:
        others = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise OutputError(f"{existing[0]}{others} exists", "add --overwrite, or change -o")
    for folder in {job.target.parent for job in jobs}:
        ensure_writable(folder)

    from restorekit.runtime import resolve_device

    records, failed, where = [], 0, resolve_device(device)
    with counting("images", len(jobs)) as done:
        for job in jobs:
            try:
                records.append(_one(job, spec, depth, seed, quality, where))
            except RestoreKitError as error:
                failed += 1
                complain(error, str(job.source) if str(job.source) not in error.message else "")
                records.append({"input": str(job.source), "error": error.message, "hint": error.hint})
            done()
    if as_json:
        say_json(records)
    else:
        for record in (record for record in records if "error" not in record):
            say(f"{record['output']}   {_told(record['degradations'])}")
    if failed:
        note(f"{failed} of {len(jobs)} inputs failed")
        raise typer.Exit(2 if len(jobs) == 1 else 3)


def _spec(kind: str | None, strength: str | None, settings: list[str], recipe: Path | None) -> RecipeSpec:
    from restorekit.degradations.spec import RecipeSpec

    if (kind is None) == (recipe is None):
        found = "neither" if kind is None else "both"
        hint = "`restorekit degrade --list` prints every kind"
        raise ConfigError("degrade", f"give either --kind or --recipe; found {found}", hint)
    if recipe is not None:
        if strength or settings:
            raise ConfigError(
                "--recipe", "--strength and --set belong to --kind", "write them into the recipe"
            )
        return check(RecipeSpec, read_yaml(recipe), recipe.name)
    given = dict(split_setting(setting) for setting in settings)
    return check(RecipeSpec, {"name": kind, "strength": strength or "medium", **given}, f"--kind {kind}")


def _one(
    job: Job, spec: RecipeSpec, depth: Path | None, seed: int, quality: int, device: torch.device
) -> dict[str, Any]:
    import torch

    from restorekit.degradations.recipe import apply, draw, streams
    from restorekit.image import Image

    clean = Image.of(job.source)
    random, generator_seed = streams(seed, job.source.name)
    drawn = draw(spec, random)
    generator = torch.Generator().manual_seed(generator_seed)
    distance = Image.of(_beside(depth, job.source)).pixels.mean(0) if depth else None
    degraded = apply(drawn, clean.pixels.to(device), generator, depth=distance).cpu()
    # Outputs that exist were refused before anything was drawn, or the user asked to replace them.
    clean.replace_pixels(degraded).save(job.target, overwrite=True, quality=quality)
    return {
        "input": str(job.source),
        "output": str(job.target),
        "seed": seed,
        "generator_seed": generator_seed,
        "degradations": [asdict(each) for each in drawn],
    }


def _beside(depth: Path, source: Path) -> Path:
    """Return the depth map of an image."""
    from restorekit.imagefiles import SUFFIXES

    if not depth.is_dir():
        return depth
    maps = [
        path for path in sorted(depth.glob(f"{escape(source.stem)}.*")) if path.suffix.lower() in SUFFIXES
    ]
    if not maps:
        hint = f"name it {source.stem}.png"
        raise ImageError(f"{depth} holds no depth map for {source.name}", hint)
    return maps[0]


def _told(degradations: list[dict[str, Any]]) -> str:
    """Return what was done in one line."""
    words = (
        " ".join([each["name"], *(f"{key}={_short(value)}" for key, value in each["params"].items())])
        for each in degradations
    )
    return ", ".join(words) or "left as it is"


def _short(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write_sheet(
    jobs: list[Job], path: Path, kind: str | None, seed: int, quality: int, *, overwrite: bool
) -> None:
    from restorekit.degradations.catalogue import COMPOSITIONS, KINDS
    from restorekit.degradations.sheet import contact_sheet
    from restorekit.image import Image

    if len(jobs) != 1:
        raise ConfigError("--sheet", f"a sheet shows one photograph, found {len(jobs)}", "name one file")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists", "add --overwrite, or give another name")
    names = [kind] if kind else [name for name in (*KINDS, *COMPOSITIONS) if name != "clean"]
    picture = contact_sheet(Image.of(jobs[0].source).to_pil(), names, seed)
    say(str(Image.of(picture).save(path, overwrite=overwrite, quality=quality)))


def _list(as_json: bool) -> None:
    from restorekit.degradations.catalogue import COMPOSITIONS, KINDS

    if as_json:
        kinds = {name: asdict(kind) for name, kind in KINDS.items()}
        say_json(
            {"kinds": kinds, "compositions": {name: asdict(each) for name, each in COMPOSITIONS.items()}}
        )
        return
    for name, kind in KINDS.items():
        say("\n".join([f"{name:18}{kind.summary}", *_details(kind), ""]))
    say("compositions, drawn anew for each image (--json prints their recipes)\n")
    for name, composition in COMPOSITIONS.items():
        say(f"{name:18}{composition.summary}\n{'':4}{'source':14}{composition.source}\n")


def _details(kind: Kind) -> list[str]:
    lines = []
    for name, parameter in kind.parameters.items():
        lines.append(f"{'':4}{name:14}{_short(parameter.default):8}{parameter.about}; {parameter.expected}")
    for strength, values in kind.strengths.items():
        told = " ".join(f"{key}={_short(value)}".replace(" ", "") for key, value in values.items())
        lines += [f"{'':4}{strength:14}{told}"] if told else []
    return [*lines, *([f"{'':4}{'source':14}{kind.source}"] if kind.source else [])]
