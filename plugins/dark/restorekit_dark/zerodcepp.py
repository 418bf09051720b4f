"""Zero-DCE++: a curve for every pixel, applied eight times. Shapes as in the package."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from restorekit.contracts import Backbone

_LAYERS = 7


class _Separable(nn.Module):
    """A convolution of each feature by itself, then one that mixes them."""

    def __init__(self, features: int, filters: int) -> None:
        super().__init__()
        self.depth_conv = nn.Conv2d(features, features, 3, padding=1, groups=features)
        self.point_conv = nn.Conv2d(features, filters, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D', h, w)."""
        mixed: Tensor = self.point_conv(self.depth_conv(x))
        return mixed


class ZeroDCEpp(Backbone):
    """Zero-reference deep curve estimation, the fast one (Li, Guo, Loy, TPAMI 2021, arXiv 2103.00860).

    ``x + a * (x^2 - x)`` is applied ``curves`` times, with the same map ``a`` in [-1, 1] of each
    pixel and colour. Images are clamped to [0, 1] and stay there.

    Args:
        width: D, features of every layer.
        curves: how often the curve is applied.
        reduction: the map is found in an image whose sides are so many times smaller, and enlarged. The
            published figures have 12; it is faster, and halos appear at edges. Pixel centres stay where they
            are; the authors' code enlarges corner to corner, which differs by less than a cell.

    Raises:
        ValueError: a number is below 1.
    """

    padding = "replicate"

    def __init__(self, width: int = 32, curves: int = 8, reduction: int = 1) -> None:
        super().__init__()
        for name, number in (("width", width), ("curves", curves), ("reduction", reduction)):
            if number < 1:
                raise ValueError(f"{name} is {number}, not 1 or more")
        self.curves, self.size_multiple = curves, reduction
        # Each convolution reaches one cell, and so does enlarging.
        # What lies within a quarter of the overlap of a cut is never used.
        self.overlap = 4 * (_LAYERS + (reduction > 1)) * reduction
        self.e_conv1 = _Separable(3, width)
        self.e_conv2 = _Separable(width, width)
        self.e_conv3 = _Separable(width, width)
        self.e_conv4 = _Separable(width, width)
        self.e_conv5 = _Separable(2 * width, width)
        self.e_conv6 = _Separable(2 * width, width)
        self.e_conv7 = _Separable(2 * width, 3)

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W) in [0, 1]; H and W are multiples of ``reduction``."""
        x = degraded.clamp(0, 1)
        curve = self._curve(x)
        for _ in range(self.curves):
            x = x + curve * (x * x - x)
        return x

    def maps(self, degraded: Tensor) -> dict[str, Tensor]:
        """Return the map ``a`` of the curves, in [-1, 1]: below 0 brightens."""
        return {"curve": self._curve(degraded.clamp(0, 1))}

    def _curve(self, image: Tensor) -> Tensor:
        by = self.size_multiple
        x = image if by == 1 else interpolate(image, scale_factor=1 / by, mode="bilinear")
        one = relu(self.e_conv1(x))
        two = relu(self.e_conv2(one))
        three = relu(self.e_conv3(two))
        four = relu(self.e_conv4(three))
        x = relu(self.e_conv5(torch.cat([three, four], 1)))
        x = relu(self.e_conv6(torch.cat([two, x], 1)))
        curve = torch.tanh(self.e_conv7(torch.cat([one, x], 1)))
        return curve if by == 1 else interpolate(curve, scale_factor=by, mode="bilinear")
