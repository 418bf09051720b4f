"""Noise: white Gaussian, and that of a camera's sensor."""

from __future__ import annotations

import torch
from torch import Tensor

from restorekit.degradations.drawing import normal, per_image
from restorekit.degradations.light import to_light, to_values


def add_gaussian_noise(clean: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Return the image with white Gaussian noise, not clipped: values may leave [0, 1]."""
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    return clean + noise.to(clean.device) * (sigma / 255)


@per_image
def gaussian(clean: Tensor, generator: torch.Generator, *, sigma: float = 25.0) -> Tensor:
    """Add white Gaussian noise: y = x + n, n ~ N(0, (sigma / 255)^2). Not clipped: values may leave [0, 1].

    The denoising literature's model since Dabov et al., BM3D (TIP 2007); for blind denoising ``sigma`` is
    drawn anew for each image (Zhang et al., DnCNN, TIP 2017: 0 to 55).

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: on the CPU.
        sigma: standard deviation in 8-bit levels.
    """
    return clean + normal(clean, generator) * (sigma / 255)


@per_image
def poisson_gaussian(
    clean: Tensor,
    generator: torch.Generator,
    *,
    photons: float = 150.0,
    sigma: float = 3.0,
    linear: bool = True,
) -> Tensor:
    """Add the noise of a sensor: photons that arrive at random, and its reading. Not clipped.

    y = x + sqrt(x / photons + (sigma / 255)^2) n, n ~ N(0, 1): the variance is linear in the signal. This is
    the heteroscedastic normal form of Poisson-Gaussian noise, Foi et al., "Practical Poissonian-Gaussian
    noise modeling and fitting for single-image raw-data" (TIP 2008, eq. 1 to 3), a = 1 / photons, b = (sigma
    / 255)^2.

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: on the CPU.
        photons: counted at white.
        sigma: standard deviation of the reading, in 8-bit levels of ``x``.
        linear: x is light, as on a sensor: sRGB is decoded first and encoded again afterwards. Otherwise x
            are the values themselves.
    """
    signal = to_light(clean) if linear else clean
    noisy = signal + (signal.clamp(min=0) / photons + (sigma / 255) ** 2).sqrt() * normal(clean, generator)
    return to_values(noisy) if linear else noisy
