"""Light and values: the sRGB curve between them, and scenes with too little light."""

from __future__ import annotations

import torch
from torch import Tensor

from restorekit.degradations.drawing import normal, per_image


def to_light(values: Tensor) -> Tensor:
    """Decode sRGB values to light (IEC 61966-2-1); negative values mirror the positive ones."""
    size = values.abs()
    light = torch.where(size <= 0.04045, size / 12.92, ((size + 0.055) / 1.055) ** 2.4)
    return light * values.sign()


def to_values(light: Tensor) -> Tensor:
    """Encode light to sRGB values (IEC 61966-2-1); negative light mirrors the positive."""
    size = light.abs()
    curve = 1.055 * size.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(size <= 0.0031308, size * 12.92, curve) * light.sign()


@per_image
def low_light(
    clean: Tensor,
    generator: torch.Generator,
    *,
    gamma: float = 2.0,
    gain: float = 0.55,
    photons: float = 400.0,
    sigma: float = 0.2,
) -> Tensor:
    """Darken, then add a sensor's noise to what light is left. Not clipped: values may leave [0, 1].

    d = gain x^gamma (Lv et al., "MBLLEN", BMVC 2018: gain 0.5 to 1, gamma 1.5 to 5), then
    Poisson-Gaussian noise on the light of d, as ``poisson_gaussian``.

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: on the CPU.
        gamma: above 1 darkens the shadows more than the lights.
        gain: value that white is left with.
        photons: counted at white; the fewer, the stronger the noise.
        sigma: standard deviation of the sensor's reading, in 8-bit levels of light.
    """
    light = to_light(gain * clean.clamp(min=0) ** gamma)
    spread = (light / photons + (sigma / 255) ** 2).sqrt()
    return to_values(light + spread * normal(clean, generator))
