"""Layers that two or more plug-ins share, because plug-ins do not import each other.

A layer moves here when a second plug-in needs it, with its tests, and never before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

# Weights of red, green and blue.
_LUMA = (0.299, 0.587, 0.114)


def luma(image: Tensor) -> Tensor:
    """Return how bright colours look, (..., 3, H, W) -> (..., 1, H, W), of the same range (ITU-R BT.601)."""
    return (image * image.new_tensor(_LUMA)[:, None, None]).sum(-3, keepdim=True)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with a weight and a bias per channel.

    Mean and biased variance are taken over the channels of one pixel alone (Ba et al., arXiv 1607.06450).
    Half precision is accumulated in float32. Tensors with channels innermost are normalised in place of their
    memory order, without a copy.

    Args:
        channels: C, in and out.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), channels innermost in memory."""
        pixels = x.permute(0, 2, 3, 1)
        normed = layer_norm(pixels, self.weight.shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)
