"""Figures and pictures for TensorBoard, where it is asked for."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from restorekit.errors import TrainingError
from restorekit.training.curve import Row


class Board:
    """Writes event files beside the run.

    Args:
        folder: for the files.
        step: that the run goes on from; what an earlier session wrote beyond it is hidden.

    Raises:
        TrainingError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                "tensorboard is not installed", "pip install tensorboard, or write tensorboard: false"
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)  # type: ignore[no-untyped-call,unused-ignore]

    def write(self, row: Row, picture: Tensor | None) -> None:
        """Write a row of the curve, and the picture of the same validation."""
        step = int(row["step"])
        for name, value in row.items():
            if name not in ("step", "seconds"):
                self._writer.add_scalar(name.replace("_", "/", 1), value, step)  # type: ignore[no-untyped-call,unused-ignore]
        if picture is not None:
            self._writer.add_image("validation", picture, step)  # type: ignore[no-untyped-call,unused-ignore]
        self._writer.flush()  # type: ignore[no-untyped-call,unused-ignore]

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()  # type: ignore[no-untyped-call,unused-ignore]
