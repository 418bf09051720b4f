"""The pieces of an experiment, and running them in order: what is made already is left alone."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from restorekit.errors import RestoreKitError, TrainingError
from restorekit.experiments.notes import Note, named_files, strings
from restorekit.files import ensure_writable

_log = logging.getLogger(__name__)
# Seconds until it is looked again whether other processes are done.
_PATIENCE = 1.0

# Called with steps done and steps in all of one job.
Report = Callable[[int, int], None]


class Job(ABC):
    """One piece of an experiment. It is made when the file it ends with is there.

    Attributes:
        name: what messages call it.
    """

    name: str

    @property
    @abstractmethod
    def result(self) -> Path:
        """The file it ends with, written as a whole."""

    @abstractmethod
    def check(self) -> None:
        """Refuse what can be seen to be wrong before anything runs.

        Raises:
            RestoreKitError: a name or an argument is wrong, or the folder holds another experiment's result.
        """

    @abstractmethod
    def run(self, report: Report) -> None:
        """Make the result; go on where a killed run was."""

    @property
    def asked(self) -> Mapping[str, Any]:
        """Settings that the result hangs on, where no file of its own states them."""
        return {}

    @property
    def told(self) -> object:
        """What it is told, as JSON would hold it: all files that it needs are named there."""
        return ()

    @property
    def reads(self) -> Iterable[Path]:
        """Files that the result hangs on, once the jobs before it are done."""
        return named_files(self.told)

    @property
    def place(self) -> Path:
        """What to remove to have it made again."""
        return self.result

    @property
    def is_begun(self) -> bool:
        """Whether there is something to go on from, or the result."""
        return self.result.exists()

    @property
    def note(self) -> Note:
        """What the result would be made of now."""
        return Note.of(self.result, self.asked, self.reads)

    @property
    def difference(self) -> str:
        """What was not so when the result was made, in words; empty where it still holds."""
        then = Note.beside(self.result) if self.is_begun else None
        return self.note.difference(then) if then else ""


def run_all(jobs: Sequence[Job], begin: Callable[[Job], Report]) -> None:
    """Check every job, then make those that are not made, in order.

    Processes may share them: what another one is making is left to it, and what needs that is left for later.

    Args:
        jobs: in an order in which each finds what it needs.
        begin: called before a job runs; returns what its progress is reported to.

    Raises:
        TrainingError: a result that is there was made of other weights or settings; so are named all those
            that were made of it.
        RestoreKitError: a job cannot be done; those before it are kept.
    """
    for job in jobs:
        try:
            job.check()
        except RestoreKitError as error:
            # Jobs are alike, and what is wrong with one is no secret of the others.
            error.message = f"{job.name}: {error.message}"
            raise
    left, known = list(jobs), ""
    while left:
        waiting: list[Job] = []
        for index, job in enumerate(left):
            if any(_needs(job, other) for other in waiting) or not _made(job, left[index + 1 :], begin):
                waiting.append(job)
        if waiting and len(waiting) == len(left):
            if waiting[0].name != known:
                known = waiting[0].name
                _log.warning("another process is at work, and waited for: %s", known)
            time.sleep(_PATIENCE)
        left = waiting


def _made(job: Job, later: Sequence[Job], begin: Callable[[Job], Report]) -> bool:
    """Make a job's result if it is not there; return False where another process is making it."""
    if job.result.exists():
        _refuse_stale(job, later)
        return True
    ensure_writable(job.result.parent)
    try:
        held = FileLock(job.result.with_name(f".{job.result.name}.lock")).acquire(blocking=False)
    except Timeout:
        return False
    with held:
        _refuse_stale(job, later)
        if not job.result.exists():
            if not job.is_begun:
                job.note.write(job.result)
            job.run(begin(job))
    return True


def _needs(job: Job, other: Job) -> bool:
    """Return whether a job is told of what another one makes."""
    made = other.place.resolve()
    named = (Path(text).resolve() for text in strings(job.told) if text)
    return any(path == made or made in path.parents for path in named)


def _refuse_stale(first: Job, later: Sequence[Job]) -> None:
    """Refuse a job's result where it was made of something else, and what was made of that result."""
    difference = first.difference
    if not difference:
        return
    stale = [first]
    for job in (job for job in later if job.is_begun):
        made = {each.result.resolve() for each in stale}
        if job.difference or made & {file.resolve() for file in job.reads}:
            stale.append(job)
    places = " ".join(dict.fromkeys(str(job.place) for job in stale))
    raise TrainingError(
        f"{first.place} was made with {difference}",
        f"name another folder with -o, or have it made again: remove {places}",
    )
