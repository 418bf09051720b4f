"""Which part of PTG-RM's correction gains what: the mask, or the residual.

For a run of `restorekit train` or of `restorekit refine` with PTG-RM behind a backbone, on clean images that
suffer what the run was trained for, or noise of one strength: PSNR of the backbone's image, of the refined
one, and of what eq. 1 makes of the mask alone and of the residual alone, as means over images, with the mean
of the mask and its deviation over pixels. PSNR is of whole images, 8-bit, RGB.
Run: `python benchmarks/ptgrm_parts.py RUN --data FOLDER [--sigma 25]`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restorekit import Pipeline
from restorekit.config import PipelineSpec
from restorekit.datasets import find
from restorekit.degradations.spec import RecipeSpec
from restorekit.evaluation.metrics import psnr
from restorekit.image import Image
from restorekit.training.data import degrade
from restorekit.training.folder import read_run


def levels(image: Tensor) -> Any:
    """(C, H, W) in [0, 1] -> (H, W, C) in 8-bit levels, rounded."""
    return image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()


def main() -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--data", type=Path, required=True, help="folder of clean images")
    parser.add_argument("--sigma", type=float, help="of noise, in 8-bit levels; by default as in training")
    parser.add_argument("--limit", type=int, help="use the first images only")
    given = parser.parse_args()
    print("| run | backbone | refined | mask alone | residual alone | mask, mean | mask, deviation |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for run in given.runs:
        figures = np.mean([*_of_images(run, given)], 0)
        cells = [f"{value:.2f}" for value in figures[:4]] + [f"{value:.3f}" for value in figures[4:]]
        print(f"| {run} | {' | '.join(cells)} |", flush=True)


def _of_images(folder: Path, given: argparse.Namespace) -> Any:
    run = read_run(folder)
    recipe = run.spec.noise
    if given.sigma is not None:
        noisy = {"name": "gaussian", "sigma": given.sigma}
        recipe = RecipeSpec.model_validate({"chain": [noisy, {"name": "quantisation"}]})
    assert recipe is not None and run.spec.refiner is not None and run.spec.prior is not None
    weights = run.others.get("backbone", run.spec.backbone.weights)
    restore = {**run.spec.backbone.model_dump(), "weights": str(weights)}
    alone = Pipeline.build(PipelineSpec.parse({"steps": [{"restore": restore}]}))
    refine = {
        "name": run.spec.refiner.name,
        "weights": str(run.weights),
        "prior": run.spec.prior.model_dump(),
    }
    whole = Pipeline.build(PipelineSpec.parse({"steps": [{"restore": restore}, {"refine": refine}]}))
    random, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for sample in find(given.data, "clean").samples[: given.limit]:
        clean = Image.of(sample.clean).pixels
        degraded = degrade(clean, recipe, random, noise)[0]
        restored = alone(Image.of(degraded)).image.pixels
        refined, looks = whole.look(Image.of(degraded))
        *_, maps = looks.values()
        mask, residual = maps["I_m"][0], maps["I_r"][0]
        masked = torch.lerp(degraded, restored, mask)
        images = (restored, refined.pixels, masked, restored + residual)
        yield [*(psnr(levels(clean), levels(image), 255.0) for image in images), mask.mean(), mask.std()]


if __name__ == "__main__":
    main()
