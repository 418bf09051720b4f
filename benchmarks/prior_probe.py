"""What priors know of a backbone's errors that the backbone does not know itself.

For an experiment of `restorekit refine` whose backbone is trained: how much of what the backbone leaves wrong
in a window can be read from what a prior says of it, linearly? Two things are read: the mean error of each
channel, which one vector for the whole window could put right, and the decibels that it came to, which say
how much is to be done. Printed is the share of their variance that is explained in photographs that the
reading was not fitted on (R^2 of ridge regression, folds by photograph, below 0 where the mean is the better
guess): of each prior alone, and beside means and deviations of the backbone's own deepest features. A refiner
sees the restored image and can form such features; a prior helps by what it adds.
Run: `python benchmarks/prior_probe.py configs/refine/ptgrm.yaml --task denoising [--windows 12]`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restorekit.building import build
from restorekit.cli.experiment import read
from restorekit.contracts import Backbone, Prior
from restorekit.experiments.refinedspec import RefinedSpec
from restorekit.training.build import find_parts
from restorekit.training.data import degrade, load_source, to_channels

Table = NDArray[np.float64]
SIDE, FOLDS = 128, 5
# How strongly coefficients are held back, in units of the largest one that data have anything to say to.
PENALTIES = 10.0 ** np.arange(-6, 1)
BACKBONE = "the backbone's own features"


def explained(features: Table, wanted: Table, groups: NDArray[np.int64]) -> float:
    """Return R^2 of a linear reading on groups that it was not fitted on, mean over what is wanted.

    Args:
        features: (N, F).
        wanted: (N, T).
        groups: (N,), which rows are of one photograph.
    """
    error = np.zeros(wanted.shape[1])
    for fold in range(FOLDS):
        left_out = groups % FOLDS == fold
        fitted = _ridge(features[~left_out], wanted[~left_out])
        error += ((wanted[left_out] - fitted(features[left_out])) ** 2).sum(0)
    return float(1 - (error / ((wanted - wanted.mean(0)) ** 2).sum(0)).mean())


def _ridge(features: Table, wanted: Table) -> Any:
    """Fit, with the penalty of the smallest generalised cross-validation error (Golub et al. 1979)."""
    middle, spread, offset = features.mean(0), features.std(0) + 1e-8, wanted.mean(0)
    u, s, vt = np.linalg.svd((features - middle) / spread, full_matrices=False)
    within = u.T @ (wanted - offset)

    def loss(penalty: float) -> float:
        kept = s**2 / (s**2 + penalty * s[0] ** 2)
        residual = wanted - offset - u @ (kept[:, None] * within)
        return float((residual**2).mean() / (1 - (kept.sum() + 1) / len(features)) ** 2)

    penalty = min(PENALTIES, key=loss)
    weights = vt.T @ ((s / (s**2 + penalty * s[0] ** 2))[:, None] * within)
    return lambda other: (other - middle) / spread @ weights + offset


def vector(prior: Prior, image: Tensor) -> Table:
    """(1, 3, H, W) -> what a prior says of it (F,)."""
    return prior.guidance(image).glob[0].double().numpy()


def moments(backbone: Backbone, image: Tensor) -> Table:
    """(1, 3, H, W) -> means and deviations of the deepest features (2 F,)."""
    latent = backbone.encode(image)[0][0]
    return torch.cat([latent.mean((1, 2)), latent.std((1, 2))]).double().numpy()


@torch.inference_mode()
def main() -> None:
    """Print a line for each prior."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--folder", type=Path, help="of the experiment's runs; by default runs/NAME")
    parser.add_argument("--set", action="append", help="of the config, as rows.other={prior: {...}}")
    parser.add_argument("--windows", type=int, default=12, help="of each photograph")
    given = parser.parse_args()
    spec = read(RefinedSpec, given.config, given.set)
    if given.task not in spec.tasks:
        parser.error(f"no task is called {given.task!r}; tasks: {', '.join(spec.tasks)}")
    if spec.base is None:
        parser.error("it trains no backbone: give a config with base, as configs/refine/ptgrm.yaml")
    folder = given.folder or Path("runs") / given.config.stem
    trained = {
        **spec.backbone.model_dump(),
        "weights": str(folder / given.task / "base" / "weights.safetensors"),
    }
    run = spec.run("base", given.task, backbone=trained)
    backbone = build(find_parts(run)["backbone"])
    assert isinstance(backbone, Backbone) and run.noise is not None
    asked: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for key, row in spec.rows_of(given.task).items():
        # Rows may share a prior, which is asked once.
        asked.setdefault(row.prior.model_dump_json(), (row.title or key, row.prior.model_dump()))
    priors = {name: _prior(spec, given.task, trained, prior) for name, prior in asked.values()}

    said: dict[str, list[Table]] = {name: [] for name in (BACKBONE, *priors)}
    wrong: list[Table] = []
    groups: list[int] = []
    random, noise = np.random.default_rng(spec.seed), torch.Generator().manual_seed(spec.seed)
    source = load_source(run.data)
    for group, photograph in enumerate(source.files()):
        pixels = source.whole(photograph).clean
        for _ in range(given.windows):
            # Reduced by two: as sharp as those of the training are on average.
            top, left = (int(random.integers(length - 2 * SIDE + 1)) for length in pixels.shape[:2])
            window = to_channels(pixels[top : top + 2 * SIDE, left : left + 2 * SIDE], 3)[None]
            clean = torch.nn.functional.avg_pool2d(window, 2)
            degraded = degrade(clean[0], run.noise, random, noise)[0][None]
            error = clean - backbone(degraded)
            decibels = -10 * error.square().mean().log10()
            wrong.append(np.array([*error.mean((0, 2, 3)).tolist(), float(decibels)]))
            groups.append(group)
            said[BACKBONE].append(moments(backbone, degraded))
            for name, prior in priors.items():
                said[name].append(vector(prior, degraded))
    _print({name: np.stack(rows) for name, rows in said.items()}, np.stack(wrong), np.array(groups))


def _prior(spec: RefinedSpec, task: str, backbone: Mapping[str, Any], prior: Mapping[str, Any]) -> Prior:
    run = spec.run("refined", task, backbone=backbone, refiner=spec.refiner.model_dump(), prior=prior)
    built = build(find_parts(run)["prior"])
    assert isinstance(built, Prior)
    return built


def _print(said: Mapping[str, Table], wrong: Table, groups: NDArray[np.int64]) -> None:
    own = said[BACKBONE]
    print(f"{len(groups)} windows of {len(set(groups.tolist()))} photographs; share of variance explained")
    print("| read from | values | mean error | with the backbone's | decibels | with the backbone's |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, features in said.items():
        cells = [name, str(features.shape[1])]
        for wanted in (wrong[:, :3], wrong[:, 3:]):
            alone = explained(features, wanted, groups)
            both = "" if name == BACKBONE else f"{explained(np.hstack([own, features]), wanted, groups):.2f}"
            cells += [f"{alone:.2f}", both]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
