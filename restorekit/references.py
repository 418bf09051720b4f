"""Where a pretrained model of several files is: on the model hub, in a folder, or in a file of its own.

A reference is written ``hub:owner/repository``, with ``@revision`` if need be; ``dir:FOLDER``, laid out as
the hub's repository is; ``file:FILE``, one file of weights; ``package:MODULE/FILE``, a file that an installed
package brings; the tag of declared weights; or the plain path of a folder or file that exists. Files are
taken one by one, so that nothing is downloaded that is not needed. Needs no torch; reading tensors is
frozen.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from restorekit.cache import is_offline
from restorekit.catalog import Need, Pretrained
from restorekit.download import MissingOnHubError, UnreachableHubError, hub_file
from restorekit.errors import OfflineError, WeightsError, near

_INDEX = ".index.json"
_ELSEWHERE = "go online once; or fetch the files elsewhere into a folder, and give it as dir:FOLDER"
_HOW = "write hub:owner/repository, dir:FOLDER, file:FILE or package:MODULE/FILE"


class Source:
    """The files of one pretrained model.

    Args:
        reference: as above, with its prefix.
        offline: forbid downloads; as ``cache.is_offline`` says when None.

    Raises:
        WeightsError: it is no reference, or the folder, file or package does not exist.
    """

    def __init__(self, reference: str, *, offline: bool | None = None) -> None:
        self.reference = reference
        self._offline = is_offline() if offline is None else offline
        self.taken: dict[str, Path] = {}
        self._expected: tuple[Need, ...] = ()
        self._folder: Path | None = None
        self._file: Path | None = None
        self._repository, self._revision = "", ""
        kind, _, place = reference.partition(":")
        if kind == "hub":
            self._repository, _, self._revision = place.partition("@")
            owner, _, name = self._repository.partition("/")
            if not (owner and name) or "/" in name:
                raise WeightsError(f"{reference!r} is no place on the hub", "write hub:owner/repository")
        elif kind == "dir":
            self._folder = _existing(Path(place).expanduser(), reference, folder=True)
        elif kind == "file":
            self._file = _existing(Path(place).expanduser(), reference, folder=False)
        elif kind == "package":
            self._file = _in_package(place, reference)
        else:
            raise WeightsError(f"{reference!r} is no reference to a pretrained model", _HOW)

    @property
    def is_remote(self) -> bool:
        """Whether it is a repository of the model hub, of which nothing may be here yet."""
        return bool(self._repository)

    @property
    def file(self) -> Path | None:
        """The file, where the reference is one file of weights and nothing else."""
        if self._file is not None:
            self.taken[self._file.name] = self._file
        return self._file

    def expect(self, needs: Iterable[Need]) -> None:
        """Say all that the model is read of, before the first is taken.

        Where one of these files is missing, the error then names every one that is. Nothing is looked up.
        """
        self._expected = tuple(needs)

    def take(self, need: Need) -> list[Path]:
        """Return the file of a need, downloaded if it has to be; several where weights come in shards.

        Raises:
            OfflineError: it is not on this machine, and downloads are forbidden.
            WeightsError: there is none, or the hub does not answer; the message names what is expected, and
                where.
        """
        found = self._first(need.names)
        if found is None:
            raise self._missing(need)
        name, path = found
        if not name.endswith(_INDEX):
            return [path]
        folder = name.rpartition("/")[0]
        shards = [f"{folder}/{shard}".lstrip("/") for shard in _shards(path, need.tensors)]
        return [self._shard(shard, need) for shard in shards]

    def has(self, need: Need) -> bool:
        """Tell whether a need can be met; online this asks the hub, and downloads."""
        return self._first(need.names) is not None

    def is_here(self, needs: Iterable[Need]) -> bool:
        """Tell whether all files are on this machine; downloads nothing."""
        return not any(self._absent(need) for need in needs)

    def hashes(self) -> dict[str, str]:
        """Return the sha256 of every file that was taken, by its name in the model."""
        return {name: sha256(path) for name, path in sorted(self.taken.items())}

    def _absent(self, need: Need) -> list[tuple[str, ...]]:
        """Return what of a need is not on this machine: by the names that each file may have."""
        for name in need.names:
            path = self._local(name)
            if path is None:
                continue
            if not name.endswith(_INDEX):
                return []
            folder = name.rpartition("/")[0]
            shards = [f"{folder}/{shard}".lstrip("/") for shard in _shards(path, need.tensors)]
            return [(shard,) for shard in shards if self._local(shard) is None]
        return [need.names]

    def _local(self, name: str) -> Path | None:
        if self._repository:
            cached = try_to_load_from_cache(self._repository, name, revision=self._revision or None)
            return Path(cached) if isinstance(cached, str) else None
        path = self._folder / name if self._folder else None
        return path if path is not None and path.is_file() else None

    def _first(self, names: tuple[str, ...]) -> tuple[str, Path] | None:
        for name in names:
            path = self._local(name)
            if path is None and self._repository and not self._offline:
                try:
                    path = hub_file(self._repository, name, self._revision or None, offline=False)
                except MissingOnHubError:
                    continue
                except UnreachableHubError as error:
                    raise self._unreachable(names, error.reason) from error
            if path is not None:
                self.taken[name] = path
                return name, path
        return None

    def _shard(self, name: str, need: Need) -> Path:
        found = self._first((name,))
        if found is None:
            raise self._missing(need, (name,))
        return found[1]

    def _missing(self, need: Need, names: tuple[str, ...] = ()) -> WeightsError:
        """Return the error that a need cannot be met; ``names`` are of the one file of it that is missing."""
        expected = " or ".join(names or need.names)
        if self._file is not None:
            return WeightsError(
                f"{self.reference} is one file, and {expected} is needed beside it",
                "give the folder that holds both, as dir:FOLDER",
            )
        if self._folder is None and not self._offline:
            return WeightsError(
                f"{self.reference} has no {expected}", "check the repository and its revision"
            )
        absent = self._all_absent(need)
        # What another process has put there meanwhile was missing nevertheless.
        listed = _listed(absent or [names or need.names])
        if self._folder is not None:
            return WeightsError(
                f"{self._folder} has no {listed}",
                f"copy {'it' if len(absent) == 1 else 'them'} there from the model's repository",
            )
        return OfflineError(
            f"{self.reference} has no {listed} on this machine and downloads are off (offline)",
            _ELSEWHERE,
        )

    def _unreachable(self, names: tuple[str, ...], reason: str) -> WeightsError:
        """Return the error that the hub did not answer when it was asked for one of these names."""
        listed = _listed(self._all_absent(Need(names)) or [names])
        return WeightsError(
            f"{self.reference} has no {listed} on this machine, and the hub does not answer: {reason}",
            _ELSEWHERE,
        )

    def _all_absent(self, need: Need) -> list[tuple[str, ...]]:
        """Return what is not on this machine of a need, and of all that the model is read of."""
        known = any(need.names == each.names for each in self._expected)
        needs = self._expected if known else (need, *self._expected)
        return list(dict.fromkeys(file for each in needs for file in self._absent(each)))


def source(reference: str, declared: Iterable[Pretrained] = ()) -> Source:
    """Return the files that a reference stands for.

    Args:
        reference: with its prefix, a tag, or the plain path of what exists.
        declared: weights whose tags are known.

    Raises:
        WeightsError: it is no reference, or nothing is there.
    """
    tags = {item.tag: item for item in declared}
    if reference in tags:
        return Source(tags[reference].reference)
    if ":" in reference and not Path(reference).exists():
        return Source(reference)
    path = Path(reference).expanduser()
    if path.is_dir():
        return Source(f"dir:{reference}")
    if path.is_file():
        return Source(f"file:{reference}")
    looks_like_the_hub = len(path.parts) == 2 and not path.suffix and not path.is_absolute()
    raise WeightsError(
        f"{reference!r} is no folder or file here, and no tag; tags: {', '.join(tags) or 'none'}",
        near(reference, tags) or (f"for the model hub write hub:{reference}" if looks_like_the_hub else _HOW),
    )


def declared_as(reference: str, declared: Iterable[Pretrained]) -> Pretrained | None:
    """Return the declared weights that a reference names by tag or place, of any revision; or None."""
    named = reference.partition("@")[0]
    return next((item for item in declared if named in (item.tag, item.reference)), None)


def fetch(item: Pretrained, *, offline: bool | None = None) -> list[Path]:
    """Bring everything that declared weights need to this machine, and nothing else.

    Args:
        item: with a reference.
        offline: forbid downloads; as ``cache.is_offline`` says when None.

    Raises:
        OfflineError: it is not here, and downloads are forbidden.
        WeightsError: it cannot be had.
    """
    place = Source(item.reference, offline=offline)
    if place.file is not None:
        return [place.file]
    place.expect(item.needs)
    return [path for need in item.needs for path in place.take(need)]


def state(item: Pretrained) -> str:
    """Return ``here``, ``remote``, or ``by hand`` where a package has to be installed."""
    try:
        place = Source(item.reference)
    except WeightsError:
        return "by hand"
    return "here" if place.file is not None or place.is_here(item.needs) else "remote"


def sha256(path: Path) -> str:
    """Return the hash of a file, remembered while it does not change."""
    state = path.stat()
    return _sha256(path.resolve(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shards(index: Path, prefixes: tuple[str, ...]) -> list[str]:
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        wanted = {str(shard) for key, shard in places.items() if not prefixes or key.startswith(prefixes)}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index} is no index of shards: {error}", "fetch it again") from error
    return sorted(wanted)


def _listed(files: list[tuple[str, ...]]) -> str:
    """Return ``a, b and (c or d)``."""
    if len(files) == 1:
        return " or ".join(files[0])
    *others, last = (" or ".join(names) if len(names) == 1 else f"({' or '.join(names)})" for names in files)
    return f"{', '.join(others)} and {last}"


def _existing(path: Path, reference: str, *, folder: bool) -> Path:
    if path.is_dir() if folder else path.is_file():
        return path
    raise WeightsError(
        f"{reference}: there is no {'folder' if folder else 'file'} {path}",
        "check the path; a plain name is looked up in the current folder",
    )


def _in_package(place: str, reference: str) -> Path:
    module, _, name = place.partition("/")
    found = find_spec(module) if module.isidentifier() and name else None
    if not module.isidentifier() or not name:
        raise WeightsError(f"{reference!r} names no file of a package", "write package:MODULE/FILE")
    if found is None:
        raise WeightsError(
            f"{reference}: the package {module} is not installed", f"install what provides {module}"
        )
    for folder in found.submodule_search_locations or ():
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise WeightsError(f"{reference}: the package {module} has no file {name}", "check its version")
