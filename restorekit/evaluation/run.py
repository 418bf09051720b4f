"""Run a protocol over a dataset and gather the figures."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from restorekit.datasets import Sample
from restorekit.degradations.recipe import apply, draw, streams
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ConfigError, ImageError
from restorekit.evaluation.protocols import Floats, Metric, Protocol, to_levels
from restorekit.image import Image

Restorer = Callable[[Floats], NDArray[np.floating]]
# A clean image and the name of its file -> the degraded image.
Degrader = Callable[[Floats, str], Floats]


@dataclass(frozen=True)
class Outcome:
    """One image of a run.

    Attributes:
        sample: which.
        clean: (H, W, C), cut as the protocol says.
        degraded: what was restored; smaller where the protocol enlarges.
        restored: of the size of the clean one, not clipped.
        figures: by metric.
        before: the figures of the degraded image; empty where it has another size.
        seconds: how long restoring took.
    """

    sample: Sample
    clean: Floats
    degraded: Floats
    restored: NDArray[np.floating]
    figures: Mapping[str, float]
    before: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Report:
    """Figures of one protocol on one dataset.

    Attributes:
        protocol: name of the protocol.
        settings: its settings.
        images: names, in order.
        figures: for each metric, one figure an image.
        degraded: the same figures for the degraded images, before restoration.
        seconds: of each restoration.
        dataset_sha256: hash of the names and contents of all files.
    """

    protocol: str
    settings: Mapping[str, float]
    images: tuple[str, ...]
    figures: Mapping[str, tuple[float, ...]]
    degraded: Mapping[str, tuple[float, ...]]
    seconds: tuple[float, ...]
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
            "seconds_median": round(statistics.median(self.seconds), 4),
            "dataset_sha256": self.dataset_sha256,
            "per_image": [self._row(index) for index in range(len(self.images))],
        }

    def _row(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index],
            **{metric: _finite(values[index]) for metric, values in self.figures.items()},
            **{f"{metric}_degraded": _finite(values[index]) for metric, values in self.degraded.items()},
            "seconds": round(self.seconds[index], 4),
        }


def read_report(path: Path) -> dict[str, Any]:
    """Return the facts that `restorekit eval --json` printed into a file.

    Raises:
        ConfigError: it is no such file.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        _ = report["protocol"], report["settings"], report["per_image"][0], report["degraded"]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(
            str(path), "is no report of `restorekit eval --json`", "write it with --json > FILE"
        ) from error
    return dict(report)


def average(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means of the means of several datasets, as deraining papers average their five.

    Args:
        reports: facts of reports, as ``Report.facts`` or a JSON of `restorekit eval` gives them.

    Raises:
        ConfigError: there are none, or they are of different protocols, settings or metrics.
    """
    if not reports:
        raise ConfigError(
            "average", "there are no reports", "name the JSON files of `restorekit eval --json`"
        )
    laws = list(dict.fromkeys(_law(report) for report in reports))
    if len(laws) > 1:
        raise ConfigError(
            "average",
            f"figures of different protocols cannot be averaged: {laws[0]} and {laws[1]}",
            "evaluate every dataset by one protocol with the same settings",
        )
    shared = set.intersection(*(set(report["degraded"]) | _metrics(report) for report in reports))
    means = {}
    for metric in sorted(shared):
        values = [report[metric] for report in reports]
        means[metric] = None if None in values else round(statistics.fmean(values), 4)
    first = reports[0]
    return {**means, "protocol": first["protocol"], "settings": first["settings"], "datasets": len(reports)}


def _metrics(report: Mapping[str, Any]) -> set[str]:
    rows = report["per_image"]
    return {key for key in rows[0] if key in report and key not in ("image", "seconds")}


def _law(report: Mapping[str, Any]) -> str:
    settings = " ".join(f"{name}={value:g}" for name, value in sorted(report["settings"].items()))
    return f"{report['protocol']} {settings}".strip()


def evaluate(
    restorer: Restorer,
    samples: Sequence[Sample],
    protocol: Protocol,
    settings: Mapping[str, float],
    report: Callable[[Outcome], None] = lambda outcome: None,
    more: Mapping[str, Metric] | None = None,
    degrader: Degrader | None = None,
) -> Report:
    """Degrade where needed, restore and score every image.

    Args:
        restorer: degraded (H, W, C), floats -> restored (H, W, C), floats; clipped and rounded here.
        samples: what to restore.
        protocol: how to degrade and to score.
        settings: of the protocol.
        report: called with every image that is done.
        more: metrics beyond those of the protocol.
        degrader: what makes the partners of clean images, for protocols that need pairs.

    Raises:
        ImageError: an image cannot be measured by this protocol; the message names it.
    """
    figures: dict[str, list[float]] = {}
    before: dict[str, list[float]] = {}
    seconds: list[float] = []
    for sample in samples:
        try:
            outcome = _outcome(restorer, sample, protocol, settings, more, degrader)
        except ImageError as error:
            raise ImageError(f"{sample.name}: {error.message}", error.hint) from error
        for store, values in ((figures, outcome.figures), (before, outcome.before)):
            for metric, value in values.items():
                store.setdefault(metric, []).append(value)
        seconds.append(outcome.seconds)
        report(outcome)
    return Report(
        protocol.name,
        settings,
        tuple(sample.name for sample in samples),
        {metric: tuple(values) for metric, values in figures.items()},
        {metric: tuple(values) for metric, values in before.items() if len(values) == len(samples)},
        tuple(seconds),
        fingerprint(samples),
    )


def _outcome(
    restorer: Restorer,
    sample: Sample,
    protocol: Protocol,
    settings: Mapping[str, float],
    more: Mapping[str, Metric] | None,
    degrader: Degrader | None,
) -> Outcome:
    whole = read(sample.clean)
    if degrader:
        given: Floats | None = degrader(whole, sample.clean.name)
    else:
        given = read(sample.degraded) if sample.degraded and not protocol.ignores_pairs else None
    clean, degraded = protocol.pair(whole, given, settings)
    started = time.perf_counter()
    restored = restorer(degraded)
    seconds = time.perf_counter() - started
    restored = restored.reshape(*restored.shape[:2], -1)
    try:
        figures = protocol.score(clean, restored, settings, more)
        same = degraded.shape == clean.shape
        before = protocol.score(clean, degraded, settings, more) if same else {}
    except ValueError as error:
        raise ImageError(str(error), "leave the image out") from error
    return Outcome(sample, clean, degraded, restored, figures, before, seconds)


def by_recipe(spec: RecipeSpec, seed: int) -> Degrader:
    """Return what degrades by a recipe, in 8 bits: the files that `restorekit degrade` writes.

    Args:
        spec: the recipe.
        seed: with the name of a file, decides all that is random.
    """

    def degrade(clean: Floats, name: str) -> Floats:
        random, generator_seed = streams(seed, name)
        drawn = draw(spec, random)
        image = torch.from_numpy(np.ascontiguousarray(clean.transpose(2, 0, 1)))
        degraded = apply(drawn, image, torch.Generator().manual_seed(generator_seed))
        return to_levels(degraded.permute(1, 2, 0).numpy()).astype(np.float32) / np.float32(255)

    return degrade


def fingerprint(samples: Sequence[Sample]) -> str:
    """Return a hash of the names and contents of all files of a dataset, whatever folder it lies in."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.name.encode())
        for path in (sample.clean, sample.degraded):
            if path is not None:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def read(path: Path) -> Floats:
    """Return an image file as floats (H, W, 3), in its own depth; alpha is left out, gray is repeated."""
    pixels: Floats = Image.of(path).pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return pixels


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if all(math.isfinite(value) for value in values) else math.inf


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return round(value, 4) if math.isfinite(value) else None
