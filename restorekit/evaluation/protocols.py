"""Named protocols: everything that moves a figure, fixed and tested, under one name.

A protocol says how a degraded image is made from a clean one, and how the restored image is compared. Its
name is printed with every figure; figures of different protocols are never averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from restorekit.errors import ConfigError, near
from restorekit.evaluation.metrics import psnr

Levels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Protocol:
    """One way to measure.

    Attributes:
        name: what is printed beside the figure.
        summary: one line for people.
        degrade: clean image (H, W, 3) of 8-bit levels and settings -> degraded image (H, W, 3), floats in [0,
            1] or beyond.
        score: clean and restored levels -> figures by name.
        settings: what can be set, with the defaults.
    """

    name: str
    summary: str
    degrade: Callable[[Levels, Mapping[str, float]], Floats]
    score: Callable[[Levels, Levels], dict[str, float]]
    settings: Mapping[str, float] = field(default_factory=dict)

    def with_settings(self, given: Mapping[str, float]) -> dict[str, float]:
        """Return the settings with those given on top.

        Raises:
            ConfigError: one is unknown or not a number.
        """
        for name, value in given.items():
            if name not in self.settings:
                known = ", ".join(self.settings) or "none"
                hint = near(name, self.settings) or f"settings of {self.name}: {known}"
                raise ConfigError(f"--set {name}", f"protocol {self.name} has no setting {name!r}", hint)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(
                    f"--set {name}={value}", "expected a number", f"for example --set {name}=25"
                )
        return {**self.settings, **given}


def unclipped_gaussian(clean: Levels, settings: Mapping[str, float]) -> Floats:
    """Add white Gaussian noise as Restormer's evaluation does: numpy seed 0 for every image, not clipped.

    The noise is drawn over (H, W, 3) in float64; ``sigma`` is in 8-bit levels. Source: Restormer (arXiv
    2111.09881), its gaussian colour denoising test script.
    """
    noise = np.random.RandomState(0).normal(0, settings["sigma"] / 255, clean.shape)
    return (clean.astype(np.float32) / np.float32(255) + noise).astype(np.float32)


def unchanged(clean: Levels, settings: Mapping[str, float]) -> Floats:
    """Return the clean image itself, to see whether a pipeline leaves it alone."""
    return clean.astype(np.float32) / np.float32(255)


def rgb_psnr(clean: Levels, restored: Levels) -> dict[str, float]:
    """PSNR over the three colours jointly, 8-bit levels, no border cut off."""
    return {"psnr": psnr(clean, restored)}


def to_levels(restored: NDArray[np.floating]) -> Levels:
    """Return 8-bit levels as a saved file would hold them: clipped, rounded half to even."""
    levels: Levels = np.rint(np.clip(restored, 0, 1) * 255).astype(np.uint8)
    return levels


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "restormer-gaussian-color",
            "RGB PSNR on 8-bit output; Gaussian noise unclipped, numpy seed 0 per image; mean over images",
            unclipped_gaussian,
            rgb_psnr,
            {"sigma": 25},
        ),
        Protocol(
            "clean-identity-rgb",
            "RGB PSNR between a clean 8-bit image and what is made of it; the higher, the less harm is done",
            unchanged,
            rgb_psnr,
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name.

    Raises:
        ConfigError: there is none of that name; with near names.
    """
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ConfigError("--protocol", f"no protocol called {name!r}; known: {known}", near(name, PROTOCOLS))
    return PROTOCOLS[name]
