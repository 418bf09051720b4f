"""Pad, cut, run, blend: how a network is applied to an image of any size.

It does not choose a tile size and knows nothing of memory: that is runtime.py. Shapes as in contracts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor
from torch.nn.functional import pad

from restorekit.contracts import Padding
from restorekit.errors import ConfigError, ContractError

# First and one-past-last pixel along one axis.
Span = tuple[int, int]


def pad_to_multiple(image: Tensor, multiple: int, mode: Padding) -> Tensor:
    """Pad (B, C, H, W) at the right and at the bottom until H and W are multiples of ``multiple``.

    ``reflect`` mirrors without repeating the border and goes back and forth where the padding is wider than
    the image, as ``numpy.pad`` does; a side of one pixel is repeated. An image that fits is returned itself.

    Raises:
        ContractError: the mode is unknown.
    """
    if mode not in ("reflect", "replicate", "zeros"):
        raise ContractError(f"unknown padding {mode!r}", "use reflect, replicate or zeros")
    if mode == "zeros":
        missing = (0, -image.shape[-1] % multiple, 0, -image.shape[-2] % multiple)
        return pad(image, missing) if any(missing) else image
    for dim in (2, 3):
        side = image.shape[dim]
        beyond = torch.arange(side, side + -side % multiple, device=image.device)
        if len(beyond) == 0:
            continue
        if mode == "reflect" and side > 1:
            period = 2 * (side - 1)
            source = beyond % period
            source = torch.minimum(source, period - source)
        else:
            source = torch.full_like(beyond, side - 1)
        image = torch.cat([image, image.index_select(dim, source)], dim)
    return image


@dataclass(frozen=True)
class Tiler:
    """Runs a function on overlapping tiles of an image and blends the results.

    Tiles have one size per axis, as small as their number allows, and are spread evenly: no tile nearly
    repeats its neighbour. All sides and positions are multiples of the network's ``multiple``; ``size`` and
    ``overlap`` are rounded up to it.

    A tile's weight is full at the border of the image. Towards a neighbour it is zero on the outer quarter of
    the overlap, rises smoothly over the middle half and is full on the inner quarter; the weights of all
    tiles sum to one at every pixel. So a pixel is only ever taken from tiles whose cut is at least
    ``overlap // 4`` pixels away, and tiles equal the whole image, up to float rounding, for a function that

    - reads at most ``overlap // 4`` pixels around each pixel that it writes, and
    - gives the same values at every position that is a multiple of ``multiple``.

    No overlap makes tiles exact for a function with global statistics.

    Args:
        size: side of a tile in pixels, at least twice the overlap; 0 for the whole image.
        overlap: pixels that neighbouring tiles share at least.
        keep: tiles are as large as ``size`` says, and share more: for a function that needs so much to see.

    Raises:
        ConfigError: the size is too small for the overlap, or one is negative.
    """

    size: int = 0
    overlap: int = 32
    keep: bool = False

    def __post_init__(self) -> None:
        if self.overlap < 0:
            raise ConfigError("tile.overlap", f"is {self.overlap}", "use 0 or more pixels")
        if self.size < 0:
            raise ConfigError(
                "tile.size", f"is {self.size}", "use 0 for the whole image, or a side in pixels"
            )
        if 0 < self.size < 2 * self.overlap:
            raise ConfigError(
                "tile.size",
                f"a tile of {self.size} pixels is smaller than twice the overlap of {self.overlap}",
                f"use a size of at least {2 * self.overlap}, or an overlap of at most {self.size // 2}",
            )

    def windows(self, height: int, width: int, multiple: int = 1) -> list[tuple[slice, slice]]:
        """Return the rows and columns of each tile, row by row, within the image padded to ``multiple``."""
        rows, columns = self._spans(height, multiple), self._spans(width, multiple)
        return [(slice(*row), slice(*column)) for row, column in product(rows, columns)]

    def count(self, height: int, width: int, multiple: int = 1) -> int:
        """Return the number of tiles of an image."""
        return len(self._spans(height, multiple)) * len(self._spans(width, multiple))

    def is_whole(self, height: int, width: int, multiple: int = 1) -> bool:
        """Tell whether the image is run in one piece."""
        return self.count(height, width, multiple) == 1

    def __call__(
        self,
        fn: Callable[..., Tensor],
        *images: Tensor,
        multiple: int = 1,
        padding: Padding = "reflect",
        scale: int = 1,
        channels: int | None = None,
        device: torch.device | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Return ``fn`` of the images, (B, C, H, W) -> (B, C, H * scale, W * scale).

        Only one window of each image is on ``device`` at a time. The result lies where the first image lies,
        in its dtype, but at least in float32. An error of ``fn`` ends the run: no tile is ever made up.

        Args:
            fn: takes the same window of every image, (B, C, h, w), and returns (B, C, h * scale, w * scale).
                Windows are views: it must not write into them.
            *images: share H and W; at least one.
            multiple: h and w are multiples of this.
            padding: how the images are brought to it, at the right and at the bottom.
            scale: side of the output divided by side of the input.
            channels: C of the output; that of the first image when not given.
            device: where ``fn`` runs; where the images are when not given.
            progress: called with tiles done and tiles in all, after each tile.

        Raises:
            ContractError: ``fn`` returned another shape, or the images differ in size.
        """
        first = images[0]
        height, width = first.shape[-2:]
        for other in images[1:]:
            if other.shape[-2:] != first.shape[-2:]:
                raise ContractError(
                    f"the images differ in size: {tuple(first.shape)} and {tuple(other.shape)}"
                )
        padded = [pad_to_multiple(image, multiple, padding) for image in images]
        dtype = torch.promote_types(first.dtype, torch.float32)

        def run(rows: slice, columns: slice) -> Tensor:
            windows = [image[..., rows, columns] for image in padded]
            if device is not None:
                windows = [window.to(device) for window in windows]
            output = fn(*windows)
            _check(output, windows[0], scale, channels)
            return output.to(first.device, dtype)

        row_spans, column_spans = self._spans(height, multiple), self._spans(width, multiple)
        total = len(row_spans) * len(column_spans)
        if total == 1:
            output = run(slice(None), slice(None))
            if progress:
                progress(1, 1)
            return output[..., : height * scale, : width * scale]

        sides = [side * scale for side in padded[0].shape[-2:]]
        shape = (first.shape[0], channels or first.shape[1], *sides)
        canvas = torch.zeros(shape, dtype=dtype, device=first.device)
        row_weights, column_weights = (
            [weight.to(canvas) for weight in _weights(spans, scale)] for spans in (row_spans, column_spans)
        )
        rows = list(zip(row_spans, row_weights, strict=True))
        columns = list(zip(column_spans, column_weights, strict=True))
        for done, ((row, down), (column, across)) in enumerate(product(rows, columns), 1):
            tile = run(slice(*row), slice(*column))
            place = canvas[..., row[0] * scale : row[1] * scale, column[0] * scale : column[1] * scale]
            place.addcmul_(tile, down[:, None] * across)
            if progress:
                progress(done, total)
        return canvas[..., : height * scale, : width * scale]

    def _spans(self, length: int, multiple: int) -> list[Span]:
        """Cut one axis; counted in units of ``multiple`` until the last line."""
        units, overlap = -(-length // multiple), -(-self.overlap // multiple)
        # Rounding up can make the overlap as large as the tile; a tile has to advance.
        size = max(-(-self.size // multiple), 2 * overlap)
        if self.size == 0 or size >= units:
            return [(0, units * multiple)]
        tiles = -(-(units - overlap) // (size - overlap))
        side = size if self.keep else -(-(units + (tiles - 1) * overlap) // tiles)
        starts = [(units - side) * i // (tiles - 1) for i in range(tiles)]
        return [(start * multiple, (start + side) * multiple) for start in starts]


def _check(output: object, window: Tensor, scale: int, channels: int | None) -> None:
    batch, colours, height, width = window.shape
    promised = (batch, channels or colours, height * scale, width * scale)
    came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if came != promised:
        raise ContractError(
            f"the network returned {came} for an image of {tuple(window.shape)}, promised was {promised}",
            "check its scale, size_multiple and channels",
        )


def _weights(spans: Sequence[Span], scale: int) -> list[Tensor]:
    """Return the weights of each tile along one axis of the output; at every pixel they sum to one.

    The weight of a tile is the product of its two axes, hence their sum over all tiles is one as well, and no
    map of summed weights is needed.
    """
    shared = [(left[1] - right[0]) * scale for left, right in pairwise(spans)]
    profiles = []
    for i, (start, stop) in enumerate(spans):
        profile = torch.ones((stop - start) * scale, dtype=torch.float64)
        if i > 0:
            profile[: shared[i - 1]] *= _rise(shared[i - 1])
        if i < len(shared):
            profile[len(profile) - shared[i] :] *= _rise(shared[i]).flip(0)
        profiles.append(profile)
    # Opposite ramps already sum to one where two tiles meet, but three can: small tiles, shifted to be even.
    total = torch.zeros(spans[-1][1] * scale, dtype=torch.float64)
    places = [slice(start * scale, stop * scale) for start, stop in spans]
    for place, profile in zip(places, profiles, strict=True):
        total[place] += profile
    return [profile / total[place] for place, profile in zip(places, profiles, strict=True)]


def _rise(length: int) -> Tensor:
    """Return a smoothstep from 0 to 1 over the middle half of ``length`` pixels."""
    at = (torch.arange(length, dtype=torch.float64) + 0.5 - length / 4) / (length / 2)
    at = at.clamp(0, 1)
    return at * at * (3 - 2 * at)
