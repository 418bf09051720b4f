"""``restorekit faig``: which filters of a network do what. What that is good for is faiguses.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from restorekit.cli import faiguses
from restorekit.cli.evaluate import recipe_of
from restorekit.cli.faiginputs import (
    BackboneName,
    Base,
    Budget,
    Crop,
    Data,
    Degrade,
    Exclude,
    Include,
    Layout,
    Limit,
    LossName,
    MethodName,
    Output,
    Overwrite,
    Params,
    Ratio,
    Raw,
    Rule,
    ScoreFile,
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
from restorekit.cli.output import AsJson, Device, say, say_json, table
from restorekit.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from restorekit.filters import FilterScores

app = typer.Typer(no_args_is_help=True, help="Find the filters of a network that remove a degradation.")


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
    label: Annotated[
        str, typer.Option(help="What the filters are for.", show_default="--degrade's name")
    ] = "",
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted attribution.")] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score every filter by its part in what training on a degradation changed: FAIG."""
    check_free(output, overwrite)
    _rank(
        "faig",
        *(base, target, output, backbone, params, data, layout, degrade, label),
        rule="left" if release else rule,
        steps="100" if release else steps,
        tolerance=tolerance,
        unit=unit,
        loss=loss,
        patterns=(include, exclude, raw),
        seed=seed,
        crop=crop,
        limit=limit,
        resume=resume,
        device=device,
        as_json=as_json,
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
    label: Annotated[
        str, typer.Option(help="What the filters are for.", show_default="--degrade's name")
    ] = "",
    steps: Steps = "auto",
    unit: Unit = "kernel",
    loss: LossName = "sse",
    include: Include = "",
    exclude: Exclude = "",
    raw: Raw = "",
    seed: Seed = 0,
    crop: Crop = 0,
    limit: Limit = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score filters by another method, to compare: gradients along the image, change of weights, chance."""
    check_free(output, overwrite)
    if data is None and method not in ("delta", "random"):
        raise ConfigError("faig rank", f"{method} looks at images", "give a folder with --data")
    _rank(
        method,
        *(base, target, output, backbone, params, data, layout, degrade, label),
        rule="mid",
        steps=steps,
        tolerance=0.02,
        unit=unit,
        loss=loss,
        patterns=(include, exclude, raw),
        seed=seed,
        crop=crop,
        limit=limit,
        resume=None,
        device=device,
        as_json=as_json,
    )


def _rank(
    method: MethodName,
    base: str,
    target: str,
    output: Path,
    backbone: str,
    params: list[str] | None,
    data: Path | None,
    layout: str | None,
    degrade: str | None,
    label: str,
    *,
    rule: Literal["mid", "left", "gauss"],
    steps: str,
    tolerance: float,
    unit: Literal["kernel", "out", "weight"],
    loss: Literal["sse", "mse"],
    patterns: tuple[str, str, str],
    seed: int,
    crop: int,
    limit: int | None,
    resume: bool | None,
    device: str,
    as_json: bool,
) -> None:
    recipe = None if degrade is None else recipe_of(degrade)
    label = label or kind_name(degrade or "")
    if not label:
        raise ConfigError("--label", "is missing", "say what the filters are for, as --label rain")
    partial = output.with_name(f"{output.stem}.partial{output.suffix}")
    if partial.exists() and resume is False:
        raise OutputError(
            f"{partial} is an attribution that was interrupted", "add --resume to go on, or remove it"
        )
    found = None if data is None else find_dataset(data, layout, recipe)
    networks = two_networks(backbone, params, base, target, device)

    from restorekit.analysis.attribution import FAIGResult
    from restorekit.analysis.rankers import rank as score

    pairs = file_pairs(found, networks[1], recipe, seed, crop, limit) if found else ()
    with _progress(label, method) as report:
        scores = score(
            method,
            *networks,
            pairs,
            label=label,
            rule=rule,
            steps="auto" if steps == "auto" else _whole(steps),
            tolerance=tolerance,
            unit=unit,
            include=patterns[0],
            exclude=patterns[1],
            raw=patterns[2],
            loss=loss,
            seed=seed,
            progress=report,
            checkpoint=None if resume is None else partial,
        )
    scores.save(output)
    if resume is not None:
        partial.unlink()
    facts = _facts(scores)
    if as_json:
        say_json({"output": str(output), **facts})
        return
    if isinstance(scores, FAIGResult):
        parts = scores.completeness
        say(
            f"{scores.label}: {scores.images} images, {scores.steps} steps each, completeness error"
            f" {parts.error:.2%}, {parts.unattributed:.1%} of the change not in filters"
        )
    say(str(output))


@app.command()
def contrast(
    scores: ScoreFile,
    others: Annotated[list[Path], typer.Argument(help="Scores of the other degradations.")],
    output: Output,
    against: Annotated[Literal["mean", "max"], typer.Option(help="What is made of several others.")] = "mean",
    overwrite: Overwrite = False,
) -> None:
    """Subtract the scores of other degradations, which leaves what is special to one."""
    from restorekit.filters import FilterScores

    check_free(output, overwrite)
    first, *rest = (FilterScores.load(path) for path in (scores, *others))
    say(str(first.minus(*rest, against=against).save(output)))


@app.command()
def inspect(
    scores: ScoreFile,
    ratio: Ratio = 0.01,
    budget: Budget = "filters",
    layers: Annotated[int, typer.Option(min=0, help="How many layers to show; 0 for all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show what a file of scores says: facts, and the share of each layer."""
    from restorekit.filters import FilterScores

    found = FilterScores.load(scores)
    facts = _facts(found)
    sums = {name: float(part.clamp(min=0).sum()) for name, part in found.table.split(found.values).items()}
    whole = sum(sums.values()) or 1.0
    chosen = found.table.chosen(found.top(ratio, budget=budget))
    rows = {
        tensor.name: {
            "filters": tensor.count,
            "size": tensor.size,
            "share": sums[tensor.name] / whole,
            "chosen": len(chosen.get(tensor.name, ())),
        }
        for tensor in found.table
    }
    if as_json:
        say_json({**facts, "ratio": ratio, "layers": rows})
        return
    say(f"{found.label} by {found.method}: {len(found.table)} filters, unit {found.table.unit}")
    say(f"base {found.base[:16]}, target {found.target[:16] or 'none'}")
    for key, value in found.details.items():
        if not isinstance(value, dict):
            say(f"{key} {value}")
    if "completeness" in facts:
        parts = facts["completeness"]
        say(
            f"completeness error {parts['error']:.2%}, {parts['unattributed']:.1%} of the change not in"
            " filters"
        )
    shown = sorted(rows, key=lambda name: -rows[name]["share"])[:layers] if layers else list(rows)
    widest = max(rows[name]["share"] for name in shown) or 1.0
    cells: list[tuple[str, ...]] = [
        (
            name,
            str(rows[name]["filters"]),
            str(rows[name]["chosen"]),
            f"{rows[name]['share']:.1%}",
            "█" * round(24 * rows[name]["share"] / widest),
        )
        for name in shown
    ]
    say(table(cells, ("LAYER", "FILTERS", f"TOP {ratio:.3g}", "SHARE", "")))


def _facts(scores: FilterScores) -> dict[str, Any]:
    from restorekit.analysis.attribution import Completeness

    details = dict(scores.details)
    if "completeness" in details:
        parts = Completeness(**details["completeness"])
        details["completeness"] = {**details["completeness"], "unattributed": parts.unattributed}
    return {
        "label": scores.label,
        "method": scores.method,
        "unit": scores.table.unit,
        "filters": len(scores.table),
        "parameters": scores.table.parameters,
        "base": scores.base,
        "target": scores.target,
        **details,
    }


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError("--steps", f"{text!r} is neither auto nor a number above 0", "write --steps 16")
    return int(text)


@contextmanager
def _progress(label: str, method: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what is told how many gradients are done, shown as a bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{method} {label}", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


app.command("mask-drop")(faiguses.mask_drop)
app.command("retrain")(faiguses.retrain)
app.command("modulate")(faiguses.modulate)
app.command("map")(faiguses.draw_map)
app.command("overlap")(faiguses.overlap)
app.command("reproduce")(faiguses.reproduce)
