"""Blur: Gaussian in any direction, a shaken camera, a lens out of focus."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from restorekit.degradations.drawing import convolve, gaussian_kernel, offsets, per_image, splat
from restorekit.degradations.light import to_light, to_values

# Positions of the camera during an exposure.
_INSTANTS = 512


@per_image
def gaussian_blur(clean: Tensor, generator: torch.Generator, *, std: float = 2.0) -> Tensor:
    """Convolve with a Gaussian kernel; draws nothing. Constants and the mean stay.

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: not used.
        std: standard deviation of the kernel in pixels.
    """
    return convolve(clean, gaussian_kernel(std, std, 0))


@per_image
def anisotropic_blur(
    clean: Tensor, generator: torch.Generator, *, std: float = 4.0, across: float = 1.0, angle: float = 45.0
) -> Tensor:
    """Convolve with a Gaussian kernel that is longer in one direction; draws nothing.

    k(x) ~ exp(-x^T C^-1 x / 2), C of eigenvalues std^2 and across^2: Zhang et al., "Designing a practical
    degradation model for deep blind image super-resolution" (BSRGAN, ICCV 2021, section 3.1).

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: not used.
        std: standard deviation along the direction, in pixels.
        across: standard deviation across it, in pixels.
        angle: of the direction, in degrees, counter-clockwise from the right.
    """
    return convolve(clean, gaussian_kernel(std, across, angle))


@per_image
def motion_blur(
    clean: Tensor,
    generator: torch.Generator,
    *,
    length: float = 20.0,
    shake: float = 0.5,
    linear: bool = True,
) -> Tensor:
    """Blur along the random path of a hand-held camera.

    The path is a random walk of the velocity with inertia and sudden jerks: Boracchi and Foi, "Modeling the
    performance of image restoration from motion blur" (TIP 2012), as used by Kupyn et al.,
    "DeblurGAN" (CVPR 2018, algorithm 1). Its direction is random too. The kernel is centred, so that nothing
    moves.

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: on the CPU.
        length: of the path, in pixels.
        shake: 0 for a straight line, 1 for a path that turns and jerks a lot.
        linear: blur light, as an exposure does: sRGB is decoded first and encoded again afterwards.
    """
    return _blur_light(clean, motion_kernel(length, shake, generator), linear)


@per_image
def defocus_blur(
    clean: Tensor, generator: torch.Generator, *, radius: float = 4.0, linear: bool = True
) -> Tensor:
    """Blur by the disc that a lens out of focus makes of a point; draws nothing.

    The circle of confusion of geometric optics: k is constant within ``radius``, its edge shared by area.

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: not used.
        radius: of the disc, in pixels.
        linear: blur light, as a lens does, so that highlights grow: sRGB is decoded first and encoded again
            afterwards.
    """
    return _blur_light(clean, disc_kernel(radius), linear)


def disc_kernel(radius: float) -> Tensor:
    """Return a disc that sums to one."""
    y, x = offsets(math.ceil(radius))
    disc: Tensor = (radius + 0.5 - (x**2 + y**2).sqrt()).clamp(0, 1)
    return disc / disc.sum()


def motion_kernel(length: float, shake: float, generator: torch.Generator) -> Tensor:
    """Return the kernel of a random path that sums to one, its mean in the middle."""
    path = _path(shake, generator)
    steps = (path[1:] - path[:-1]).norm(dim=1).sum()
    path = (path - path.mean(0)) * (length / steps)
    reach = math.ceil(float(path.abs().max())) + 1
    weights = torch.full((len(path),), 1 / len(path))
    return splat(path[:, 1] + reach, path[:, 0] + reach, weights, 2 * reach + 1, 2 * reach + 1)


def _path(shake: float, generator: torch.Generator) -> Tensor:
    """Return positions (x, y) of a camera at equal times."""
    heading = 2 * math.pi * float(torch.rand((), generator=generator))
    turns = torch.randn(_INSTANTS, generator=generator)
    jerks = torch.rand(_INSTANTS, generator=generator) < 6 * shake / _INSTANTS
    jolts = torch.randn(_INSTANTS, generator=generator)
    speeds = torch.randn(_INSTANTS, generator=generator)
    # The direction walks at random; a jerk turns it at once.
    steady = (2.5 * shake / _INSTANTS**0.5) * turns
    headings = heading + (steady + jerks * shake * math.pi * jolts).cumsum(0)
    speed = (0.8 * shake * speeds.cumsum(0) / _INSTANTS**0.5).exp()
    velocity = torch.stack([headings.cos(), -headings.sin()], dim=1) * speed[:, None]
    path: Tensor = velocity.cumsum(0)
    return path


def _blur_light(clean: Tensor, kernel: Tensor, linear: bool) -> Tensor:
    if not linear:
        return convolve(clean, kernel)
    # The FFT leaves rounding errors, which the curve of sRGB would make visible in the deepest black.
    blurred = convolve(to_light(clean), kernel)
    return to_values(torch.where(blurred.abs() < 1e-6, 0, blurred))
