"""One seed of the experiment: a pair of networks, and the filters that each method finds in it.

What was trained, scored or measured lies in the seed's folder, and is not made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch

from restorekit.analysis.contrast import contrasted
from restorekit.analysis.experiment import LABELS, ExperimentSpec
from restorekit.analysis.galleries import Gallery
from restorekit.analysis.images import degraded_by
from restorekit.analysis.networks import load_backbone
from restorekit.analysis.pairs import Pair
from restorekit.analysis.protocols import eliminated
from restorekit.analysis.published import METHODS, SHARES_METHOD
from restorekit.analysis.rankers import Method, rank
from restorekit.analysis.result import FAIGResult
from restorekit.contracts import Backbone
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ConfigError
from restorekit.files import write_text
from restorekit.filterscores import FilterScores
from restorekit.training.folder import RunFolder, read_run
from restorekit.training.loop import prepare
from restorekit.training.spec import TrainSpec

# Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

# Filters for a degradation, by method.
Rankings = Mapping[str, Mapping[str, FilterScores]]


@dataclass(frozen=True)
class Trial:
    """What one seed of an experiment has to work with.

    Args:
        spec: the experiment.
        folder: where this seed's runs, scores and figures lie.
        seed: draws the networks' start, patches and degradations.
        scale: the scale of the network.
        device: of training, as it was asked for.
        where: of everything else.
        progress: told what is going on.
        galleries: clean photographs by what they are for.
    """

    spec: ExperimentSpec
    folder: Path
    seed: int
    scale: int
    device: str
    where: torch.device
    progress: Progress
    galleries: Mapping[str, Gallery]

    def networks(self, baseline: Path) -> tuple[Backbone, Backbone]:
        """Train what is not there yet, and return baseline and target.

        Args:
            baseline: folder of the baseline, which seeds may share.

        Raises:
            ConfigError: a folder holds what another config trained.
        """
        seed = self.spec.seeds[0] if self.spec.shared_baseline else self.seed
        base_run = self.spec.training("baseline", seed, self.scale, "")
        base_file = self._train("baseline", base_run, baseline)
        target_run = self.spec.training("target", self.seed, self.scale, str(base_file))
        target_file = self._train("target", target_run, self.folder / "target")
        return self._load(base_file), self._load(target_file)

    def rankings(self, base: Backbone, target: Backbone) -> Rankings:
        """Score what is not scored yet, by every method, and return all of it.

        Raises:
            WeightsError: the scores that lie there are of other weights.
        """
        images = self.galleries["discovery"]
        found: dict[str, dict[str, FilterScores]] = {}
        folder = self.folder / "scores"
        folder.mkdir(parents=True, exist_ok=True)
        for method in METHODS:
            own = found.setdefault(method, {})
            for label in LABELS:
                path = folder / f"{method}-{label}.safetensors"
                if not path.exists():
                    self._rank(method, label, base, target, self.inputs(label, images), path)
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

    def recipe(self, label: str) -> RecipeSpec:
        """Return how images of a kind are degraded."""
        return RecipeSpec.model_validate(self.spec.recipe(label, self.scale))

    def inputs(self, label: str, images: Gallery) -> list[Pair]:
        """Return degraded images of a kind beside the clean ones."""
        recipe = self.recipe(label)
        return [
            Pair(degraded_by(recipe, clean, self.scale, self.seed, name)[None], clean[None], name)
            for name, clean in images
        ]

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return figures that were measured before, or measure them."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            self.tell(name, 0, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(make(), indent=2) + "\n")
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def tell(self, what: str, done: int, total: int) -> None:
        """Say how far this seed has come with something."""
        self.progress(f"seed {self.seed}: {what}", done, total)

    def _train(self, what: str, run: TrainSpec, folder: Path) -> Path:
        """Return the weights of a training run, which is begun, gone on with, or done already."""
        files = RunFolder(folder)
        if files.weights.exists():
            found = read_run(folder).spec
            if found.model_dump(mode="json") != run.model_dump(mode="json"):
                raise ConfigError(str(folder), "was trained by another config", "use another folder with -o")
            return files.weights

        def report(step: int, row: dict[str, float]) -> None:
            self.tell(what, step, run.steps)

        return prepare(run, folder, self.device, resume=files.in_use).train(report)

    def _load(self, weights: Path) -> Backbone:
        component = self.spec.backbone
        return load_backbone(component.name, component.params, str(weights))[0].to(self.where)

    def _eliminated(
        self, base: Backbone, target: Backbone, found: Mapping[str, FilterScores], images: Gallery
    ) -> dict[str, FilterScores]:
        """Return FAIG in shares, by the weights that masking says; they are kept with the scores."""
        folder = self.folder / "scores"
        paths = {label: folder / f"{SHARES_METHOD}-{label}.safetensors" for label in LABELS}
        if not all(path.exists() for path in paths.values()):
            shown = {label: [pair.degraded for pair in self.inputs(label, images)] for label in LABELS}
            total, steps = sum(map(len, shown.values())), count(1)

            def report() -> None:
                self.tell("weights of shares", next(steps), total)

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
            self.tell(f"{method} {label}", done, total)

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
