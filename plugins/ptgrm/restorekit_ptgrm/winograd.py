"""Convolution 3 x 3 with fewer multiplications, for wide maps on a CPU: minimal filtering after Winograd.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016 (arXiv 1509.09308), section 3.
Six rows of a result take eight products with rows where a plain convolution takes eighteen: F(6, 3). Columns
are filtered plainly, by kernels of 1 x 3: tiles in both directions would save more multiplications, and lose
most of the gain in rearranging the map. For inference alone: training keeps the plain convolution, whose
weights these filters are made from and which alone are stored.

T tiles, each six rows of the result; N = 8 products per tile. Other shapes as in the package's docstring.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d

_ROWS, _TAPS = 6, 3
_PRODUCTS = _ROWS + _TAPS - 1
# Where the polynomials of filter and data are multiplied; infinity is the eighth point.
_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)
# Measured on an AVX2 core: 144 channels take half the time; with 32 or 16 going in, transforms eat the gain.
_LEAST_CHANNELS = 64
# Below this, preparing the filters costs more than is saved.
_LEAST_PIXELS = 64 * 64
# Tiles are taken in blocks whose data and products stay in the cache.
_BLOCK_BYTES = 16 * 2**20


def pays(weight: Tensor, pixels: int) -> bool:
    """Return whether this is faster than the plain convolution: in float on a CPU, where maps are large.

    Args:
        weight: of the convolution.
        pixels: h * w of the whole map.
    """
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    return (
        not plain
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and min(weight.shape[:2]) >= _LEAST_CHANNELS
        and pixels >= _LEAST_PIXELS
    )


@dataclass(frozen=True)
class WinogradConvolution:
    """A convolution 3 x 3 without bias, of stride one, whose filters are transformed.

    Attributes:
        filters: N of (D', D, 1, 3).
        before: (N, N), turns rows of the map into data; B^T of the paper.
        after: (6, N), turns products into rows of the result; A^T of the paper.
    """

    filters: tuple[Tensor, ...]
    before: Tensor
    after: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> WinogradConvolution:
        """Transform the filters (D', D, 3, 3) of a convolution."""
        after, taps, before = (matrix.to(weight) for matrix in matrices())
        transformed = torch.einsum("nk, oikl -> noil", taps, weight).unsqueeze(3)
        filters = tuple(one.contiguous(memory_format=torch.channels_last) for one in transformed)
        return cls(filters, before, after)

    def __call__(self, x: Tensor, above: int = 1, below: int = 1) -> Tensor:
        """(B, D, rows, w) -> (B, D', rows + above + below - 2, w), with channels innermost.

        Args:
            x: rows of a map.
            above: rows of zeros to imagine above it, 0 or 1.
            below: and below it.
        """
        batch, _, height, width = x.shape
        shape = (batch, len(self.filters[0]), height + above + below - 2, width)
        result = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for one, filled in zip(x, result, strict=True):
            # Copies only where channels are not innermost already.
            rows = one.permute(1, 2, 0).reshape(height, -1)
            self._fill(filled.permute(1, 2, 0).view(shape[2], -1), rows, above, width)
        return result

    def _fill(self, result: Tensor, rows: Tensor, above: int, width: int) -> None:
        """Write the rows of a result (rows, w * D') from those of a map (rows, w * D)."""
        tiles = -(-len(result) // _ROWS)
        tile_bytes = _PRODUCTS * (rows.shape[1] + result.shape[1]) * rows.element_size()
        block = max(1, _BLOCK_BYTES // tile_bytes)
        for start in range(0, tiles, block):
            count = min(block, tiles - start)
            data = rows.new_empty(_PRODUCTS, count, rows.shape[1])
            products = rows.new_empty(_PRODUCTS, count, result.shape[1])
            tops = [(start + index) * _ROWS for index in range(count)]
            for index, top in enumerate(tops):
                first, last = max(0, top - above), min(len(rows), top - above + _PRODUCTS)
                # Rows of zeros, beyond the border or a last tile that is not full, are left out of the sum.
                seen = self.before[:, first - top + above : last - top + above]
                torch.mm(seen, rows[first:last], out=data[:, index])
            for one, product, weight in zip(data, products, self.filters, strict=True):
                laid = one.view(1, count, width, -1).permute(0, 3, 1, 2)
                product.copy_(conv2d(laid, weight, padding=(0, 1)).permute(0, 2, 3, 1).view(count, -1))
            for index, top in enumerate(tops):
                filled = result[top : top + _ROWS]
                torch.mm(self.after[: len(filled)], products[:, index], out=filled)


def matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Return A^T (6, N), G (N, 3) and B^T (N, N) in float64, by Cook's and Toom's interpolation.

    A filter g of three taps over eight values d gives A^T [(G g) * (B^T d)].
    """
    after = torch.zeros(_ROWS, _PRODUCTS, dtype=torch.float64)
    taps = torch.zeros(_PRODUCTS, _TAPS, dtype=torch.float64)
    before = torch.zeros(_PRODUCTS, _PRODUCTS, dtype=torch.float64)
    for index, point in enumerate(_POINTS):
        others = [other for other in _POINTS if other != point]
        apart = torch.tensor([point - other for other in others], dtype=torch.float64).prod()
        powers = torch.tensor(point, dtype=torch.float64) ** torch.arange(_ROWS)
        after[:, index] = powers
        taps[index] = powers[:_TAPS] / apart
        before[index, :-1] = _polynomial(others)
    after[-1, -1] = taps[-1, -1] = 1
    before[-1] = _polynomial(_POINTS)
    return after, taps, before


def _polynomial(roots: tuple[float, ...] | list[float]) -> Tensor:
    """Return the coefficients of the product of (x - root), that of the lowest power first."""
    coefficients = torch.ones(1, dtype=torch.float64)
    nothing = coefficients.new_zeros(1)
    for root in roots:
        coefficients = torch.cat([nothing, coefficients]) - root * torch.cat([coefficients, nothing])
    return coefficients
