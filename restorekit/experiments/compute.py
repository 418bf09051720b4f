"""How many steps of a backbone alone cost what a run with its refiner costs.

Counted are the operations of convolutions and matrix products, as torch counts them: not time, which hangs
on the machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from restorekit.errors import TrainingError
from restorekit.experiments.jobs import Job, Report
from restorekit.files import write_text
from restorekit.training.build import build_networks
from restorekit.training.spec import StageSpec, TrainSpec
from restorekit.training.trainee import RefinerTrainee

# A backward pass takes the gradient of what came in and that of the weights: each as much as the way forward.
_TRAINED = 3


@dataclass(frozen=True)
class Cost:
    """Operations of one step of training for one patch.

    Attributes:
        refined: of backbone, prior and refiner.
        alone: of the backbone, trained by itself.
    """

    refined: int
    alone: int


@dataclass(frozen=True)
class Compute(Job):
    """Steps of the backbone alone for the compute of a run with a refiner, stage by stage.

    Attributes:
        name: what messages call it.
        spec: config of the run; its backbone's weights are there when this runs.
        file: of the result, JSON.
    """

    name: str
    spec: TrainSpec
    file: Path

    @property
    def result(self) -> Path:
        """The file."""
        return self.file

    @property
    def told(self) -> object:
        """The config; it names weights."""
        return self.spec.model_dump(mode="json")

    @property
    def reads(self) -> Iterable[Path]:
        """Nothing: operations are counted whatever the values."""
        return ()

    def check(self) -> None:
        """Compare what was counted already with what is asked."""
        if self.file.exists() and json.loads(self.file.read_text(encoding="utf-8"))["of"] != self._of:
            raise TrainingError(
                f"{self.file} was counted for another config",
                "name another folder with -o, or remove that file and what was trained by it",
            )

    def run(self, report: Report) -> None:
        """Count a step of each stage."""
        trainee = build_networks(self.spec).trainee
        assert isinstance(trainee, RefinerTrainee)
        costs = [self._cost(trainee, stage) for stage in self.spec.stages]
        pairs = list(zip(self.spec.stages, costs, strict=True))
        refined = sum(stage.steps * stage.batch * cost.refined for stage, cost in pairs)
        alone = sum(stage.steps * stage.batch * cost.alone for stage, cost in pairs)
        facts = {
            "steps": [max(1, round(stage.steps * cost.refined / cost.alone)) for stage, cost in pairs],
            "ratio": refined / alone,
            "operations": [vars(cost) for cost in costs],
            "of": self._of,
        }
        write_text(self.file, json.dumps(facts, indent=1) + "\n")

    def _cost(self, trainee: RefinerTrainee, stage: StageSpec) -> Cost:
        if stage.context == "whole":
            raise TrainingError(
                "photographs differ in size, and so does what their prior costs, which is to be counted",
                "give stages.context as a number of pixels, or leave out longer",
            )
        return cost_of(trainee, stage.patch, stage.window)

    @property
    def _of(self) -> dict[str, Any]:
        """What the count depends on, as a file would hold it."""
        facts = self.spec.model_dump(
            mode="json", include={"backbone", "refiner", "prior", "trained", "stages"}
        )
        return {**facts, "backbone": {**facts["backbone"], "weights": None}}


def cost_of(trainee: RefinerTrainee, side: int, window: int | None = None) -> Cost:
    """Return what a step costs for one square patch, of a window of which the prior is asked.

    Trained parts take three times their forward pass, frozen ones their forward pass alone.

    Raises:
        TrainingError: the backbone has no convolution and no matrix product.
    """
    weight = next(trainee.refiner.parameters())
    patch = weight.new_full((1, trainee.channels, side, side), 0.5)
    described = weight.new_full((1, 3, window or side, window or side), 0.5)
    prior = _operations(lambda: trainee.prior(described))
    # Of the patch the prior is asked here too, but that is not what is counted.
    small = _operations(lambda: trainee.prior(patch[:, :1].expand(-1, 3, -1, -1)))
    whole = _operations(lambda: trainee(patch)) - small + prior
    backbone = trainee.backbone
    trained = _operations(lambda: backbone.training_outputs(patch))
    frozen = prior if trainee.joint else prior + _operations(lambda: backbone(patch))
    if not trained:
        raise TrainingError(
            f"{type(backbone).__name__} has nothing whose operations are counted", "leave out longer"
        )
    return Cost(_TRAINED * (whole - frozen) + frozen, _TRAINED * trained)


def _operations(act: Callable[[], object]) -> int:
    # With gradients, as in training: without them a refiner may choose a way of fewer multiplications.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        act()
    return int(counter.get_total_flops())
