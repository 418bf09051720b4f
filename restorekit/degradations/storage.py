"""What files do to images: rounding to few levels, and JPEG."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restorekit.degradations.drawing import per_image


def quantise(image: Tensor) -> Tensor:
    """Return the image as an 8-bit file would keep it: clipped to [0, 1] and rounded to 1/255."""
    return (image.clamp(0, 1) * 255).round() / 255


def quantisation(clean: Tensor, generator: torch.Generator, *, bits: int = 8) -> Tensor:
    """Clip to [0, 1] and round to the nearest of 2^bits levels; draws nothing.

    Args:
        clean: (C, H, W) or (B, C, H, W).
        generator: not used.
        bits: a sample; 8 is what a file keeps.
    """
    top = 2**bits - 1
    levels: Tensor = (clean.clamp(0, 1) * top).round() / top
    return levels


def compress_jpeg(image: Tensor, quality: int, *, subsample: bool = True) -> Tensor:
    """Return the image (3, H, W) or (1, H, W) after a JPEG round trip through libjpeg.

    Args:
        image: clipped to [0, 1] first, as an 8-bit file would.
        quality: 1 to 95, libjpeg's scale.
        subsample: store colour at half resolution (4:2:0), as cameras do.
    """
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    picture = Image.fromarray(levels if levels.shape[-1] == 3 else levels[..., 0])
    picture.save(file, "JPEG", quality=quality, subsampling=2 if subsample else 0)
    decoded = np.array(Image.open(file), dtype=np.float32) / 255
    return torch.from_numpy(decoded.reshape(levels.shape)).permute(2, 0, 1).to(image)


@per_image
def jpeg(clean: Tensor, generator: torch.Generator, *, quality: int = 20, subsample: bool = True) -> Tensor:
    """Compress and decompress by libjpeg (ITU-T T.81), on the CPU; draws nothing.

    Args:
        clean: (C, H, W) or (B, C, H, W), clipped to [0, 1] first.
        generator: not used.
        quality: 1 to 95, libjpeg's scale.
        subsample: store colour at half resolution (4:2:0), as cameras do.
    """
    return compress_jpeg(clean, quality, subsample=subsample)
