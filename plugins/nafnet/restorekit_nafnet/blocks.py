"""The block that NAFNet and its Baseline are made of.

Shapes: B batch, D features, H W pixels of the level. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu

from restorekit.layers import ChannelNorm
from restorekit_nafnet.pooling import Pool

Kind = Literal["nafnet", "baseline"]


class Block(nn.Module):
    """Two residual halves: depthwise convolution with channel attention, then a feed-forward network.

    Args:
        features: D, in and out.
        kind: ``nafnet`` gates by halves and attends linearly (eq. 4 and 5); ``baseline`` uses GELU and a
            squeeze-and-excitation branch (eq. 3).
        dw_expand: widening of the depthwise half.
        ffn_expand: widening of the feed-forward half.
        stride: image pixels between neighbouring pixels of this level, handed to the pool.
    """

    def __init__(self, features: int, kind: Kind, dw_expand: int, ffn_expand: int, stride: int) -> None:
        super().__init__()
        self.gated, self.stride = kind == "nafnet", stride
        wide, hidden = features * dw_expand, features * ffn_expand
        shrink = 2 if self.gated else 1
        self.conv1 = nn.Conv2d(features, wide, 1)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.conv3 = nn.Conv2d(wide // shrink, features, 1)
        # Position 0 is the pool, which is handed to forward: published names begin at 1.
        if self.gated:
            self.sca = nn.Sequential(nn.Identity(), nn.Conv2d(wide // 2, wide // 2, 1))
        else:
            squeezed = [nn.Conv2d(wide, wide // 2, 1), nn.ReLU(), nn.Conv2d(wide // 2, wide, 1), nn.Sigmoid()]
            self.se = nn.Sequential(nn.Identity(), *squeezed)
        self.conv4 = nn.Conv2d(features, hidden, 1)
        self.conv5 = nn.Conv2d(hidden // shrink, features, 1)
        self.norm1 = ChannelNorm(features, eps=1e-6)
        self.norm2 = ChannelNorm(features, eps=1e-6)
        # Both halves start switched off, so that a deep stack starts as the identity.
        self.beta = nn.Parameter(torch.zeros(1, features, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, features, 1, 1))

    def forward(self, x: Tensor, pool: Pool) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        wide = self.pooled_features(x)
        attention = (self.sca if self.gated else self.se)(pool(wide, self.stride))
        x = x + _scaled(self.conv3, self.beta, wide * attention)
        return x + _scaled(self.conv5, self.gamma, self._activate(self.conv4(self.norm2(x))))

    def pooled_features(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D', H, W): what channel attention pools over."""
        return self._activate(self.conv2(self.conv1(self.norm1(x))))

    def _activate(self, x: Tensor) -> Tensor:
        if not self.gated:
            return gelu(x)
        left, right = x.chunk(2, dim=1)
        return left * right


class Stage(nn.ModuleList):
    """Blocks of one level, one after the other."""

    def forward(self, x: Tensor, pool: Pool) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        for block in self:
            x = block(x, pool)
        return x

    def blocks(self) -> list[Block]:
        """Return the blocks in their order."""
        return [cast(Block, block) for block in self]


def _scaled(conv: nn.Conv2d, scale: Tensor, x: Tensor) -> Tensor:
    """Return ``conv(x) * scale``; scaling the filters instead saves two passes over the map."""
    per_filter = scale.reshape(-1)
    bias = None if conv.bias is None else conv.bias * per_filter
    return conv2d(x, conv.weight * per_filter[:, None, None, None], bias)
