"""What the degradations share: lifting to batches, random numbers, smooth fields, points, convolution.

What is random is drawn and placed on the CPU, so that it is the same everywhere; pixels are computed on the
device of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import interpolate

DegradationT = TypeVar("DegradationT", bound=Callable[..., Tensor])


def per_image(degrade: DegradationT) -> DegradationT:
    """Lift a degradation of one image (C, H, W) to batches, and to half precision by way of float32."""

    @wraps(degrade)
    def lifted(clean: Tensor, generator: torch.Generator, **parameters: Any) -> Tensor:
        image = clean if clean.dtype in (torch.float32, torch.float64) else clean.float()
        if image.ndim == 3:
            return degrade(image, generator, **parameters).to(clean.dtype)
        return torch.stack([degrade(each, generator, **parameters) for each in image]).to(clean.dtype)

    return cast(DegradationT, lifted)


def normal(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal numbers of the shape of the image; float32 ones whatever its dtype is."""
    return torch.randn(image.shape, generator=generator).to(image)


def uniform(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` numbers within [low, high), on the CPU."""
    return low + (high - low) * torch.rand(count, generator=generator)


def poisson(mean: float, generator: torch.Generator) -> int:
    """Return how many of something there are when ``mean`` are expected."""
    return int(torch.poisson(torch.tensor(float(mean)), generator))


def smooth_noise(image: Tensor, generator: torch.Generator, *, cells: int = 3, octaves: int = 3) -> Tensor:
    """Return a smooth random field (H, W) of mean 0 and standard deviation of about 1.

    Args:
        image: gives height, width, device and dtype.
        generator: of the field.
        cells: bumps along the longer side; each octave doubles them and halves their height.
        octaves: how many are added.
    """
    height, width = image.shape[-2:]
    field = image.new_zeros(height, width)
    for octave in range(octaves):
        count = cells * 2**octave
        grid = [2 + round(count * side / max(height, width)) for side in (height, width)]
        values = torch.randn(1, 1, *grid, generator=generator).to(image)
        grown = interpolate(values, (height, width), mode="bicubic", align_corners=True)
        field += grown[0, 0] / 2**octave
    return field


def splat(rows: Tensor, columns: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
    """Put points with fractional positions on a canvas (H, W), each shared by its four neighbours."""
    near = (rows > -1) & (rows < height) & (columns > -1) & (columns < width)
    rows, columns, weights = rows[near], columns[near], weights[near]
    top, left = rows.floor(), columns.floor()
    down, right = rows - top, columns - left
    # A border of one pixel takes the shares that fall outside.
    wide = width + 2
    first = ((top + 1) * wide + left + 1).long()
    places = torch.cat([first, first + 1, first + wide, first + wide + 1])
    upper, lower = weights * (1 - down), weights * down
    shares = torch.cat([upper * (1 - right), upper * right, lower * (1 - right), lower * right])
    canvas = torch.bincount(places, shares, minlength=(height + 2) * wide).view(-1, wide)
    return canvas[1 : height + 1, 1 : width + 1].to(weights.dtype)


def convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """(C, H, W) -> (C, H, W), convolved with a kernel of odd sides; beyond its edges the image is mirrored.

    The edge pixel itself is repeated by the mirror, so that kernels may be larger than the image, and
    symmetric kernels keep the mean exactly. Taken by FFT: the size of the kernel costs nothing.
    """
    (height, width), (tall, wide) = image.shape[-2:], kernel.shape
    rows, columns = (
        _mirrored(side, reach // 2, image.device) for side, reach in ((height, tall), (width, wide))
    )
    padded = image[..., rows[:, None], columns]
    size = [_fast(side) for side in padded.shape[-2:]]
    spectrum = torch.fft.rfft2(padded, size) * torch.fft.rfft2(kernel.to(image), size)
    convolved: Tensor = torch.fft.irfft2(spectrum, size)
    return convolved[..., tall - 1 : tall - 1 + height, wide - 1 : wide - 1 + width].contiguous()


def _mirrored(length: int, margin: int, device: torch.device) -> Tensor:
    """Return the indices of ``length`` pixels with mirrored ones on both sides."""
    index = torch.arange(-margin, length + margin, device=device) % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def _fast(length: int) -> int:
    """Return the next length that has no prime factor above 5."""
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 1


def gaussian_kernel(along: float, across: float, degrees: float) -> Tensor:
    """Return a Gaussian kernel of two standard deviations in pixels, ``along`` turned counter-clockwise."""
    reach = max(1, round(4 * max(along, across)))
    y, x = offsets(reach)
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    # Rows count downwards.
    u = x * angle.cos() - y * angle.sin()
    v = x * angle.sin() + y * angle.cos()
    kernel = torch.exp(-0.5 * ((u / max(along, 1e-3)) ** 2 + (v / max(across, 1e-3)) ** 2))
    return kernel / kernel.sum()


def offsets(reach: int) -> tuple[Tensor, Tensor]:
    """Return rows and columns, counted from its middle, of a kernel of side ``2 reach + 1``."""
    line = torch.arange(-reach, reach + 1).float()
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y, x
