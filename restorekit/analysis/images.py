"""From files to pairs of images: pairs as they lie, or clean images that are degraded by a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from restorekit.analysis.pairs import Pair
from restorekit.contracts import Backbone
from restorekit.datasets import Dataset, Sample
from restorekit.degradations import quantise
from restorekit.degradations.recipe import apply, draw, streams
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ImageError
from restorekit.image import Image
from restorekit.layers import luma
from restorekit.training.data import reduced


@dataclass(frozen=True)
class FilePairs:
    """Pairs for one network; files are read when they are asked for, and again each time.

    Clean images are degraded as ``restorekit degrade`` does, seeded by the name of the file, in 8 bits. For a
    network of scale s they are reduced first, as training does, unless the recipe has ``downscale`` itself.
    Both of a pair are cut alike: sides to a multiple of the scale, then the middle.

    Attributes:
        samples: clean images, or pairs where there is no recipe.
        channels: of the network.
        scale: of the network.
        recipe: what clean images suffer; None for pairs.
        seed: of what the recipe draws.
        crop: side of the middle that is taken, in pixels of the degraded image; 0 for all of it.
    """

    samples: tuple[Sample, ...]
    channels: int
    scale: int
    recipe: RecipeSpec | None = None
    seed: int = 0
    crop: int = 0

    @classmethod
    def of(
        cls,
        found: Dataset,
        network: Backbone,
        recipe: RecipeSpec | None = None,
        *,
        seed: int = 0,
        crop: int = 0,
        limit: int | None = None,
        part: tuple[int, int] = (1, 1),
    ) -> FilePairs:
        """Return the pairs of a dataset.

        Args:
            found: the dataset.
            network: that they are for.
            recipe: as of the class; likewise ``seed`` and ``crop``.
            seed: see there.
            crop: see there.
            limit: take the first so many.
            part: of these, (2, 3) for the second of every three, from 1 on.

        Raises:
            ImageError: it holds clean images, and no recipe is given.
        """
        if recipe is None and not found.paired:
            raise ImageError(
                f"{found.folder} holds clean images and no degraded ones",
                "degrade them with --degrade, or give a folder of pairs, as input/ and target/",
            )
        taken = found.samples[:limit][part[0] - 1 :: part[1]]
        return cls(taken, network.channels, network.scale, recipe, seed, crop)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Pair]:
        for sample in self.samples:
            yield self.pair(sample)

    def pair(self, sample: Sample) -> Pair:
        """Read one pair, (1, C, H, W) each.

        Raises:
            ImageError: it cannot be read, or is smaller than the crop; it is named.
        """
        clean = self._read(sample.clean)
        height, width = (side // self.scale for side in clean.shape[-2:])
        clean = clean[..., : height * self.scale, : width * self.scale]
        if self.recipe is not None:
            degraded = degraded_by(self.recipe, clean, self.scale, self.seed, sample.clean.name)
        elif sample.degraded is None:
            raise ImageError(f"{sample.name} has no degraded partner", "degrade it with --degrade")
        else:
            degraded = self._read(sample.degraded)
        if self.crop:
            if min(degraded.shape[-2:]) < self.crop:
                raise ImageError(
                    f"{sample.name}: degraded it is {degraded.shape[-1]} x {degraded.shape[-2]}, smaller than"
                    f" a crop of {self.crop}",
                    "crop less, or leave it out",
                )
            top, left = ((side - self.crop) // 2 for side in degraded.shape[-2:])
            degraded = degraded[..., top : top + self.crop, left : left + self.crop]
            top, left, side = (value * self.scale for value in (top, left, self.crop))
            clean = clean[..., top : top + side, left : left + side]
        return Pair(degraded[None], clean[None], sample.name)

    def _read(self, path: Path) -> Tensor:
        return to_channels(Image.of(path).pixels, self.channels)


def to_channels(pixels: Tensor, channels: int) -> Tensor:
    """Return an image (C, H, W) with as many channels as a network takes: gray repeated, colour as luma."""
    if len(pixels) == 1 and channels == 3:
        return pixels.expand(3, -1, -1)
    if len(pixels) == 3 and channels == 1:
        return luma(pixels)
    return pixels


def degraded_by(recipe: RecipeSpec, clean: Tensor, scale: int, seed: int, name: str) -> Tensor:
    """(C, sH, sW) -> (C, H, W): reduce unless the recipe does, degrade, round to 8 bits.

    Args:
        recipe: what is done.
        clean: in [0, 1].
        scale: s of the network.
        seed: with the name, decides all that is drawn.
        name: of the file.
    """
    random, generator_seed = streams(seed, name)
    image = clean if "downscale" in recipe.names() else reduced(clean, scale)
    return quantise(apply(draw(recipe, random), image, torch.Generator().manual_seed(generator_seed)))
