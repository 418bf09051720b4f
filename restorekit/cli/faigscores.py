"""``restorekit faig`` on files of scores alone: joined, contrasted, inspected. No network is read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from restorekit.cli.faiginputs import (
    Budget,
    OtherBase,
    Output,
    Overwrite,
    Scope,
    ScoreFile,
    Share,
    check_free,
)
from restorekit.cli.output import AsJson, say, say_json, table
from restorekit.errors import WeightsError

if TYPE_CHECKING:
    from restorekit.filterscores import FilterScores


def join(
    parts: Annotated[list[Path], typer.Argument(help="Scores that `attribute --part` wrote.")],
    output: Output,
    overwrite: Overwrite = False,
) -> None:
    """Put together the attributions of parts of the images, made by other processes or machines."""
    from restorekit.analysis.joining import joined
    from restorekit.analysis.result import FAIGResult

    check_free(output, overwrite)
    whole = joined([FAIGResult.load(path) for path in parts])
    whole.save(output)
    say(f"{whole.label}: {whole.images} images, completeness error {whole.completeness.error:.2%}")
    say(str(output))


def contrast(
    scores: ScoreFile,
    others: Annotated[list[Path], typer.Argument(help="Scores of the other degradations.")],
    output: Output,
    against: Annotated[Literal["mean", "max"], typer.Option(help="What is made of several others.")] = "mean",
    shares: Annotated[
        bool, typer.Option("--shares", help="Compare shares of the sums: degradations cost differently much.")
    ] = False,
    weight: Annotated[float, typer.Option(help="How often the others are subtracted.")] = 1.0,
    other_base: OtherBase = False,
    overwrite: Overwrite = False,
) -> None:
    """Subtract the scores of other degradations, which leaves what is special to one."""
    from restorekit.filterscores import FilterScores

    check_free(output, overwrite)
    first, *rest = (FilterScores.load(path) for path in (scores, *others))
    special = first.minus(*rest, against=against, shares=shares, weight=weight, other_base=other_base)
    say(str(special.save(output)))


def inspect(
    scores: ScoreFile,
    ratio: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of the filters that is chosen.", show_default="0.01, or a single filter"
        ),
    ] = None,
    budget: Budget = "filters",
    scope: Scope = "network",
    share: Share = 1.0,
    layers: Annotated[int, typer.Option(min=0, help="How many layers to show; 0 for all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show what a file of scores says: facts, and the share of each layer."""
    from restorekit.filterscores import FilterScores, least_ratio

    found = FilterScores.load(scores)
    facts = facts_of(found)
    if ratio is None:
        # A small network shows its facts too, where a hundredth of it is nothing.
        ratio = max(0.01, least_ratio(found.table, found.values, budget=budget, scope=scope))
    sums = {name: float(part.clamp(min=0).sum()) for name, part in found.table.split(found.values).items()}
    whole = sum(sums.values()) or 1.0
    chosen = found.table.chosen(found.top(ratio, budget=budget, scope=scope, share=share))
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


def facts_of(scores: FilterScores) -> dict[str, Any]:
    """Return what is known of scores beside their values, as JSON has it.

    Raises:
        WeightsError: what the file says of their completeness is damaged.
    """
    from restorekit.analysis.result import Completeness

    details = dict(scores.details)
    if "completeness" in details:
        try:
            parts = Completeness(**details["completeness"])
        except TypeError as error:
            raise WeightsError(
                f"the completeness of {scores.label} is damaged: {error}",
                "make the scores again with `restorekit faig`",
            ) from error
        details["completeness"] = {**asdict(parts), "unattributed": parts.unattributed}
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
