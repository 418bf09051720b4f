"""Writing files so that nothing is ever half-written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from restorekit.errors import OutputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; moved over it on success, removed on any error.

    The temporary name keeps the suffix, because writers choose a format by it. Who may read the file is what
    the process gives new files, or what stood for the one that is replaced, whatever the writer set.
    """
    temporary = path.with_name(f".{path.stem}.{uuid4().hex[:8]}{path.suffix}")
    try:
        temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode & 0o777
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 whole, or leave what stood there."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def ensure_writable(folder: Path) -> None:
    """Make a folder if it is missing, and try that files can be made in it.

    Raises:
        OutputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written to: {error.strerror}", "name another folder with -o"
        ) from error


class Marks:
    """Place of a generated text in a document, between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.

    Args:
        path: of the document.
        name: of the place.

    Raises:
        OutputError: the document cannot be read, or has no such place.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self._around()

    def write(self, text: str) -> None:
        """Replace what stands between the marks, and nothing else.

        Raises:
            OutputError: as when it was made; the document may have changed.
        """
        # Read again: between making this and having something to write, hours may pass.
        before, after = self._around()
        write_text(self.path, f"{before}\n{text}\n{after}")

    def _around(self) -> tuple[str, str]:
        """Return what stands before and after the place, the marks with it."""
        begin, end = f"<!-- {self.name}: begin -->", f"<!-- {self.name}: end -->"
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be read: {error.strerror}", "create it first, with the marks"
            ) from error
        before, begun, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not begun or not ended:
            raise OutputError(
                f"{self.path} has no place for {self.name}", f"put {begin} and {end} on lines of their own"
            )
        return before + begin, end + after
