"""From an ``AdaptiveSpec`` to its jobs: unified model, specialists, filters, deltas, classifier, table.

The stages are ADMS's (Park, Lee, Chun, CVPR 2023), whose schedules are not published: every one is a choice
of the file that is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from restorekit.analysis import attribute
from restorekit.contracts import Backbone
from restorekit.degradations.spec import RecipeSpec
from restorekit.experiments.jobs import Job, Report
from restorekit.experiments.spec import AdaptiveSpec
from restorekit.pipeline import build
from restorekit.training.build import find_parts
from restorekit.training.data import Batches, load_source
from restorekit.training.spec import StageSpec, TrainSpec

# Adds up with the seed of the experiment, so that the windows of discovery are not those of the first step.
_DISCOVERY = 1_000_003


@dataclass(frozen=True)
class Discovery(Job):
    """FAIG from a unified model to a specialist.

    Attributes:
        name: what messages call it.
        label: the degradation.
        base: config whose weights are the unified model's; its data are what windows are cut from.
        target: the same with the specialist's.
        degradation: what windows suffer.
        settings: the rest.
        file: of the scores.
        method: what ranks the filters: faig, delta or random.
        device: where it runs.
    """

    name: str
    label: str
    base: TrainSpec
    target: TrainSpec
    degradation: RecipeSpec
    spec: AdaptiveSpec
    file: Path
    device: str = "auto"

    @property
    def result(self) -> Path:
        """The scores."""
        return self.file

    def run(self, report: Report) -> None:
        """Attribute; what was done of it is kept when it is killed."""
        settings = self.spec.discovery
        base, target = (_backbone(spec) for spec in (self.base, self.target))
        batches = Batches(
            load_source(self.base.data, base.scale), self.degradation, self.spec.seed + _DISCOVERY
        )
        window = StageSpec(steps=1, patch=settings.patch, batch=settings.images)
        degraded, clean = batches.batch(0, window)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        attribute(
            base,
            target,
            list(zip(degraded, clean, strict=True)),
            label=self.label,
            rule=settings.rule,
            steps=settings.steps,
            device=self.device,
            checkpoint=self.file.with_suffix(".part"),
            progress=report,
        ).save(self.file)


def _backbone(spec: TrainSpec) -> Backbone:
    backbone = build(find_parts(spec)["backbone"])
    assert isinstance(backbone, Backbone)
    return backbone
