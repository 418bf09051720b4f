"""What a run resumes from: one safetensors file, written whole or not at all.

One file for weights, average and optimizer, so that a run killed between two writes has no halves that do not
belong together; and no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from restorekit.errors import TrainingError
from restorekit.files import replacing

_STATE = "restorekit.run"


@dataclass
class Progress:
    """How far a run has come, beside its tensors.

    Attributes:
        step: steps that are done.
        rows: of the curve.
        loss_sum: of the steps since the last row.
        loss_count: how many these are.
        best: the best validation so far, in dB.
        best_step: when it was.
    """

    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_count: int = 0
    best: float | None = None
    best_step: int = 0


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors to a safetensors file; when that fails, the file that was there stays.

    Raises:
        TrainingError: it cannot be written, for example because the disk is full.
    """
    # Tensors may share memory and be laid out channels last; the format allows neither.
    separate = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with writing(path) as temporary:
        save_file(separate, temporary, dict(facts))


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is moved to ``path``.

    Raises:
        TrainingError: it cannot be written.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    # The second is what the library makes of the first.
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TrainingError(
            f"{path} cannot be written: {reason}",
            "make room; what was saved before is intact, go on with --resume",
        ) from error


def save(path: Path, state: Mapping[str, Mapping[str, Tensor]], progress: Progress) -> None:
    """Write a checkpoint: tensors by group (weights, average, optimizer), and the progress.

    Raises:
        TrainingError: it cannot be written; the previous one is intact.
    """
    tensors = {f"{group}/{name}": value for group, own in state.items() for name, value in own.items()}
    save_tensors(path, tensors, {_STATE: json.dumps(vars(progress))})


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], Progress]:
    """Return the tensors of a checkpoint by group (weights, average, optimizer), and its progress.

    Raises:
        TrainingError: it is not there, or damaged.
    """
    if not path.exists():
        raise TrainingError(f"{path} does not exist, nothing to resume", "start without --resume")
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "average": {}, "optimizer": {}}
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                group, _, name = key.partition("/")
                groups[group][name] = file.get_tensor(key)
        return groups, Progress(**json.loads(facts[_STATE]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{path} is no checkpoint of a run: {error}", "start again in another folder with -o"
        ) from error


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the state that an optimizer keeps of each parameter, as ``moment/parameter``."""
    return {
        f"{moment}/{name}": value
        for name, parameter in names.items()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """Put back what ``optimizer_state`` returned.

    Raises:
        ValueError: a parameter is unknown, or of another shape.
    """
    for key, value in state.items():
        moment, _, name = key.partition("/")
        parameter = names.get(name)
        counted = moment == "step"
        if parameter is None or (value.shape != parameter.shape and not counted):
            raise ValueError(f"the checkpoint has {moment} of {name!r}, which does not fit")
        own: dict[str, Any] = optimizer.state[parameter]
        # Step counts stay on the CPU; moments get the layout of their parameter, as they had before.
        own[moment] = value if counted else torch.empty_like(parameter).copy_(value)
