"""``restorekit eval`` and ``restorekit average``: figures of a pipeline by a named protocol."""

from __future__ import annotations

import csv
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restorekit.cli.output import (
    AsJson,
    Device,
    LicensePolicy,
    Offline,
    Precision,
    counting,
    download_progress,
    note,
    say,
    say_json,
    table,
)
from restorekit.config import PipelineSpec, check, one_step, read_yaml, split_setting
from restorekit.errors import ConfigError, ImageError
from restorekit.files import ensure_writable, replacing, write_text

if TYPE_CHECKING:
    from restorekit.datasets import Dataset
    from restorekit.degradations.spec import RecipeSpec

_LIBRARIES = ("restorekit", "torch", "numpy", "pillow")


def evaluate(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of clean images, or of pairs as input/ and target/."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Instead, a test set of the literature by name.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder that holds the test sets. Also by RESTOREKIT_DATA_DIR.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="DEGRADED:CLEAN, two folders; or clean, to leave pairs aside.")
    ] = None,
    pipeline: Annotated[
        str, typer.Option("-p", "--pipeline", help="Name of a preset, or a YAML file.")
    ] = "auto",
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="One backbone instead, as NAME or NAME/WEIGHTS.")
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="How to degrade and to measure.",
            show_default="the dataset's, else restormer-gaussian-color, or paired-rgb for pairs",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Setting of the protocol, or STEP.PARAM=VALUE of the pipeline."),
    ] = None,
    degradation: Annotated[
        str | None,
        typer.Option(
            "--degrade", help="Degrade clean images by KIND, KIND/STRENGTH or a recipe in a YAML file."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --degrade, with a file's name.")] = 0,
    metrics: Annotated[
        list[str] | None, typer.Option("--metric", help="Measure this too: lpips, dists, pyiqa:NAME ...")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write a line an image to this file.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", help="Write one page with pictures to slide over.")
    ] = None,
    html_images: Annotated[int, typer.Option(min=1, help="How many images the page shows.")] = 24,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first images only.")] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Keep what priors say of the images in this folder, for the next evaluation."),
    ] = None,
    device: Device = "auto",
    dtype: Precision = "auto",
    tile: Annotated[int, typer.Option("-t", "--tile", help="0 for whole images, or pixels.")] = 0,
    license_policy: LicensePolicy = None,
    offline: Offline = None,
    as_json: AsJson = False,
) -> None:
    """Restore the images of a dataset, and print the mean figures with the protocol's name."""
    from restorekit.evaluation.protocols import find_protocol

    recipe = None if degradation is None else recipe_of(degradation)
    found, chosen = _dataset(data, dataset, data_root, "clean" if recipe else layout, protocol)
    if recipe and protocol is None and dataset is None:
        chosen = "paired-rgb"
    law = find_protocol(chosen)
    if recipe and law.ignores_pairs:
        raise ConfigError("--degrade", f"protocol {chosen} degrades by itself", "leave one of them out")
    given = settings or []
    numbers = law.with_settings(
        dict(split_setting(text) for text in given if "." not in text.partition("=")[0])
    )
    steps = [text for text in given if "." in text.partition("=")[0]]
    spec = PipelineSpec.load(one_step(model) if model else pipeline, steps)
    if law.degrade is None and not found.paired and not recipe:
        raise ImageError(
            f"protocol {law.name} needs pairs of degraded and clean images, and {found.folder} holds none",
            "give a folder with both, as input/ and target/, or --degrade",
        )
    if found.unpaired:
        raise ImageError(
            f"{len(found.unpaired)} files have no partner, the first is {found.unpaired[0]}",
            "remove them, or name the two folders with --layout",
        )
    for path in (csv_file, html_file):
        if path:
            ensure_writable(path.parent)
    note(str(found))
    samples = found.samples[:limit]

    from restorekit.api import restore
    from restorekit.cache import downloads
    from restorekit.evaluation.learned import find_metrics
    from restorekit.evaluation.page import Page
    from restorekit.evaluation.run import Outcome, by_recipe
    from restorekit.evaluation.run import evaluate as run
    from restorekit.pipeline import Pipeline
    from restorekit.runtime import tune_allocator

    tune_allocator()
    more = find_metrics(metrics or [])
    with download_progress(show=not as_json) as downloading:
        chain = Pipeline.build(
            spec,
            device,
            dtype,
            license_policy=license_policy,
            offline=offline,
            downloading=downloading,
            features=features,
        )
    page = Page(html_images) if html_file else None
    # Learned metrics find their files when the first image is measured.
    with downloads(offline=offline), counting(chosen, len(samples)) as done:

        def report(outcome: Outcome) -> None:
            if page:
                page.add(outcome)
            done()

        measured = run(
            lambda degraded: restore(degraded, chain, tile=tile),
            samples,
            law,
            numbers,
            report,
            more,
            by_recipe(recipe, seed) if recipe else None,
        )
    checkpoints = [part.checkpoint for step in chain.steps for part in step.parts if part.checkpoint]
    facts: dict[str, Any] = {
        **measured.facts(),
        "pipeline": model or pipeline,
        "dataset": found.folder.name,
        "layout": found.layout,
        **({"degradation": recipe.model_dump(mode="json"), "seed": seed} if recipe else {}),
        "weights_sha256": {checkpoint.name: checkpoint.sha256 for checkpoint in checkpoints},
        "priors": {step.guide.name: step.guide.fingerprint for step in chain.steps if step.guide},
        "tile": tile,
        "device": str(chain.device),
        "dtype": str(chain.dtype).removeprefix("torch."),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    }
    if csv_file:
        _write_csv(csv_file, facts["per_image"])
    if page and html_file:
        write_text(html_file, page.render(facts))
    if as_json:
        say_json(facts)
        return
    cells: list[tuple[str, ...]] = [
        (metric, _shown(facts["degraded"].get(metric)), _shown(facts[metric])) for metric in measured.figures
    ]
    say(table(cells, ("METRIC", "DEGRADED", "RESTORED")))
    spelled = "".join(f" {name}={value:g}" for name, value in numbers.items())
    say(f"pipeline {model or pipeline}, protocol {chosen}{spelled}, {len(samples)} images of {found.folder}")


def average(
    reports: Annotated[list[Path], typer.Argument(help="JSON files of `restorekit eval --json`.")],
    as_json: AsJson = False,
) -> None:
    """Print the mean of the means of several datasets; of one protocol with the same settings only."""
    from restorekit.evaluation.run import average as mean_of
    from restorekit.evaluation.run import read_report

    means = mean_of([read_report(path) for path in reports])
    if as_json:
        say_json(means)
        return
    metrics = [name for name in means if name not in ("protocol", "settings", "datasets")]
    say(table([(name, _shown(means[name])) for name in metrics], ("METRIC", "MEAN OF DATASETS")))
    spelled = "".join(f" {name}={value:g}" for name, value in means["settings"].items())
    say(f"protocol {means['protocol']}{spelled}, {means['datasets']} datasets")


def protocols(as_json: AsJson = False) -> None:
    """List the protocols: how each degrades and measures, whose habit it is, and its settings."""
    from restorekit.evaluation.protocols import PROTOCOLS

    if as_json:
        say_json(
            [
                {
                    "name": each.name,
                    "summary": each.summary,
                    "source": each.source,
                    "metrics": list(each.metrics),
                    "settings": dict(each.settings),
                    "needs_pairs": each.degrade is None,
                }
                for each in PROTOCOLS.values()
            ]
        )
        return
    for each in PROTOCOLS.values():
        spelled = "".join(f" {name}={value:g}" for name, value in each.settings.items())
        say(f"{each.name}{spelled}\n  {each.summary}\n  {each.source}")


def _dataset(
    data: Path | None, dataset: str | None, root: Path | None, layout: str | None, protocol: str | None
) -> tuple[Dataset, str]:
    """Return what is to be restored, and the name of the protocol."""
    from restorekit import datasets

    if (data is None) == (dataset is None):
        raise ConfigError("eval", "needs either --data or --dataset", "give a folder with --data")
    if data is not None:
        found = datasets.find(data, layout)
        return found, protocol or ("paired-rgb" if found.paired else "restormer-gaussian-color")
    assert dataset is not None
    found = datasets.find(datasets.find_named(dataset, root), layout)
    known = datasets.named(dataset)
    if len(found.samples) != known.images:
        note(
            f"{dataset} has {len(found.samples)} of {known.images} images here: published figures are of all"
        )
    return found, protocol or known.protocol


def recipe_of(text: str) -> RecipeSpec:
    """Return the recipe that `--degrade` names: KIND, KIND/STRENGTH or a YAML file."""
    from restorekit.degradations.spec import RecipeSpec

    if text.endswith((".yaml", ".yml")):
        return check(RecipeSpec, read_yaml(Path(text)), text)
    kind, _, strength = text.partition("/")
    return check(RecipeSpec, {"name": kind, "strength": strength or "medium"}, f"--degrade {text}")


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _shown(value: float | None) -> str:
    """A missing figure is that of an unchanged image, or of one that has another size."""
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) >= 2 else f"{value:.4f}"
