"""``restorekit faig overlap``: degradations told by the filters that an image leans on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restorekit.cli.faiginputs import (
    BackboneName,
    Base,
    Crop,
    Limit,
    OtherBase,
    Params,
    Ratio,
    Recipes,
    Scope,
    ScoreFiles,
    Seed,
    Share,
    Target,
    by_label,
    find_dataset,
    read_scores,
    recipes_of,
    two_networks,
)
from restorekit.cli.output import AsJson, Device, counting, note, say, say_json, table
from restorekit.errors import ConfigError

if TYPE_CHECKING:
    from restorekit.filterscores import FilterScores


def overlap(
    scores: ScoreFiles,
    base: Base,
    target: Target,
    data: Annotated[Path, typer.Option("--data", help="Folder of clean images.")],
    degrade: Recipes,
    backbone: BackboneName = "",
    params: Params = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Degraded image to name; may be repeated.")
    ] = None,
    ratio: Ratio = 0.01,
    scope: Scope = "network",
    share: Share = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Gradients for each image.")] = 16,
    fit: Annotated[int, typer.Option(min=1, help="First images, on which thresholds are fitted.")] = 8,
    seed: Seed = 0,
    crop: Crop = 0,
    limit: Limit = None,
    other_base: OtherBase = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Tell degradations by the filters an image excites; accuracy on the images left over.

    Scores as ``attribute`` writes them are contrasted with each other first.
    """
    recipes = recipes_of(degrade)
    found = find_dataset(data, "clean", next(iter(recipes.values())))
    networks = two_networks(backbone, params, base, target, device)

    from restorekit.analysis import protocols
    from restorekit.analysis.images import FilePairs
    from restorekit.datasets import Sample
    from restorekit.degradations.spec import RecipeSpec

    discovered = _discovered(scores, read_scores(scores, networks[0], other_base), other_base)
    # Refused before images are scored, not after.
    for one in discovered.values():
        one.top(ratio, budget="filters", scope=scope, share=share)
    if discovered.keys() != recipes.keys():
        raise ConfigError(
            "--degrade",
            f"labels are {', '.join(recipes)}, the scores are of {', '.join(discovered)}",
            "write LABEL=RECIPE for each label of the scores",
        )
    samples = found.samples[:limit]
    if len(samples) <= fit:
        raise ConfigError(
            "--data",
            f"{len(samples)} images leave none to test beside {fit} to fit",
            "give more images, or lower --fit",
        )
    single = FilePairs((), networks[1].channels, 1, None, seed, crop)
    shown = {str(path): single.pair(Sample(path.name, path, path)).degraded for path in image or []}
    score = protocols.ImageScorer(*networks, next(iter(discovered.values())).table, steps=steps)
    kinds = {"": RecipeSpec.model_validate("clean"), **recipes}
    told: list[tuple[Any, set[str]]] = []
    with counting("images", len(samples) * len(kinds)) as done:
        for sample in samples:
            for label, recipe in kinds.items():
                files = FilePairs((sample,), networks[1].channels, networks[1].scale, recipe, seed, crop)
                told.append((score(files.pair(sample).degraded), {label} - {""}))
                done()
    fitted = fit * len(kinds)
    classifier = protocols.fit_overlap(discovered, told[:fitted], ratio, scope=scope, share=share)
    accuracy = classifier.accuracy(told[fitted:])
    named: dict[str, Any] = {}
    for name, degraded in shown.items():
        own = score(degraded)
        named[name] = {
            "degradations": sorted(classifier.degradations(own)),
            "overlaps": classifier.overlaps(own),
        }
    tested = len(samples) - fit
    if as_json:
        facts = {"accuracy": accuracy, "thresholds": dict(classifier.thresholds), "tested": tested}
        say_json({**facts, "images": named})
        return
    cells: list[tuple[str, ...]] = [
        (label, f"{classifier.thresholds[label]:.2f}", f"{accuracy[label]:.1%}") for label in discovered
    ]
    say(table(cells, ("DEGRADATION", "THRESHOLD", "BALANCED ACCURACY")))
    say(f"on {tested} images, each clean and with every degradation; {fit} others to fit")
    for name, facts in named.items():
        scored = ", ".join(f"{label} {value:.2f}" for label, value in facts["overlaps"].items())
        say(f"{name}: {', '.join(facts['degradations']) or 'none'} ({scored})")


def _discovered(
    paths: Sequence[Path], read: Sequence[FilterScores], other_base: bool
) -> dict[str, FilterScores]:
    """Return scores by label, contrasted; files that are contrasted already stay as they are."""
    from restorekit.analysis.contrast import contrasted

    found = by_label(paths, read, "faig overlap")
    homes = dict(zip(found, paths, strict=True))
    raw = [label for label, one in found.items() if "minus" not in one.details]
    if not raw:
        return found
    if len(found) == 1 or len(raw) < len(found):
        first = homes[raw[0]]
        raise ConfigError(
            str(first),
            "its scores are not contrasted with those of other degradations"
            + (
                f", and those of {homes[(found.keys() - set(raw)).pop()]} are"
                if len(raw) < len(found)
                else ""
            ),
            "give the scores of all degradations as `attribute` writes them, or make it with"
            f" `restorekit faig contrast {first} OTHERS -o FILE`",
        )
    special = contrasted(found, other_base=other_base)
    for label, one in special.items():
        if not bool(one.values.any()):
            raise ConfigError(
                str(homes[label]),
                f"its scores are those of the others: no filter is special to {label}",
                "give scores that look at images, as `attribute` writes them",
            )
    note(f"contrasted with each other: {', '.join(special)}")
    return special
