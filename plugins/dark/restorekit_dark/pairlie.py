"""PairLIE: an image taken apart into noise, light and what reflects it. Shapes as in the package."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from restorekit.contracts import Backbone

_LAYERS = 5


def _branch(width: int, filters: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for layer in range(_LAYERS):
        features = width if layer else 3
        last = layer == _LAYERS - 1
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(features, filters if last else width, 3)]
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class _Named(nn.Module):
    """A branch under the name that it has twice in published files, then a sigmoid."""

    def __init__(self, name: str, width: int, filters: int) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, _branch(width, filters))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1, H, W) or (B, 3, H, W), in [0, 1]."""
        return torch.sigmoid(self.get_submodule(self.name)(image))


class PairLIE(Backbone):
    """Enhancement learned from pairs of dark images (Fu et al., CVPR 2023, section 3).

    A first branch removes noise; of its image, by Retinex, one finds the light L and one the reflectance R,
    all with five convolutions. ``restored = L ** light * R``.

    Args:
        width: D, features of every layer.
        light: the exponent of the light, above 0: the smaller, the brighter. The paper has 0.2 for LOL;
            0.14 suits darker images.

    Raises:
        ValueError: ``width`` is below 1, or ``light`` not above 0.
    """

    # Two branches of five convolutions, one after the other, see 10 pixels far.
    # What lies within a quarter of the overlap of a cut is never used.
    overlap = 8 * _LAYERS
    # A border of one pixel is reflected in every layer.
    size_multiple = 2

    def __init__(self, width: int = 64, light: float = 0.2) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}, not 1 or more")
        if not 0 < light < float("inf"):
            raise ValueError(f"light is {light}, not above 0")
        self.light = light
        self.N_net = _Named("N_net", width, 3)
        self.L_net = _Named("L_net", width, 1)
        self.R_net = _Named("R_net", width, 3)

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W) in [0, 1]; H and W are even."""
        quiet = self.N_net(degraded)
        bright: Tensor = self.L_net(quiet) ** self.light * self.R_net(quiet)
        return bright

    def maps(self, degraded: Tensor) -> dict[str, Tensor]:
        """Return light and reflectance, and the image without its noise."""
        quiet = self.N_net(degraded)
        return {"light": self.L_net(quiet), "reflectance": self.R_net(quiet), "quiet": quiet}
