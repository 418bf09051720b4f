"""Pairs of a degraded and a clean photograph of one scene as a source of patches."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from restorekit import datasets
from restorekit.datasets import Dataset
from restorekit.errors import ImageError, TrainingError
from restorekit.training.cache import Decoded, Photograph
from restorekit.training.sources import Cut, Skipped, Source, decode_all, first_readable, hold_out
from restorekit.training.spec import DataSpec, PairSpec


class Pairs(Source):
    """Pairs; ``trained`` and ``held_out`` are their clean photographs.

    Args:
        decoded: their pixels.
        found: degraded and clean photographs, and what the degraded ones suffer from.
        skipped: files that were left out.
        spec: which are held out.
        scale: of the network: side of clean patches divided by side of degraded ones.
    """

    def __init__(
        self,
        decoded: Decoded,
        found: list[tuple[Photograph, Photograph, str]],
        skipped: list[Skipped],
        spec: DataSpec,
        scale: int = 1,
    ) -> None:
        where = f"data.pairs: {', '.join(map(_said, spec.pairs))}"
        super().__init__(*hold_out([clean for _, clean, _ in found], spec.hold_out, where, skipped), skipped)
        self._partner = {clean.name: degraded for degraded, clean, _ in found}
        self._kind = {clean.name: kind for _, clean, kind in found}
        self._decoded, self._scale = decoded, scale
        self._candidates: dict[tuple[int, str], list[Photograph]] = {}

    @classmethod
    def load(cls, spec: DataSpec, scale: int = 1) -> Self:
        """Read folders of pairs; a pair whose sizes do not fit is left out, as is a file without partner.

        Raises:
            TrainingError: a folder is missing, or they hold too few pairs to train on.
        """
        decoded = Decoded(Path(spec.cache) if spec.cache else None)
        alone: list[Skipped] = []
        jobs = []
        for folder in spec.pairs:
            found = find_pairs(folder)
            alone += [Skipped(path, "its partner is missing") for path in found.unpaired]
            prefix = f"{_said(folder)}/" if len(spec.pairs) > 1 else ""
            kind = folder.kind if isinstance(folder, PairSpec) else ""
            for sample in found.samples:
                assert sample.degraded is not None
                name = prefix + sample.name
                job = partial(_pair, decoded, name, sample.degraded, sample.clean, scale, kind)
                jobs.append((sample.degraded, job))
        pairs, failed = decode_all(jobs)
        return cls(decoded, pairs, alone + failed, spec, scale)

    def cut(self, side: int, random: np.random.Generator, kind: str = "", *, whole: bool = False) -> Cut:
        """Cut the same random window of both photographs of a random pair, or return all of both."""
        candidates = self._large_enough(side, kind)
        if not candidates:
            of = f" of {kind}" if kind else ""
            raise TrainingError(f"no pair{of} is at least {side} pixels wide and high", "use smaller patches")
        both = first_readable(candidates, int(random.integers(len(candidates))), self.whole)
        assert both.degraded is not None
        if whole:
            return both
        top, left = (int(random.integers(length - side + 1)) for length in both.degraded.shape[:2])
        degraded = both.degraded[top : top + side, left : left + side]
        top, left, side = (value * self._scale for value in (top, left, side))
        return Cut(both.clean[top : top + side, left : left + side], degraded, both.kind)

    def whole(self, photograph: Photograph) -> Cut:
        """Return a clean photograph and its degraded partner."""
        pixels, name = self._decoded.pixels, photograph.name
        return Cut(pixels(photograph), pixels(self._partner[name]), self._kind[name])

    def files(self) -> Iterable[Photograph]:
        """Return both photographs of every pair."""
        for clean in (*self.trained, *self.held_out):
            yield from (clean, self._partner[clean.name])

    def _large_enough(self, side: int, kind: str) -> list[Photograph]:
        if (side, kind) not in self._candidates:
            self._candidates[side, kind] = [
                one
                for one in self.trained
                if min(self._partner[one.name].size) >= side and kind in ("", self._kind[one.name])
            ]
        return self._candidates[side, kind]


def find_pairs(folder: str | PairSpec) -> Dataset:
    """Return the pairs of two folders, or of a folder that holds both in a usual layout; opens no image.

    Raises:
        ImageError: a folder is missing, or no file has a partner.
        TrainingError: the folder holds clean images alone.
    """
    if isinstance(folder, PairSpec):
        return datasets.find_between(Path(folder.degraded), Path(folder.clean))
    found = datasets.find(Path(folder))
    if not found.paired:
        raise TrainingError(
            f"data.pairs: {folder} holds no two folders such as input and target",
            "name them: pairs: {degraded: FOLDER, clean: FOLDER}",
        )
    return found


def _said(folder: str | PairSpec) -> str:
    return folder if isinstance(folder, str) else folder.clean


def _pair(
    decoded: Decoded, name: str, degraded: Path, clean: Path, scale: int, kind: str
) -> tuple[Photograph, Photograph, str]:
    one, other = decoded.add(f"{name} (degraded)", degraded), decoded.add(name, clean)
    if tuple(length * scale for length in one.size) != other.size:
        (height, width), (clean_height, clean_width) = one.size, other.size
        expected = f", expected {scale} times as large" if scale > 1 else ""
        raise ImageError(
            f"{degraded.name} is {width}x{height} and {clean.name} {clean_width}x{clean_height}{expected}"
        )
    return one, other, kind
