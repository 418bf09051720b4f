"""Snow: flakes of several sizes and distances."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from restorekit.degradations.air import veil
from restorekit.degradations.drawing import convolve, offsets, per_image, poisson, splat, uniform

# Lumps that a flake is made of: one disc alone would look like a ball.
_LUMPS = 5


@dataclass(frozen=True)
class _Distance:
    """Flakes at one distance: share of all, size beside those in focus, opacity, softness of the edge."""

    share: float
    size: float
    opacity: float
    softness: float


_DISTANCES = (
    _Distance(0.50, 0.35, 0.75, 0.35),
    _Distance(0.28, 0.6, 0.9, 0.3),
    _Distance(0.15, 1.0, 0.95, 0.3),
    _Distance(0.055, 1.8, 0.7, 0.45),
    _Distance(0.015, 3.4, 0.45, 0.6),
)


@per_image
def snow(
    clean: Tensor,
    generator: torch.Generator,
    *,
    flakes: float = 5000.0,
    size: float = 2.2,
    fall: float = 3.0,
    slant: float = 20.0,
    opacity: float = 0.9,
    mist: float = 0.2,
    brightness: float = 0.96,
) -> Tensor:
    """Lay falling snow over the image: y = b (1 - S) + brightness S, b the image behind mist, S the flakes.

    Liu et al., "DesnowNet" (TIP 2018, eq. 1): flakes of several sizes and transparencies; the mist after Chen
    et al., "JSTASR" (ECCV 2020, the veiling effect). Flakes are lumps of blurred discs, moved a little
    during the exposure; near ones are large, faint and out of focus. Values stay between those of the image
    and ``brightness``.

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: on the CPU.
        flakes: a megapixel.
        size: radius of the flakes in focus, in pixels; others follow.
        fall: pixels that a flake in focus moves during the exposure.
        slant: direction of the fall, in degrees from the vertical; positive falls to the left.
        opacity: of the strongest flakes, 0 to 1.
        mist: share of air at the horizon; less where it is near.
        brightness: value of the flakes and of the mist.
    """
    height, width = clean.shape[-2:]
    misty = veil(clean, generator, strength=mist, brightness=brightness)
    through = torch.ones(1, height, width).to(clean)
    for distance in _DISTANCES:
        radius = size * distance.size
        points = _points(height, width, generator, density=flakes * distance.share, radius=radius)
        layer = convolve(
            points[None].to(clean), _flake(radius, distance.softness * radius, fall * distance.size, slant)
        )
        # Lumps overlap: their sum saturates.
        covered = 1 - torch.exp(-layer.clamp(min=0))
        through = through * (1 - opacity * distance.opacity * covered)
    return brightness + (misty - brightness) * through


def _points(height: int, width: int, generator: torch.Generator, *, density: float, radius: float) -> Tensor:
    """Return the lumps of flakes as points (H, W)."""
    margin = math.ceil(2 * radius)
    count = poisson(density * (height + 2 * margin) * (width + 2 * margin) / 1e6, generator)
    row = uniform(-margin, height + margin, count, generator)
    column = uniform(-margin, width + margin, count, generator)
    large = 0.5 * radius * uniform(0.2, 1.4, count, generator)
    strong = uniform(0.3, 1.5, count, generator)
    lumps = torch.randn(2, count, _LUMPS, generator=generator) * large[:, None]
    weight = strong[:, None] * uniform(0.3, 1.0, count * _LUMPS, generator).view(count, _LUMPS)
    rows, columns = row[:, None] + lumps[0], column[:, None] + lumps[1]
    return splat(rows.flatten(), columns.flatten(), weight.flatten(), height, width)


def _flake(radius: float, softness: float, fall: float, slant: float) -> Tensor:
    """Return a soft disc, moved along the fall: 1 in its middle when it does not move."""
    radius = 0.75 * radius
    y, x = offsets(math.ceil(radius + 3 * softness + fall / 2) + 1)
    angle = math.radians(slant)
    kernel = torch.zeros_like(y)
    instants = 2 * math.ceil(fall) + 1
    for instant in torch.linspace(-0.5, 0.5, instants).tolist():
        moved = fall * instant
        away = ((y - moved * math.cos(angle)) ** 2 + (x + moved * math.sin(angle)) ** 2).sqrt()
        kernel += torch.sigmoid((radius - away) / max(softness, 0.25) * 2)
    # Discs below a pixel cover less than one.
    return kernel / instants * min(1.0, (radius + 0.3) ** 2 * 2)
