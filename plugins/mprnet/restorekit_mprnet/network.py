"""The three stages: two encoder-decoders that see parts of the image, one network at full resolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from restorekit.contracts import Backbone
from restorekit_mprnet.blocks import (
    AttentionBlock,
    Down,
    Slope,
    SupervisedAttention,
    Up,
    convolution,
    enlarge,
)

Levels = Sequence[Tensor]


class Encoder(nn.Module):
    """Three levels down; from the second stage on, features of the stage before are added (CSFF)."""

    def __init__(
        self, width: int, step: int, block: partial[AttentionBlock], fused: bool, bias: bool
    ) -> None:
        super().__init__()
        widths = [width, width + step, width + 2 * step]
        for level, features in enumerate(widths, 1):
            self.add_module(f"encoder_level{level}", nn.Sequential(block(features), block(features)))
            if fused:
                self.add_module(f"csff_enc{level}", convolution(features, features, 1, bias))
                self.add_module(f"csff_dec{level}", convolution(features, features, 1, bias))
        self.down12, self.down23 = Down(width, step), Down(width + step, step)

    def forward(self, x: Tensor, encoded: Levels = (), decoded: Levels = ()) -> list[Tensor]:
        """(B, D, H, W), and what both halves of the stage before gave -> features of each level."""
        levels: list[Tensor] = []
        for level, down in enumerate((None, self.down12, self.down23)):
            x = x if down is None else down(x)
            x = self.get_submodule(f"encoder_level{level + 1}")(x)
            if encoded:
                x = x + self.get_submodule(f"csff_enc{level + 1}")(encoded[level])
                x = x + self.get_submodule(f"csff_dec{level + 1}")(decoded[level])
            levels.append(x)
        return levels


class Decoder(nn.Module):
    """Three levels up, with attention on the skips."""

    def __init__(self, width: int, step: int, block: partial[AttentionBlock]) -> None:
        super().__init__()
        for level, features in enumerate((width, width + step, width + 2 * step), 1):
            self.add_module(f"decoder_level{level}", nn.Sequential(block(features), block(features)))
        self.decoder_level1: nn.Module
        self.decoder_level2: nn.Module
        self.decoder_level3: nn.Module
        self.skip_attn1, self.skip_attn2 = block(width), block(width + step)
        self.up21, self.up32 = Up(width, step), Up(width + step, step)

    def forward(self, encoded: Levels) -> list[Tensor]:
        """Features of each level, largest first -> the same shapes."""
        first, second, third = encoded
        third = self.decoder_level3(third)
        second = self.decoder_level2(self.up32(third) + self.skip_attn2(second))
        first = self.decoder_level1(self.up21(second) + self.skip_attn1(first))
        return [first, second, third]


class OriginalResolutionBlock(nn.Module):
    """A residual chain of attention blocks: the paper's ORB."""

    def __init__(self, features: int, blocks: int, kernel: int, block: partial[AttentionBlock]) -> None:
        super().__init__()
        last = convolution(features, features, kernel, bias=False)
        self.body = nn.Sequential(*(block(features) for _ in range(blocks)), last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        result: Tensor = self.body(x) + x
        return result


class OriginalResolutionNetwork(nn.Module):
    """The third stage: never reduced in size, fed by both halves of the second stage (the paper's ORSNet)."""

    def __init__(
        self,
        width: int,
        wider: int,
        step: int,
        blocks: int,
        kernel: int,
        bias: bool,
        block: partial[AttentionBlock],
    ) -> None:
        super().__init__()
        self.orb1, self.orb2, self.orb3 = (
            OriginalResolutionBlock(wider, blocks, kernel, block) for _ in range(3)
        )
        for half in ("enc", "dec"):
            self.add_module(f"up_{half}1", Up(width, step))
            self.add_module(f"up_{half}2", nn.Sequential(Up(width + step, step), Up(width, step)))
            for level in (1, 2, 3):
                self.add_module(f"conv_{half}{level}", convolution(width, wider, 1, bias))

    def forward(self, x: Tensor, encoded: Levels, decoded: Levels) -> Tensor:
        """(B, D, H, W), and the levels of the stage before -> (B, D, H, W)."""
        x = self.orb1(x) + self._at_size(0, encoded[0], decoded[0])
        x = self.orb2(x) + enlarge(self._at_size(1, encoded[1], decoded[1]))
        result: Tensor = self.orb3(x) + enlarge(enlarge(self._at_size(2, encoded[2], decoded[2])))
        return result

    def _at_size(self, level: int, encoded: Tensor, decoded: Tensor) -> Tensor:
        """Return the sum of both halves, as wide as this stage, still at the size of its level.

        All that is left to do is linear in each pixel, so both halves are enlarged as one, afterwards.
        """
        return self._widened("enc", level, encoded) + self._widened("dec", level, decoded)

    def _widened(self, half: str, level: int, x: Tensor) -> Tensor:
        ups = {0: [], 1: [f"up_{half}1"], 2: [f"up_{half}2.0", f"up_{half}2.1"]}[level]
        for name in ups:
            up = self.get_submodule(name)
            assert isinstance(up, Up)
            x = up.narrow(x)
        wide: Tensor = self.get_submodule(f"conv_{half}{level + 1}")(x)
        return wide


class MPRNet(Backbone):
    """Multi-stage progressive restoration (Zamir et al., CVPR 2021, arXiv 2102.02808).

    The first stage sees quarters of the image, the second halves, the third all of it. The defaults are those
    of the published deraining network; deblurring uses 96, 48 and 32 for the widths, denoising 80, 48 and 32.

    Args:
        channels: C of the image.
        width: features of the first level of the first two stages.
        width_step: by how many features each level down is wider.
        third_step: by how many features the third stage is wider than the first level.
        blocks: attention blocks in each of the three chains of the third stage.
        kernel: side of the convolutions, odd.
        reduction: by how much channel attention narrows inside.
        bias: whether convolutions have a bias.

    Raises:
        ValueError: an argument is out of range.
    """

    size_multiple = 8
    padding = "reflect"
    overlap = 64
    # Channel attention pools over parts of the whole image, and the image is cut where its middle is.
    tiling = "discouraged"

    def __init__(
        self,
        channels: int = 3,
        width: int = 40,
        width_step: int = 20,
        third_step: int = 16,
        blocks: int = 8,
        kernel: int = 3,
        reduction: int = 4,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if min(channels, width, blocks, reduction) < 1 or min(width_step, third_step) < 0:
            raise ValueError("channels, widths, blocks and reduction have to be positive")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} is not odd")
        if reduction > width:
            raise ValueError(f"reduction {reduction} leaves nothing of {width} features")
        self.channels = channels
        block = partial(AttentionBlock, kernel=kernel, reduction=reduction, bias=bias, slope=Slope())

        def shallow() -> nn.Sequential:
            return nn.Sequential(convolution(channels, width, kernel, bias), block(width))

        self.shallow_feat1, self.shallow_feat2, self.shallow_feat3 = shallow(), shallow(), shallow()
        self.stage1_encoder = Encoder(width, width_step, block, fused=False, bias=bias)
        self.stage1_decoder = Decoder(width, width_step, block)
        self.stage2_encoder = Encoder(width, width_step, block, fused=True, bias=bias)
        self.stage2_decoder = Decoder(width, width_step, block)
        wider = width + third_step
        self.stage3_orsnet = OriginalResolutionNetwork(width, wider, width_step, blocks, kernel, bias, block)
        self.sam12 = SupervisedAttention(width, channels, bias)
        self.sam23 = SupervisedAttention(width, channels, bias)
        self.concat12 = convolution(2 * width, width, kernel, bias)
        self.concat23 = convolution(2 * width, wider, kernel, bias)
        self.tail = convolution(wider, channels, kernel, bias)

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); H and W are multiples of 8."""
        return self.training_outputs(degraded)[0]

    def training_outputs(self, degraded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) -> the images (B, C, H, W) of the third, second and first stage."""
        halves = _cut(degraded, 2)
        quarters = _cut(halves, 3)

        encoded = [_joined(level, 3) for level in self.stage1_encoder(self.shallow_feat1(quarters))]
        decoded = self.stage1_decoder(encoded)
        chosen, first = self.sam12(decoded[0], halves)

        x = self.concat12(torch.cat([self.shallow_feat2(halves), chosen], 1))
        encoded = [_joined(level, 2) for level in self.stage2_encoder(x, encoded, decoded)]
        decoded = self.stage2_decoder(encoded)
        chosen, second = self.sam23(decoded[0], degraded)

        x = self.concat23(torch.cat([self.shallow_feat3(degraded), chosen], 1))
        third = self.tail(self.stage3_orsnet(x, encoded, decoded)) + degraded
        return third, second, _joined(first, 2)


def _cut(x: Tensor, dim: int) -> Tensor:
    """Cut images in two along an axis; the second halves follow the first ones in the batch."""
    return torch.cat(x.chunk(2, dim), 0)


def _joined(x: Tensor, dim: int) -> Tensor:
    """Put together what ``_cut`` has cut."""
    return torch.cat(x.chunk(2, 0), dim)
