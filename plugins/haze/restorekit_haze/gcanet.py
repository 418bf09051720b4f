"""GCANet: dilated convolutions whose gaps are smoothed over, three levels of which are gated together.

Shapes as in the package.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, relu

from restorekit.contracts import Backbone

_LEVELS = 255
# What the published networks subtract from 8-bit levels, and from edges.
_MIDDLE = 128
# Of the residual blocks in order; without a dilation there is nothing to smooth.
_DILATIONS = (2, 2, 2, 4, 4, 4, 1)
# The block whose features are the middle level.
_BETWEEN = 4


class _Norm(nn.Module):
    """Instance normalisation with a gain and an offset of each feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        return nn.functional.instance_norm(x, weight=self.weight, bias=self.bias)


class _Smooth(nn.Module):
    """One kernel for all features, just wide enough that no pixel falls between the taps of what follows."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        side = 2 * dilation - 1
        self.weight = nn.Parameter(pad(torch.ones(1, 1, 1, 1), (dilation - 1,) * 4))
        self.padding = side // 2

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, h, w)."""
        width = x.shape[1]
        return conv2d(x, self.weight.expand(width, -1, -1, -1), padding=self.padding, groups=width)


class _Block(nn.Module):
    """Residual block of two smoothed dilated convolutions."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.is_smooth = dilation > 1
        for number in (1, 2):
            if self.is_smooth:
                self.add_module(f"pre_conv{number}", _Smooth(dilation))
            conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
            self.add_module(f"conv{number}", conv)
            self.add_module(f"norm{number}", _Norm(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D, h, w)."""
        return relu(x + self._layer(2, relu(self._layer(1, x))))

    def _layer(self, number: int, x: Tensor) -> Tensor:
        names = ("pre_conv", "conv", "norm") if self.is_smooth else ("conv", "norm")
        for name in names:
            x = self.get_submodule(f"{name}{number}")(x)
        return x


class GCANet(Backbone):
    """Gated context aggregation network (Chen et al., WACV 2019, arXiv 1811.08747, section 3).

    An encoder to half the sides, seven residual blocks, a gate that weighs their levels pixel by pixel, and a
    decoder. It sees the image in 8-bit levels and the strength of its edges as a fourth channel. Every layer
    is normalised over the whole image.

    Args:
        width: D, features of every layer.
        residual: whether it says how the image differs from the clean one, as the published network for haze;
            else it says the clean image, as that for rain.

    Raises:
        ValueError: ``width`` is below 1.
    """

    # At half the sides statistics are taken, of more than one pixel.
    size_multiple = 4
    # Statistics of a tile are not those of the image.
    tiling = "discouraged"
    overlap = 64
    precisions = frozenset({torch.float32, torch.bfloat16})

    def __init__(self, width: int = 64, residual: bool = True) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}, not 1 or more")
        self.residual = residual
        self.conv1 = nn.Conv2d(4, width, 3, padding=1, bias=False)
        self.norm1 = _Norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _Norm(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False)
        self.norm3 = _Norm(width)
        for number, dilation in enumerate(_DILATIONS, 1):
            self.add_module(f"res{number}", _Block(width, dilation))
        self.gate = nn.Conv2d(3 * width, 3, 3, padding=1)
        self.deconv3 = nn.ConvTranspose2d(width, width, 4, padding=1, stride=2)
        self.norm4 = _Norm(width)
        self.deconv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm5 = _Norm(width)
        self.deconv1 = nn.Conv2d(width, 3, 1)

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W); H and W are multiples of 4."""
        levels = degraded * _LEVELS
        x = torch.cat([levels, edges(levels)], 1) - _MIDDLE
        x = relu(self.norm1(self.conv1(x)))
        x = relu(self.norm2(self.conv2(x)))
        x = low = relu(self.norm3(self.conv3(x)))
        middle = low
        for number in range(1, len(_DILATIONS) + 1):
            x = self.get_submodule(f"res{number}")(x)
            if number == _BETWEEN:
                middle = x
        gates = torch.split(self.gate(torch.cat([low, middle, x], 1)), 1, 1)
        x = low * gates[0] + middle * gates[1] + x * gates[2]
        x = relu(self.norm4(self.deconv3(x)))
        x = self.deconv1(relu(self.norm5(self.deconv2(x))))
        x = x + levels if self.residual else relu(x)
        return x / _LEVELS


def edges(image: Tensor) -> Tensor:
    """Return the mean absolute difference of pixels from their four neighbours, (B, 1, H, W).

    Beyond the border there is no difference.
    """
    below = pad((image[:, :, 1:] - image[:, :, :-1]).abs(), (0, 0, 1, 1))
    right = pad((image[..., 1:] - image[..., :-1]).abs(), (1, 1))
    around = below[:, :, 1:] + below[:, :, :-1] + right[..., 1:] + right[..., :-1]
    return around.mean(1, keepdim=True) / 4
