"""What patches are cut from, apart for training and for validation: the promise, and what its kinds share.

Files that cannot be used are named and left out. What is cut is a function of the random generator that is
handed in; turning and degrading it is data.py.
"""

from __future__ import annotations

import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from restorekit.errors import ImageError, TrainingError
from restorekit.training.cache import Photograph, Pixels

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Skipped:
    """A file that is not trained on.

    Attributes:
        path: the file.
        reason: why, in a few words.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Cut:
    """A window (H, W, 3) of a clean photograph, and of the degraded one where there are pairs.

    Attributes:
        clean: what should come out.
        degraded: what goes in.
        kind: what that suffers from, where somebody said.
    """

    clean: Pixels
    degraded: Pixels | None = None
    kind: str = ""


class Source(ABC):
    """Photographs to cut from.

    Args:
        trained: what patches are cut from.
        held_out: what validation uses, never trained on.
        skipped: files that were left out.
    """

    def __init__(
        self, trained: Sequence[Photograph], held_out: Sequence[Photograph], skipped: Sequence[Skipped]
    ) -> None:
        self.trained, self.held_out, self.skipped = tuple(trained), tuple(held_out), tuple(skipped)

    @abstractmethod
    def cut(self, side: int, random: np.random.Generator, kind: str = "", *, whole: bool = False) -> Cut:
        """Cut a random window whose degraded side is ``side``; of a pair of one kind where it is asked for.

        Args:
            side: of the degraded window in pixels.
            random: decides.
            kind: of the pair; empty for any.
            whole: return all of a photograph in which there is such a window.

        Raises:
            TrainingError: no photograph is that large, or none can be read any more.
        """

    @abstractmethod
    def whole(self, photograph: Photograph) -> Cut:
        """Return all of a photograph."""

    @abstractmethod
    def files(self) -> Iterable[Photograph]:
        """Return every file that is used."""

    @property
    def sha256(self) -> str:
        """Hash of names and contents of all files that are used."""
        digest = hashlib.sha256()
        for photograph in sorted(self.files(), key=lambda photograph: photograph.name):
            digest.update(f"{photograph.name}\0{photograph.sha256}\n".encode())
        return digest.hexdigest()


def decode_all(jobs: Sequence[tuple[Path, Callable[[], T]]]) -> tuple[list[T], list[Skipped]]:
    """Run what decodes photographs, on every core; return the results in order, and the files that failed."""
    done: list[T] = []
    skipped: list[Skipped] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (path, _), future in zip(jobs, [pool.submit(job) for _, job in jobs], strict=True):
            try:
                done.append(future.result())
            except ImageError as error:
                skipped.append(Skipped(path, error.message))
    return done, skipped


def hold_out(
    photographs: Sequence[Photograph], count: int, where: str, skipped: Sequence[Skipped]
) -> tuple[list[Photograph], list[Photograph]]:
    """Return those to train on and those held out, by a hash of the name: adding one moves no other.

    Raises:
        TrainingError: there would be none to train on.
    """
    if len(photographs) <= count:
        left_out = f"; left out were {len(skipped)}, first {skipped[0].path}" if skipped else ""
        raise TrainingError(
            f"{where} holds {len(photographs)} readable images, {count} are held out{left_out}",
            "give a folder with more photographs: --set data.folder=PATH",
        )
    order = sorted(photographs, key=lambda one: hashlib.sha256(one.name.encode()).digest())
    return sorted(order[count:], key=lambda one: one.name), order[:count]


def first_readable(candidates: Sequence[Photograph], chosen: int, read: Callable[[Photograph], T]) -> T:
    """Return what ``read`` makes of the chosen photograph, or of the next one that can still be read.

    Raises:
        TrainingError: none can.
    """
    for offset in range(len(candidates)):
        photograph = candidates[(chosen + offset) % len(candidates)]
        try:
            return read(photograph)
        except ImageError as error:
            log.warning("%s was skipped: %s", photograph.path, error.message)
    raise TrainingError("no photograph can be read any more", "check the folder, then go on with --resume")
