"""Batches: windows of a source, turned and mirrored, degraded where they are clean.

Every batch is a function of (seed, step): a resumed run sees the batches it would have seen, and processes
that train together each take their share of the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from restorekit.degradations import add_gaussian_noise, compress_jpeg, quantise
from restorekit.degradations.recipe import apply, draw_kind
from restorekit.degradations.spec import RecipeSpec
from restorekit.layers import luma
from restorekit.training.cache import Pixels
from restorekit.training.pairs import Pairs
from restorekit.training.photographs import Photographs
from restorekit.training.sources import Source
from restorekit.training.spec import AugmentSpec, DataSpec, DenoiseSpec, StageSpec

# Shape of the beta distribution that blends batches, as in mixup (Zhang et al., ICLR 2018).
_MIXUP = 1.2


def load_source(spec: DataSpec, scale: int = 1) -> Source:
    """Find and decode what a spec names; see ``Photographs.load`` and ``Pairs.load``."""
    return (Pairs if spec.pairs else Photographs).load(spec, scale)


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Attributes:
        degraded: patches (B, C, H, W), noise beyond [0, 1].
        clean: patches (B, C, H, W) in [0, 1].
        kinds: the share of each kind of degradation in each patch (B, K): one-hot but where patches were
            blended. K is 0 where nobody knows.
        scenes: the degraded windows that the patches are parts of (B, C, H', W'), in the upper left corner
            where they differ in size. Empty where nobody asked, or they are the patches themselves.
        places: where the patches lie in them (B, 4): top, left, height and width of the window, in pixels.
    """

    degraded: Tensor
    clean: Tensor
    kinds: Tensor
    scenes: Tensor
    places: Tensor

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """Degraded and clean patches alone."""
        return self.degraded, self.clean

    def of(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with each of its tensors changed, as moved or cut."""
        return Batch(*(change(tensor) for tensor in vars(self).values()))

    def parts(self, count: int) -> list[Batch]:
        """Return the batch cut in so many."""
        return list(starmap(Batch, zip(*(each.chunk(count) for each in vars(self).values()), strict=True)))


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
        kinds: names of the kinds of degradation, empty where nobody knows.
        balanced: as many patches of each kind in every batch.
        scenes: keep the windows that patches are parts of.
    """

    source: Source
    degradation: DenoiseSpec | RecipeSpec | None
    seed: int = 0
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    channels: int = 3
    scale: int = 1
    kinds: tuple[str, ...] = ()
    balanced: bool = False
    scenes: bool = False

    def check(self, stages: Iterable[StageSpec]) -> None:
        """Look whether patches of every stage can be cut, before the first stage takes its hours.

        Raises:
            TrainingError: no photograph is large enough for one of them.
        """
        for stage in stages:
            for kind in self.kinds if self.balanced else ("",):
                self.source.cut(stage.window, np.random.default_rng(0), kind if self._paired else "")

    @property
    def _paired(self) -> bool:
        return self.degradation is None

    def batch(self, step: int, stage: StageSpec) -> Batch:
        """Return the batch of a step, counted from 0."""
        random = np.random.default_rng((self.seed, step))
        noise = torch.Generator().manual_seed(int(random.integers(2**62)))
        asked = self._asked(step, stage.batch)
        cuts = [self._cut(stage, random, kind) for kind in asked]
        # Drawn apart, so that a run without gray patches is the same with this choice and before it.
        gray = np.random.default_rng((self.seed, step, 2)).random(stage.batch) < self.augment.gray
        if self.augment.levels:
            random_levels = np.random.default_rng((self.seed, step, 4)).random((stage.batch, 2))
            levels = (self.augment.levels * random_levels).tolist()
            cuts = [cut.between(black, 1 - white) for cut, (black, white) in zip(cuts, levels, strict=True)]
        both = [
            self._both(cut, bool(is_gray), random, noise, kind)
            for cut, is_gray, kind in zip(cuts, gray, asked, strict=True)
        ]
        degraded, clean, kinds = zip(*both, strict=True)
        scenes, places = torch.empty(stage.batch, 0, 0, 0), torch.empty(stage.batch, 0)
        if stage.within:
            corners = self._corners(degraded, stage.patch, step)
            if self.scenes:
                scenes = _together(degraded)
                places = torch.tensor(
                    [[*at, *one.shape[1:]] for at, one in zip(corners, degraded, strict=True)]
                )
            degraded = _parts(degraded, corners, stage.patch)
            clean = _parts(clean, corners, stage.patch, self.scale)
        batch = Batch(torch.stack(degraded), torch.stack(clean), self.shares(kinds), scenes, places.float())
        return self._blended(batch, step)

    def _corners(self, windows: Sequence[Tensor], side: int, step: int) -> list[tuple[int, int]]:
        """Return top and left of a patch in each window, anywhere."""
        random = np.random.default_rng((self.seed, step, 3))
        rest = [[length - side + 1 for length in window.shape[1:]] for window in windows]
        return [(int(random.integers(down)), int(random.integers(across))) for down, across in rest]

    def shares(self, kinds: Sequence[str]) -> Tensor:
        """Return names of kinds as one-hot rows (B, K)."""
        rows = torch.zeros(len(kinds), len(self.kinds))
        for row, kind in enumerate(kinds):
            if self.kinds:
                rows[row, self.kinds.index(kind)] = 1
        return rows

    def _asked(self, step: int, count: int) -> list[str]:
        """Return the kind that each patch has to be of; empty for any."""
        if not self.balanced:
            return [""] * count
        # What does not divide evenly is made up for by the steps that follow.
        return [self.kinds[(step * count + index) % len(self.kinds)] for index in range(count)]

    def _cut(self, stage: StageSpec, random: np.random.Generator, kind: str) -> _Patch:
        kind, whole = kind if self._paired else "", stage.context == "whole"
        cut = self.source.cut(stage.window, random, kind, whole=whole)
        # Drawn whether they are used or not, so that switching one off changes nothing else.
        quarters, mirrored = int(random.integers(4)), bool(random.integers(2))
        quarters, mirrored = quarters * self.augment.rotate, mirrored and self.augment.flip
        clean = to_channels(_turned(cut.clean, quarters, mirrored), self.channels)
        if cut.degraded is None:
            return _Patch(clean, None, "")
        degraded = to_channels(_turned(cut.degraded, quarters, mirrored), self.channels)
        return _Patch(clean, degraded, cut.kind)

    def _both(
        self, patch: _Patch, is_gray: bool, random: np.random.Generator, noise: torch.Generator, kind: str
    ) -> tuple[Tensor, Tensor, str]:
        """Return degraded and clean (C, H, W), and what kind of degradation it is."""
        clean = patch.clean
        if patch.degraded is not None or self.degradation is None:
            return clean if patch.degraded is None else patch.degraded, clean, patch.kind
        if is_gray and self.channels == 3:
            # A gray photograph in a colour network has the same noise in every colour.
            clean = luma(clean)
        degraded, found = degrade(reduced(clean, self.scale), self.degradation, random, noise, kind)
        shape = (self.channels, -1, -1)
        return degraded.expand(shape), clean.expand(shape), found

    def _blended(self, batch: Batch, step: int) -> Batch:
        random = np.random.default_rng((self.seed, step, 1))
        if self.augment.mixup == 0 or random.random() >= self.augment.mixup:
            return batch
        share, order = random.beta(_MIXUP, _MIXUP), torch.from_numpy(random.permutation(len(batch.clean)))
        return batch.of(lambda images: torch.lerp(images[order], images, share))


def _parts(
    images: Sequence[Tensor], corners: Sequence[tuple[int, int]], side: int, scale: int = 1
) -> tuple[Tensor, ...]:
    """Cut a patch out of each image (C, H, W); corners and side are in pixels of one smaller by ``scale``."""
    return tuple(
        image[:, top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        for image, (top, left) in zip(images, corners, strict=True)
    )


def _together(images: Sequence[Tensor]) -> Tensor:
    """Return images of several sizes as one tensor, zero where they end."""
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    return torch.stack(
        [pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    )


@dataclass(frozen=True)
class _Patch:
    """A window as tensors (C, H, W), before it is degraded."""

    clean: Tensor
    degraded: Tensor | None
    kind: str

    def between(self, black: float, white: float) -> _Patch:
        """Return it with less contrast: from ``black`` to ``white``, both of a pair alike."""
        degraded = None if self.degraded is None else black + (white - black) * self.degraded
        return replace(self, clean=black + (white - black) * self.clean, degraded=degraded)


def degrade(
    clean: Tensor,
    spec: DenoiseSpec | RecipeSpec,
    random: np.random.Generator,
    noise: torch.Generator,
    kind: str = "",
) -> tuple[Tensor, str]:
    """Return one patch (C, H, W) degraded by a recipe, or by shares of noise and compression, and its kind.

    What a recipe made smaller is enlarged again, as Real-ESRGAN does: the network keeps the size.

    Args:
        clean: the patch.
        spec: what it suffers.
        random: decides.
        noise: fills in.
        kind: of a recipe, the kind that it has to be; by default any.
    """
    if isinstance(spec, RecipeSpec):
        drawn, found = draw_kind(spec, random, kind)
        degraded = apply(drawn, clean, noise)
        if degraded.shape != clean.shape:
            size = clean.shape[-2:]
            degraded = interpolate(degraded[None], size, mode="bicubic", align_corners=False)[0]
        return degraded, found
    return _noisy(clean, spec, random, noise), ""


def _noisy(clean: Tensor, spec: DenoiseSpec, random: np.random.Generator, noise: torch.Generator) -> Tensor:
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
    return image if channels == 3 else luma(image)


def _turned(pixels: Pixels, quarters: int, mirrored: bool) -> Pixels:
    turned = np.rot90(pixels, quarters)
    return turned[:, ::-1] if mirrored else turned
