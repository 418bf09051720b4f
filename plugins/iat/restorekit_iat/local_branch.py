"""The local branch: for each pixel and colour, what it is multiplied by and what is added.

Shapes as in the package; it never leaves the image's resolution.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

# How little a block changes its input at first.
_SCALE = 1e-4
_SLOPE = 0.2


class LightNormalization(nn.Module):
    """A learned mixture, gain and offset of channels, instead of layer normalisation (section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, width))
        self.color = nn.Parameter(torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        mixed = einsum(x, self.color, "b d h w, e d -> b e h w")
        return mixed * rearrange(self.alpha, "1 1 d -> d 1 1") + rearrange(self.beta, "1 1 d -> d 1 1")


class PixelwiseMLP(nn.Module):
    """Two linear layers on each pixel's features."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        mixed: Tensor = self.fc2(self.act(self.fc1(x)))
        return mixed


class PixelwiseEnhancement(nn.Module):
    """Pixel-wise enhancement module, PEM (figure 2b): a transformer block with convolutions as attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = LightNormalization(width)
        self.conv1 = nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.conv2 = nn.Conv2d(width, width, 1)
        self.gamma_1 = nn.Parameter(torch.full((1, width, 1, 1), _SCALE))
        self.norm2 = LightNormalization(width)
        self.mlp = PixelwiseMLP(width, 4 * width)
        self.gamma_2 = nn.Parameter(torch.full((1, width, 1, 1), _SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        x = x + self.pos_embed(x)
        x = x + self.gamma_1 * self.conv2(self.attn(self.conv1(self.norm1(x))))
        enhanced: Tensor = x + self.gamma_2 * self.mlp(self.norm2(x))
        return enhanced


class LocalBranch(nn.Module):
    """The maps M and A of equation 2, by two rows of modules on the same features."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.mul_blocks = nn.Sequential(*(PixelwiseEnhancement(width) for _ in range(blocks)))
        self.add_blocks = nn.Sequential(*(PixelwiseEnhancement(width) for _ in range(blocks)))
        self.mul_end = nn.Sequential(nn.Conv2d(width, 3, 3, padding=1), nn.ReLU())
        self.add_end = nn.Sequential(nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())

    def forward(self, degraded: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> factors, not below 0, and summands in [-1, 1], both (B, 3, H, W)."""
        x = leaky_relu(self.conv1(degraded), _SLOPE)
        factors: Tensor = self.mul_end(self.mul_blocks(x) + x)
        summands: Tensor = self.add_end(self.add_blocks(x) + x)
        return factors, summands
