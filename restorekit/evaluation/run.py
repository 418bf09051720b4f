"""Run a protocol over a folder of clean images and gather the figures."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from restorekit.errors import ImageError
from restorekit.evaluation.protocols import Levels, Protocol, to_levels
from restorekit.image import Image
from restorekit.imagefiles import SUFFIXES

Restorer = Callable[[NDArray[np.float32]], NDArray[np.floating]]


@dataclass(frozen=True)
class Report:
    """Figures of one protocol on one folder.

    Attributes:
        protocol: name of the protocol.
        settings: its settings.
        images: file names, in order.
        figures: for each metric, one figure an image.
        degraded: the same figures for the degraded images, before restoration.
        dataset_sha256: hash of names and contents of the images.
    """

    protocol: str
    settings: Mapping[str, float]
    images: tuple[str, ...]
    figures: Mapping[str, tuple[float, ...]]
    degraded: Mapping[str, tuple[float, ...]]
    dataset_sha256: str

    def mean(self, metric: str) -> float:
        """Mean over images; infinite when an image came back unchanged bit by bit."""
        return _mean(self.figures[metric])

    def facts(self) -> dict[str, Any]:
        """Return the report as plain values, the means at the top."""
        return {
            **{metric: _finite(self.mean(metric)) for metric in self.figures},
            "protocol": self.protocol,
            "settings": dict(self.settings),
            "degraded": {metric: _finite(_mean(values)) for metric, values in self.degraded.items()},
            "images": len(self.images),
            "dataset_sha256": self.dataset_sha256,
            "per_image": [
                {"image": name, **{metric: _finite(values[index]) for metric, values in self.figures.items()}}
                for index, name in enumerate(self.images)
            ],
        }


def evaluate(
    restorer: Restorer,
    files: Sequence[Path],
    protocol: Protocol,
    settings: Mapping[str, float],
    report: Callable[[int], None] = lambda done: None,
) -> Report:
    """Degrade, restore and score every image.

    Args:
        restorer: degraded (H, W, 3), floats -> restored (H, W, 3), floats; clipped and rounded here.
        files: clean images.
        protocol: how to degrade and to score.
        settings: of the protocol.
        report: called with the number of images done.
    """
    figures: dict[str, list[float]] = {}
    degraded_figures: dict[str, list[float]] = {}
    digest = hashlib.sha256()
    for done, path in enumerate(files, start=1):
        clean = read_levels(path)
        digest.update(path.name.encode() + clean.tobytes())
        degraded = protocol.degrade(clean, settings)
        restored = to_levels(restorer(degraded))
        for store, levels in ((figures, restored), (degraded_figures, to_levels(degraded))):
            for metric, value in protocol.score(clean, levels).items():
                store.setdefault(metric, []).append(value)
        report(done)
    return Report(
        protocol.name,
        settings,
        tuple(path.name for path in files),
        {metric: tuple(values) for metric, values in figures.items()},
        {metric: tuple(values) for metric, values in degraded_figures.items()},
        digest.hexdigest(),
    )


def clean_images(folder: Path) -> list[Path]:
    """Return the images of a folder in the order of their names.

    Raises:
        ImageError: the folder is missing or holds none.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        problem = "holds no images" if folder.is_dir() else "is no folder"
        raise ImageError(f"{folder} {problem}", "give a folder of clean images with --data")
    return files


def read_levels(path: Path) -> Levels:
    """Return an image file as 8-bit RGB levels (H, W, 3)."""
    pixels = Image.of(path).pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
    return to_levels(pixels)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if all(math.isfinite(value) for value in values) else math.inf


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return round(value, 4) if math.isfinite(value) else None
