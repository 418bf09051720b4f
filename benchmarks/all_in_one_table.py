"""The table of README and model card: the preset all-in-one on what it was made for, the denoiser beside it.

$ python benchmarks/all_in_one_table.py --data CBSD68 --write README.md CARD

The cards are plugins/zoo/restorekit_zoo/files/nafnet-all-in-one.md and adms-all-in-one.md. Images are
degraded as the config of the training says, each drawn by a seed and its own name; a single row is
`restorekit eval -p all-in-one --data CBSD68 --degrade RECIPE`. Each file of --write gets the table between
the lines `<!-- all-in-one: begin -->` and `<!-- all-in-one: end -->`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from restorekit import Pipeline, datasets, load_pipeline, restore
from restorekit.config import check, read_yaml
from restorekit.datasets import Sample
from restorekit.degradations.spec import RecipeSpec
from restorekit.evaluation.protocols import find_protocol
from restorekit.evaluation.run import Report, by_recipe, evaluate
from restorekit.experiments.spec import AdaptiveSpec
from restorekit.files import Marks
from restorekit.runtime import tune_allocator

CLEAN = "clean"


def restorer(
    pipeline: Pipeline, verdicts: list[str]
) -> Callable[[NDArray[np.float32]], NDArray[np.floating]]:
    """Return what restores by a pipeline, and notes what each image was found to suffer from."""

    def act(degraded: NDArray[np.float32]) -> NDArray[np.floating]:
        result = restore(degraded, pipeline, tile=0, return_result=True)
        if result.verdict:
            verdicts.append(result.verdict.kind)
        restored: NDArray[np.floating] = result.to_numpy()
        return restored

    return act


def measured(
    pipeline: Pipeline, samples: Sequence[Sample], recipe: RecipeSpec | None, seed: int
) -> tuple[Report, list[str]]:
    """Return a report on images degraded by a recipe, on clean ones without, and the verdicts."""
    verdicts: list[str] = []
    law = find_protocol("paired-rgb" if recipe else "clean-identity-rgb")
    degrader = by_recipe(recipe, seed) if recipe else None
    return evaluate(restorer(pipeline, verdicts), samples, law, {}, degrader=degrader), verdicts


def main() -> None:
    """Measure, print the table, and write it where it is asked for."""
    parser = argparse.ArgumentParser(description="Table of the preset all-in-one")
    parser.add_argument("--data", type=Path, required=True, help="folder of clean images, CBSD68")
    parser.add_argument("--config", type=Path, default=Path("configs/adapt/all-in-one.yaml"))
    parser.add_argument("--pipeline", default="all-in-one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--write", type=Path, nargs="*", default=[], help="files that hold the two marks")
    arguments = parser.parse_args()
    places = [Marks(path, "all-in-one") for path in arguments.write]
    spec = check(AdaptiveSpec, read_yaml(arguments.config), arguments.config.name)
    tune_allocator()
    samples = datasets.find(arguments.data, CLEAN).samples[: arguments.limit]
    denoise, all_in_one = load_pipeline("denoise"), load_pipeline(arguments.pipeline)
    rows = ["| input | degraded | `denoise` | `all-in-one` | found |", "|---|---:|---:|---:|---:|"]
    seconds: list[float] = []
    for name, recipe in track([*spec.degradations.items(), (CLEAN, None)], "measuring"):
        beside, _ = measured(denoise, samples, recipe, arguments.seed)
        report, verdicts = measured(all_in_one, samples, recipe, arguments.seed)
        before = f"{statistics.fmean(report.degraded['psnr']):.2f}" if recipe else "-"
        right = statistics.fmean(verdict == name for verdict in verdicts)
        figures = " | ".join(f"{each.mean('psnr'):.2f}" for each in (beside, report))
        rows.append(f"| {name} | {before} | {figures} | {right:.0%} |")
        seconds += report.seconds
        data = report.dataset_sha256[:16]
    checkpoints = [part.checkpoint for step in all_in_one.steps for part in step.parts if part.checkpoint]
    used = ", ".join(f"`{each.name}` (sha256 `{each.sha256}`)" for each in checkpoints)
    about = (
        f"PSNR in dB, mean over {len(samples)} images ({arguments.data.name}), whole images, RGB, 8-bit, "
        f"degraded by {arguments.config.name} with seed {arguments.seed}; protocol `paired-rgb`, clean: "
        f"`clean-identity-rgb`. Found: of how many images the classifier names the degradation. Median "
        f"{statistics.median(seconds):.2f} s an image on {all_in_one.device}. Weights {used}; data sha256 "
        f"`{data}`."
    )
    table = "\n".join([*rows, "", about])
    print(table)
    for place in places:
        place.write(table)


if __name__ == "__main__":
    main()
