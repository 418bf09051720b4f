"""Trained weights as files that a pipeline loads: they name their component and its arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from restorekit.catalog import COMPONENT_KEY, PARAMS_KEY, PRIOR_KEY, PRIOR_MEAN_KEY
from restorekit.contracts import Adapter
from restorekit.plan import Part
from restorekit.training.checkpoint import save_tensors
from restorekit.training.folder import part_files
from restorekit.training.trainee import RefinerTrainee, Trainee


def export(trainee: Trainee, parts: Mapping[str, Part], path: Path, *, step: int, half: bool) -> None:
    """Write the parts that are trained: the first to ``path``, each other beside it with its name.

    Args:
        trainee: holds the weights.
        parts: its components by their key in the config.
        path: ends in ``.safetensors``.
        step: that the weights are of.
        half: store in 16 bits what fits into them: half the size, and no figure moves.

    Raises:
        TrainingError: a file cannot be written.
    """
    # The first file says that the run is done, so it comes last.
    for name, file in reversed(part_files(path, trainee.parts).items()):
        part = parts[name]
        facts = {COMPONENT_KEY: part.entry.name, "restorekit.kind": part.kind, "steps": str(step)}
        module, params = trainee.parts[name], part.params
        if isinstance(module, Adapter):
            params = dict(module.file_arguments(params))
            facts |= module.file_facts()
        if params:
            facts[PARAMS_KEY] = json.dumps(params)
        if isinstance(trainee, RefinerTrainee) and name == "refiner":
            prior = {"name": parts["prior"].entry.name, "params": parts["prior"].params}
            if trainee.prior.fingerprint:
                prior["fingerprint"] = trainee.prior.fingerprint
            facts[PRIOR_KEY] = json.dumps(prior)
            if trainee.seen:
                facts[PRIOR_MEAN_KEY] = json.dumps([float(f"{value:.7g}") for value in trainee.mean.tolist()])
        tensors = module.state_dict()
        save_tensors(file, {key: _halved(value) if half else value for key, value in tensors.items()}, facts)


def _halved(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    small = value.to(torch.float16)
    return small if bool(small.isfinite().all()) else value
