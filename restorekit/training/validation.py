"""Validation: fixed patches of the photographs that are held out, and the PSNR of what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restorekit.degradations import add_gaussian_noise
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import TrainingError
from restorekit.evaluation.protocols import Floats, Protocol, find_protocol
from restorekit.training.data import Batches, compress_jpeg_any, degrade, reduced, to_channels
from restorekit.training.sources import Cut, Source
from restorekit.training.spec import ValidationSpec

# Degraded images (B, C, H, W) and the shares of their kinds (B, K) to restored images.
Restore = Callable[[Tensor, Tensor], Tensor]
# Degraded images to logits of their kinds (B, K); None where nothing tells them.
Tell = Callable[[Tensor], Tensor | None]
#: The figure of how many patches, in per cent, were told to be of the right kind.
KINDS = "kinds"

# Side of the patches, and how many of them are taken of each photograph and restored at a time.
_SIDE, _EACH, _AT_A_TIME = 128, 4, 8


@dataclass(frozen=True)
class ValidationSet:
    """What every validation of a run measures.

    Attributes:
        clean: patches (N, C, H, W).
        inputs: by name of the figure, degraded patches (N, C, H, W).
        decisive: the figures whose mean says which weights are better.
        laws: by name of the figure, the protocol that measures it and its settings; others are of floats.
        kinds: by name of the figure, the shares of kinds in its patches (N, K), where these are known.
    """

    clean: Tensor
    inputs: Mapping[str, Tensor]
    decisive: tuple[str, ...]
    laws: Mapping[str, tuple[Protocol, Mapping[str, float]]] = field(default_factory=dict)
    kinds: Mapping[str, Tensor] = field(default_factory=dict)

    def of_kinds(self) -> ValidationSet:
        """Return the same patches, where what is told of their kinds decides and nothing is restored."""
        return replace(self, decisive=(KINDS,))

    def measure(self, restore: Restore, tell: Tell = lambda degraded: None) -> dict[str, float]:
        """Return mean PSNR in dB over the patches for each input, and how many kinds were told right."""
        figures: dict[str, float] = {}
        if self.decisive != (KINDS,):
            figures = {name: self._psnr(restore, name) for name in self.inputs}
        right = [self._right(tell, name) for name in self.kinds]
        told = [one for one in right if one is not None]
        return figures | ({KINDS: 100 * float(torch.cat(told).mean())} if told else {})

    def _psnr(self, restore: Restore, name: str) -> float:
        kinds = self._kinds_of(name)
        batches = (torch.split(patches, _AT_A_TIME) for patches in (self.inputs[name], kinds, self.clean))
        score = partial(_by_protocol, *self.laws[name]) if name in self.laws else _of_floats
        figures = [score(restore(one, of).cpu(), clean) for one, of, clean in zip(*batches, strict=True)]
        return float(torch.cat(figures).mean())

    def _kinds_of(self, name: str) -> Tensor:
        return self.kinds.get(name, torch.zeros(len(self.clean), 0))

    def _right(self, tell: Tell, name: str) -> Tensor | None:
        """Return for each patch (N,) whether the largest logit is that of its kind."""
        logits = [tell(patches) for patches in torch.split(self.inputs[name], _AT_A_TIME)]
        told = [each.argmax(1).cpu() for each in logits if each is not None]
        return (torch.cat(told) == self.kinds[name].argmax(1)).float() if told else None

    def examples(self, restore: Restore, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield degraded, restored and clean patches (C, H, W), of different photographs and inputs."""
        names = [name for name in self.inputs if name != "clean"]
        for index in range(min(count, len(self.clean))):
            # One of each photograph before a second one of any.
            photographs = max(1, len(self.clean) // _EACH)
            place = index % photographs * _EACH + index // photographs % _EACH
            degraded = self.inputs[names[index % len(names)]][place]
            kinds = self._kinds_of(names[index % len(names)])[place]
            yield degraded, restore(degraded[None], kinds[None])[0].clamp(0, 1).cpu(), self.clean[place]


def _of_floats(restored: Tensor, clean: Tensor) -> Tensor:
    errors = (restored.clamp(0, 1) - clean).square().mean((1, 2, 3))
    # An unchanged image would be infinitely good; 1e-10 is 100 dB.
    return -10 * (errors + 1e-10).log10()


def _by_protocol(law: Protocol, settings: Mapping[str, float], restored: Tensor, clean: Tensor) -> Tensor:
    pairs = zip(_pixels(clean), _pixels(restored), strict=True)
    return torch.tensor([min(100.0, law.score(one, other, settings)["psnr"]) for one, other in pairs])


def _pixels(patches: Tensor) -> list[Floats]:
    return [patch.permute(1, 2, 0).numpy() for patch in patches]


def validation_set(
    batches: Batches, multiple: int = 1, wanted: Sequence[ValidationSpec] = ()
) -> ValidationSet:
    """Return the validation patches of a run, the same for every run on the same photographs.

    Args:
        batches: of the run.
        multiple: the sides of degraded patches are a multiple of this.
        wanted: protocols that decide; none for PSNR of pairs, or at fixed noise levels.

    Raises:
        TrainingError: a photograph that is held out is smaller than that, or a protocol does not fit the run.
        ConfigError: there is no such protocol or setting.
    """
    cuts = validation_cuts(batches.source, multiple, batches.scale)
    clean = torch.stack([to_channels(cut.clean, batches.channels) for cut in cuts])
    if wanted:
        return _by_protocols(cuts, clean, batches, wanted)
    if batches.degradation is None:
        pairs = [cut.degraded for cut in cuts if cut.degraded is not None]
        degraded = torch.stack([to_channels(pixels, batches.channels) for pixels in pairs])
        kinds = {"pairs": batches.shares([cut.kind for cut in cuts])} if batches.kinds else {}
        return ValidationSet(clean, {"pairs": degraded}, ("pairs",), kinds=kinds)
    small = reduced(clean, batches.scale)
    if isinstance(batches.degradation, RecipeSpec):
        degraded, kinds_of = _by_recipe(small, batches, batches.degradation)
        return ValidationSet(clean, {"degraded": degraded}, ("degraded",), kinds={"degraded": kinds_of})
    inputs = _degraded(small)
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
        return Cut(whole.clean[top : top + side, left : left + side], degraded, whole.kind)
    side *= scale
    half = np.array(Image.fromarray(whole.clean).reduce(2))
    pixels = half if index % 2 and min(half.shape[:2]) >= side else whole.clean
    top, left = (int(random.integers(length - side + 1)) for length in pixels.shape[:2])
    return Cut(pixels[top : top + side, left : left + side])


def _by_protocols(
    cuts: Sequence[Cut], clean: Tensor, batches: Batches, wanted: Sequence[ValidationSpec]
) -> ValidationSet:
    inputs, laws, kinds = {}, {}, {}
    for spec in wanted:
        law = find_protocol(spec.protocol)
        settings = law.with_settings(spec.settings)
        name = " ".join([law.name, *(f"{key}={value:g}" for key, value in settings.items())])
        given: list[Tensor] | list[None] = [None] * len(cuts)
        if batches.degradation is None and not law.ignores_pairs:
            given = [to_channels(cut.degraded, batches.channels) for cut in cuts if cut.degraded is not None]
            kinds[name] = batches.shares([cut.kind for cut in cuts])
        elif law.degrade is None and batches.degradation is not None:
            random, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
            small = reduced(clean, batches.scale)
            both = [degrade(patch, batches.degradation, random, noise) for patch in small]
            given, kinds[name] = [one for one, _ in both], batches.shares([kind for _, kind in both])
        made = []
        for patch, degraded in zip(clean, given, strict=True):
            partner = None if degraded is None else degraded.permute(1, 2, 0).numpy()
            whole, small_one = law.pair(patch.permute(1, 2, 0).numpy(), partner, settings)
            if whole.shape != tuple(patch.permute(1, 2, 0).shape):
                raise TrainingError(
                    f"validation: {law.name} compares {whole.shape}, the network gives {tuple(patch.shape)}",
                    "use a protocol of the same channels that cuts nothing off",
                )
            made.append(torch.from_numpy(np.ascontiguousarray(small_one.transpose(2, 0, 1))))
        inputs[name], laws[name] = torch.stack(made), (law, settings)
        expected = [side // batches.scale for side in clean.shape[-2:]]
        if list(inputs[name].shape[-2:]) != expected:
            raise TrainingError(
                f"validation: {name} gives patches of {tuple(inputs[name].shape[-2:])}, expected {expected}",
                "give the scale of the network in its settings",
            )
    return ValidationSet(clean, inputs, tuple(inputs), laws, kinds if batches.kinds else {})


def _by_recipe(clean: Tensor, batches: Batches, spec: RecipeSpec) -> tuple[Tensor, Tensor]:
    """Degrade every patch (N, C, H, W) as drawn once; return them, and the shares of their kinds (N, K)."""
    random, noise = np.random.default_rng(0), torch.Generator().manual_seed(0)
    both = [degrade(patch, spec, random, noise) for patch in clean]
    return torch.stack([degraded for degraded, _ in both]), batches.shares([kind for _, kind in both])


def _degraded(clean: Tensor) -> dict[str, Tensor]:
    """Put fixed levels of noise and compression on every patch."""
    inputs = {
        f"sigma{sigma}": add_gaussian_noise(clean, sigma, torch.Generator().manual_seed(sigma))
        for sigma in (15, 25, 50)
    }
    inputs["jpeg50"] = torch.stack([compress_jpeg_any(patch, 50) for patch in clean])
    inputs["clean"] = clean
    return inputs
