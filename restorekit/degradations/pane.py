"""Raindrops on the lens or a pane before it: each a small lens of its own, out of focus."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from restorekit.degradations.drawing import convolve, gaussian_kernel, per_image, poisson, uniform


@per_image
def raindrops(
    clean: Tensor,
    generator: torch.Generator,
    *,
    drops: float = 600.0,
    size: float = 7.0,
    refraction: float = 4.0,
    softness: float = 2.0,
) -> Tensor:
    """Put drops on a pane before the scene: y = (1 - M) x + R, M the drops' coverage, R what they show.

    Qian et al., "Attentive generative adversarial network for raindrop removal" (CVPR 2018, eq. 1). A drop
    shows a wide view of the scene, upside down and compressed towards its rim, which is dark because it bends
    light the most; geometry after You et al., "Adherent raindrop modeling, detection and removal in video"
    (TPAMI 2016). Drops differ in size by a log-normal law and are never quite round.

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: on the CPU.
        drops: a megapixel.
        size: typical radius in pixels.
        refraction: radius of the scene that a drop shows, in radii of the drop.
        softness: width of the drop's edge in pixels; drops are nearer than what the lens is focused on.
    """
    height, width = clean.shape[-2:]
    margin = 2 * size
    count = poisson(drops * (height + 2 * margin) * (width + 2 * margin) / 1e6, generator)
    row = uniform(-margin, height + margin, count, generator)
    column = uniform(-margin, width + margin, count, generator)
    spread = torch.randn(count, generator=generator)
    radius = size * (0.6 * spread).clamp(-1.4, 1.2).exp()
    tall = uniform(0.95, 1.3, count, generator)
    waves = torch.randn(count, 3, generator=generator) * torch.tensor([0.07, 0.045, 0.025])
    phases = uniform(0, 2 * math.pi, count * 3, generator).view(count, 3)
    # A drop shrinks what it shows, so that it shows no detail.
    blur = 0.35 * refraction
    scene = convolve(clean, gaussian_kernel(blur, blur, 0))
    result = clean.clone()
    for index in radius.argsort().tolist():
        drop = _Drop(
            float(row[index]),
            float(column[index]),
            float(radius[index]),
            float(tall[index]),
            tuple(waves[index].tolist()),
            tuple(phases[index].tolist()),
        )
        drop.put(result, scene, refraction, softness)
    return result


@dataclass(frozen=True)
class _Drop:
    """One drop: where it is, its radius, how much taller than wide, and the waves of its outline."""

    row: float
    column: float
    radius: float
    tall: float
    waves: tuple[float, ...]
    phases: tuple[float, ...]

    def put(self, image: Tensor, scene: Tensor, refraction: float, softness: float) -> None:
        """Lay the drop over its part of the image, showing a part of the scene."""
        height, width = image.shape[-2:]
        reach = 1.3 * self.radius * self.tall + 2 * softness + 1
        top, bottom = max(0, math.floor(self.row - reach)), min(height, math.ceil(self.row + reach) + 1)
        left, right = max(0, math.floor(self.column - reach)), min(width, math.ceil(self.column + reach) + 1)
        if top >= bottom or left >= right:
            return
        rows = torch.arange(top, bottom, device=image.device, dtype=image.dtype)[:, None]
        columns = torch.arange(left, right, device=image.device, dtype=image.dtype)[None]
        v, u = (rows - self.row) / (self.radius * self.tall), (columns - self.column) / self.radius
        angle = torch.atan2(v, u)
        outline = 1 + sum(
            wave * torch.cos((order + 2) * angle + phase)
            for order, (wave, phase) in enumerate(zip(self.waves, self.phases, strict=True))
        )
        away = (u**2 + v**2).sqrt() / outline
        cover = torch.sigmoid((0.95 - away) * self.radius / max(softness, 0.2) * 2.5)
        # Upside down; the bend grows towards the rim as on a sphere.
        bend = (
            refraction * self.radius * torch.asin((0.95 * away).clamp(max=0.95)) / away.clamp(min=1e-3) / 1.25
        )
        y, x = self.row - v * bend, self.column - u * bend
        grid = torch.stack([2 * (x + 0.5) / width - 1, 2 * (y + 0.5) / height - 1], dim=-1)
        view = grid_sample(scene[None], grid[None], padding_mode="reflection", align_corners=False)[0]
        shade = 1.1 - 0.4 * away.clamp(max=1.2) ** 4 + 0.2 * v.clamp(-1, 1)
        glint = 0.5 * torch.exp(-((u + 0.35) ** 2 + (v + 0.45) ** 2) / 0.03)
        shown = (view * shade.clamp(min=0.15)).clamp(max=1)
        shown = shown + (1 - shown) * glint
        part = image[:, top:bottom, left:right]
        part += (shown - part) * cover
