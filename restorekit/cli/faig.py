"""``restorekit faig``: which filters of a network do what, and what that is good for."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from restorekit.cli.evaluate import recipe_of
from restorekit.cli.output import AsJson, Device, counting, note, say, say_json, table
from restorekit.config import check, read_yaml, split_setting, with_settings
from restorekit.errors import ConfigError, OutputError
from restorekit.files import ensure_writable

if TYPE_CHECKING:
    import PIL.Image
    import torch

    from restorekit.analysis.images import FilePairs
    from restorekit.contracts import Backbone
    from restorekit.datasets import Dataset
    from restorekit.degradations.spec import RecipeSpec
    from restorekit.filters import FilterScores

app = typer.Typer(no_args_is_help=True, help="Find the filters of a network that remove a degradation.")

BackboneName = Annotated[
    str, typer.Option("-b", "--backbone", help="Name of the backbone.", show_default="as the weights say")
]
Params = Annotated[
    list[str] | None, typer.Option("--set", help="Argument of the backbone, as KEY=VALUE; may be repeated.")
]
Base = Annotated[str, typer.Option("--base", help="Weights before training on the degradation.")]
Target = Annotated[str, typer.Option("--target", help="Weights after it.")]
Data = Annotated[
    Path, typer.Option("--data", help="Folder of clean images, or of pairs as input/ and target/.")
]
Layout = Annotated[
    str | None, typer.Option(help="DEGRADED:CLEAN, two folders; or clean, to leave pairs aside.")
]
Degrade = Annotated[
    str | None,
    typer.Option("--degrade", help="Degrade clean images by KIND, KIND/STRENGTH or a recipe in a YAML file."),
]
Seed = Annotated[int, typer.Option(min=0, help="Of all that is random, with a file's name.")]
Crop = Annotated[int, typer.Option(min=0, help="Take the middle of each image: pixels of the degraded one.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use the first images only.")]
Ratio = Annotated[float, typer.Option(min=0, max=1, help="Share of the filters that is chosen.")]
Budget = Annotated[
    Literal["filters", "parameters"], typer.Option(help="What the share counts; filters as in the paper.")
]
ScoreFile = Annotated[Path, typer.Argument(help="Scores of filters, as `attribute` writes them.")]
ScoreFiles = Annotated[
    list[Path], typer.Argument(help="Scores of filters, as `attribute` and `rank` write them.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Steps = Annotated[str, typer.Option(help="Gradients for each image: a number, or auto.")]
Rule = Annotated[Literal["mid", "left", "gauss"], typer.Option(help="How the path is walked.")]
Unit = Annotated[
    Literal["kernel", "out", "weight"],
    typer.Option(help="A filter is a k x k slice, all of an output channel, or a single weight."),
]
LossName = Annotated[
    Literal["sse", "mse"], typer.Option(help="sse as in the paper; mse where images differ in size.")
]
Include = Annotated[str, typer.Option(help="Regular expression that names of weights must match.")]
Exclude = Annotated[str, typer.Option(help="Regular expression of weights to leave out.")]
Raw = Annotated[str, typer.Option(help="Regular expression of parameters outside of layers to score too.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="File to write.", show_default=False)]
MethodName = Literal["faig", "ig", "delta", "gradxdelta", "random"]


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
    _free(output, overwrite)
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
    _free(output, overwrite)
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
    label = label or _name(degrade or "")
    if not label:
        raise ConfigError("--label", "is missing", "say what the filters are for, as --label rain")
    partial = output.with_name(f"{output.stem}.partial{output.suffix}")
    if partial.exists() and resume is False:
        raise OutputError(
            f"{partial} is an attribution that was interrupted", "add --resume to go on, or remove it"
        )
    found = None if data is None else _dataset(data, layout, recipe)
    networks = _networks(backbone, params, base, target, device)

    from restorekit.analysis.attribution import FAIGResult
    from restorekit.analysis.rankers import rank as score

    pairs = _pairs(found, networks[1], recipe, seed, crop, limit) if found else ()
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

    _free(output, overwrite)
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


@app.command("mask-drop")
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
    metric: Annotated[
        Literal["luma", "release"], typer.Option(help="release is the blue channel in 8 bits.")
    ] = "luma",
    controls: Annotated[int, typer.Option("--random", min=0, help="Random choices beside, as control.")] = 3,
    seed: Seed = 0,
    crop: Crop = 0,
    limit: Limit = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Put the baseline's filters into the target where scores are highest: how much do its outputs change?"""
    recipe = None if degrade is None else recipe_of(degrade)
    found = _dataset(data, layout, recipe)
    networks = _networks(backbone, params, base, target, device)

    import torch

    from restorekit.analysis import protocols
    from restorekit.filters import select

    read = [(str(path), one) for path, one in zip(scores, _scores(scores, networks[1]), strict=True)]
    filters = read[0][1].table
    images = [pair.degraded for pair in _pairs(found, networks[1], recipe, seed, crop, limit)]
    choices: dict[tuple[float, str], tuple[str, str, torch.Tensor]] = {}
    for ratio in ratios or [0.01, 0.05]:
        for name, one in read:
            choices[ratio, name] = one.method, one.label, one.top(ratio, budget=budget)
        for number in range(controls):
            values = torch.rand(len(filters), generator=torch.Generator().manual_seed(seed + number))
            choices[ratio, f"random {number}"] = "random", "", select(filters, values, ratio, budget=budget)
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


@app.command()
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
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 2000,
    lr: Annotated[float, typer.Option(min=0, help="First learning rate.")] = 2e-4,
    batch: Annotated[int, typer.Option(min=1, help="Patches a step.")] = 16,
    patch: Annotated[int, typer.Option(min=1, help="Side of degraded patches in pixels.")] = 32,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train nothing but the highest filters of the baseline on a degradation; all else stays bit by bit."""
    _free(output, overwrite)
    recipe = recipe_of(degrade)
    network, params_of = _one_network(backbone, params, base, "--base", device)

    from restorekit.analysis import protocols
    from restorekit.catalog import COMPONENT_KEY, PARAMS_KEY
    from restorekit.training.checkpoint import save_tensors
    from restorekit.training.data import Batches, load_source
    from restorekit.training.spec import AugmentSpec, DataSpec, StageSpec

    found = _scores([scores], network)[0]
    stage = StageSpec(steps=steps, patch=patch, batch=batch)
    source = load_source(DataSpec(folder=(str(data),), hold_out=1), network.scale)
    batches = Batches(source, recipe, seed, AugmentSpec(), network.channels, network.scale)
    batches.check([stage])
    chosen = found.top(ratio, budget=budget)
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
    parameters = int(found.table.sizes[chosen].sum())
    if as_json:
        say_json(
            {
                "output": str(output),
                "filters": len(chosen),
                "parameters": parameters,
                "first_loss": losses[0],
                "last_loss": losses[-1],
            }
        )
        return
    say(f"{len(chosen)} filters, {parameters} numbers; loss {losses[0]:.4g} -> {losses[-1]:.4g}")
    say(str(output))


@app.command()
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
    shares: Annotated[
        str,
        typer.Option(help="Shares of the target in the chosen filters: LOW:HIGH:COUNT, or a list by commas."),
    ] = "0:1.5:16",
    crop: Crop = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Restore an image with the discovered filters turned down and up, as one picture."""
    _free(output, overwrite)
    grid = _grid(shares)
    networks = _networks(backbone, params, base, target, device)

    from restorekit.analysis import protocols
    from restorekit.analysis.images import FilePairs
    from restorekit.datasets import Sample

    found = _scores([scores], networks[1])[0]
    # The image stands for a pair of a network that keeps the size: it is only read and cut.
    files = FilePairs((), networks[1].channels, 1, None, 0, crop)
    degraded = files.pair(Sample(image.name, image, image)).degraded
    outputs = protocols.modulate(
        networks[1], networks[0], found.table, found.top(ratio, budget=budget), degraded, grid
    )
    _save(protocols.strip(outputs, [f"{share:.3g}" for share in grid]), output, overwrite)


@app.command("map")
def draw_map(
    scores: ScoreFiles,
    output: Output,
    ratio: Ratio = 0.01,
    budget: Budget = "filters",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw where the highest filters lie: layers from left to right, a panel for each file."""
    _free(output, overwrite)
    from restorekit.analysis.protocols import distribution_map, distributions
    from restorekit.filters import FilterScores

    read = [FilterScores.load(path) for path in scores]
    if any(one.table != read[0].table for one in read):
        raise ConfigError("faig map", "the files are of different networks or units", "draw them apart")
    labels = [f"{one.label} ({one.method})" for one in read]
    if len(set(labels)) < len(labels):
        labels = [f"{label} {path.stem}" for label, path in zip(labels, scores, strict=True)]
    chosen = {label: one.top(ratio, budget=budget) for label, one in zip(labels, read, strict=True)}
    found = distributions(read[0].table, chosen)
    _save(distribution_map(read[0].table, chosen), output, overwrite, quiet=as_json)
    if as_json:
        say_json({label: {"depth": one.depth, "counts": dict(one.counts)} for label, one in found.items()})
        return
    cells: list[tuple[str, ...]] = [
        (label, str(len(chosen[label])), f"{one.depth:.2f}") for label, one in found.items()
    ]
    say(table(cells, ("SCORES", "FILTERS", "DEPTH (0 FIRST LAYER, 1 LAST)")))


@app.command()
def overlap(
    scores: ScoreFiles,
    base: Base,
    target: Target,
    data: Annotated[Path, typer.Option("--data", help="Folder of clean images.")],
    degrade: Annotated[
        list[str], typer.Option("--degrade", help="LABEL=RECIPE for each label of the scores; repeat it.")
    ],
    backbone: BackboneName = "",
    params: Params = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Degraded image to name; may be repeated.")
    ] = None,
    ratio: Ratio = 0.01,
    steps: Annotated[int, typer.Option(min=1, help="Gradients for each image.")] = 16,
    reference: Annotated[int, typer.Option(min=1, help="First images, whose mean scores are taken off.")] = 4,
    fit: Annotated[int, typer.Option(min=1, help="Next images, on which thresholds are fitted.")] = 8,
    seed: Seed = 0,
    crop: Crop = 0,
    limit: Limit = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Tell degradations by the filters an image excites; accuracy on the images left over."""
    recipes = dict(_labelled(text) for text in degrade)
    found = _dataset(data, "clean", next(iter(recipes.values())))
    networks = _networks(backbone, params, base, target, device)

    from restorekit.analysis import protocols
    from restorekit.analysis.images import FilePairs
    from restorekit.datasets import Sample
    from restorekit.degradations.spec import RecipeSpec

    discovered = {one.label: one for one in _scores(scores, networks[1])}
    if discovered.keys() != recipes.keys():
        raise ConfigError(
            "--degrade",
            f"labels are {', '.join(recipes)}, the scores are of {', '.join(discovered)}",
            "write LABEL=RECIPE for each label of the scores",
        )
    samples = found.samples[:limit]
    if len(samples) <= reference + fit:
        raise ConfigError(
            "--data",
            f"{len(samples)} images leave none to test beside {reference} for reference and {fit} to fit",
            "give more images, or lower --reference and --fit",
        )
    score = protocols.ImageScorer(*networks, next(iter(discovered.values())).table, steps=steps)
    kinds = {"": RecipeSpec.model_validate("clean"), **recipes}
    told: list[tuple[Any, set[str]]] = []
    with counting("images", len(samples) * len(kinds)) as done:
        for sample in samples:
            for label, recipe in kinds.items():
                files = FilePairs((sample,), networks[1].channels, networks[1].scale, recipe, seed, crop)
                told.append((score(files.pair(sample).degraded), {label} - {""}))
                done()
    first, second = reference * len(kinds), (reference + fit) * len(kinds)
    classifier = protocols.fit_overlap(
        discovered, [own for own, _ in told[:first]], told[first:second], ratio
    )
    accuracy = classifier.accuracy(told[second:])
    named: dict[str, Any] = {}
    for path in image or []:
        files = FilePairs((), networks[1].channels, 1, None, seed, crop)
        own = score(files.pair(Sample(path.name, path, path)).degraded)
        named[str(path)] = {
            "degradations": sorted(classifier.degradations(own)),
            "overlaps": classifier.overlaps(own),
        }
    tested = len(samples) - reference - fit
    if as_json:
        facts = {"accuracy": accuracy, "thresholds": dict(classifier.thresholds), "tested": tested}
        say_json({**facts, "images": named})
        return
    cells: list[tuple[str, ...]] = [
        (label, f"{classifier.thresholds[label]:.2f}", f"{accuracy[label]:.1%}") for label in discovered
    ]
    say(table(cells, ("DEGRADATION", "THRESHOLD", "BALANCED ACCURACY")))
    say(f"on {tested} images, each clean and with every degradation; {reference} reference, {fit} to fit")
    for name, facts in named.items():
        scored = ", ".join(f"{label} {value:.2f}" for label, value in facts["overlaps"].items())
        say(f"{name}: {', '.join(facts['degradations']) or 'none'} ({scored})")


@app.command()
def reproduce(
    config: Annotated[Path, typer.Argument(help="YAML file of the experiment, or its folder to resume.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the experiment.", show_default="runs/faig-NAME"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override, as KEY=VALUE; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was begun.")] = False,
    write: Annotated[
        Path | None, typer.Option("--write", help="Also put the figures between the markers of this page.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train, discover, mask, retrain, map and classify: the published experiment, tables beside its own."""
    from restorekit.analysis.experiment import ExperimentSpec

    folder = output or (config if config.is_dir() else Path("runs") / f"faig-{config.stem}")
    file = config / "config.yaml" if config.is_dir() else config
    spec = check(ExperimentSpec, with_settings(read_yaml(file), settings or []), file.name)

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from restorekit.analysis.page import render, write_between
    from restorekit.analysis.reproduce import reproduce as run
    from restorekit.runtime import tune_allocator

    tune_allocator()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task, doing = progress.add_task("begin", total=None), ""

        def report(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing:
                progress.reset(task, description=what)
                doing = what
            progress.update(task, completed=done, total=total or None)

        results = run(spec, folder, device, resume=resume, progress=report)
    if write:
        write_between(write, render(spec, results))
    if as_json:
        say_json(results)
        return
    say(str(folder / "page.md"))


def _free(path: Path, overwrite: bool) -> None:
    """Refuse an output that exists before anything is computed."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists", "add --overwrite, or change -o")
    ensure_writable(path.parent)


def _name(text: str) -> str:
    """Return what a degradation is called: the kind, or the name of its file."""
    return Path(text).stem if text.endswith((".yaml", ".yml")) else text.partition("/")[0]


def _labelled(text: str) -> tuple[str, RecipeSpec]:
    label, equals, recipe = text.partition("=")
    if not equals or not label:
        raise ConfigError(
            "--degrade", f"{text!r} has no label", "write LABEL=RECIPE, as noise=gaussian/severe"
        )
    return label, recipe_of(recipe)


def _dataset(data: Path, layout: str | None, recipe: RecipeSpec | None) -> Dataset:
    from restorekit import datasets

    found = datasets.find(data, "clean" if recipe else layout)
    note(str(found))
    return found


def _networks(
    backbone: str, params: list[str] | None, base: str, target: str, device: str
) -> tuple[Backbone, Backbone]:
    """Return baseline and target on the device."""
    pair = [
        _one_network(backbone, params, weights, where, device)[0]
        for where, weights in (("--base", base), ("--target", target))
    ]
    return pair[0], pair[1]


def _one_network(
    backbone: str, params: list[str] | None, weights: str, where: str, device: str
) -> tuple[Backbone, tuple[str, str]]:
    """Return a network on the device; and its name and the arguments of its constructor, for its metadata."""
    from restorekit.analysis.networks import load_backbone
    from restorekit.runtime import resolve_device, tune_allocator

    tune_allocator()
    given = dict(split_setting(text) for text in params or [])
    network, name, complete = load_backbone(backbone, given, weights, where)
    return network.to(resolve_device(device)), (name, json.dumps(complete))


def _pairs(
    found: Dataset, network: Backbone, recipe: RecipeSpec | None, seed: int, crop: int, limit: int | None
) -> FilePairs:
    from restorekit.analysis.images import FilePairs

    return FilePairs.of(found, network, recipe, seed=seed, crop=crop, limit=limit)


def _scores(paths: Sequence[Path], network: Backbone) -> list[FilterScores]:
    """Read scores and compare their filters with those of the network."""
    from restorekit.filters import FilterScores

    read = [FilterScores.load(path) for path in paths]
    own = {name: tuple(value.shape) for name, value in network.named_parameters()}
    for path, one in zip(paths, read, strict=True):
        wrong = [tensor for tensor in one.table if own.get(tensor.name) != tensor.shape]
        if wrong:
            raise ConfigError(
                str(path),
                f"its filters are of another network: {wrong[0].name} {wrong[0].shape}",
                "give the networks that the scores were made from",
            )
        if one.table != read[0].table:
            raise ConfigError(str(path), f"its filters are not those of {paths[0]}", "use one --unit")
    return read


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


def _grid(text: str) -> list[float]:
    try:
        if ":" in text:
            low, high, count = text.split(":")
            number = int(count)
            ends = float(low), float(high)
            return [ends[0] + (ends[1] - ends[0]) * step / max(1, number - 1) for step in range(number)]
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            "--shares", f"{text!r} is no grid", "write 0:1.5:16, or numbers with commas as 0,0.5,1"
        ) from error


def _save(picture: PIL.Image.Image, path: Path, overwrite: bool, quiet: bool = False) -> None:
    from restorekit.image import Image

    saved = Image.of(picture).save(path, overwrite=overwrite)
    if not quiet:
        say(str(saved))


@contextmanager
def _progress(label: str, method: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what is told how many gradients are done, shown as a bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{method} {label}", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)
