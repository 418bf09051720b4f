"""Image quality against a clean image. The choices that move a figure are arguments, never habits.

Images are (H, W) or (H, W, C) in the range that ``peak`` belongs to: 255 for 8-bit levels, 1 for floats in
[0, 1]. Everything is computed in float64, one image at a time. What these agree with is tested to 1e-10.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

Pixels = NDArray[np.generic]
Window = Literal["gaussian", "uniform", "volume"]

# Stabilisers as shares of the peak, and the window of the paper (Wang et al., IEEE TIP 2004, section III.C).
_K1, _K2 = 0.01, 0.03
_SIDE, _SIGMA = 11, 1.5
_UNIFORM_SIDE = 7
# Weights of red, green and blue in [0, 1] (ITU-R BT.601, studio range of 8 bits: black is 16, white 235).
_LUMA = np.array([65.481, 128.553, 24.966])
_BLACK = 16.0


def psnr(clean: Pixels, restored: Pixels, peak: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio in dB over all pixels and channels; infinite for equal images.

    Raises:
        ValueError: the shapes differ.
    """
    error = float(np.mean(_difference("psnr", clean, restored) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def mae(clean: Pixels, restored: Pixels, peak: float = 255.0) -> float:
    """Return the mean absolute error over all pixels and channels, as a share of the peak.

    Raises:
        ValueError: the shapes differ.
    """
    return float(np.mean(np.abs(_difference("mae", clean, restored)))) / peak


def ssim(clean: Pixels, restored: Pixels, peak: float = 255.0, window: Window = "gaussian") -> float:
    """Return the structural similarity (Wang et al., IEEE TIP 2004): 1 for equal images.

    Args:
        clean: reference.
        restored: image of the same shape.
        peak: largest value of the range.
        window: ``gaussian`` is the paper's, 11 x 11 with sigma 1.5, where it lies inside of the image, mean
            of the channels: the 2-D SSIM of the authors' script and of BasicSR. ``uniform`` is 7 x 7 with
            sample covariances: scikit-image's default. ``volume`` is 11 x 11 x 11 over the channels too, with
            replicated borders: what NAFNet's code and MATLAB's own ``ssim`` give for an RGB array.

    Raises:
        ValueError: the shapes differ, or the image is smaller than the window.
    """
    _difference("ssim", clean, restored)
    # (1, C, H, W); a volume has its channels as a depth.
    x, y = (_stacked(image) for image in (clean, restored))
    side = _UNIFORM_SIDE if window == "uniform" else _SIDE
    if window != "volume" and min(x.shape[-2:]) < side:
        raise ValueError(f"ssim needs an image of {side} pixels or more each way, got {tuple(x.shape[-2:])}")
    taps = torch.full((side,), 1 / side, dtype=torch.float64) if window == "uniform" else _gaussian(side)

    def mean(image: Tensor) -> Tensor:
        if window == "volume":
            # Replication of a dimension of one or more, on both sides.
            half = side // 2
            image = pad(image[None], (half,) * 6, mode="replicate")[0]
            image = _along(image, taps, 1)
        return _along(_along(image, taps, 2), taps, 3)

    # Covariances of a sample divide by one less than its size.
    sample = side**2 / (side**2 - 1) if window == "uniform" else 1.0
    mean_x, mean_y = mean(x), mean(y)
    variance_x = sample * (mean(x * x) - mean_x**2)
    variance_y = sample * (mean(y * y) - mean_y**2)
    covariance = sample * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    likeness /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return float(likeness.mean())


def ssim_3d(clean: Pixels, restored: Pixels, peak: float = 255.0) -> float:
    """Return ``ssim`` with the window ``volume``."""
    return ssim(clean, restored, peak, "volume")


def ssim_uniform(clean: Pixels, restored: Pixels, peak: float = 255.0) -> float:
    """Return ``ssim`` with the window ``uniform``."""
    return ssim(clean, restored, peak, "uniform")


def studio_luma(image: Pixels, peak: float = 255.0) -> NDArray[np.float64]:
    """Return Y of an RGB image (H, W, 3) in 8-bit levels, 16 for black and 235 for white, not rounded.

    The Y of MATLAB's ``rgb2ycbcr`` and of BasicSR; by that of full range PSNR would be 1.32 dB lower.
    """
    luma: NDArray[np.float64] = np.asarray(image, np.float64) / peak @ _LUMA + _BLACK
    return luma


def _difference(name: str, clean: Pixels, restored: Pixels) -> NDArray[np.float64]:
    if clean.shape != restored.shape:
        raise ValueError(f"{name} needs two images of one shape, got {clean.shape} and {restored.shape}")
    return clean.astype(np.float64) - restored.astype(np.float64)


def _stacked(image: Pixels) -> Tensor:
    """(H, W) or (H, W, C) -> (1, C, H, W), float64."""
    planes = np.atleast_3d(image.astype(np.float64))
    return torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1)))[None]


def _gaussian(side: int) -> Tensor:
    places = torch.arange(side, dtype=torch.float64) - side // 2
    taps = torch.exp(-(places**2) / (2 * _SIGMA**2))
    return taps / taps.sum()


def _along(image: Tensor, taps: Tensor, dim: int) -> Tensor:
    """Return the weighted means of neighbours along one dimension, where all of them exist."""
    places = image.shape[dim] - len(taps) + 1
    total = image.narrow(dim, 0, places) * taps[0]
    for index in range(1, len(taps)):
        total.add_(image.narrow(dim, index, places), alpha=float(taps[index]))
    return total
