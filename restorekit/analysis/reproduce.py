"""The experiment of the FAIG paper from one file: train, discover, mask, retrain, map, classify, modulate.

What a seed found lies in its folder, so that an interrupted experiment goes on where it was. What stands on
the page is page.py, what is published is published.py.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import Tensor

from restorekit.analysis.contrast import contrasted
from restorekit.analysis.experiment import LABELS, ExperimentSpec
from restorekit.analysis.galleries import Gallery, galleries_of
from restorekit.analysis.images import degraded_by
from restorekit.analysis.networks import load_backbone
from restorekit.analysis.page import render
from restorekit.analysis.pairs import Pair, restored
from restorekit.analysis.protocols import (
    SHARES,
    ImageScorer,
    distribution_map,
    distributions,
    eliminated,
    fit_overlap,
    mask_drops,
    modulate,
    retrain,
    strip,
)
from restorekit.analysis.protocols.substitution import METRICS
from restorekit.analysis.published import METHODS, SHARES_METHOD
from restorekit.analysis.rankers import Method, rank
from restorekit.analysis.result import FAIGResult
from restorekit.building import construct
from restorekit.config import check, read_yaml
from restorekit.contracts import Backbone
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ConfigError, ImageError, OutputError
from restorekit.files import ensure_writable, replacing
from restorekit.filterscores import FilterScores
from restorekit.image import Image
from restorekit.runtime import resolve_device
from restorekit.training.build import find_parts
from restorekit.training.data import Batches, load_source
from restorekit.training.folder import RunFolder, read_run
from restorekit.training.loop import prepare
from restorekit.training.spec import AugmentSpec, StageSpec, TrainSpec

# Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

# Filters for a degradation, by method.
Rankings = Mapping[str, Mapping[str, FilterScores]]


def reproduce(
    spec: ExperimentSpec,
    folder: Path,
    device: str = "auto",
    *,
    resume: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Run the experiment and return its figures; ``results.json``, ``page.md`` and pictures tell the same.

    Args:
        spec: what to do, at what size.
        folder: where everything goes.
        device: auto, cpu, cuda, cuda:N or mps.
        resume: go on with an experiment that was begun there.
        progress: told what is going on.

    Raises:
        OutputError: the folder holds an experiment already.
        ConfigError: it was begun with another config.
        RestoreKitError: what training or a protocol refuses.
    """
    _begin(spec, folder, resume)
    where = resolve_device(device)
    scale = _scale(spec)
    # Before any training: a missing folder should not cost hours.
    galleries = galleries_of(spec, scale)
    seeds = []
    for seed in spec.seeds:
        run = _Seed(spec, folder / f"seed-{seed}", seed, scale, device, where, progress, galleries)
        base = folder / f"seed-{spec.seeds[0] if spec.shared_baseline else seed}" / "baseline"
        seeds.append(run.figures(base))
    results = {
        "experiment": spec.model_dump(mode="json"),
        "seeds": dict(zip(map(str, spec.seeds), seeds, strict=True)),
        "summary": summary(seeds),
        "device": str(where),
    }
    _write(folder / "results.json", json.dumps(results, indent=2) + "\n")
    _write(folder / "page.md", render(spec, results, f"seed-{spec.seeds[0]}/"))
    return results


def summary(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and sample deviation over seeds of every figure, in the same tree as one seed's."""
    first = seeds[0]
    found: dict[str, Any] = {}
    for key, value in first.items():
        values = [seed[key] for seed in seeds]
        if isinstance(value, Mapping):
            found[key] = summary(values)
        elif isinstance(value, (int, float)):
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            found[key] = {"mean": statistics.fmean(values), "deviation": deviation}
    return found


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


@dataclass(frozen=True)
class _Seed:
    """One pair of networks and everything that is measured with them."""

    spec: ExperimentSpec
    folder: Path
    seed: int
    scale: int
    device: str
    where: torch.device
    progress: Progress
    galleries: Mapping[str, Gallery]

    def figures(self, baseline: Path) -> dict[str, Any]:
        spec = self.spec
        base_run = spec.training("baseline", self._seed_of(baseline), self.scale, "")
        base_file = self._train("baseline", base_run, baseline)
        target_run = spec.training("target", self.seed, self.scale, str(base_file))
        target_file = self._train("target", target_run, self.folder / "target")
        base, target = (self._load(file) for file in (base_file, target_file))
        galleries = self.galleries
        rankings = self._rankings(base, target, galleries["discovery"])
        figures = {
            "quality": self._kept("quality", lambda: self._quality(base, target, galleries["evaluation"])),
            "completeness": {
                label: cast(FAIGResult, one).completeness.error for label, one in rankings["faig"].items()
            },
            "unattributed": {
                label: cast(FAIGResult, one).completeness.unattributed
                for label, one in rankings["faig"].items()
            },
            "masking": self._kept(
                "masking", lambda: self._masking(base, target, rankings, galleries["evaluation"])
            ),
            "retraining": self._retraining(base, rankings, galleries["evaluation"]),
            "overlap": self._kept(
                "overlap", lambda: self._overlap(base, target, rankings, galleries["overlap"])
            ),
            "distribution": self._distribution(rankings),
            "blur_order": self._kept(
                "blur-order", lambda: {"psnr": blur_order(spec, self.scale, galleries["evaluation"])}
            ),
        }
        if spec.shares_weight == "masking":
            figures["weights"] = {
                label: one.details["minus"]["weight"] for label, one in rankings[SHARES_METHOD].items()
            }
        self._strip(base, target, rankings, galleries["drawn"])
        return figures

    def _seed_of(self, baseline: Path) -> int:
        return self.spec.seeds[0] if self.spec.shared_baseline else self.seed

    def _train(self, what: str, run: TrainSpec, folder: Path) -> Path:
        """Return the weights of a training run, which is begun, gone on with, or done already."""
        files = RunFolder(folder)
        if files.weights.exists():
            found = read_run(folder).spec
            if found.model_dump(mode="json") != run.model_dump(mode="json"):
                raise ConfigError(str(folder), "was trained by another config", "use another folder with -o")
            return files.weights

        def report(step: int, row: dict[str, float]) -> None:
            self.progress(f"seed {self.seed}: {what}", step, run.steps)

        return prepare(run, folder, self.device, resume=files.in_use).train(report)

    def _load(self, weights: Path) -> Backbone:
        component = self.spec.backbone
        return load_backbone(component.name, component.params, str(weights))[0].to(self.where)

    def _recipe(self, label: str) -> RecipeSpec:
        return RecipeSpec.model_validate(self.spec.recipe(label, self.scale))

    def _inputs(self, label: str, images: Gallery) -> list[Pair]:
        recipe = self._recipe(label)
        return [
            Pair(degraded_by(recipe, clean, self.scale, self.seed, name)[None], clean[None], name)
            for name, clean in images
        ]

    def _kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return figures that were measured before, or measure them."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            self.progress(f"seed {self.seed}: {name}", 0, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, json.dumps(make(), indent=2) + "\n")
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def _rankings(self, base: Backbone, target: Backbone, images: Gallery) -> Rankings:
        found: dict[str, dict[str, FilterScores]] = {}
        folder = self.folder / "scores"
        folder.mkdir(parents=True, exist_ok=True)
        for method in METHODS:
            own = found.setdefault(method, {})
            for label in LABELS:
                path = folder / f"{method}-{label}.safetensors"
                if not path.exists():
                    self._rank(method, label, base, target, self._inputs(label, images), path)
                own[label] = FAIGResult.load(path) if method == "faig" else FilterScores.load(path)
                # Weights that were trained again elsewhere are others: what lies there is not theirs.
                own[label].check_base(base.state_dict(), f"the baseline of {self.folder}")
        # Only FAIG eliminates what matters for both; the others rank as they were compared in the paper.
        rankings = {**found, "faig": contrasted(found["faig"])}
        weight = self.spec.shares_weight
        if weight == "masking":
            rankings[SHARES_METHOD] = self._eliminated(base, target, found["faig"], images)
        elif weight:
            rankings[SHARES_METHOD] = contrasted(found["faig"], shares=True, weight=weight)
        return rankings

    def _eliminated(
        self, base: Backbone, target: Backbone, found: Mapping[str, FilterScores], images: Gallery
    ) -> dict[str, FilterScores]:
        """Return FAIG in shares, by the weights that masking says; they are kept with the scores."""
        folder = self.folder / "scores"
        paths = {label: folder / f"{SHARES_METHOD}-{label}.safetensors" for label in LABELS}
        if not all(path.exists() for path in paths.values()):
            shown = {label: [pair.degraded for pair in self._inputs(label, images)] for label in LABELS}
            total, steps = sum(map(len, shown.values())), count(1)

            def report() -> None:
                self.progress(f"seed {self.seed}: weights of shares", next(steps), total)

            ratios = self.spec.ratios
            own = eliminated(target, base, found, shown, ratios=ratios, metric="release", progress=report)
            for label, path in paths.items():
                own[label].save(path)
        kept = {label: FilterScores.load(path) for label, path in paths.items()}
        for scores in kept.values():
            scores.check_base(base.state_dict(), f"the baseline of {self.folder}")
        return kept

    def _rank(
        self, method: str, label: str, base: Backbone, target: Backbone, pairs: Sequence[Pair], path: Path
    ) -> None:
        def report(done: int, total: int) -> None:
            self.progress(f"seed {self.seed}: {method} {label}", done, total)

        unfinished = path.with_suffix(".partial")
        scores = rank(
            cast(Method, method),
            base,
            target,
            pairs,
            label=label,
            rule=self.spec.rule,
            steps=self.spec.steps,
            seed=self.seed,
            progress=report,
            checkpoint=unfinished,
        )
        scores.save(path)
        unfinished.unlink(missing_ok=True)

    def _quality(self, base: Backbone, target: Backbone, images: Gallery) -> dict[str, Any]:
        return {
            name: {label: self._psnr_of(network, label, images) for label in ("clean", *LABELS)}
            for name, network in (("baseline", base), ("target", target))
        }

    def _psnr_of(self, network: Backbone, label: str, images: Gallery) -> float:
        figures = []
        with torch.no_grad():
            for pair in self._inputs(label, images):
                figures.append(_psnr(restored(network, pair.degraded.to(self.where)).cpu(), pair.clean))
        return statistics.fmean(figures)

    def _masking(
        self, base: Backbone, target: Backbone, rankings: Rankings, images: Gallery
    ) -> dict[str, Any]:
        """Return metric -> ratio -> input -> filters for -> method -> change of outputs, in thousandths."""
        table = rankings["faig"][LABELS[0]].table
        choices = {
            (f"{ratio:g}", label, method): rankings[method][label].top(ratio, budget="filters")
            for ratio in self.spec.ratios
            for label in LABELS
            for method in rankings
        }
        found: dict[str, Any] = {}
        for shown in LABELS:
            inputs = [pair.degraded for pair in self._inputs(shown, images)]
            drops = mask_drops(target, base, table, choices, inputs, METRICS)
            for (ratio, label, method), row in drops.items():
                for metric, drop in row.items():
                    place = found.setdefault(metric, {}).setdefault(ratio, {}).setdefault(shown, {})
                    place.setdefault(label, {})[method] = drop.mean
        return found

    def _retraining(self, base: Backbone, rankings: Rankings, images: Gallery) -> dict[str, Any]:
        """Return filters for -> method -> input -> PSNR; each network is a file of its own."""
        return {
            label: {
                method: self._kept(
                    f"retraining-{label}-{method}",
                    partial(self._retrained, base, rankings, method, label, images),
                )
                for method in rankings
            }
            for label in LABELS
        }

    def _retrained(
        self,
        base: Backbone,
        rankings: Rankings,
        method: str,
        label: str,
        images: Gallery,
    ) -> dict[str, Any]:
        fit = self.spec.retrain
        scores = rankings[method][label]
        stage = StageSpec(steps=fit.steps, patch=fit.patch, batch=fit.batch)
        source = load_source(self.spec.data, self.scale)
        batches = Batches(source, self._recipe(label), self.seed, AugmentSpec(), base.channels, self.scale)
        network = retrain(
            base,
            scores.table,
            scores.top(self.spec.retrain_ratio, budget="filters"),
            lambda step: batches.batch(step, stage).pair,
            steps=fit.steps,
            lr=fit.lr,
            progress=lambda step, loss: self.progress(
                f"seed {self.seed}: {label} by {method} retrained", step, fit.steps
            ),
        )
        return {shown: self._psnr_of(network, shown, images) for shown in LABELS}

    def _overlap(
        self, base: Backbone, target: Backbone, rankings: Rankings, images: Gallery
    ) -> dict[str, Any]:
        settings = self.spec.overlap
        score = ImageScorer(base, target, rankings["faig"][LABELS[0]].table, steps=settings.steps)
        tested = len(images) - settings.fit
        if tested < 1:
            raise ImageError(
                f"{len(images)} images leave none to classify beside {settings.fit} to fit",
                "name a folder with more images under overlap.images",
            )
        told: list[tuple[Tensor, set[str]]] = []
        for index, image in enumerate(images):
            for label in ("clean", *LABELS):
                (pair,) = self._inputs(label, [image])
                told.append((score(pair.degraded), {label} - {"clean"}))
            self.progress(f"seed {self.seed}: overlap", index + 1, len(images))
        found: dict[str, Any] = {"tested": tested}
        for among, kept in (("degraded", [one for one in told if one[1]]), ("all", told)):
            of_one = len(kept) // len(images)
            for ratio in self.spec.ratios:
                fitted = fit_overlap(rankings["faig"], kept[: settings.fit * of_one], ratio)
                found.setdefault(among, {})[str(ratio)] = {
                    "accuracy": fitted.accuracy(kept[settings.fit * of_one :]),
                    "thresholds": dict(fitted.thresholds),
                }
        return found

    def _distribution(self, rankings: Rankings) -> dict[str, Any]:
        ratio = self.spec.ratios[0]
        chosen = {label: one.top(ratio, budget="filters") for label, one in rankings["faig"].items()}
        table = rankings["faig"][LABELS[0]].table
        picture = distribution_map(table, chosen)
        Image.of(picture).save(self.folder / "map.png", overwrite=True)
        return {label: {"depth": one.depth} for label, one in distributions(table, chosen).items()}

    def _strip(self, base: Backbone, target: Backbone, rankings: Rankings, images: Gallery) -> None:
        for label in LABELS:
            scores = rankings["faig"][label]
            degraded = self._inputs(label, images[:1])[0].degraded
            filters = scores.top(self.spec.ratios[0], budget="filters")
            outputs = modulate(target, base, scores.table, filters, degraded, SHARES)
            picture = strip(outputs, [f"{share:g}" for share in SHARES])
            Image.of(picture).save(self.folder / f"modulation-{label}.png", overwrite=True)


def _begin(spec: ExperimentSpec, folder: Path, resume: bool) -> None:
    config = folder / "config.yaml"
    if config.exists():
        if not resume:
            raise OutputError(
                f"{folder} holds an experiment already",
                "add --resume to go on, or name another folder with -o",
            )
        begun = check(ExperimentSpec, read_yaml(config), str(config))
        changed = [key for key in type(spec).model_fields if getattr(begun, key) != getattr(spec, key)]
        # More seeds, or other words about it, change nothing that was found.
        if set(changed) - {"seeds", "description"} or (changed and spec.seeds[0] != begun.seeds[0]):
            raise ConfigError(
                str(config), f"was begun with other {', '.join(changed)}", "name another folder with -o"
            )
    ensure_writable(folder)
    text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    _write(config, text)


def _scale(spec: ExperimentSpec) -> int:
    """Return the scale of the network; it is built without memory."""
    part = find_parts(spec.training("baseline", 0, 1, ""))["backbone"]
    with torch.device("meta"):
        return cast(Backbone, construct(part)).scale


def _psnr(one: Tensor, other: Tensor) -> float:
    """Return the PSNR in dB of RGB images in 8 bits."""
    levels = [(image.clamp(0, 1) * 255).round() for image in (one, other)]
    error = float((levels[0] - levels[1]).square().mean()) / 255**2
    return -10 * float(torch.tensor(error).clamp(min=1e-10).log10())


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
