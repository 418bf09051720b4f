"""What a step of training computes, counted."""

import torch
from torch import nn
from training_cases import Seeing, install

from restorekit.contracts import Backbone
from restorekit.experiments.compute import cost_of
from restorekit.registry import backbones, refiners
from restorekit.training.trainee import RefinerTrainee


class Sparing(Backbone):
    """Takes a way of fewer operations where nothing is to be learned."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, degraded):
        return self.conv(degraded) if torch.is_grad_enabled() else degraded * self.conv.weight.mean()


def test_trained_parts_cost_three_times_their_forward_pass_and_a_prior_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path)))
    parts = refiners["touch"].load()(3), Seeing(), backbones["learner"].load()()
    # Multiplications and additions: a convolution of 3 x 3, one of 1 x 1, and a layer; of 3 channels all.
    backbone, prior, refiner = (2 * 3 * count for count in (27 * 16**2, 3 * 16**2, 3 * 16**2 + 3))
    joint = cost_of(RefinerTrainee(*parts, joint=True), 16)
    assert (joint.refined, joint.alone) == (3 * (backbone + refiner) + prior, 3 * backbone)
    frozen = cost_of(RefinerTrainee(*parts), 16)
    assert (frozen.refined, frozen.alone) == (backbone + 3 * refiner + prior, 3 * backbone)


def test_compute_is_that_of_training(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path)))
    cost = cost_of(RefinerTrainee(refiners["touch"].load()(3), Seeing(), Sparing(), joint=True), 16)
    assert cost.alone == 3 * 2 * 3 * 27 * 16**2
