"""``restorekit faig``: which filters of a network do what.

What is done with scores alone is in faigscores.py, what they are for in faiguses.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from restorekit.cli import faigeliminate, faigoverlap, faigreproduce, faigscores, faiguses
from restorekit.cli.evaluate import recipe_of
from restorekit.cli.faiginputs import (
    BLIND,
    BackboneName,
    Base,
    Crop,
    Data,
    Degrade,
    Exclude,
    Include,
    Label,
    Layout,
    Limit,
    LossName,
    MethodName,
    Output,
    Overwrite,
    Params,
    PartOf,
    Raw,
    Resume,
    Rule,
    Seed,
    Steps,
    Target,
    Unit,
    check_free,
    file_pairs,
    find_dataset,
    kind_name,
    two_networks,
)
from restorekit.cli.output import AsJson, Device, note, say, say_json
from restorekit.errors import ConfigError, OutputError

app = typer.Typer(no_args_is_help=True, help="Find the filters of a network that remove a degradation.")


@dataclass(frozen=True)
class _Request:
    """What ``attribute`` and ``rank`` are asked for: their options by name."""

    method: MethodName
    base: str
    target: str
    output: Path
    data: Path | None
    backbone: str
    params: list[str] | None
    layout: str | None
    degrade: str | None
    label: str
    steps: str
    unit: Literal["kernel", "out", "weight"]
    loss: Literal["sse", "mse"]
    include: str
    exclude: str
    raw: str
    seed: int
    crop: int
    limit: int | None
    resume: bool
    overwrite: bool
    device: str
    as_json: bool
    rule: Literal["mid", "left", "gauss"] = "mid"
    tolerance: float = 0.02
    part: str = "1/1"


@app.command()
def attribute(
    base: Base,
    target: Target,
    output: Output,
    data: Data,
    backbone: BackboneName = "",
    params: Params = None,
    layout: Layout = None,
    degrade: Degrade = None,
    label: Label = "",
    rule: Rule = "mid",
    steps: Steps = "auto",
    tolerance: Annotated[float, typer.Option(min=0, help="Completeness error that auto steps reach.")] = 0.02,
    release: Annotated[
        bool, typer.Option("--release", help="As FAIG's release: --rule left --steps 100.")
    ] = False,
    unit: Unit = "kernel",
    loss: LossName = "sse",
    include: Include = "",
    exclude: Exclude = "",
    raw: Raw = "",
    seed: Seed = 0,
    crop: Crop = 0,
    limit: Limit = None,
    part: PartOf = "1/1",
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score every filter by its part in what training on a degradation changed: FAIG."""
    _rank(
        _Request(
            method="faig",
            base=base,
            target=target,
            output=output,
            data=data,
            backbone=backbone,
            params=params,
            layout=layout,
            degrade=degrade,
            label=label,
            rule="left" if release else rule,
            steps="100" if release else steps,
            tolerance=tolerance,
            unit=unit,
            loss=loss,
            include=include,
            exclude=exclude,
            raw=raw,
            seed=seed,
            crop=crop,
            limit=limit,
            part=part,
            resume=resume,
            overwrite=overwrite,
            device=device,
            as_json=as_json,
        )
    )


@app.command()
def rank(
    method: Annotated[MethodName, typer.Argument(help="delta and random need no images.")],
    base: Base,
    target: Target,
    output: Output,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of clean images, or of pairs as input/ and target/.")
    ] = None,
    backbone: BackboneName = "",
    params: Params = None,
    layout: Layout = None,
    degrade: Degrade = None,
    label: Label = "",
    steps: Steps = "auto",
    unit: Unit = "kernel",
    loss: LossName = "sse",
    include: Include = "",
    exclude: Exclude = "",
    raw: Raw = "",
    seed: Seed = 0,
    crop: Crop = 0,
    limit: Limit = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score filters by another method, to compare: gradients along the image, change of weights, chance."""
    if data is None and method not in BLIND:
        raise ConfigError("faig rank", f"{method} looks at images", "give a folder with --data")
    _rank(
        _Request(
            method=method,
            base=base,
            target=target,
            output=output,
            data=data,
            backbone=backbone,
            params=params,
            layout=layout,
            degrade=degrade,
            label=label,
            steps=steps,
            unit=unit,
            loss=loss,
            include=include,
            exclude=exclude,
            raw=raw,
            seed=seed,
            crop=crop,
            limit=limit,
            resume=resume,
            overwrite=overwrite,
            device=device,
            as_json=as_json,
        )
    )


def _rank(asked: _Request) -> None:
    check_free(asked.output, asked.overwrite)
    recipe = None if asked.degrade is None else recipe_of(asked.degrade)
    label = asked.label or kind_name(asked.degrade or "")
    if not label:
        raise ConfigError("--label", "is missing", "say what the filters are for, as --label rain")
    partial = None if asked.method in BLIND else _partial(asked.output)
    if partial and partial.exists() and not asked.resume:
        raise OutputError(
            f"{partial} is an attribution that was interrupted", "add --resume to go on, or remove it"
        )
    found = None if asked.data is None else find_dataset(asked.data, asked.layout, recipe)
    networks = two_networks(asked.backbone, asked.params, asked.base, asked.target, asked.device)

    from restorekit.analysis.rankers import rank as score
    from restorekit.analysis.result import FAIGResult

    taken = (asked.seed, asked.crop, asked.limit, asked.part)
    pairs = file_pairs(found, networks[1], recipe, *taken) if found else ()
    with _kept(partial), _progress(label, asked.method) as report:
        scores = score(
            asked.method,
            *networks,
            pairs,
            label=label,
            rule=asked.rule,
            steps="auto" if asked.steps == "auto" else _whole(asked.steps),
            tolerance=asked.tolerance,
            unit=asked.unit,
            include=asked.include,
            exclude=asked.exclude,
            raw=asked.raw,
            loss=asked.loss,
            seed=asked.seed,
            progress=report,
            checkpoint=partial,
        )
    scores.save(asked.output)
    if partial:
        partial.unlink()
    facts = faigscores.facts_of(scores)
    if asked.as_json:
        say_json({"output": str(asked.output), **facts})
        return
    if isinstance(scores, FAIGResult):
        parts = scores.completeness
        say(
            f"{scores.label}: {scores.images} images, {scores.steps} steps each, completeness error"
            f" {parts.error:.2%}, {parts.unattributed:.1%} of the change not in filters"
        )
    say(str(asked.output))


def _partial(output: Path) -> Path:
    """Return where an attribution is kept until it is complete."""
    return output.with_name(f"{output.stem}.partial{output.suffix}")


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError("--steps", f"{text!r} is neither auto nor a number above 0", "write --steps 16")
    return int(text)


@contextmanager
def _kept(partial: Path | None) -> Iterator[None]:
    """Say on Ctrl-C where the work is, and how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        if partial and partial.exists():
            note(f"interrupted; {partial} keeps what is done: go on with the same command and --resume")
        else:
            note("interrupted; nothing was done that could be kept")
        raise


@contextmanager
def _progress(label: str, method: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what is told how many gradients are done, shown as a bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{method} {label}", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


app.command("join")(faigscores.join)
app.command("contrast")(faigscores.contrast)
app.command("eliminate")(faigeliminate.eliminate)
app.command("inspect")(faigscores.inspect)
app.command("mask-drop")(faiguses.mask_drop)
app.command("retrain")(faiguses.retrain)
app.command("modulate")(faiguses.modulate)
app.command("map")(faiguses.draw_map)
app.command("overlap")(faigoverlap.overlap)
app.command("reproduce")(faigreproduce.reproduce)
