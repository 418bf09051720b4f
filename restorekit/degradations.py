"""Clean image to degraded image: seeded, documented, on tensors. Used by training, evaluation and tests.

Images are RGB float tensors (C, H, W), clean in [0, 1]. ``sigma`` is the standard deviation of noise in 8-bit
levels (0 to 255). Nothing here reads files or knows of training.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def add_gaussian_noise(clean: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Return the image with white Gaussian noise, not clipped: values may leave [0, 1]."""
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
    return clean + noise.to(clean.device) * (sigma / 255)


def quantise(image: Tensor) -> Tensor:
    """Return the image as an 8-bit file would keep it: clipped to [0, 1] and rounded to 1/255."""
    return (image.clamp(0, 1) * 255).round() / 255


def compress_jpeg(image: Tensor, quality: int, *, subsample: bool = True) -> Tensor:
    """Return the image (3, H, W) after a JPEG round trip through libjpeg.

    Args:
        image: RGB, clipped to [0, 1] first, as an 8-bit file would.
        quality: 1 to 95, libjpeg's scale.
        subsample: store colour at half resolution (4:2:0), as cameras do.
    """
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality, subsampling=2 if subsample else 0)
    decoded = np.array(Image.open(file), dtype=np.float32) / 255
    return torch.from_numpy(decoded).permute(2, 0, 1).to(image)
