"""Fewer pixels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from restorekit.degradations.drawing import per_image


@per_image
def downscale(
    clean: Tensor,
    generator: torch.Generator,
    *,
    factor: float = 3.0,
    method: Literal["bicubic", "bilinear", "area", "nearest"] = "bicubic",
    keep_size: bool = False,
) -> Tensor:
    """Reduce height and width by a factor; the result is smaller. Draws nothing.

    Bicubic and bilinear widen their kernel by the factor against aliasing, as MATLAB's ``imresize`` does,
    with which the super-resolution literature makes its images; ``nearest`` does not. Bicubic may leave [0,
    1] a little.

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: not used.
        factor: 1 or more; sides are rounded, at least 1 pixel.
        method: bicubic (a = -0.5), bilinear, area or nearest.
        keep_size: enlarge the small image again, bicubically, to the size that came.
    """
    size = [max(1, round(side / factor)) for side in clean.shape[-2:]]
    modes = {"area": "area", "nearest": "nearest-exact"}
    smooth = method not in modes
    small = interpolate(clean[None], size, mode=modes.get(method, method), antialias=smooth)
    return (interpolate(small, clean.shape[-2:], mode="bicubic") if keep_size else small)[0]
