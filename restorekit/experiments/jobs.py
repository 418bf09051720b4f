"""The pieces of an experiment, and running them in order: what is made already is left alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from restorekit.errors import RestoreKitError, TrainingError
from restorekit.experiments.notes import Note
from restorekit.files import ensure_writable

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
    def reads(self) -> Iterable[Path]:
        """Files that the result hangs on, once the jobs before it are done."""
        return ()

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
    for index, job in enumerate(jobs):
        _refuse_stale(jobs[index:])
        if job.result.exists():
            continue
        ensure_writable(job.result.parent)
        # Two processes may share the work of one experiment, and what both need is made by one of them.
        with FileLock(job.result.with_name(f".{job.result.name}.lock")):
            if not job.result.exists():
                if not job.is_begun:
                    job.note.write(job.result)
                job.run(begin(job))


def _refuse_stale(jobs: Sequence[Job]) -> None:
    """Refuse the first job's result where it was made of something else, and what was made of that result."""
    first, *later = jobs
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
