"""Batches: windows of a source, turned and mirrored, degraded where they are clean.

Every batch is a function of (seed, step): a resumed run sees the batches it would have seen, and processes
that train together each take their share of the same batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from restorekit.degradations import add_gaussian_noise, compress_jpeg, quantise
from restorekit.degradations.recipe import apply, draw
from restorekit.degradations.spec import RecipeSpec
from restorekit.training.cache import Pixels
from restorekit.training.pairs import Pairs
from restorekit.training.photographs import Photographs
from restorekit.training.sources import Source
from restorekit.training.spec import AugmentSpec, DataSpec, DenoiseSpec, StageSpec

# Weights of red, green and blue in luma (ITU-R BT.601), for networks of one channel.
_LUMA = (0.299, 0.587, 0.114)
# Shape of the beta distribution that blends batches, as in mixup (Zhang et al., ICLR 2018).
_MIXUP = 1.2


def load_source(spec: DataSpec, scale: int = 1) -> Source:
    """Find and decode what a spec names; see ``Photographs.load`` and ``Pairs.load``."""
    return (Pairs if spec.pairs else Photographs).load(spec, scale)


@dataclass(frozen=True)
class Batches:
    """The batches of a run.

    Attributes:
        source: what they are cut from.
        degradation: what clean patches suffer; None where the source has pairs.
        seed: of the run.
        augment: what is done to patches beside.
        channels: of the network: 1 or 3.
        scale: of the network: clean patches are larger by this.
    """

    source: Source
    degradation: DenoiseSpec | RecipeSpec | None
    seed: int = 0
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    channels: int = 3
    scale: int = 1

    def check(self, stages: Iterable[StageSpec]) -> None:
        """Look whether patches of every stage can be cut, before the first stage takes its hours.

        Raises:
            TrainingError: no photograph is large enough for one of them.
        """
        for stage in stages:
            self.source.cut(stage.patch, np.random.default_rng(0))

    def batch(self, step: int, stage: StageSpec) -> tuple[Tensor, Tensor]:
        """Return degraded and clean patches (B, C, H, W) in [0, 1], noise beyond."""
        random = np.random.default_rng((self.seed, step))
        noise = torch.Generator().manual_seed(int(random.integers(2**62)))
        cuts = [self._cut(stage.patch, random) for _ in range(stage.batch)]
        # Drawn apart, so that a run without gray patches is the same with this choice and before it.
        gray = np.random.default_rng((self.seed, step, 2)).random(stage.batch) < self.augment.gray
        both = [
            self._both(clean, degraded, bool(is_gray), random, noise)
            for (clean, degraded), is_gray in zip(cuts, gray, strict=True)
        ]
        degraded, clean = (torch.stack(images) for images in zip(*both, strict=True))
        return self._blended(degraded, clean, step)

    def _cut(self, side: int, random: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        cut = self.source.cut(side, random)
        # Drawn whether they are used or not, so that switching one off changes nothing else.
        quarters, mirrored = int(random.integers(4)), bool(random.integers(2))
        quarters, mirrored = quarters * self.augment.rotate, mirrored and self.augment.flip
        clean = to_channels(_turned(cut.clean, quarters, mirrored), self.channels)
        if cut.degraded is None:
            return clean, None
        return clean, to_channels(_turned(cut.degraded, quarters, mirrored), self.channels)

    def _both(
        self,
        clean: Tensor,
        degraded: Tensor | None,
        is_gray: bool,
        random: np.random.Generator,
        noise: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        if is_gray and degraded is None and self.channels == 3:
            # A gray photograph in a colour network has the same noise in every colour.
            luma = (clean * torch.tensor(_LUMA)[:, None, None]).sum(0, keepdim=True)
            shape = (self.channels, -1, -1)
            return self._degraded(luma, None, random, noise).expand(shape), luma.expand(shape)
        return self._degraded(clean, degraded, random, noise), clean

    def _degraded(
        self, clean: Tensor, degraded: Tensor | None, random: np.random.Generator, noise: torch.Generator
    ) -> Tensor:
        if degraded is not None or self.degradation is None:
            return clean if degraded is None else degraded
        return degrade(reduced(clean, self.scale), self.degradation, random, noise)

    def _blended(self, degraded: Tensor, clean: Tensor, step: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng((self.seed, step, 1))
        if self.augment.mixup == 0 or random.random() >= self.augment.mixup:
            return degraded, clean
        share, order = random.beta(_MIXUP, _MIXUP), torch.from_numpy(random.permutation(len(clean)))
        return torch.lerp(degraded[order], degraded, share), torch.lerp(clean[order], clean, share)


def degrade(
    clean: Tensor, spec: DenoiseSpec | RecipeSpec, random: np.random.Generator, noise: torch.Generator
) -> Tensor:
    """Return one patch (C, H, W) degraded by a recipe, or by the shares of noise and compression.

    What a recipe made smaller is enlarged again, as Real-ESRGAN does: the network keeps the size.
    """
    if isinstance(spec, RecipeSpec):
        degraded = apply(draw(spec, random), clean, noise)
        if degraded.shape == clean.shape:
            return degraded
        return interpolate(degraded[None], clean.shape[-2:], mode="bicubic", align_corners=False)[0]
    chance = random.random()
    if chance < spec.clean:
        return clean
    if chance < spec.clean + spec.jpeg:
        noisy = add_gaussian_noise(clean, random.uniform(*spec.jpeg_sigma), noise)
        quality = int(random.integers(spec.jpeg_quality[0], spec.jpeg_quality[1] + 1))
        return compress_jpeg_any(noisy, quality, subsample=bool(random.integers(2)))
    noisy = add_gaussian_noise(clean, random.uniform(*spec.sigma), noise)
    return quantise(noisy) if random.random() < spec.eight_bit else noisy


def compress_jpeg_any(image: Tensor, quality: int, *, subsample: bool = True) -> Tensor:
    """Compress an image (C, H, W) of one or three channels."""
    colour = image.expand(3, -1, -1)
    return compress_jpeg(colour, quality, subsample=subsample)[: image.shape[0]]


def reduced(clean: Tensor, scale: int) -> Tensor:
    """Return images (..., C, H, W) with sides divided by ``scale``: bicubic with an antialiasing filter."""
    if scale == 1:
        return clean
    batch = clean.reshape(-1, *clean.shape[-3:])
    size = (clean.shape[-2] // scale, clean.shape[-1] // scale)
    small = interpolate(batch, size, mode="bicubic", antialias=True)
    return small.reshape(*clean.shape[:-2], *small.shape[-2:])


def to_channels(pixels: Pixels, channels: int) -> Tensor:
    """Return 8-bit levels (H, W, 3) as a tensor (C, H, W) in [0, 1]; one channel is luma."""
    # A copy: what is mapped from a file cannot be written to, and torch wants tensors that can.
    image = torch.from_numpy(np.array(pixels, order="C")).permute(2, 0, 1).float() / 255
    if channels == 3:
        return image
    return (image * torch.tensor(_LUMA)[:, None, None]).sum(0, keepdim=True)


def _turned(pixels: Pixels, quarters: int, mirrored: bool) -> Pixels:
    turned = np.rot90(pixels, quarters)
    return turned[:, ::-1] if mirrored else turned
