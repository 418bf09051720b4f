"""Haze: light lost on its way through the air, and the air's own light instead."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from restorekit.degradations.drawing import smooth_noise


def haze(
    clean: Tensor,
    generator: torch.Generator,
    *,
    beta: float = 1.5,
    airlight: float = 0.88,
    depth: Tensor | None = None,
) -> Tensor:
    """Veil the image by its depth: y = x t + airlight (1 - t), t = exp(-beta depth).

    Koschmieder's law; Narasimhan and Nayar, "Vision and the atmosphere" (IJCV 2002).

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: on the CPU; draws the depth, and nothing when depth is given.
        beta: scattering coefficient, in units of 1 / depth.
        airlight: value of the air at infinite depth.
        depth: (H, W) or (1, H, W) for every image, or (B, 1, H, W); by default ``depth_field`` of each.
    """
    if depth is None:
        images = clean if clean.ndim == 4 else clean[None]
        depth = torch.stack([depth_field(image, generator)[None] for image in images])
        depth = depth if clean.ndim == 4 else depth[0]
    through = torch.exp(-beta * depth.to(clean))
    return clean * through + airlight * (1 - through)


def depth_field(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return a plausible depth (H, W) in [0, 1]: ground that runs to a horizon, with smooth hills before it.

    Below the horizon depth grows as on a plane, by 1 / (height under the horizon); above it everything is
    far. The horizon stands at a random height in the upper half and may lean a little.

    Args:
        image: gives height, width, device and dtype; its content is not looked at.
        generator: on the CPU.
    """
    height, width = image.shape[-2:]
    horizon, lean, near = torch.rand(3, generator=generator).tolist()
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(-0.5, 0.5, width)[None]
    below = y - (0.1 + 0.3 * horizon) - 0.12 * (lean - 0.5) * x
    below = 0.05 * softplus(below / 0.05)  # air has no edge at the horizon
    plane: Tensor = (0.06 + 0.1 * near) / (0.06 + 0.1 * near + below)
    hills = smooth_noise(image.float(), generator, cells=3, octaves=4)
    return (plane.to(hills.device) + 0.12 * hills).clamp(0, 1).to(image)


def veil(image: Tensor, generator: torch.Generator, *, strength: float, brightness: float) -> Tensor:
    """(C, H, W) -> (C, H, W) behind falling water or snow: at the horizon ``strength`` of it is air."""
    if strength <= 0:
        return image
    share = strength * (0.35 + 0.65 * depth_field(image, generator))
    return image + (brightness - image) * share
