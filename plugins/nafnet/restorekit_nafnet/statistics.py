"""The means that channel attention needs of a whole image, computed without running the whole image at once.

The network is walked block by block over strips of rows. Feature maps wait where the image is (main memory);
only a strip at a time is on the device, with the rows of its neighbours that a 3x3 convolution needs. The
means are those of the whole image, not an estimate, so tiles that share them agree with the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def strips(x: Tensor, rows: int, halo: int) -> Iterator[tuple[Tensor, slice, int]]:
    """Yield strips of (1, D, H, W): rows with their halo, which rows they are, how much halo is on top."""
    height = x.shape[2]
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        top = min(halo, start)
        yield x[:, :, start - top : min(stop + halo, height)], slice(start, stop), top


def in_strips(
    act: Callable[[Tensor], Tensor], x: Tensor, rows: int, device: torch.device, halo: int = 1
) -> Tensor:
    """Return ``act(x)`` for an act that looks ``halo`` rows far; (1, D, H, W) -> (1, D', H * n, W * n)."""
    output: Tensor | None = None
    for strip, place, top in strips(x, rows, halo):
        result = act(strip.to(device))
        # A strided convolution halves the rows, a pixel shuffle doubles them; neither has a halo.
        numerator, denominator = result.shape[2], strip.shape[2]
        count = (place.stop - place.start) * numerator // denominator
        begin = place.start * numerator // denominator
        if output is None:
            shape = (1, result.shape[1], x.shape[2] * numerator // denominator, result.shape[3])
            output = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        output[:, :, begin : begin + count] = result[:, :, top : top + count].to(x.device)
    assert output is not None
    return output


def mean_in_strips(act: Callable[[Tensor], Tensor], x: Tensor, rows: int, device: torch.device) -> Tensor:
    """Return the mean (1, D, 1, 1) over all pixels of ``act(x)``, for an act that looks one row far."""
    total: Tensor | None = None
    for strip, place, top in strips(x, rows, 1):
        part = act(strip.to(device))[:, :, top : top + place.stop - place.start]
        # Strips are summed in float32 at least, which keeps as much as one sum over the image would.
        partial = part.sum((2, 3), keepdim=True, dtype=torch.promote_types(part.dtype, torch.float32))
        total = partial if total is None else total + partial
    assert total is not None
    return (total / (x.shape[2] * x.shape[3])).to(x.dtype)
