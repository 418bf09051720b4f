"""The U-shaped network around the transformer blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from restorekit.contracts import Backbone
from restorekit_restormer.blocks import Block, Norm


class Restormer(Backbone):
    """Restoration transformer (Zamir et al., CVPR 2022, arXiv 2111.09881, figure 2).

    Attention weights are sums over all pixels, so a tile is another computation than the whole image.

    Args:
        channels: C of the image; 6 for the two views of a dual-pixel sensor.
        out_channels: C of the restored image; that of the input when not given.
        dim: features of the first level, even; each level down has twice as many.
        blocks: transformer blocks of each of the four levels, the lowest last.
        refinement_blocks: blocks after the last level, at full resolution.
        heads: groups of channels in the attention of each level; divisors of its features.
        expansion: hidden features of the feed-forward network, as a multiple of those of its level.
        bias: whether the convolutions have one; those that change the resolution never do.
        norm: ``with-bias`` is layer normalisation; ``bias-free`` does not centre, for Gaussian denoising.
        dual_pixel: predict the image itself, from features to which the first ones are added, instead of a
            residual of the input (the published network for dual-pixel defocus).

    Raises:
        ValueError: the arguments do not describe a network; the message says which.
    """

    size_multiple = 8
    tiling = "discouraged"

    def __init__(
        self,
        channels: int = 3,
        out_channels: int | None = None,
        dim: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        expansion: float = 2.66,
        bias: bool = False,
        norm: Norm = "with-bias",
        dual_pixel: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.out_channels = channels, out_channels
        restored_channels = channels if out_channels is None else out_channels
        _check(channels, restored_channels, dim, blocks, refinement_blocks, heads, expansion, dual_pixel)

        def stage(level: int, count: int, features: int) -> nn.Sequential:
            return nn.Sequential(
                *(Block(features, heads[level], expansion, bias, norm) for _ in range(count))
            )

        features = [dim * 2**level for level in range(4)]
        self.latent_features = features[3]
        # The published name has this extra level.
        self.patch_embed = nn.ModuleDict({"proj": _convolution(channels, dim, 3, bias=False)})
        self.encoder_level1 = stage(0, blocks[0], features[0])
        self.down1_2 = _Downsample(features[0])
        self.encoder_level2 = stage(1, blocks[1], features[1])
        self.down2_3 = _Downsample(features[1])
        self.encoder_level3 = stage(2, blocks[2], features[2])
        self.down3_4 = _Downsample(features[2])
        self.latent = stage(3, blocks[3], features[3])
        self.up4_3 = _Upsample(features[3])
        self.reduce_chan_level3 = _convolution(features[3], features[2], 1, bias)
        self.decoder_level3 = stage(2, blocks[2], features[2])
        self.up3_2 = _Upsample(features[2])
        self.reduce_chan_level2 = _convolution(features[2], features[1], 1, bias)
        self.decoder_level2 = stage(1, blocks[1], features[1])
        self.up2_1 = _Upsample(features[1])
        # The first level keeps both halves of its concatenation: 2 * dim, with the heads of dim.
        self.decoder_level1 = stage(0, blocks[0], features[1])
        self.refinement = stage(0, refinement_blocks, features[1])
        self.skip_conv = _convolution(dim, features[1], 1, bias) if dual_pixel else None
        self.output = _convolution(features[1], restored_channels, 3, bias)

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); H and W are multiples of 8."""
        return self.decode(*self.encode(degraded))

    def encode(self, degraded: Tensor) -> tuple[Tensor, _Rest]:
        """Return the lowest level (B, 8 dim, H / 8, W / 8), and what the way up adds."""
        embedded = self.patch_embed["proj"](degraded.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
        skip1 = self.encoder_level1(embedded)
        skip2 = self.encoder_level2(self.down1_2(skip1))
        skip3 = self.encoder_level3(self.down2_3(skip2))
        latent: Tensor = self.latent(self.down3_4(skip3))
        return latent, _Rest(degraded, embedded, skip1, skip2, skip3)

    def decode(self, latent: Tensor, rest: _Rest) -> Tensor:
        """(B, 8 dim, H / 8, W / 8), and the rest of ``encode`` -> (B, C, H, W)."""
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(latent), rest.skip3], 1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), rest.skip2], 1)))
        x = self.decoder_level1(torch.cat([self.up2_1(x), rest.skip1], 1))
        x = self.refinement(x)
        if self.skip_conv is None:
            restored: Tensor = self.output(x) + rest.degraded
        else:
            restored = self.output(x + self.skip_conv(rest.embedded))
        return restored


class _Rest(NamedTuple):
    """What the way up needs beside the lowest level."""

    degraded: Tensor
    embedded: Tensor
    skip1: Tensor
    skip2: Tensor
    skip3: Tensor


class _Downsample(nn.Module):
    """Half the resolution, twice the features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(features, features // 2, 3, bias=False), nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, 2 D, H / 2, W / 2)."""
        smaller: Tensor = self.body(x)
        return smaller


class _Upsample(nn.Module):
    """Twice the resolution, half the features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(features, features * 2, 3, bias=False), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D / 2, 2 H, 2 W)."""
        larger: Tensor = self.body(x)
        return larger


def _convolution(features: int, out_features: int, side: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(features, out_features, side, padding=side // 2, bias=bias)


def _check(
    channels: int,
    out_channels: int,
    dim: int,
    blocks: Sequence[int],
    refinement_blocks: int,
    heads: Sequence[int],
    expansion: float,
    dual_pixel: bool,
) -> None:
    def require(kept: bool, broken: str) -> None:
        if not kept:
            raise ValueError(broken)

    require(channels >= 1 and out_channels >= 1, f"channels {channels} to {out_channels}: less than one")
    require(
        dual_pixel or channels == out_channels,
        f"out_channels is {out_channels}, channels is {channels}: a residual of the image has its channels",
    )
    require(dim >= 2 and dim % 2 == 0, f"dim is {dim}, not even and positive")
    for name, numbers, least in (("blocks", blocks, 0), ("heads", heads, 1)):
        require(len(numbers) == 4, f"{name} has {len(numbers)} numbers, one is needed for each of 4 levels")
        require(min(numbers) >= least, f"{name} is {list(numbers)}, less than {least}")
    require(refinement_blocks >= 0, f"refinement_blocks is {refinement_blocks}, less than 0")
    for level, number in enumerate(heads):
        features = dim * 2**level
        require(features % number == 0, f"heads is {list(heads)}: {number} does not divide {features}")
    require(int(dim * expansion) >= 1, f"expansion is {expansion}: no hidden features are left of {dim}")
