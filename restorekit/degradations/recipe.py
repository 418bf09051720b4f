"""From a recipe to a degraded image: first everything is drawn and can be recorded, then it is applied."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from restorekit.degradations.air import haze
from restorekit.degradations.blurring import anisotropic_blur, defocus_blur, gaussian_blur, motion_blur
from restorekit.degradations.catalogue import KINDS, Parameter, Value
from restorekit.degradations.light import low_light
from restorekit.degradations.noise import gaussian, poisson_gaussian
from restorekit.degradations.pane import raindrops
from restorekit.degradations.rainfall import rain
from restorekit.degradations.sizes import downscale
from restorekit.degradations.snowfall import snow
from restorekit.degradations.spec import CLEAN, RecipeSpec
from restorekit.degradations.storage import jpeg, quantisation


def _unchanged(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Return the image itself."""
    return clean


#: The function of each degradation of the catalogue.
FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "clean": _unchanged,
    "gaussian": gaussian,
    "poisson_gaussian": poisson_gaussian,
    "jpeg": jpeg,
    "quantisation": quantisation,
    "gaussian_blur": gaussian_blur,
    "anisotropic_blur": anisotropic_blur,
    "motion_blur": motion_blur,
    "defocus_blur": defocus_blur,
    "rain": rain,
    "raindrops": raindrops,
    "snow": snow,
    "haze": haze,
    "low_light": low_light,
    "downscale": downscale,
}


@dataclass(frozen=True)
class Drawn:
    """One degradation with every parameter fixed: what is recorded, and can be applied again.

    Attributes:
        name: of the degradation.
        params: all of its parameters, as JSON can hold them.
    """

    name: str
    params: Mapping[str, Value] = field(default_factory=dict)


def draw(spec: RecipeSpec, random: np.random.Generator) -> tuple[Drawn, ...]:
    """Return what a recipe comes to for one image, in order; nothing where its probability was missed."""
    return draw_kind(spec, random)[0]


def draw_kind(spec: RecipeSpec, random: np.random.Generator, kind: str = "") -> tuple[tuple[Drawn, ...], str]:
    """Return what a recipe comes to for one image, and which of ``spec.kinds`` that is.

    Args:
        spec: the recipe.
        random: draws the same numbers whether the kind is asked for or not.
        kind: take an option of this kind, whatever the weights; by default any.
    """
    chooser = spec.chooser
    found: list[str] = []

    def walk(step: RecipeSpec) -> tuple[Drawn, ...]:
        if step.probability < 1 and random.random() >= step.probability:
            return ()
        if step.one_of:
            weights = np.array([option.weight for option in step.one_of])
            if kind and step is chooser:
                asked = np.array([option.kind == kind for option in step.one_of])
                weights = weights * asked if (weights * asked).any() else asked.astype(float)
            option = step.one_of[random.choice(len(weights), p=weights / weights.sum())]
            drawn = walk(option)
            if drawn and step is chooser:
                found.append(option.kind)
            return drawn
        if step.chain:
            order = random.permutation(len(step.chain)) if step.shuffle else range(len(step.chain))
            return tuple(drawn for index in order for drawn in walk(step.chain[index]))
        return (_drawn(step, random),)

    drawn = walk(spec)
    if drawn and chooser is None:
        found.append(spec.kind)
    return drawn, found[0] if found else CLEAN


def _drawn(step: RecipeSpec, random: np.random.Generator) -> Drawn:
    assert step.name is not None
    return Drawn(
        step.name,
        {
            name: _value(step.params.get(name, parameter.default), parameter, random)
            for name, parameter in KINDS[step.name].parameters.items()
        },
    )


def _value(given: Any, parameter: Parameter, random: np.random.Generator) -> Value:
    """Return a fixed value of a parameter."""
    whole = isinstance(parameter.default, int)
    if isinstance(given, Mapping):
        low, high = given["log"]
        number = min(high, max(low, math.exp(random.uniform(math.log(low), math.log(high)))))
        return round(number) if whole else float(number)
    if isinstance(given, tuple) and parameter.is_number:
        low, high = given
        return int(random.integers(low, high + 1)) if whole else float(random.uniform(low, high))
    if isinstance(given, tuple):
        choice: Value = given[random.integers(len(given))]
        return choice
    return float(given) if isinstance(parameter.default, float) else given


def apply(
    drawn: Sequence[Drawn], clean: Tensor, generator: torch.Generator, *, depth: Tensor | None = None
) -> Tensor:
    """Degrade an image (C, H, W), or all of a batch alike; the same generator state gives the same image.

    Args:
        drawn: done one after the other.
        clean: in [0, 1]; between degradations values may leave it.
        generator: on the CPU.
        depth: (h, w) in [0, 1] for ``haze``, of any size; by default haze makes one up.
    """
    image = clean
    for each in drawn:
        known = {} if depth is None or each.name != "haze" else {"depth": _sized(depth, image)}
        image = FUNCTIONS[each.name](image, generator, **each.params, **known)
    return image


def _sized(depth: Tensor, image: Tensor) -> Tensor:
    size = image.shape[-2:]
    return (
        interpolate(depth[None, None].float(), size, mode="bilinear")[0, 0] if depth.shape != size else depth
    )


def streams(seed: int, name: str) -> tuple[np.random.Generator, int]:
    """Return what draws a recipe, and the seed of what applies it, for one image of a set.

    Both depend on the seed and the name alone, so that an image is degraded alike in whatever company.
    """
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype=np.uint32)
    random = np.random.default_rng([seed, *words.tolist()])
    # Whole numbers up to 2^53 survive any reader of JSON.
    return random, int(random.integers(2**53))
