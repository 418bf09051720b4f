"""Runs local operations strip by strip, so that wide maps never exist whole and stay in the cache.

A strip is some rows of a map, over its whole width. It is read with a halo, the rows of its neighbours that
convolutions look at, and loses the halo again: results are those of the whole map. Maps wait where the images
are, which may be main memory while the network is on a GPU. Where gradients are recorded, one strip is the
whole map. Shapes as in the package's docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Measured on a CPU with 32 MiB of shared cache: 4 MiB took a quarter longer, 64 the same. Other devices want
# fewer, larger pieces of work.
_CACHE_BYTES = 32 * 2**20
_DEVICE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Strip:
    """Rows ``start`` to ``stop`` of a map that is ``height`` rows high."""

    start: int
    stop: int
    height: int

    def rows(self, halo: int = 0) -> slice:
        """Return the rows with their halo, which ends at the border of the map."""
        return slice(max(0, self.start - halo), min(self.height, self.stop + halo))

    def beyond(self, halo: int) -> tuple[int, int]:
        """Return how many rows of the halo are missing, above and below the map."""
        rows = self.rows(halo)
        return rows.start - self.start + halo, self.stop + halo - rows.stop

    def read(self, x: Tensor, halo: int, like: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, rows, W), on the device and in the dtype of ``like``."""
        return x[:, :, self.rows(halo)].to(like.device, like.dtype)

    def trim(self, x: Tensor, halo: int, keep: int = 0) -> Tensor:
        """Return rows that have a halo with a smaller one."""
        have, wanted = self.rows(halo), self.rows(keep)
        return x[:, :, wanted.start - have.start : wanted.stop - have.start]

    def scaled(self, factor: int) -> Strip:
        """Return the same rows of a map that is larger by a factor."""
        return Strip(self.start * factor, self.stop * factor, self.height * factor)


@dataclass(frozen=True)
class Work:
    """How much is run at a time.

    Attributes:
        budget: bytes that the tensors of a strip may take; None for the whole map.
    """

    budget: int | None = None

    @classmethod
    def on(cls, device: torch.device) -> Work:
        """Return what suits a device; everything at once where gradients are recorded."""
        if torch.is_grad_enabled():
            return cls()
        return cls(_CACHE_BYTES if device.type == "cpu" else _DEVICE_BYTES)

    def strips(self, height: int, row_bytes: int) -> Iterator[Strip]:
        """Yield strips of a map that is ``height`` rows high, each of which takes so many bytes."""
        rows = height
        if self.budget is not None:
            rows = max(1, self.budget // row_bytes)
            # Nearly equal strips: a last one of few rows would be mostly halo.
            rows = -(-height // -(-height // rows))
        for start in range(0, height, rows):
            yield Strip(start, min(start + rows, height), height)

    def map(self, act: Callable[[Strip], Tensor], height: int, row_bytes: int, home: torch.device) -> Tensor:
        """Return the map of which ``act`` gives the rows of each strip, or a multiple of them.

        Args:
            act: takes a strip, returns (B, D, rows, W).
            height: rows of the map that is cut into strips.
            row_bytes: what a row of it takes while it is worked on.
            home: where the result lies.
        """
        output: Tensor | None = None
        for strip in self.strips(height, row_bytes):
            part = act(strip)
            if strip.stop - strip.start == height:
                return part.to(home)
            factor = part.shape[2] // (strip.stop - strip.start)
            if output is None:
                output = torch.empty(
                    (*part.shape[:2], height * factor, part.shape[3]),
                    dtype=part.dtype,
                    device=home,
                    memory_format=torch.channels_last,
                )
            output[:, :, strip.start * factor : strip.stop * factor] = part
        assert output is not None
        return output


def row_bytes(x: Tensor, values: int) -> int:
    """Return what a row of a map (B, D, H, W) takes at ``values`` a pixel."""
    return x.shape[0] * x.shape[3] * values * max(4, x.element_size())


def exact(x: Tensor) -> torch.dtype:
    """Return the precision that sums over pixels need: half precision overflows and drifts."""
    return torch.promote_types(x.dtype, torch.float32)
