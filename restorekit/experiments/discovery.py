"""Scores of filters between a unified model and a specialist, as a job of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restorekit.analysis import rank
from restorekit.analysis.rankers import Method
from restorekit.building import build
from restorekit.contracts import Backbone
from restorekit.degradations.spec import RecipeSpec
from restorekit.experiments.jobs import Job, Report
from restorekit.experiments.spec import DiscoverySpec
from restorekit.experiments.trainings import can_cut
from restorekit.filters import Unit
from restorekit.runtime import resolve_device
from restorekit.training.build import find_parts
from restorekit.training.data import Batches, load_source
from restorekit.training.spec import AugmentSpec, StageSpec, TrainSpec

# Added to the seed, so that the windows of discovery are those of no step of training.
_DISCOVERY = 1_000_003


@dataclass(frozen=True)
class Discovery(Job):
    """Scores of filters between a unified model and a specialist.

    Attributes:
        name: what messages call it.
        label: the degradation.
        base: config whose weights are the unified model's; windows are cut from its data.
        target: config whose weights are the specialist's.
        degradation: what windows suffer.
        settings: how many windows, and the path.
        method: what ranks the filters.
        file: of the scores.
        device: where it runs.
        unit: what counts as one filter.
    """

    name: str
    label: str
    base: TrainSpec
    target: TrainSpec
    degradation: RecipeSpec
    settings: DiscoverySpec
    method: Method
    file: Path
    device: str = "auto"
    unit: Unit = "kernel"

    @property
    def result(self) -> Path:
        """The scores."""
        return self.file

    @property
    def asked(self) -> Mapping[str, Any]:
        """What is found how, in which windows."""
        # Scores of before units could be chosen state none, and are of kernels.
        unit = {} if self.unit == "kernel" else {"unit": self.unit}
        return {
            **unit,
            "method": self.method,
            "seed": self.base.seed,
            "discovery": self.settings.model_dump(mode="json"),
            "degradation": self.degradation.model_dump(mode="json"),
            "scales": list(self.base.data.scales),
            "hold_out": self.base.data.hold_out,
        }

    @property
    def told(self) -> object:
        """Both networks; they name weights."""
        return [spec.backbone.model_dump(mode="json") for spec in (self.base, self.target)]

    @property
    def is_begun(self) -> bool:
        """Whether some windows are attributed."""
        return self._unfinished.exists() or self.file.exists()

    @property
    def _unfinished(self) -> Path:
        return self.file.with_suffix(".unfinished.safetensors")

    def check(self) -> None:
        """Cut a window."""
        if not self.file.exists():
            can_cut(self.base, [self._window])

    @property
    def _window(self) -> StageSpec:
        return StageSpec(steps=1, patch=self.settings.patch, batch=self.settings.images)

    def run(self, report: Report) -> None:
        """Rank; what was attributed of it is kept when it is killed."""
        base, target = (_backbone(spec) for spec in (self.base, self.target))
        source = load_source(self.base.data, base.scale)
        seed, augment = self.base.seed + _DISCOVERY, AugmentSpec()
        batches = Batches(source, self.degradation, seed, augment, base.channels, base.scale)
        pairs = zip(*batches.batch(0, self._window).pair, strict=True)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        rank(
            self.method,
            base,
            target,
            list(pairs),
            label=self.label,
            rule=self.settings.rule,
            steps=self.settings.steps,
            unit=self.unit,
            device=resolve_device(self.device),
            checkpoint=self._unfinished,
            progress=report,
        ).save(self.file)
        self._unfinished.unlink(missing_ok=True)


def _backbone(spec: TrainSpec) -> Backbone:
    backbone = build(find_parts(spec)["backbone"])
    assert isinstance(backbone, Backbone)
    return backbone
