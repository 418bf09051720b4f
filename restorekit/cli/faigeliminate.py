"""``restorekit faig eliminate``: the other degradations subtracted as often as masking says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restorekit.cli.faiginputs import (
    BackboneName,
    Base,
    Budget,
    Crop,
    Limit,
    Overwrite,
    Params,
    Recipes,
    ScoreFiles,
    Seed,
    Target,
    by_label,
    check_free,
    file_pairs,
    find_dataset,
    read_scores,
    recipes_of,
    two_networks,
)
from restorekit.cli.output import AsJson, Device, counting, say, say_json, table
from restorekit.errors import ConfigError


def eliminate(
    scores: ScoreFiles,
    base: Base,
    target: Target,
    data: Annotated[Path, typer.Option("--data", help="Folder of clean images, those of the discovery.")],
    degrade: Recipes,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for LABEL.safetensors of each.", show_default=False)
    ],
    backbone: BackboneName = "",
    params: Params = None,
    ratios: Annotated[
        list[float] | None,
        typer.Option("--ratio", help="Share of the filters; may be repeated.", show_default="0.01, 0.05"),
    ] = None,
    weights: Annotated[
        list[float] | None,
        typer.Option("--weight", help="One to choose from; may be repeated.", show_default="1 to 8"),
    ] = None,
    allowed: Annotated[
        float, typer.Option(help="What others may lose, as a share of what their own filters cost them.")
    ] = 0.2,
    budget: Budget = "filters",
    seed: Seed = 0,
    crop: Crop = 0,
    limit: Limit = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Subtract the scores of other degradations as often as masking says, which leaves what is special."""
    recipes = recipes_of(degrade)
    found = find_dataset(data, "clean", next(iter(recipes.values())))
    networks = two_networks(backbone, params, base, target, device)

    from restorekit.analysis.protocols.elimination import WEIGHTS, eliminated

    raw = by_label(scores, read_scores(scores, networks[0], other_base=False), "faig eliminate")
    for path, one in zip(scores, raw.values(), strict=True):
        if "minus" in one.details:
            raise ConfigError(
                str(path), "its scores are contrasted already", "give those that `attribute` wrote"
            )
    if raw.keys() != recipes.keys():
        raise ConfigError(
            "--degrade",
            f"labels are {', '.join(recipes)}, the scores are of {', '.join(raw)}",
            "write LABEL=RECIPE for each label of the scores",
        )
    files = {label: output / f"{label}.safetensors" for label in raw}
    for file in files.values():
        check_free(file, overwrite)
    shown = {
        label: [pair.degraded for pair in file_pairs(found, networks[1], recipe, seed, crop, limit)]
        for label, recipe in recipes.items()
    }
    with counting("masking", sum(map(len, shown.values()))) as done:
        special = eliminated(
            networks[1],
            networks[0],
            raw,
            shown,
            ratios=ratios or (0.01, 0.05),
            weights=weights or WEIGHTS,
            limit=allowed,
            budget=budget,
            progress=done,
        )
    for label, file in files.items():
        special[label].save(file)
    chosen = {label: one.details["minus"] for label, one in special.items()}
    if as_json:
        say_json({label: {**chosen[label], "file": str(file)} for label, file in files.items()})
        return
    cells: list[tuple[str, ...]] = [
        (label, f"{chosen[label]['weight']:g}", "shares" if chosen[label]["shares"] else "scores", str(file))
        for label, file in files.items()
    ]
    say(table(cells, ("DEGRADATION", "TIMES", "OF", "FILE")))
