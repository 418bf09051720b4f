"""Which stage and which learning rate a step has."""

from __future__ import annotations

import math

from restorekit.training.spec import OptimizerSpec, StageSpec


def stage_at(stages: tuple[StageSpec, ...], step: int) -> StageSpec:
    """Return the stage that a step (from 0) belongs to."""
    for stage in stages:
        if step < stage.steps:
            return stage
        step -= stage.steps
    return stages[-1]


def learning_rate(settings: OptimizerSpec, step: int, steps: int) -> float:
    """Return the rate of a step (from 0): linear warm-up, then half a cosine down to ``min_lr``."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, steps - settings.warmup)
    return settings.min_lr + (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * progress)) / 2
