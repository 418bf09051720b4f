"""The network: plain convolutions at half the resolution, with the noise level as one more channel."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from restorekit.contracts import Backbone

_FACTOR = 2
_LEVELS = 255


class FFDNet(Backbone):
    """Fast and flexible denoising network (Zhang et al., TIP 2018, arXiv 1710.04026, figure 1).

    Every square of 2 x 2 pixels becomes one with four times the channels, a map of the noise level is joined,
    and what comes out is shuffled back. The paper's map may differ from pixel to pixel; here it is constant.

    Batch normalisation, with which the networks were trained, is part of the convolutions in the published
    files, and so it is here.

    Args:
        channels: C of the image.
        width: D, features of every layer; published are 96 for colour and 64 for gray.
        layers: convolutions; published are 12 for colour and 15 for gray.
        sigma: noise level that it is told, a standard deviation in 8-bit levels; the published networks
            know 0 to 75. A larger one than there is smooths more.

    Raises:
        ValueError: ``sigma`` is outside 0 to 255, ``layers`` is below 2, or another number below 1.
    """

    size_multiple = _FACTOR
    padding = "replicate"

    def __init__(self, channels: int = 3, width: int = 96, layers: int = 12, sigma: float = 25) -> None:
        super().__init__()
        for name, number, least in (("channels", channels, 1), ("width", width, 1), ("layers", layers, 2)):
            if number < least:
                raise ValueError(f"{name} is {number}, not {least} or more")
        if not 0 <= sigma <= _LEVELS:
            raise ValueError(f"sigma is {sigma}, not a noise level of 0 to {_LEVELS}")
        self.channels, self.sigma = channels, sigma
        self.latent_features = width
        # Each convolution reaches one square of pixels.
        # What lies within a quarter of the overlap of a cut is never used.
        self.overlap = 4 * _FACTOR * layers
        squares = channels * _FACTOR**2
        modules: list[nn.Module] = []
        for features, filters in pairwise((squares + 1, *(width for _ in range(layers - 1)))):
            modules += [_conv(features, filters), nn.ReLU()]
        self.model = nn.Sequential(*modules, _conv(width, squares))

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); H and W are even."""
        return self.decode(*self.encode(degraded))

    def encode(self, degraded: Tensor) -> tuple[Tensor, None]:
        """Return the features before the last convolution (B, D, h, w); nothing else is needed."""
        x = pixel_unshuffle(degraded, _FACTOR)
        noise = x.new_full((len(x), 1, *x.shape[2:]), self.sigma / _LEVELS)
        x = torch.cat([x, noise], 1)
        for layer in list(self.model)[:-1]:
            x = layer(x)
        return x, None

    def decode(self, latent: Tensor, rest: None) -> Tensor:
        """(B, D, h, w) -> (B, C, H, W)."""
        return pixel_shuffle(self.model[-1](latent), _FACTOR)


def _conv(features: int, filters: int) -> nn.Conv2d:
    """Return a convolution that keeps the variance: without skips it would fade from layer to layer."""
    conv = nn.Conv2d(features, filters, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
