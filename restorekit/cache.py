"""Where downloaded weights are kept on this machine, and which hash each had when it first came.

Nothing here downloads: that is download.py. Environment variables are read when a function is called.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock

from restorekit.errors import WeightsError
from restorekit.files import write_text

_FALSE = ("", "0", "false", "no", "off")
# What a caller asked for; None where nobody did. A context of its own for every thread and task.
_offline: ContextVar[bool | None] = ContextVar("offline", default=None)


def root() -> Path:
    """Return the cache folder: RESTOREKIT_CACHE_DIR, else restorekit in XDG_CACHE_HOME, else the system's.

    It is made by the first download, never by asking for it.
    """
    if own := os.environ.get("RESTOREKIT_CACHE_DIR"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "restorekit"
    return Path(platformdirs.user_cache_dir("restorekit", appauthor=False))


def place(name: str, filename: str) -> Path:
    """Return where the file of declared weights ``component/tag`` is kept, whether it is there or not."""
    return root() / "weights" / name / filename


@contextmanager
def downloads(*, offline: bool | None) -> Iterator[None]:
    """Forbid or allow downloads for a while, to everything that is built meanwhile, whatever builds it.

    Args:
        offline: forbid them, allow them, or leave it as it is when None.
    """
    before = _offline.set(_offline.get() if offline is None else offline)
    try:
        yield
    finally:
        _offline.reset(before)


def is_offline() -> bool:
    """Tell whether downloads are forbidden: by ``downloads``, else RESTOREKIT_OFFLINE or HF_HUB_OFFLINE."""
    asked = _offline.get()
    if asked is not None:
        return asked
    wishes = (os.environ.get(name, "") for name in ("RESTOREKIT_OFFLINE", "HF_HUB_OFFLINE"))
    return any(wish.strip().lower() not in _FALSE for wish in wishes)


@dataclass(frozen=True)
class Pin:
    """What a file was when it was downloaded for the first time.

    Attributes:
        sha256: in hexadecimal.
        size: in bytes.
        url: where it came from.
    """

    sha256: str
    size: int
    url: str


class Pins:
    """The lock file of the cache: first hashes of weights whose publisher states none.

    Args:
        path: of the lock file; in the cache when not given.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or root() / "weights.lock.json"

    def get(self, name: str) -> Pin | None:
        """Return the pin of weights, or None.

        Raises:
            WeightsError: the lock file is damaged.
        """
        return self._read().get(name)

    def add(self, name: str, pin: Pin) -> None:
        """Pin weights; other processes that do the same at the same time lose nothing.

        Raises:
            WeightsError: they are pinned to another hash.
        """
        with self._locked():
            pins = self._read()
            known = pins.get(name)
            if known and known.sha256 != pin.sha256:
                raise WeightsError(
                    f"weights {name} from {pin.url} have sha256 {pin.sha256[:16]}..., "
                    f"the first download had {known.sha256[:16]}...",
                    f"if the publisher replaced the file, run `restorekit weights remove {name} --forget`",
                )
            self._write(pins | {name: pin})

    def forget(self, name: str) -> bool:
        """Drop the pin of weights; return whether there was one."""
        if not self.path.exists():
            return False
        with self._locked():
            pins = self._read()
            if pins.pop(name, None) is None:
                return False
            self._write(pins)
        return True

    def _locked(self) -> FileLock:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path.with_suffix(".lock"))

    def _read(self) -> dict[str, Pin]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        try:
            return {name: Pin(**pin) for name, pin in json.loads(text)["pins"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{self.path} is no lock file: {error}",
                "restore it from a copy, or delete it to trust what is downloaded next",
            ) from error

    def _write(self, pins: dict[str, Pin]) -> None:
        document = {
            "about": "sha256 of weights when they were first downloaded",
            "pins": {name: asdict(pin) for name, pin in pins.items()},
        }
        write_text(self.path, json.dumps(document, indent=2, sort_keys=True) + "\n")
