"""The blocks that MPRNet is made of: channel attention, resampling, supervised attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate


class Slope(nn.PReLU):
    """PReLU with one slope, which all blocks of a network share.

    The published state dict lists the slope under every block. Copies are handed out, since a file format may
    refuse tensors that share memory.
    """

    def __init__(self) -> None:
        super().__init__(init=0.25)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            destination[f"{prefix}weight"] = destination[f"{prefix}weight"].clone()


def convolution(features: int, outputs: int, kernel: int, bias: bool) -> nn.Conv2d:
    """Return a convolution that keeps the size."""
    return nn.Conv2d(features, outputs, kernel, padding=kernel // 2, bias=bias)


class ChannelAttention(nn.Module):
    """Scale each channel by what the mean of all channels says of it."""

    def __init__(self, features: int, reduction: int, bias: bool) -> None:
        super().__init__()
        inner = features // reduction
        self.conv_du = nn.Sequential(
            nn.Conv2d(features, inner, 1, bias=bias),
            nn.ReLU(),
            nn.Conv2d(inner, features, 1, bias=bias),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> scales (B, D, 1, 1)."""
        # Half precision drifts in sums over 10^5 pixels.
        mean = x.mean((2, 3), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
        scales: Tensor = self.conv_du(mean.to(x.dtype))
        return scales


class AttentionBlock(nn.Module):
    """Two convolutions with channel attention and a residual: the paper's CAB (figure 2b)."""

    def __init__(self, features: int, kernel: int, reduction: int, bias: bool, slope: Slope) -> None:
        super().__init__()
        self.CA = ChannelAttention(features, reduction, bias)
        self.body = nn.Sequential(
            convolution(features, features, kernel, bias),
            slope,
            convolution(features, features, kernel, bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        inner = self.body(x)
        return torch.addcmul(x, inner, self.CA(inner))


class Down(nn.Module):
    """Halve the sides and widen."""

    def __init__(self, features: int, step: int) -> None:
        super().__init__()
        # Bilinear reduction by two is the mean of four pixels; it stands where the published keys expect it.
        self.down = nn.Sequential(nn.Identity(), nn.Conv2d(features, features + step, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D + step, H / 2, W / 2)."""
        wider: Tensor = self.down(avg_pool2d(x, 2))
        return wider


class Up(nn.Module):
    """Double the sides and narrow.

    The published order is to enlarge first. A convolution of single pixels and a bilinear enlargement, whose
    weights sum to one, may change places; on the small map the convolution costs a quarter.
    """

    def __init__(self, features: int, step: int) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Identity(), nn.Conv2d(features + step, features, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D + step, H, W) -> (B, D, 2 * H, 2 * W)."""
        return enlarge(self.narrow(x))

    def narrow(self, x: Tensor) -> Tensor:
        """(B, D + step, H, W) -> (B, D, H, W), not enlarged yet."""
        narrower: Tensor = self.up(x)
        return narrower


def enlarge(x: Tensor) -> Tensor:
    """(B, D, H, W) -> (B, D, 2 * H, 2 * W)."""
    return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class SupervisedAttention(nn.Module):
    """Form the image of a stage, and let it choose the features that go on: the paper's SAM (section 3.3)."""

    def __init__(self, features: int, channels: int, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 1, bias=bias)
        self.conv2 = nn.Conv2d(features, channels, 1, bias=bias)
        self.conv3 = nn.Conv2d(channels, features, 1, bias=bias)

    def forward(self, x: Tensor, degraded: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, H, W), image (B, C, H, W) -> features (B, D, H, W), image of the stage (B, C, H, W)."""
        image = self.conv2(x) + degraded
        return torch.addcmul(x, self.conv1(x), torch.sigmoid(self.conv3(image))), image
