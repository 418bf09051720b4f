"""Rain: streaks at several distances, and the mist that they add up to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from restorekit.degradations.air import veil
from restorekit.degradations.drawing import convolve, gaussian_kernel, per_image, poisson, splat, uniform


@dataclass(frozen=True)
class _Distance:
    """Streaks at one distance: their share of all, their size and opacity beside those that are sharp."""

    share: float
    size: float
    width: float
    opacity: float


# From far to near; the nearest are out of focus: wide and faint.
_DISTANCES = (
    _Distance(0.42, 0.4, 0.6, 0.55),
    _Distance(0.32, 0.7, 0.8, 0.8),
    _Distance(0.20, 1.0, 1.0, 1.0),
    _Distance(0.06, 1.7, 2.2, 0.45),
)


@per_image
def rain(
    clean: Tensor,
    generator: torch.Generator,
    *,
    streaks: float = 10000.0,
    length: float = 25.0,
    width: float = 1.3,
    slant: float = 12.0,
    opacity: float = 0.75,
    mist: float = 0.15,
    brightness: float = 0.85,
) -> Tensor:
    """Lay rain over the image: y = b (1 - S) + brightness S, b the image behind mist, S the streaks.

    S adds up layers of streaks from far to near, as in Yang et al., "Deep joint rain detection and removal
    from a single image" (CVPR 2017, its model of heavy rain; the accumulated streaks are the mist here) and
    Li et al., "RESCAN" (ECCV 2018). The streaks are laid over, not added: rain before a white sky is hardly
    seen (Garg and Nayar, "Vision and rain", IJCV 2007). Values stay between those of the image and
    ``brightness``.

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: on the CPU.
        streaks: a megapixel.
        length: of the sharp streaks in pixels, on average; others follow.
        width: likewise.
        slant: common to all streaks, in degrees from the vertical; positive falls to the left.
        opacity: of the strongest streaks, 0 to 1.
        mist: share of air at the horizon; less where it is near.
        brightness: value of the streaks and of the mist.
    """
    height, breadth = clean.shape[-2:]
    misty = veil(clean, generator, strength=mist, brightness=brightness)
    through = torch.ones(1, height, breadth).to(clean)
    for distance in _DISTANCES:
        lines = _lines(
            height,
            breadth,
            generator,
            density=streaks * distance.share,
            length=length * distance.size,
            slant=slant,
            opacity=opacity * distance.opacity,
        )
        spread = 0.4 * width * distance.width
        # A line one pixel wide keeps its opacity when it is widened.
        layer = convolve(lines[None].to(clean), gaussian_kernel(spread, spread, 0)) * max(
            1.0, width * distance.width
        )
        through = through * (1 - layer.clamp(0, 1))
    return brightness + (misty - brightness) * through


def _lines(
    height: int,
    breadth: int,
    generator: torch.Generator,
    *,
    density: float,
    length: float,
    slant: float,
    opacity: float,
) -> Tensor:
    """Return thin streaks (H, W): tapered, of varied length, slant and opacity."""
    margin = math.ceil(1.5 * length)
    count = poisson(density * (height + 2 * margin) * (breadth + 2 * margin) / 1e6, generator)
    row = uniform(-margin, height + margin, count, generator)
    column = uniform(-margin, breadth + margin, count, generator)
    long = length * uniform(0.4, 1.6, count, generator)
    angle = torch.deg2rad(slant + 1.5 * torch.randn(count, generator=generator))
    # Most streaks are faint.
    strong = opacity * (0.2 + 0.8 * uniform(0, 1, count, generator) ** 1.5)
    points = 2 * math.ceil(1.6 * length) + 1
    along = torch.linspace(-0.5, 0.5, points)
    taper = (math.pi * along).cos().clamp(min=0) ** 0.7
    step = long[:, None] * along
    weight = strong[:, None] * taper * (long[:, None] / points)
    rows = row[:, None] + step * angle.cos()[:, None]
    columns = column[:, None] - step * angle.sin()[:, None]
    return splat(rows.flatten(), columns.flatten(), weight.flatten(), height, breadth)
