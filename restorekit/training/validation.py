"""Validation: fixed patches of the photographs that are held out, and the PSNR of what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restorekit.degradations import add_gaussian_noise
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import TrainingError
from restorekit.training.data import Batches, compress_jpeg_any, degrade, reduced, to_channels
from restorekit.training.sources import Cut, Source
from restorekit.training.spec import DenoiseSpec

Restore = Callable[[Tensor], Tensor]

# Side of the patches, and how many of them are taken of each photograph and restored at a time.
_SIDE, _EACH, _AT_A_TIME = 128, 4, 8


@dataclass(frozen=True)
class ValidationSet:
    """What every validation of a run measures.

    Attributes:
        clean: patches (N, C, H, W).
        inputs: by name of the figure, degraded patches (N, C, H, W).
        decisive: the figures whose mean says which weights are better.
    """

    clean: Tensor
    inputs: Mapping[str, Tensor]
    decisive: tuple[str, ...]

    def measure(self, restore: Restore) -> dict[str, float]:
        """Return mean PSNR in dB over the patches for each input."""
        return {name: self._psnr(restore, degraded) for name, degraded in self.inputs.items()}

    def _psnr(self, restore: Restore, degraded: Tensor) -> float:
        errors = [
            (restore(some).clamp(0, 1).cpu() - clean).square().mean((1, 2, 3))
            for some, clean in zip(
                torch.split(degraded, _AT_A_TIME), torch.split(self.clean, _AT_A_TIME), strict=True
            )
        ]
        # An unchanged image would be infinitely good; 1e-10 is 100 dB.
        return float((-10 * (torch.cat(errors) + 1e-10).log10()).mean())

    def examples(self, restore: Restore, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield degraded, restored and clean patches (C, H, W), of different photographs and inputs."""
        names = [name for name in self.inputs if name != "clean"]
        for index in range(min(count, len(self.clean))):
            # One of each photograph before a second one of any.
            photographs = max(1, len(self.clean) // _EACH)
            place = index % photographs * _EACH + index // photographs % _EACH
            degraded = self.inputs[names[index % len(names)]][place]
            yield degraded, restore(degraded[None])[0].clamp(0, 1).cpu(), self.clean[place]


def validation_set(batches: Batches, multiple: int = 1) -> ValidationSet:
    """Return the validation patches of a run, the same for every run on the same photographs.

    Args:
        batches: of the run.
        multiple: the sides of degraded patches are a multiple of this.

    Raises:
        TrainingError: a photograph that is held out is smaller than that.
    """
    cuts = validation_cuts(batches.source, multiple, batches.scale)
    clean = torch.stack([to_channels(cut.clean, batches.channels) for cut in cuts])
    if batches.degradation is None:
        pairs = [cut.degraded for cut in cuts if cut.degraded is not None]
        degraded = torch.stack([to_channels(pixels, batches.channels) for pixels in pairs])
        return ValidationSet(clean, {"pairs": degraded}, ("pairs",))
    inputs = _degraded(reduced(clean, batches.scale), batches.degradation)
    decisive = tuple(name for name in inputs if name.startswith("sigma"))
    return ValidationSet(clean, inputs, decisive or tuple(inputs))


def validation_cuts(source: Source, multiple: int = 1, scale: int = 1) -> list[Cut]:
    """Return fixed windows of the photographs held out, half of the clean ones reduced two-fold."""
    random = np.random.default_rng(0)
    wholes = [source.whole(photograph) for photograph in source.held_out]
    smallest = min(
        min((whole.clean if whole.degraded is None else whole.degraded).shape[:2]) for whole in wholes
    )
    if any(whole.degraded is None for whole in wholes):
        smallest //= scale
    side = min(_SIDE, smallest) // multiple * multiple
    if side == 0:
        raise TrainingError(
            f"a photograph that is held out has a side of {smallest} pixels, the network needs {multiple}",
            "remove it from the folder",
        )
    return [_window(whole, index, side, scale, random) for whole in wholes for index in range(_EACH)]


def _window(whole: Cut, index: int, side: int, scale: int, random: np.random.Generator) -> Cut:
    if whole.degraded is not None:
        top, left = (int(random.integers(length - side + 1)) for length in whole.degraded.shape[:2])
        degraded = whole.degraded[top : top + side, left : left + side]
        top, left, side = top * scale, left * scale, side * scale
        return Cut(whole.clean[top : top + side, left : left + side], degraded)
    side *= scale
    half = np.array(Image.fromarray(whole.clean).reduce(2))
    pixels = half if index % 2 and min(half.shape[:2]) >= side else whole.clean
    top, left = (int(random.integers(length - side + 1)) for length in pixels.shape[:2])
    return Cut(pixels[top : top + side, left : left + side])


def _degraded(clean: Tensor, spec: DenoiseSpec | RecipeSpec) -> dict[str, Tensor]:
    """Degrade every patch in fixed ways; a kind of degradation without fixed ways is drawn once."""
    if isinstance(spec, RecipeSpec):
        random, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
        return {"degraded": torch.stack([degrade(patch, spec, random, noise) for patch in clean])}
    inputs = {
        f"sigma{sigma}": add_gaussian_noise(clean, sigma, torch.Generator().manual_seed(sigma))
        for sigma in (15, 25, 50)
    }
    inputs["jpeg50"] = torch.stack([compress_jpeg_any(patch, 50) for patch in clean])
    inputs["clean"] = clean
    return inputs
