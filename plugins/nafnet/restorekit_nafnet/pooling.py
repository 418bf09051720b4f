"""What channel attention pools over: the image, a window (TLC), or statistics handed in.

Channel attention is the only global operation of the network, so its pool alone decides whether tiles agree
with the whole image. A pool maps features (B, D, H, W) of a level, whose pixels are ``stride`` image pixels
apart, to means (B, D, 1, 1) or (B, D, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

Pool = Callable[[Tensor, int], Tensor]


def global_mean(features: Tensor, stride: int = 1) -> Tensor:
    """(B, D, H, W) -> (B, D, 1, 1)."""
    return _at_least_float32(features).mean((2, 3), keepdim=True).to(features.dtype)


@dataclass(frozen=True)
class LocalMean:
    """Mean over a window around each pixel: the test-time local converter, TLC.

    Chu et al., ECCV 2022. The window keeps the size of the training patches times 1.5 and never follows the
    image.

    Args:
        height: of the window, in pixels of the image.
        width: of the window, in pixels of the image.
    """

    height: int
    width: int

    def __call__(self, features: Tensor, stride: int = 1) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W), or (B, D, 1, 1) where the window covers the map."""
        rows, columns = features.shape[-2:]
        window = (self.height // stride, self.width // stride)
        if window[0] >= rows and window[1] >= columns:
            return global_mean(features)
        # Running sums of centred values stay small, so that float32 loses nothing over maps of any size.
        exact = _at_least_float32(features)
        centre = exact.mean((2, 3), keepdim=True)
        means = exact - centre
        for dim, side in ((2, min(window[0], rows)), (3, min(window[1], columns))):
            sums = pad(means.cumsum(dim), (0, 0, 1, 0) if dim == 2 else (1, 0))
            steps = sums.shape[dim] - side
            means = (sums.narrow(dim, side, steps) - sums.narrow(dim, 0, steps)) / side
        top, left = (rows - means.shape[2]) // 2, (columns - means.shape[3]) // 2
        bottom, right = rows - means.shape[2] - top, columns - means.shape[3] - left
        return pad(means + centre, (left, right, top, bottom), mode="replicate").to(features.dtype)


def given(means: Sequence[Tensor]) -> Pool:
    """Return a pool that hands out means (1, D, 1, 1), computed before, one block after the other."""
    remaining = iter(means)
    return lambda features, stride: next(remaining)


def given_always(mean: Tensor) -> Pool:
    """Return a pool that hands out the same mean to every call, for the strips of one block."""
    return lambda features, stride: mean


def _at_least_float32(features: Tensor) -> Tensor:
    # Half precision overflows or drifts in sums over 10^5 pixels.
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
