"""Image quality against a clean image. The choices that move a figure are arguments, never habits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def psnr(clean: NDArray[np.generic], restored: NDArray[np.generic], peak: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels; infinite for equal images.

    Args:
        clean: reference, any shape, in the range that ``peak`` belongs to.
        restored: image of the same shape.
        peak: largest value of the range: 255 for 8-bit levels, 1 for floats in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    if clean.shape != restored.shape:
        raise ValueError(f"psnr needs two images of one shape, got {clean.shape} and {restored.shape}")
    error = float(np.mean((clean.astype(np.float64) - restored.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)
