"""``restorekit faig``: what discovered filters are good for."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from restorekit.cli.evaluate import recipe_of
from restorekit.cli.faiginputs import (
    BackboneName,
    Base,
    Budget,
    Crop,
    Data,
    Degrade,
    Layout,
    Limit,
    OtherBase,
    Output,
    Overwrite,
    Params,
    Ratio,
    Scope,
    ScoreFile,
    ScoreFiles,
    Seed,
    Share,
    Target,
    check_free,
    file_pairs,
    find_dataset,
    one_network,
    read_scores,
    save_picture,
    two_networks,
)
from restorekit.cli.output import AsJson, Device, counting, say, say_json, table
from restorekit.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from restorekit.contracts import Backbone
    from restorekit.training.validation import ValidationSet


def mask_drop(
    scores: ScoreFiles,
    base: Base,
    target: Target,
    data: Data,
    backbone: BackboneName = "",
    params: Params = None,
    layout: Layout = None,
    degrade: Degrade = None,
    ratios: Annotated[
        list[float] | None,
        typer.Option("--ratio", help="Share of the filters; may be repeated.", show_default="0.01, 0.05"),
    ] = None,
    budget: Budget = "filters",
    scope: Scope = "network",
    share: Share = 1.0,
    metric: Annotated[
        Literal["luma", "release"], typer.Option(help="release is the blue channel in 8 bits.")
    ] = "luma",
    controls: Annotated[int, typer.Option("--random", min=0, help="Random choices beside, as control.")] = 3,
    seed: Seed = 0,
    crop: Crop = 0,
    limit: Limit = None,
    other_base: OtherBase = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Put the baseline's filters into the target where scores are highest: how much do its outputs change?"""
    recipe = None if degrade is None else recipe_of(degrade)
    found = find_dataset(data, layout, recipe)
    networks = two_networks(backbone, params, base, target, device)

    import torch

    from restorekit.analysis import protocols
    from restorekit.filterscores import select

    read = [
        (str(path), one)
        for path, one in zip(scores, read_scores(scores, networks[0], other_base), strict=True)
    ]
    filters = read[0][1].table
    images = [pair.degraded for pair in file_pairs(found, networks[1], recipe, seed, crop, limit)]
    choices: dict[tuple[float, str], tuple[str, str, torch.Tensor]] = {}
    for ratio in ratios or [0.01, 0.05]:
        for name, one in read:
            best = one.top(ratio, budget=budget, scope=scope, share=share)
            choices[ratio, name] = one.method, one.label, best
        for number in range(controls):
            values = torch.rand(len(filters), generator=torch.Generator().manual_seed(seed + number))
            chosen = select(filters, values, ratio, budget=budget, scope=scope, share=share)
            choices[ratio, f"random {number}"] = "random", "", chosen
    with counting("masking", len(images)) as done:
        drops = protocols.mask_drops(
            networks[1],
            networks[0],
            filters,
            {key: chosen for key, (_, _, chosen) in choices.items()},
            images,
            (metric,),
            done,
        )
    rows: list[dict[str, Any]] = []
    for key, (method, label, chosen) in choices.items():
        drop = drops[key][metric]
        rows.append(
            {
                "scores": key[1],
                "method": method,
                "label": label,
                "ratio": key[0],
                "filters": len(chosen),
                "drop": drop.mean,
                "deviation": statistics.pstdev(drop.per_image),
                "per_image": list(drop.per_image),
            }
        )
    if as_json:
        say_json({"metric": metric, "images": len(images), "rows": rows})
        return
    cells: list[tuple[str, ...]] = [
        (
            f"{row['ratio']:.3g}",
            str(row["filters"]),
            row["method"],
            row["label"] or "-",
            f"{row['drop']:.4g}",
            f"{row['deviation']:.2g}",
            row["scores"],
        )
        for row in rows
    ]
    say(table(cells, ("RATIO", "FILTERS", "METHOD", "FOR", "DROP x1000", "+-", "SCORES")))
    say(f"{metric} gradient maps of {len(images)} images of {found.folder}")


def retrain(
    scores: ScoreFile,
    base: Base,
    data: Annotated[Path, typer.Option("--data", help="Folder of clean photographs.")],
    degrade: Annotated[
        str, typer.Option("--degrade", help="KIND, KIND/STRENGTH or a recipe in a YAML file.")
    ],
    output: Output,
    backbone: BackboneName = "",
    params: Params = None,
    ratio: Ratio = 0.01,
    budget: Budget = "filters",
    scope: Scope = "network",
    share: Share = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 2000,
    lr: Annotated[float, typer.Option(min=0, help="First learning rate.")] = 2e-4,
    batch: Annotated[int, typer.Option(min=1, help="Patches a step.")] = 16,
    patch: Annotated[int, typer.Option(min=1, help="Side of degraded patches in pixels.")] = 32,
    seed: Seed = 0,
    other_base: OtherBase = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train nothing but the highest filters of the baseline on a degradation; all else stays bit by bit."""
    check_free(output, overwrite)
    recipe = recipe_of(degrade)
    network, params_of = one_network(backbone, params, base, "--base", device)

    from restorekit.analysis import protocols
    from restorekit.catalog import COMPONENT_KEY, PARAMS_KEY
    from restorekit.training.checkpoint import save_tensors
    from restorekit.training.data import Batches, load_source
    from restorekit.training.spec import AugmentSpec, DataSpec, StageSpec
    from restorekit.training.validation import validation_set

    found = read_scores([scores], network, other_base)[0]
    chosen = found.top(ratio, budget=budget, scope=scope, share=share)
    stage = StageSpec(steps=steps, patch=patch, batch=batch)
    source = load_source(DataSpec(folder=(str(data),), hold_out=1), network.scale)
    batches = Batches(source, recipe, seed, AugmentSpec(), network.channels, network.scale)
    batches.check([stage])
    patches = validation_set(batches)
    before = _psnr(network, patches)
    losses: list[float] = []
    with counting("retraining", steps) as done:

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            done()

        trained = protocols.retrain(
            network,
            found.table,
            chosen,
            lambda step: batches.batch(step, stage).pair,
            steps=steps,
            lr=lr,
            progress=report,
        )
    facts = {COMPONENT_KEY: params_of[0], "restorekit.kind": "backbone", PARAMS_KEY: params_of[1]}
    save_tensors(output, trained.state_dict(), facts)
    after = _psnr(trained, patches)
    parameters = int(found.table.sizes[chosen].sum())
    if as_json:
        say_json(
            {
                "output": str(output),
                "filters": len(chosen),
                "parameters": parameters,
                "first_loss": losses[0],
                "last_loss": losses[-1],
                "psnr_before": before,
                "psnr_after": after,
                "held_out": [photograph.name for photograph in source.held_out],
            }
        )
        return
    rows: list[tuple[str, ...]] = [
        (name, f"{figure:.2f}", f"{loss:.4g}")
        for name, figure, loss in (("before", before, losses[0]), ("after", after, losses[-1]))
    ]
    say(table(rows, ("", "PSNR, dB", "LOSS")))
    kept = ", ".join(photograph.name for photograph in source.held_out)
    say(f"PSNR of {len(patches.clean)} windows of {kept}, held out")
    say(f"{len(chosen)} filters, {parameters} numbers trained")
    say(str(output))


def modulate(
    scores: ScoreFile,
    image: Annotated[Path, typer.Argument(help="Degraded image.")],
    base: Base,
    target: Target,
    output: Output,
    backbone: BackboneName = "",
    params: Params = None,
    ratio: Ratio = 0.01,
    budget: Budget = "filters",
    scope: Scope = "network",
    share: Share = 1.0,
    shares: Annotated[
        str,
        typer.Option(help="Shares of the target in the chosen filters: LOW:HIGH:COUNT, or a list by commas."),
    ] = "0:1.5:16",
    crop: Crop = 0,
    other_base: OtherBase = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Restore an image with the discovered filters turned down and up, as one picture."""
    check_free(output, overwrite)
    grid = _grid(shares)
    networks = two_networks(backbone, params, base, target, device)

    from restorekit.analysis import protocols
    from restorekit.analysis.images import FilePairs
    from restorekit.datasets import Sample

    found = read_scores([scores], networks[0], other_base)[0]
    # The image stands for a pair of a network that keeps the size: it is only read and cut.
    files = FilePairs((), networks[1].channels, 1, None, 0, crop)
    degraded = files.pair(Sample(image.name, image, image)).degraded
    chosen = found.top(ratio, budget=budget, scope=scope, share=share)
    outputs = protocols.modulate(networks[1], networks[0], found.table, chosen, degraded, grid)
    save_picture(protocols.strip(outputs, [f"{blend:.3g}" for blend in grid]), output, overwrite)


def draw_map(
    scores: ScoreFiles,
    output: Output,
    ratio: Ratio = 0.01,
    budget: Budget = "filters",
    scope: Scope = "network",
    share: Share = 1.0,
    other_base: OtherBase = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw where the highest filters lie: layers from left to right, a panel for each file."""
    check_free(output, overwrite)
    from restorekit.analysis.protocols import distribution_map, distributions
    from restorekit.filterscores import FilterScores

    read = [FilterScores.load(path) for path in scores]
    if any(one.table != read[0].table for one in read):
        raise ConfigError("faig map", "the files are of different networks or units", "draw them apart")
    for path, one in zip(scores, read, strict=True):
        if one.base != read[0].base and not other_base:
            raise ConfigError(
                str(path),
                f"its scores are for the base {one.base[:16]}, those of {scores[0]} for {read[0].base[:16]}",
                "draw them apart, or add --other-base",
            )
    labels = [f"{one.label} ({one.method})" for one in read]
    if len(set(labels)) < len(labels):
        labels = [f"{label} {path}" for label, path in zip(labels, scores, strict=True)]
    chosen = {
        label: one.top(ratio, budget=budget, scope=scope, share=share)
        for label, one in zip(labels, read, strict=True)
    }
    found = distributions(read[0].table, chosen)
    save_picture(distribution_map(read[0].table, chosen), output, overwrite, quiet=as_json)
    if as_json:
        say_json({label: {"depth": one.depth, "counts": dict(one.counts)} for label, one in found.items()})
        return
    cells: list[tuple[str, ...]] = [
        (label, str(len(chosen[label])), f"{one.depth:.2f}") for label, one in found.items()
    ]
    say(table(cells, ("SCORES", "FILTERS", "DEPTH (0 FIRST LAYER, 1 LAST)")))


def _psnr(network: Backbone, patches: ValidationSet) -> float:
    """Return the mean PSNR in dB of degraded windows that a network restores."""
    import torch

    from restorekit.analysis.pairs import restored

    like = next(network.parameters())
    with torch.no_grad():
        figures = patches.measure(lambda degraded, kinds: restored(network, degraded.to(like)))
    return figures["degraded"]


def _grid(text: str) -> list[float]:
    try:
        if ":" in text:
            low, high, count = text.split(":")
            number = int(count)
            ends = float(low), float(high)
            shares = [ends[0] + (ends[1] - ends[0]) * step / max(1, number - 1) for step in range(number)]
        else:
            shares = [float(part) for part in text.split(",")]
        if not shares or not all(map(math.isfinite, shares)):
            raise ValueError(text)
    except ValueError as error:
        raise ConfigError(
            "--shares", f"{text!r} is no grid", "write 0:1.5:16, or numbers with commas as 0,0.5,1"
        ) from error
    return shares
