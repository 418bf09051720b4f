"""The global branch: what ten learned questions find out about the whole image, its gamma and its colours.

Shapes as in the package. ``in_strips`` asks an image that is too large to be asked at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

# Pixels along each side of a cell: two strided convolutions.
STRIDE = 4
# One question for gamma, nine for a matrix of three colours.
_QUESTIONS = 10
# Rows that a strip needs of its neighbours: two cells, as the position's convolution looks at the next one.
_HALO = 2 * STRIDE


class Light(NamedTuple):
    """What holds for a whole image: its gamma (B, 1) and its colour matrix (B, 3, 3)."""

    gamma: Tensor
    colour: Tensor


class Cells(nn.Module):
    """Features of cells of 4 x 4 pixels, by two strided convolutions."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(3, features // 2, 3, stride=2, padding=1),
            nn.BatchNorm2d(features // 2),
            nn.GELU(),
            nn.Conv2d(features // 2, features, 3, stride=2, padding=1),
            nn.BatchNorm2d(features),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w)."""
        cells: Tensor = self.proj(image)
        return cells


class Questions(nn.Module):
    """Attention of learned questions, the same for every image, to its cells."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (features // heads) ** -0.5
        self.q = nn.Parameter(torch.ones(1, _QUESTIONS, features))
        self.k = nn.Linear(features, features, bias=False)
        self.v = nn.Linear(features, features, bias=False)
        self.proj = nn.Linear(features, features)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> answers (B, heads, 10, D / heads), and logarithms (B, heads, 10, 1) of their weights.

        Answers of parts of an image are joined by these weights, see ``joined``.
        """
        questions, keys, values = (
            rearrange(x, "b n (heads d) -> b heads n d", heads=self.heads)
            for x in (self.q, self.k(cells), self.v(cells))
        )
        logits = self.scale * questions @ keys.transpose(2, 3)
        return logits.softmax(-1) @ values, logits.logsumexp(-1, keepdim=True)

    def joined(self, answers: Tensor, weights: Tensor) -> Tensor:
        """Answers of parts and their weights, stacked in front -> answers of the whole image (B, 10, D)."""
        whole = (weights.softmax(0) * answers).sum(0)
        told: Tensor = self.proj(rearrange(whole, "b heads n d -> b n (heads d)"))
        return told


class MLP(nn.Module):
    """Two linear layers."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, 4 * features)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * features, features)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        mixed: Tensor = self.fc2(self.act(self.fc1(x)))
        return mixed


class GlobalPrediction(nn.Module):
    """Global prediction module, GPM (figure 2c): a transformer block whose questions are its own."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(features, features, 3, padding=1, groups=features)
        self.norm1 = nn.LayerNorm(features)
        self.attn = Questions(features, heads)
        self.norm2 = nn.LayerNorm(features)
        self.mlp = MLP(features)

    def ask(self, cells: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Ask some rows of cells (B, D, h, w); the result is that of ``Questions``."""
        x = (cells + self.pos_embed(cells))[:, :, rows]
        answers, weights = self.attn(self.norm1(rearrange(x, "b d h w -> b (h w) d")))
        return answers, weights

    def conclude(self, answers: Tensor, weights: Tensor) -> Tensor:
        """Answers of parts and their weights, stacked in front -> (B, 10, D)."""
        x = self.attn.joined(answers, weights)
        concluded: Tensor = x + self.mlp(self.norm2(x))
        return concluded


class GlobalBranch(nn.Module):
    """Gamma and colour matrix of equation 3, each as a difference from a learned common one."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.gamma_base = nn.Parameter(torch.ones(1))
        self.color_base = nn.Parameter(torch.eye(3))
        self.conv_large = Cells(features)
        self.generator = GlobalPrediction(features, heads)
        self.gamma_linear = nn.Linear(features, 1)
        self.color_linear = nn.Linear(features, 1)

    def forward(self, degraded: Tensor) -> Light:
        """(B, 3, H, W) -> gamma (B, 1), colour matrix (B, 3, 3)."""
        return self.in_strips(degraded, degraded.shape[2])

    def in_strips(self, degraded: Tensor, rows: int) -> Light:
        """Return the same, looking at about so many rows of pixels at a time.

        Args:
            degraded: (B, 3, H, W); it may wait on another device.
            rows: at least; they are a multiple of a cell's.
        """
        weight, height = self.color_linear.weight, degraded.shape[2]
        rows = -(-max(rows, 1) // STRIDE) * STRIDE
        parts = []
        for start in range(0, height, rows):
            top, stop = max(0, start - _HALO), min(start + rows, height)
            strip = degraded[:, :, top : stop + _HALO].to(weight.device, weight.dtype)
            own = slice((start - top) // STRIDE, -(-(stop - top) // STRIDE))
            parts.append(self.generator.ask(self.conv_large(strip), own))
        answers, weights = (torch.stack(each) for each in zip(*parts, strict=True))
        x = self.generator.conclude(answers, weights)
        gamma = self.gamma_linear(x[:, 0]) + self.gamma_base
        colour = self.color_linear(x[:, 1:]).reshape(-1, 3, 3) + self.color_base
        return Light(gamma, colour)
