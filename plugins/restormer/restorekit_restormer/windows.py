"""Cuts a map into windows that fit the cache, for computations that look one pixel far.

Between one linear layer and the next a block widens its map up to five times. Run on the whole map, these
wide tensors go through main memory at every step; run window by window they stay in the cache, and the
largest tensors never exist at once. The result is the same: windows overlap by the pixel that they look at.

Shapes: B batch, H W pixels of the map, D features; pixels first here, features innermost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Measured on a CPU with 32 MiB of shared cache; other devices want fewer, larger pieces of work.
_CACHE_BYTES = 8 * 2**20
_DEVICE_BYTES = 256 * 2**20
_LEAST_ROWS = 8

Place = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Window:
    """Where a window lies: all slices index (B, H, W).

    Attributes:
        core: the pixels of the map that the window writes.
        outer: the pixels of the map that it reads: one more on each side, except beyond the map.
        inner: the core within the outer pixels.
    """

    core: Place
    outer: Place
    inner: Place


def windows(x: Tensor, features: int) -> list[Window]:
    """Return windows that cover a map (B, H, W, D); a single one where gradients are recorded.

    Args:
        x: the map.
        features: how many values a pixel of a window takes at its widest.
    """
    batch, height, width = x.shape[:3]
    if torch.is_grad_enabled():
        return [_window((0, height), (0, width), height, width)]
    room = _CACHE_BYTES if x.device.type == "cpu" else _DEVICE_BYTES
    pixels = max(1, room // (batch * features * x.element_size()))
    # Whole rows lie together in memory and need no copy; of few rows too many are read twice.
    columns = width if pixels >= _LEAST_ROWS * width else _even(width, math.isqrt(pixels))
    rows = _even(height, max(1, pixels // columns))
    return [
        _window((top, min(top + rows, height)), (left, min(left + columns, width)), height, width)
        for top in range(0, height, rows)
        for left in range(0, width, columns)
    ]


def in_windows(act: Callable[[Window], Tensor], places: list[Window], height: int, width: int) -> Tensor:
    """Return the map (B, H, W, D) of which ``act`` gives the core (B, h, w, D) of each window."""
    if len(places) == 1:
        return act(places[0])
    output: Tensor | None = None
    for place in places:
        part = act(place)
        if output is None:
            output = part.new_empty(part.shape[0], height, width, part.shape[3])
        output[place.core] = part
    assert output is not None
    return output


def _even(side: int, most: int) -> int:
    """Return the size of the fewest nearly equal pieces of at most ``most``."""
    return math.ceil(side / math.ceil(side / max(1, most)))


def _window(rows: tuple[int, int], columns: tuple[int, int], height: int, width: int) -> Window:
    every = slice(None)
    core, outer, inner = [every], [every], [every]
    for (start, stop), side in ((rows, height), (columns, width)):
        first, last = max(0, start - 1), min(side, stop + 1)
        core.append(slice(start, stop))
        outer.append(slice(first, last))
        inner.append(slice(start - first, stop - first))
    return Window((core[0], core[1], core[2]), (outer[0], outer[1], outer[2]), (inner[0], inner[1], inner[2]))
