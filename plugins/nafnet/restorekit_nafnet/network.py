"""The U-shaped network around the blocks, with its three ways to pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

from torch import Tensor, nn

from restorekit.contracts import Backbone, Padding
from restorekit.tiling import pad_to_multiple
from restorekit_nafnet.blocks import Block, Kind, Stage
from restorekit_nafnet.pooling import LocalMean, Pool, given, given_always, global_mean
from restorekit_nafnet.statistics import in_strips, mean_in_strips


class _Rest(NamedTuple):
    """What the way up needs beside the deepest features: the padded image, skips, the size before."""

    padded: Tensor
    skips: list[Tensor]
    height: int
    width: int


class _UNet(Backbone):
    """Encoder, middle and decoder of blocks; strided convolutions down, pixel shuffle up, skips added."""

    # Measured: at 64, tiles differ from the whole image by 0.1 of an 8-bit level.
    overlap = 64

    def __init__(
        self,
        kind: Kind,
        channels: int,
        width: int,
        middle_blocks: int,
        encoder_blocks: Sequence[int],
        decoder_blocks: Sequence[int],
        dw_expand: int,
        ffn_expand: int,
        local_window: int | Sequence[int] | None,
        padding: Padding,
    ) -> None:
        super().__init__()
        self.channels, self.padding = channels, padding
        self.size_multiple = 2 ** len(encoder_blocks)
        self.latent_features = width * 2 ** len(encoder_blocks)
        self.pool: Pool = global_mean
        if local_window is not None:
            sides = (local_window, local_window) if isinstance(local_window, int) else tuple(local_window)
            self.pool = LocalMean(*sides)

        def stage(blocks: int, level: int) -> Stage:
            features = width * 2**level
            return Stage(Block(features, kind, dw_expand, ffn_expand, stride=2**level) for _ in range(blocks))

        depth = len(encoder_blocks)
        self.intro = nn.Conv2d(channels, width, 3, padding=1)
        self.ending = nn.Conv2d(width, channels, 3, padding=1)
        self.encoders = nn.ModuleList(stage(n, level) for level, n in enumerate(encoder_blocks))
        self.downs = nn.ModuleList(
            nn.Conv2d(width * 2**i, width * 2 ** (i + 1), 2, stride=2) for i in range(depth)
        )
        self.middle_blks = stage(middle_blocks, depth)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width * 2**i, width * 2 ** (i + 1), 1, bias=False), nn.PixelShuffle(2))
            for i in range(depth, 0, -1)
        )
        self.decoders = nn.ModuleList(stage(n, depth - 1 - i) for i, n in enumerate(decoder_blocks))

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); any size, padded inside as the published network does."""
        return self.decode(*self.encode(degraded))

    def encode(self, degraded: Tensor) -> tuple[Tensor, _Rest]:
        """Return what the middle blocks give (B, D, h, w), and what the way up adds."""
        padded = pad_to_multiple(degraded, self.size_multiple, self.padding)
        latent, skips = self._down(padded, self.pool)
        return latent, _Rest(padded, skips, degraded.shape[2], degraded.shape[3])

    def decode(self, latent: Tensor, rest: _Rest) -> Tensor:
        """(B, D, h, w), and the rest of ``encode`` -> (B, C, H, W)."""
        return self._up(latent, rest.skips, rest.padded, self.pool)[..., : rest.height, : rest.width]

    def run(self, degraded: Tensor, pool: Pool) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), sides multiples of ``size_multiple``; ``pool`` feeds attention."""
        return self._up(*self._down(degraded, pool), degraded, pool)

    def _down(self, degraded: Tensor, pool: Pool) -> tuple[Tensor, list[Tensor]]:
        x: Tensor = self.intro(degraded)
        skips = []
        for stage, down in zip(self.encoders, self.downs, strict=True):
            x = stage(x, pool)
            skips.append(x)
            x = down(x)
        return self.middle_blks(x, pool), skips

    def _up(self, x: Tensor, skips: Sequence[Tensor], degraded: Tensor, pool: Pool) -> Tensor:
        for stage, up, skip in zip(self.decoders, self.ups, reversed(skips), strict=True):
            x = stage(up(x) + skip, pool)
        restored: Tensor = self.ending(x) + degraded
        return restored

    def for_image(self, degraded: Tensor, tile: int) -> Callable[[Tensor], Tensor]:
        """Return the network with the means of this image (1, C, H, W), for tiles of it.

        With a local window (TLC) there is nothing to share: the published definition pools around each pixel,
        and tiles see less of it near their border.
        """
        if self.pool is not global_mean:
            return self
        means = self.channel_means(degraded, rows=max(self.size_multiple, tile // 4))
        return lambda window: self.run(window, given(means))

    def channel_means(self, degraded: Tensor, rows: int) -> list[Tensor]:
        """Return what each block's channel attention pools over the whole image, in the order of the blocks.

        Args:
            degraded: (1, C, H, W), sides multiples of ``size_multiple``; it may wait on another device.
            rows: how many rows are run at a time.
        """
        weight = self.intro.weight
        device, means = weight.device, []
        rows = max(1, rows // self.size_multiple) * self.size_multiple

        def walk(stage: nn.Module, x: Tensor, level: int) -> Tensor:
            for block in cast(Stage, stage).blocks():
                height = max(2, rows >> level)
                mean = mean_in_strips(block.pooled_features, x, height, device)
                means.append(mean.to(device))
                x = in_strips(partial(block, pool=given_always(means[-1])), x, height, device)
            return x

        x = in_strips(self.intro, degraded.to(weight.dtype), rows, device)
        skips = []
        for level, (stage, down) in enumerate(zip(self.encoders, self.downs, strict=True)):
            x = walk(stage, x, level)
            skips.append(x)
            x = in_strips(down, x, max(2, rows >> level), device, halo=0)
        depth = len(self.encoders)
        x = walk(self.middle_blks, x, depth)
        for index, (stage, up) in enumerate(zip(self.decoders, self.ups, strict=True)):
            level = depth - 1 - index
            x = in_strips(up, x, max(2, rows >> (level + 1)), device, halo=0).add_(skips.pop())
            x = walk(stage, x, level)
        return means


class NAFNet(_UNet):
    """Nonlinear activation free network (Chen et al., ECCV 2022, arXiv 2204.04676).

    Args:
        channels: C of the image.
        width: features of the first level; each level down has twice as many.
        middle_blocks: blocks at the lowest level.
        encoder_blocks: blocks of each level on the way down; their number is the depth.
        decoder_blocks: blocks of each level on the way up, lowest first.
        dw_expand: widening of the depthwise half of a block.
        ffn_expand: widening of the feed-forward half.
        local_window: side, or height and width, of the window that channel attention pools over (TLC); 384 is
            what the published GoPro and REDS figures use. Pools over the whole image when not given.
        padding: how sides become multiples of ``size_multiple``; the published networks use zeros, reflection
            serves the border better where the network was trained without padding.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 32,
        middle_blocks: int = 12,
        encoder_blocks: Sequence[int] = (2, 2, 4, 8),
        decoder_blocks: Sequence[int] = (2, 2, 2, 2),
        dw_expand: int = 2,
        ffn_expand: int = 2,
        local_window: int | Sequence[int] | None = None,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__(
            "nafnet",
            channels,
            width,
            middle_blocks,
            encoder_blocks,
            decoder_blocks,
            dw_expand,
            ffn_expand,
            local_window,
            padding,
        )


class Baseline(_UNet):
    """The paper's baseline: GELU and squeeze-and-excitation where NAFNet multiplies (section 3).

    Args are those of NAFNet; the published networks of width 32 use ``dw_expand`` 1, those of width 64 use 2.
    """

    def __init__(
        self,
        channels: int = 3,
        width: int = 32,
        middle_blocks: int = 12,
        encoder_blocks: Sequence[int] = (2, 2, 4, 8),
        decoder_blocks: Sequence[int] = (2, 2, 2, 2),
        dw_expand: int = 1,
        ffn_expand: int = 2,
        local_window: int | Sequence[int] | None = None,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__(
            "baseline",
            channels,
            width,
            middle_blocks,
            encoder_blocks,
            decoder_blocks,
            dw_expand,
            ffn_expand,
            local_window,
            padding,
        )
