"""What is measured with a seed's networks and their filters: the claims of the FAIG paper, one by one."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from restorekit.analysis.experiment import LABELS, ExperimentSpec
from restorekit.analysis.galleries import Gallery
from restorekit.analysis.images import degraded_by
from restorekit.analysis.pairs import restored
from restorekit.analysis.protocols import (
    SHARES,
    ImageScorer,
    distribution_map,
    distributions,
    fit_overlap,
    mask_drops,
    modulate,
    retrain,
    strip,
)
from restorekit.analysis.protocols.substitution import METRICS
from restorekit.analysis.published import SHARES_METHOD
from restorekit.analysis.result import FAIGResult
from restorekit.analysis.trial import Rankings, Trial
from restorekit.contracts import Backbone
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ImageError
from restorekit.filters import FilterTable
from restorekit.image import Image
from restorekit.training.data import Batches, load_source
from restorekit.training.spec import AugmentSpec, StageSpec


@dataclass(frozen=True)
class Findings:
    """Everything that is measured with one pair of networks.

    Args:
        trial: what the seed has to work with.
        base: the baseline.
        target: what it became by fine-tuning.
        rankings: the filters of each degradation, by method.
    """

    trial: Trial
    base: Backbone
    target: Backbone
    rankings: Rankings

    def figures(self) -> dict[str, Any]:
        """Measure what was not measured before, draw the pictures, and return all figures."""
        spec, kept, faig = self.trial.spec, self.trial.kept, self.rankings["faig"]
        shown = self.trial.galleries["evaluation"]
        completeness = {label: cast(FAIGResult, one).completeness for label, one in faig.items()}
        figures = {
            "quality": kept("quality", lambda: self._quality(shown)),
            "completeness": {label: one.error for label, one in completeness.items()},
            "unattributed": {label: one.unattributed for label, one in completeness.items()},
            "masking": kept("masking", lambda: self._masking(shown)),
            "retraining": self._retraining(shown),
            "overlap": kept("overlap", lambda: self._overlap(self.trial.galleries["overlap"])),
            "distribution": self._distribution(),
            "blur_order": kept("blur-order", lambda: {"psnr": blur_order(spec, self.trial.scale, shown)}),
        }
        if spec.shares_weight == "masking":
            figures["weights"] = {
                label: one.details["minus"]["weight"] for label, one in self.rankings[SHARES_METHOD].items()
            }
        self._strip(self.trial.galleries["drawn"])
        return figures

    @property
    def _table(self) -> FilterTable:
        """All of the network's filters, which every ranking shares."""
        return self.rankings["faig"][LABELS[0]].table

    def _quality(self, images: Gallery) -> dict[str, Any]:
        return {
            name: {label: self._psnr_of(network, label, images) for label in ("clean", *LABELS)}
            for name, network in (("baseline", self.base), ("target", self.target))
        }

    def _psnr_of(self, network: Backbone, label: str, images: Gallery) -> float:
        figures = []
        with torch.no_grad():
            for pair in self.trial.inputs(label, images):
                figures.append(_psnr(restored(network, pair.degraded.to(self.trial.where)).cpu(), pair.clean))
        return statistics.fmean(figures)

    def _masking(self, images: Gallery) -> dict[str, Any]:
        """Return metric -> ratio -> input -> filters for -> method -> change of outputs, in thousandths."""
        choices = {
            (f"{ratio:g}", label, method): self.rankings[method][label].top(ratio, budget="filters")
            for ratio in self.trial.spec.ratios
            for label in LABELS
            for method in self.rankings
        }
        found: dict[str, Any] = {}
        for shown in LABELS:
            inputs = [pair.degraded for pair in self.trial.inputs(shown, images)]
            drops = mask_drops(self.target, self.base, self._table, choices, inputs, METRICS)
            for (ratio, label, method), row in drops.items():
                for metric, drop in row.items():
                    place = found.setdefault(metric, {}).setdefault(ratio, {}).setdefault(shown, {})
                    place.setdefault(label, {})[method] = drop.mean
        return found

    def _retraining(self, images: Gallery) -> dict[str, Any]:
        """Return filters for -> method -> input -> PSNR; each network is a file of its own."""
        return {
            label: {
                method: self.trial.kept(
                    f"retraining-{label}-{method}",
                    partial(self._retrained, method, label, images),
                )
                for method in self.rankings
            }
            for label in LABELS
        }

    def _retrained(self, method: str, label: str, images: Gallery) -> dict[str, Any]:
        trial, spec = self.trial, self.trial.spec
        fit = spec.retrain
        scores = self.rankings[method][label]
        stage = StageSpec(steps=fit.steps, patch=fit.patch, batch=fit.batch)
        source = load_source(spec.data, trial.scale)
        batches = Batches(
            source, trial.recipe(label), trial.seed, AugmentSpec(), self.base.channels, trial.scale
        )
        network = retrain(
            self.base,
            scores.table,
            scores.top(spec.retrain_ratio, budget="filters"),
            lambda step: batches.batch(step, stage).pair,
            steps=fit.steps,
            lr=fit.lr,
            progress=lambda step, loss: trial.tell(f"{label} by {method} retrained", step, fit.steps),
        )
        return {shown: self._psnr_of(network, shown, images) for shown in LABELS}

    def _overlap(self, images: Gallery) -> dict[str, Any]:
        settings = self.trial.spec.overlap
        score = ImageScorer(self.base, self.target, self._table, steps=settings.steps)
        tested = len(images) - settings.fit
        if tested < 1:
            raise ImageError(
                f"{len(images)} images leave none to classify beside {settings.fit} to fit",
                "name a folder with more images under overlap.images",
            )
        told: list[tuple[Tensor, set[str]]] = []
        for index, image in enumerate(images):
            for label in ("clean", *LABELS):
                (pair,) = self.trial.inputs(label, [image])
                told.append((score(pair.degraded), {label} - {"clean"}))
            self.trial.tell("overlap", index + 1, len(images))
        found: dict[str, Any] = {"tested": tested}
        for among, kept in (("degraded", [one for one in told if one[1]]), ("all", told)):
            of_one = len(kept) // len(images)
            for ratio in self.trial.spec.ratios:
                fitted = fit_overlap(self.rankings["faig"], kept[: settings.fit * of_one], ratio)
                found.setdefault(among, {})[str(ratio)] = {
                    "accuracy": fitted.accuracy(kept[settings.fit * of_one :]),
                    "thresholds": dict(fitted.thresholds),
                }
        return found

    def _distribution(self) -> dict[str, Any]:
        ratio = self.trial.spec.ratios[0]
        chosen = {label: one.top(ratio, budget="filters") for label, one in self.rankings["faig"].items()}
        picture = distribution_map(self._table, chosen)
        Image.of(picture).save(self.trial.folder / "map.png", overwrite=True)
        return {label: {"depth": one.depth} for label, one in distributions(self._table, chosen).items()}

    def _strip(self, images: Gallery) -> None:
        for label in LABELS:
            scores = self.rankings["faig"][label]
            degraded = self.trial.inputs(label, images[:1])[0].degraded
            filters = scores.top(self.trial.spec.ratios[0], budget="filters")
            outputs = modulate(self.target, self.base, scores.table, filters, degraded, SHARES)
            picture = strip(outputs, [f"{share:g}" for share in SHARES])
            Image.of(picture).save(self.trial.folder / f"modulation-{label}.png", overwrite=True)


def blur_order(spec: ExperimentSpec, scale: int, images: Gallery) -> float:
    """Return how far apart blurring before and after the reduction are: PSNR in dB of one to the other."""
    before = {"name": "gaussian_blur", "std": spec.blur_std}
    chain = [before, {"name": "downscale", "factor": scale}] if scale > 1 else [before]
    paper = RecipeSpec.model_validate({"chain": chain})
    ours = RecipeSpec.model_validate(spec.recipe("blur", scale))
    return statistics.fmean(
        _psnr(*(degraded_by(recipe, clean, scale, 0, name)[None] for recipe in (ours, paper)))
        for name, clean in images
    )


def _psnr(one: Tensor, other: Tensor) -> float:
    """Return the PSNR in dB of RGB images in 8 bits."""
    levels = [(image.clamp(0, 1) * 255).round() for image in (one, other)]
    error = float((levels[0] - levels[1]).square().mean()) / 255**2
    return -10 * float(torch.tensor(error).clamp(min=1e-10).log10())
