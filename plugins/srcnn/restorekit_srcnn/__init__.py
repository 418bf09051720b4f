"""SRCNN-style network: plain convolutions, one after the other, that restore and enlarge an image.

Dong et al.: Learning a Deep Convolutional Network for Image Super-Resolution, ECCV 2014 (arXiv 1501.00092),
in the deeper form that is one of the two networks of Xie et al.: Finding Discriminative Filters for Specific
Degradations in Blind Super-Resolution (FAIG), NeurIPS 2021: 3x3 filters, and pixel shuffle instead of an
input that was enlarged before. Written from the papers; parameter names follow the published checkpoints.

Shapes: B batch, C image channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from restorekit.contracts import Backbone

# Enlarging twice by 2 needs fewer filters than once by 4.
_SHUFFLES = {1: (), 2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
_SLOPE = 0.1


class SRCNN(Backbone):
    """SRCNN-style network (Dong et al., ECCV 2014) with the layers of FAIG (NeurIPS 2021).

    Args:
        channels: C of the image.
        widths: filters of each convolution before the image is enlarged; the last is kept to the end.
        scale: side of the output divided by side of the input: 1, 2, 3, 4 or 8.

    Raises:
        ValueError: ``scale`` is another one, ``widths`` is empty, or a number is below 1.
    """

    def __init__(
        self, channels: int = 3, widths: Sequence[int] = (64, 128, 128, 128, 128, 128), scale: int = 4
    ) -> None:
        super().__init__()
        if scale not in _SHUFFLES:
            raise ValueError(f"scale {scale} is not one of {', '.join(map(str, _SHUFFLES))}")
        if not widths:
            raise ValueError("widths is empty, at least one convolution is needed")
        for name, number in (("channels", channels), *(("a number of widths", width) for width in widths)):
            if number < 1:
                raise ValueError(f"{name} is {number}, not 1 or more")
        self.channels, self.scale = channels, scale
        # Each convolution before and the two after reach one pixel; enlarging adds none to that.
        # What lies within a quarter of the overlap of a cut is never used.
        self.overlap = 4 * (len(widths) + 2)
        last = widths[-1]
        layers: list[nn.Module] = []
        for features, filters in pairwise((channels, *widths)):
            layers += [_conv(features, filters), nn.LeakyReLU(_SLOPE)]
        for factor in _SHUFFLES[scale]:
            layers += [_conv(last, last * factor**2), nn.PixelShuffle(factor), nn.LeakyReLU(_SLOPE)]
        layers += [_conv(last, last), nn.LeakyReLU(_SLOPE), _conv(last, channels)]
        self.features = nn.Sequential(*layers)

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H * scale, W * scale)."""
        restored: Tensor = self.features(degraded)
        return restored


def _conv(features: int, filters: int) -> nn.Conv2d:
    """Return a convolution that keeps the variance: without skips it would fade from layer to layer."""
    conv = nn.Conv2d(features, filters, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, a=_SLOPE)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
