"""One process or several that train one network together; the loop sees no difference.

Several processes are started by ``accelerate launch`` or ``torchrun``, and what they do together is left to
accelerate. It is imported in no other case: one process needs none of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from restorekit.errors import TrainingError
from restorekit.training.spec import TrainSpec
from restorekit.training.trainee import Trainee

if TYPE_CHECKING:
    from accelerate import Accelerator

# Where launchers say how many processes there are: torchrun and accelerate; MPI in its flavours.
_COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# Seconds that gloo's threads have to put away the last thing that was said. They outlive the process group
# where there was DistributedDataParallel, need the interpreter for it, and abort a process that is ending
# (PyTorch's issue 190489): once in some sixty trainings on a busy machine.
_PARTING = 0.5


class Processes:
    """A single process.

    Attributes:
        rank: number of this process, from 0; the first writes the files.
        count: how many there are.
        device: where this one trains.
    """

    rank = 0
    count = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, trainee: Trainee) -> nn.Module:
        """Return what is called in place of the trainee, so that gradients become those of all processes."""
        return trainee

    def backward(self, loss: Tensor) -> None:
        """Add up gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def gathering(self, network: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Put off what the processes tell each other until the last part of a batch."""
        return nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a scalar over the processes."""
        return value

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process do this before the others: they find its files."""
        yield

    def finish(self) -> None:
        """Wait for the others and part from them."""

    def check(self, spec: TrainSpec) -> None:
        """Look whether the batches of every stage can be shared evenly.

        Raises:
            TrainingError: they cannot.
        """
        for index, stage in enumerate(spec.stages):
            if stage.batch % (self.count * spec.accumulate):
                raise TrainingError(
                    f"stages[{index}]: a batch of {stage.batch} cannot be shared by {self.count} processes"
                    + (f" in {spec.accumulate} parts" if spec.accumulate > 1 else ""),
                    f"make it a multiple of {self.count * spec.accumulate}",
                )

    def share(self, batch: Tensor) -> Tensor:
        """Return what this process takes of a batch (B, ...)."""
        return batch.chunk(self.count)[self.rank]


class Accelerated(Processes):
    """One of several processes, through accelerate.

    Args:
        accelerator: set up by what launched the processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(accelerator.device)
        self.rank, self.count = accelerator.process_index, accelerator.num_processes
        self._accelerator = accelerator

    def prepare(self, trainee: Trainee) -> nn.Module:
        """Wrap the trainee; the optimizer needs nothing, as gradients are averaged on their way."""
        return cast(nn.Module, self._accelerator.prepare_model(trainee))

    def backward(self, loss: Tensor) -> None:
        """Add up gradients, averaged over the processes."""
        self._accelerator.backward(loss)

    def gathering(self, network: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Average gradients with the last part of a batch only."""
        return nullcontext() if last else self._accelerator.no_sync(network)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a scalar over the processes."""
        return cast(Tensor, self._accelerator.reduce(value, "mean"))

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process go before the others."""
        with self._accelerator.main_process_first():
            yield

    def finish(self) -> None:
        """Wait for the others and part from them."""
        self._accelerator.wait_for_everyone()
        self._accelerator.end_training()
        time.sleep(_PARTING)


def processes(device: torch.device) -> Processes:
    """Return this process, or this one among those that a launcher started.

    Raises:
        TrainingError: there are several and accelerate is not installed.
    """
    count = max(int(os.environ.get(name, "1")) for name in _COUNTS)
    if count == 1:
        return Processes(device)
    try:
        from accelerate import Accelerator
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"{count} processes were started, and accelerate is not installed",
            "install it: pip install 'restorekit[train]'",
        ) from error
    return Accelerated(Accelerator(cpu=device.type == "cpu"))
