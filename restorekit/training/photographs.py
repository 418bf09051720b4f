"""Clean photographs as a source of patches, each at several scales."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from restorekit.errors import TrainingError
from restorekit.imagefiles import SUFFIXES
from restorekit.training.cache import Decoded, Photograph
from restorekit.training.sources import Cut, Skipped, Source, decode_all, first_readable, hold_out
from restorekit.training.spec import DataSpec


class Photographs(Source):
    """Clean photographs.

    Args:
        decoded: their pixels.
        found: all of them.
        skipped: files that were left out.
        spec: which are held out, and the scales.
        scale: of the network: side of clean patches divided by side of degraded ones.
    """

    def __init__(
        self,
        decoded: Decoded,
        found: list[Photograph],
        skipped: list[Skipped],
        spec: DataSpec,
        scale: int = 1,
    ) -> None:
        where = f"data.folder: {', '.join(spec.folder)}"
        super().__init__(*hold_out(found, spec.hold_out, where, skipped), skipped)
        self._decoded, self._scales, self._scale = decoded, spec.scales, scale
        self._candidates: dict[tuple[float, int], list[Photograph]] = {}

    @classmethod
    def load(cls, spec: DataSpec, scale: int = 1) -> Self:
        """Read folders; what is in the cache already is not decoded again.

        Raises:
            TrainingError: they are no folders, or hold too few images to train on.
        """
        decoded = Decoded(Path(spec.cache) if spec.cache else None)
        jobs = []
        for folder in map(Path, spec.folder):
            if not folder.is_dir():
                raise TrainingError(f"data.folder: {folder} is no folder", "check the path")
            prefix = f"{folder}/" if len(spec.folder) > 1 else ""
            for path in sorted(path for path in folder.glob("**/*") if path.suffix.lower() in SUFFIXES):
                name = prefix + path.relative_to(folder).as_posix()
                jobs.append((path, partial(decoded.add, name, path, spec.scales)))
        return cls(decoded, *decode_all(jobs), spec, scale)

    def cut(self, side: int, random: np.random.Generator, kind: str = "", *, whole: bool = False) -> Cut:
        """Cut a random window of a random photograph at a random scale, or return all of it."""
        side *= self._scale
        scale = self._scales[random.integers(len(self._scales))]
        candidates = self._large_enough(scale, side)
        if not candidates:
            raise TrainingError(
                f"no photograph is at least {side} pixels wide and high", "use smaller patches"
            )
        chosen = int(random.integers(len(candidates)))
        pixels = first_readable(candidates, chosen, lambda one: self._decoded.pixels(one, scale))
        if whole:
            # Sides that the network's scale divides.
            height, width = (length // self._scale * self._scale for length in pixels.shape[:2])
            return Cut(pixels[:height, :width])
        top, left = (int(random.integers(length - side + 1)) for length in pixels.shape[:2])
        return Cut(pixels[top : top + side, left : left + side])

    def whole(self, photograph: Photograph) -> Cut:
        """Return a clean photograph."""
        return Cut(self._decoded.pixels(photograph))

    def files(self) -> Iterable[Photograph]:
        """Return every photograph."""
        return (*self.trained, *self.held_out)

    def _large_enough(self, scale: float, side: int) -> list[Photograph]:
        if (scale, side) not in self._candidates:
            self._candidates[scale, side] = [
                one for one in self.trained if min(round(length * scale) for length in one.size) >= side
            ]
        return self._candidates[scale, side]
