"""Pairs of a degraded and a clean photograph of one scene as a source of patches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from restorekit.errors import ImageError, TrainingError
from restorekit.imagefiles import SUFFIXES
from restorekit.training.cache import Decoded, Photograph
from restorekit.training.sources import Cut, Skipped, Source, decode_all, first_readable, hold_out
from restorekit.training.spec import DataSpec, PairSpec

# Names of folders in published data sets, lower case.
_DEGRADED = ("degraded", "input", "lq", "noisy", "blur", "rainy", "hazy", "low")
_CLEAN = ("clean", "target", "gt", "groundtruth", "sharp", "norain", "high")


class Pairs(Source):
    """Pairs; ``trained`` and ``held_out`` are their clean photographs.

    Args:
        decoded: their pixels.
        found: degraded and clean photographs.
        skipped: files that were left out.
        spec: which are held out.
        scale: of the network: side of clean patches divided by side of degraded ones.
    """

    def __init__(
        self,
        decoded: Decoded,
        found: list[tuple[Photograph, Photograph]],
        skipped: list[Skipped],
        spec: DataSpec,
        scale: int = 1,
    ) -> None:
        where = f"data.pairs: {', '.join(map(_said, spec.pairs))}"
        super().__init__(*hold_out([clean for _, clean in found], spec.hold_out, where, skipped), skipped)
        self._partner = {clean.name: degraded for degraded, clean in found}
        self._decoded, self._scale = decoded, scale
        self._candidates: dict[int, list[Photograph]] = {}

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
            alone += [Skipped(path, "its partner is missing") for path in found.alone]
            prefix = f"{_said(folder)}/" if len(spec.pairs) > 1 else ""
            for name, degraded, clean in found.pairs:
                jobs.append((degraded, partial(_pair, decoded, prefix + name, degraded, clean, scale)))
        pairs, failed = decode_all(jobs)
        return cls(decoded, pairs, alone + failed, spec, scale)

    def cut(self, side: int, random: np.random.Generator) -> Cut:
        """Cut the same random window of both photographs of a random pair."""
        candidates = self._large_enough(side)
        if not candidates:
            raise TrainingError(f"no pair is at least {side} pixels wide and high", "use smaller patches")
        whole = first_readable(candidates, int(random.integers(len(candidates))), self.whole)
        assert whole.degraded is not None
        top, left = (int(random.integers(length - side + 1)) for length in whole.degraded.shape[:2])
        degraded = whole.degraded[top : top + side, left : left + side]
        top, left, side = (value * self._scale for value in (top, left, side))
        return Cut(whole.clean[top : top + side, left : left + side], degraded)

    def whole(self, photograph: Photograph) -> Cut:
        """Return a clean photograph and its degraded partner."""
        pixels = self._decoded.pixels
        return Cut(pixels(photograph), pixels(self._partner[photograph.name]))

    def files(self) -> Iterable[Photograph]:
        """Return both photographs of every pair."""
        for clean in (*self.trained, *self.held_out):
            yield from (clean, self._partner[clean.name])

    def _large_enough(self, side: int) -> list[Photograph]:
        if side not in self._candidates:
            self._candidates[side] = [
                one for one in self.trained if min(self._partner[one.name].size) >= side
            ]
        return self._candidates[side]


@dataclass(frozen=True)
class Found:
    """What pairs a folder holds, by name.

    Attributes:
        pairs: name of the clean file, degraded file, clean file; in the order of the names.
        alone: files whose partner is missing.
    """

    pairs: tuple[tuple[str, Path, Path], ...]
    alone: tuple[Path, ...]


def find_pairs(folder: str | PairSpec) -> Found:
    """Pair the files of two folders that have the same path without suffix; opens no image.

    Args:
        folder: both folders, or a folder that holds both under names in use, such as input and target.

    Raises:
        TrainingError: a folder is missing, or no two are told apart.
    """
    both = folder if isinstance(folder, PairSpec) else _inside(Path(folder))
    degraded, clean = _files(Path(both.degraded)), _files(Path(both.clean))
    common = sorted(degraded.keys() & clean.keys())
    alone = [files[key] for files in (degraded, clean) for key in sorted(files.keys() - set(common))]
    named = ((clean[key].relative_to(both.clean).as_posix(), degraded[key], clean[key]) for key in common)
    return Found(tuple(named), tuple(alone))


def _inside(folder: Path) -> PairSpec:
    inner = {path.name.lower(): path for path in folder.glob("*") if path.is_dir()}
    degraded, clean = (
        next((inner[name] for name in names if name in inner), None) for names in (_DEGRADED, _CLEAN)
    )
    if degraded is None or clean is None:
        raise TrainingError(
            f"data.pairs: {folder} holds no two folders such as input and target",
            "name them: pairs: {degraded: FOLDER, clean: FOLDER}",
        )
    return PairSpec(degraded=str(degraded), clean=str(clean))


def _files(folder: Path) -> Mapping[str, Path]:
    if not folder.is_dir():
        raise TrainingError(f"data.pairs: {folder} is no folder", "check the path")
    found = (path for path in sorted(folder.glob("**/*")) if path.suffix.lower() in SUFFIXES)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def _said(folder: str | PairSpec) -> str:
    return folder if isinstance(folder, str) else folder.clean


def _pair(
    decoded: Decoded, name: str, degraded: Path, clean: Path, scale: int
) -> tuple[Photograph, Photograph]:
    one, other = decoded.add(f"{name} (degraded)", degraded), decoded.add(name, clean)
    if tuple(length * scale for length in one.size) != other.size:
        (height, width), (clean_height, clean_width) = one.size, other.size
        expected = f", expected {scale} times as large" if scale > 1 else ""
        raise ImageError(
            f"{degraded.name} is {width}x{height} and {clean.name} {clean_width}x{clean_height}{expected}"
        )
    return one, other
