"""SRResNet: a residual network that restores and enlarges an image.

Ledig et al.: Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network, CVPR 2017
(arXiv 1609.04802), in the form that is usual since: no batch normalisation, and features added to the
bilinearly enlarged image. It is one of the two networks of Xie et al.: Finding Discriminative Filters for
Specific Degradations in Blind Super-Resolution (FAIG), NeurIPS 2021. Written from the papers; parameter names
follow the published checkpoints.

Shapes: B batch, C image channels, D features, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu, pixel_shuffle, relu

from restorekit.contracts import Backbone

# Enlarging twice by 2 needs fewer filters than once by 4.
_SHUFFLES = {1: (), 2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
_SLOPE = 0.1


class SRResNet(Backbone):
    """SRResNet (Ledig et al., CVPR 2017) without batch normalisation, as in FAIG (NeurIPS 2021).

    Args:
        channels: C of the image.
        width: D, features of every layer.
        blocks: residual blocks.
        scale: side of the output divided by side of the input: 1, 2, 3, 4 or 8.

    Raises:
        ValueError: ``scale`` is another one, or a number is below 1.
    """

    def __init__(self, channels: int = 3, width: int = 64, blocks: int = 16, scale: int = 4) -> None:
        super().__init__()
        if scale not in _SHUFFLES:
            raise ValueError(f"scale {scale} is not one of {', '.join(map(str, _SHUFFLES))}")
        for name, number in (("channels", channels), ("width", width), ("blocks", blocks)):
            if number < 1:
                raise ValueError(f"{name} is {number}, not 1 or more")
        self.channels, self.scale = channels, scale
        # Two convolutions a block and three around them reach one pixel each; enlarging adds none to that.
        # What lies within a quarter of the overlap of a cut is never used.
        self.overlap = 4 * (2 * blocks + 3)
        self.conv_first = _conv(channels, width)
        self.body = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.factors = _SHUFFLES[scale]
        for number, factor in enumerate(self.factors, 1):
            self.add_module(f"upconv{number}", _conv(width, width * factor**2))
        self.conv_hr = _conv(width, width)
        self.conv_last = _conv(width, channels)

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H * scale, W * scale)."""
        x: Tensor = self.body(_activate(self.conv_first(degraded)))
        for number, factor in enumerate(self.factors, 1):
            x = _activate(pixel_shuffle(self.get_submodule(f"upconv{number}")(x), factor))
        correction: Tensor = self.conv_last(_activate(self.conv_hr(x)))
        if self.scale == 1:
            return correction + degraded
        return correction + interpolate(degraded, scale_factor=float(self.scale), mode="bilinear")


class ResidualBlock(nn.Module):
    """Two convolutions whose result is added to their input.

    Args:
        width: D, in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        residual: Tensor = self.conv2(relu(self.conv1(x), inplace=True))
        return x + residual


def _conv(features: int, filters: int) -> nn.Conv2d:
    """Return a convolution that starts small, so that a fresh network is nearly bilinear interpolation."""
    conv = nn.Conv2d(features, filters, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight)
    with torch.no_grad():
        conv.weight.mul_(0.1)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _activate(x: Tensor) -> Tensor:
    # In place: one more map of the enlarged size would take a third more memory.
    return leaky_relu(x, _SLOPE, inplace=True)
