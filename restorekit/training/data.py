"""Photographs in memory as 8-bit arrays, cut into patches and degraded on demand.

Every batch is a function of (seed, step): a resumed run sees the batches it would have seen. No workers are
needed: cutting and degrading a batch takes about a hundredth of a training step of the smallest network.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from restorekit.degradations import add_gaussian_noise, compress_jpeg, quantise
from restorekit.errors import TrainingError
from restorekit.imagefiles import SUFFIXES
from restorekit.training.spec import DataSpec, DenoiseSpec

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Photographs:
    """Clean photographs, apart for training and for validation.

    Attributes:
        scales: for each reduction factor, the training photographs (H, W, 3).
        held_out: validation photographs (H, W, 3), never trained on.
        names: files used for training; with ``held_out_names``, all that were readable.
        held_out_names: files kept for validation.
        unreadable: files of the folder that are not images.
    """

    scales: tuple[tuple[Pixels, ...], ...]
    held_out: tuple[Pixels, ...]
    names: tuple[str, ...]
    held_out_names: tuple[str, ...]
    unreadable: tuple[str, ...]

    @classmethod
    def load(cls, spec: DataSpec) -> Photographs:
        """Read a folder; photographs are held out by a hash of their name, so that adding one moves no other.

        Raises:
            TrainingError: the folder is missing, or holds too few images to train on.
        """
        folder = Path(spec.folder)
        files = sorted(path for path in folder.glob("**/*") if path.suffix.lower() in SUFFIXES)
        images: dict[str, Image.Image] = {}
        unreadable = []
        for path in files:
            try:
                with Image.open(path) as image:
                    images[path.relative_to(folder).as_posix()] = image.convert("RGB")
            except (OSError, UnidentifiedImageError):
                unreadable.append(str(path))
        if len(images) <= spec.hold_out:
            raise TrainingError(
                f"data.folder: {folder} holds {len(images)} readable images, {spec.hold_out} are held out",
                "give a folder with more photographs: --set data.folder=PATH",
            )
        order = sorted(images, key=lambda name: hashlib.sha256(name.encode()).digest())
        held_out, trained = order[: spec.hold_out], sorted(order[spec.hold_out :])
        return cls(
            scales=tuple(tuple(_reduced(images[name], scale) for name in trained) for scale in spec.scales),
            held_out=tuple(_reduced(images[name], 1.0) for name in held_out),
            names=tuple(trained),
            held_out_names=tuple(held_out),
            unreadable=tuple(unreadable),
        )


def _reduced(image: Image.Image, scale: float) -> Pixels:
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.array(image if size == image.size else image.resize(size, Image.Resampling.LANCZOS))


def training_batch(
    photographs: Photographs, degradation: DenoiseSpec, *, patch: int, batch: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Return degraded and clean patches (B, 3, patch, patch), the same for the same seed and step."""
    random = np.random.default_rng((seed, step))
    noise = torch.Generator().manual_seed(int(random.integers(2**62)))
    clean = torch.stack([_patch(photographs, patch, random) for _ in range(batch)])
    degraded = torch.stack([degrade(image, degradation, random, noise) for image in clean])
    return degraded, clean


def _patch(photographs: Photographs, side: int, random: np.random.Generator) -> Tensor:
    """Cut a random patch from a random photograph at a random scale, turned and mirrored at random."""
    pool = photographs.scales[random.integers(len(photographs.scales))]
    large_enough = [pixels for pixels in pool if min(pixels.shape[:2]) >= side]
    if not large_enough:
        raise TrainingError(f"no photograph is at least {side} pixels wide and high", "use smaller patches")
    pixels = large_enough[random.integers(len(large_enough))]
    top, left = (random.integers(length - side + 1) for length in pixels.shape[:2])
    cut = np.rot90(pixels[top : top + side, left : left + side], int(random.integers(4)))
    cut = cut[:, ::-1] if random.integers(2) else cut
    return torch.from_numpy(np.ascontiguousarray(cut)).permute(2, 0, 1).float() / 255


def degrade(clean: Tensor, spec: DenoiseSpec, random: np.random.Generator, noise: torch.Generator) -> Tensor:
    """Return one patch (3, H, W) left alone, compressed, or noisy, by the shares of the spec."""
    draw = random.random()
    if draw < spec.clean:
        return clean
    if draw < spec.clean + spec.jpeg:
        noisy = add_gaussian_noise(clean, random.uniform(*spec.jpeg_sigma), noise)
        quality = int(random.integers(spec.jpeg_quality[0], spec.jpeg_quality[1] + 1))
        return compress_jpeg(noisy, quality, subsample=bool(random.integers(2)))
    noisy = add_gaussian_noise(clean, random.uniform(*spec.sigma), noise)
    return quantise(noisy) if random.random() < spec.eight_bit else noisy


def validation_patches(photographs: Photographs, *, side: int = 128, each: int = 4) -> Tensor:
    """Return fixed patches (N, 3, side, side) of the held-out photographs, half of them reduced two-fold."""
    random = np.random.default_rng(0)
    patches = []
    for pixels in photographs.held_out:
        half = np.array(Image.fromarray(pixels).reduce(2))
        for index in range(each):
            source = half if index % 2 and min(half.shape[:2]) >= side else pixels
            if min(source.shape[:2]) < side:
                raise TrainingError(
                    f"a held-out photograph is smaller than {side} pixels", "remove it from the folder"
                )
            top, left = (random.integers(length - side + 1) for length in source.shape[:2])
            patches.append(torch.from_numpy(source[top : top + side, left : left + side].copy()))
    return torch.stack(patches).permute(0, 3, 1, 2).float() / 255
