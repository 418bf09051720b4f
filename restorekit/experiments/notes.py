"""What a result was made of, in a note beside it: one of other weights or settings is not taken for it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restorekit.errors import TrainingError
from restorekit.files import write_text


@dataclass(frozen=True)
class Note:
    """What a result hangs on.

    Attributes:
        asked: settings, as JSON would hold them.
        read: hashes of the files that were read, by their path from the result's folder.
    """

    asked: Mapping[str, Any]
    read: Mapping[str, str]

    @classmethod
    def of(cls, result: Path, asked: Mapping[str, Any], files: Iterable[Path]) -> Note:
        """Return the note of a result that would be made now; files that are missing are left out."""
        present = sorted({file.resolve() for file in files if file.is_file()})
        start = result.parent.resolve()
        read = {Path(os.path.relpath(file, start)).as_posix(): _sha256(file) for file in present}
        return cls(json.loads(json.dumps(dict(asked))), read)

    @staticmethod
    def place(result: Path) -> Path:
        """Return where the note of a result lies."""
        return result.with_name(f".{result.name}.made-of.json")

    @classmethod
    def beside(cls, result: Path) -> Note | None:
        """Return the note of a result; None where there is none.

        Raises:
            TrainingError: it is damaged.
        """
        path = cls.place(result)
        if not path.exists():
            return None
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            return cls(dict(facts["asked"]), dict(facts["read"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{path} is damaged: {error}", f"remove it with {result}") from error

    def write(self, result: Path) -> None:
        """Write it beside a result."""
        facts = {"asked": self.asked, "read": self.read}
        write_text(self.place(result), json.dumps(facts, indent=1) + "\n")

    def difference(self, then: Note) -> str:
        """Return what is not as it was then, in words; empty where all is."""
        for key in sorted(self.asked.keys() | then.asked.keys()):
            before, now = then.asked.get(key), self.asked.get(key)
            if before != now:
                return f"{key} {before}, the experiment says {now}"
        changed = [name for name in sorted(self.read.keys() | then.read.keys()) if self._moved(then, name)]
        return f"another {changed[0]}" if changed else ""

    def _moved(self, then: Note, name: str) -> bool:
        return self.read.get(name) != then.read.get(name)


def named_files(document: object) -> Iterator[Path]:
    """Return the files that a config names, in any of its values."""
    return (Path(text) for text in strings(document) if text and Path(text).is_file())


def strings(document: object) -> Iterator[str]:
    """Return all values of a config that are text."""
    if isinstance(document, Mapping):
        for value in document.values():
            yield from strings(value)
    elif isinstance(document, list | tuple):
        for value in document:
            yield from strings(value)
    elif isinstance(document, str):
        yield document


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
