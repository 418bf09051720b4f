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

    The temporary name keeps the suffix, because writers choose a format by it.
    """
    temporary = path.with_name(f".{path.stem}.{uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"{path} cannot be read: {error.strerror}", "create it first, with the marks"
            ) from error
        before, begun, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not begun or not ended:
            raise OutputError(
                f"{path} has no place for {name}", f"put {begin} and {end} on lines of their own"
            )
        self.path, self._before, self._after = path, before + begin, end + after

    def write(self, text: str) -> None:
        """Replace what stands between the marks."""
        with replacing(self.path) as temporary:
            temporary.write_text(f"{self._before}\n{text}\n{self._after}", encoding="utf-8")
