"""Bring weights to this machine: resumed, checked, then moved into the cache; never half a file.

A download that was cut goes on where it stopped, also in a later process, as long as the server still has the
same file. Every mirror is tried before giving up. Where the publisher states no hash, that of the first
download is pinned (cache.py). Files of the model hub are left to huggingface_hub and its cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import requests
from filelock import FileLock
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
)

from restorekit.cache import Pin, Pins, is_offline
from restorekit.catalog import HEADER_LIMIT, HUB, Checkpoint, Pretrained
from restorekit.errors import OfflineError, WeightsError

log = logging.getLogger(__name__)

# Called with a name, bytes done and bytes in all; 0 in all when the server does not say.
Progress = Callable[[str, int, int], None]

# What a cut can cost at most: a chunk that is not complete is lost.
_CHUNK = 1 << 15
# Characters of what a library says of a failure.
_LONGEST = 300
# Tries in a row that bring nothing new; a slow or unsteady line may take as many as it needs.
_FRUITLESS_TRIES = 4
_PAUSE = 0.5
_TIMEOUT = (10, 60)


def ensure(
    checkpoint: Checkpoint, *, offline: bool | None = None, progress: Progress | None = None
) -> Checkpoint:
    """Return weights whose file is on this machine, downloaded if need be, with the expected hash.

    Args:
        checkpoint: as ``catalog.find`` returns it.
        offline: forbid downloads; as ``cache.is_offline`` says when None.
        progress: called while bytes come in.

    Raises:
        OfflineError: the file is not here and downloads are forbidden.
        WeightsError: no mirror has it, or what came is not what is expected.
    """
    forbidden = is_offline() if offline is None else offline
    if checkpoint.name.startswith(HUB) and checkpoint.path is None:
        return replace(checkpoint, path=_from_hub(checkpoint.name, forbidden))
    if checkpoint.is_here or checkpoint.declared is None:
        return checkpoint
    return replace(checkpoint, path=_fetch(checkpoint.declared, forbidden, progress))


def adopt(item: Pretrained, source: Path) -> Path:
    """Copy a file that was downloaded by hand into the cache, checked as a download would be.

    Raises:
        WeightsError: it is not the expected file.
    """
    target = item.path
    with _locked(target):
        part = _part(target)
        shutil.copyfile(source, part)
        return _accept(item, part, str(source))


def forget_parts(target: Path) -> None:
    """Delete what an unfinished download of a file has left."""
    _discard(_part(target))


def _fetch(item: Pretrained, offline: bool, progress: Progress | None) -> Path:
    target = item.path
    by_hand = f"restorekit weights download {item.name} --from FILE"
    if offline:
        raise OfflineError(
            f"weights {item.name} are not on this machine and downloads are off (offline)",
            f"download {item.urls[0] if item.urls else item.source} elsewhere and run `{by_hand}`",
        )
    if not item.urls:
        raise WeightsError(
            f"weights {item.name} have no address that a program can download from",
            f"download {item.filename or 'the file'} in a browser ({item.source}) and run `{by_hand}`",
        )
    with _locked(target):
        if target.is_file():
            # Another process was faster.
            return target
        _make_room(item, target)
        reasons = []
        for url in item.urls:
            try:
                if url.startswith(HUB):
                    part = _part(target)
                    shutil.copyfile(_from_hub(url, offline=False), part)
                else:
                    part = _get(url, _part(target), item.name, progress)
                return _accept(item, part, url)
            except WeightsError as error:
                log.info("%s: %s", url, error.message)
                reasons.append(error.message)
        raise WeightsError(
            f"weights {item.name} cannot be downloaded: {'; '.join(reasons)}",
            f"try again later, or download the file elsewhere and run `{by_hand}`",
        )


def _accept(item: Pretrained, part: Path, origin: str) -> Path:
    """Check a file that came in, pin it, and move it to its place; a wrong one is deleted."""
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        if item.sha256 is None:
            # A hash is about to be trusted for good: what is torn must not be.
            _check_whole(part, item.path.suffix, origin)
            Pins().add(item.name, Pin(found, part.stat().st_size, origin))
        elif found != item.sha256:
            raise WeightsError(
                f"{origin} has sha256 {found[:16]}..., expected is {item.sha256[:16]}...",
                "give the file that its publisher offers",
            )
    except WeightsError:
        _discard(part)
        raise
    os.replace(part, item.path)
    _notes(part).unlink(missing_ok=True)
    return item.path


def _check_whole(part: Path, suffix: str, origin: str) -> None:
    """Refuse what is torn: both formats say at one end how much belongs to them."""
    if suffix == ".safetensors":
        size = part.stat().st_size
        with part.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            try:
                entries = json.loads(file.read(min(header, HEADER_LIMIT)))
                ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
                whole = 8 + header + max(ends, default=0) == size
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                whole = False
    else:
        # Since 2020 torch writes zip archives; what is older begins as a pickle does.
        with part.open("rb") as file:
            whole = zipfile.is_zipfile(part) or file.read(1) == b"\x80"
    if not whole:
        raise WeightsError(f"{origin} sent no whole {suffix} file")


def _get(url: str, part: Path, name: str, progress: Progress | None) -> Path:
    """Download one address into ``part``, going on where an earlier try stopped.

    Raises:
        WeightsError: the server refuses, sends something else, or stops sending for good.
    """
    fruitless = 0
    with requests.Session() as session:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                _stream(session, url, part, name, progress)
                return part
            except (requests.RequestException, _CutError) as error:
                came = part.stat().st_size if part.exists() else 0
                fruitless = 0 if came > before else fruitless + 1
                if fruitless >= _FRUITLESS_TRIES:
                    raise WeightsError(f"{url} stopped answering: {_short(error)}") from error
                log.info("%s: %s after %d bytes, going on", url, _short(error), came)
                time.sleep(_PAUSE * fruitless)
            except OSError as error:
                raise WeightsError(
                    f"{part} cannot be written: {error.strerror or error}",
                    "free some space, or name another folder by RESTOREKIT_CACHE_DIR",
                ) from error


class _CutError(Exception):
    """The connection ended before the file did."""


def _stream(session: requests.Session, url: str, part: Path, name: str, progress: Progress | None) -> None:
    notes = _notes(part)
    known = _read_notes(notes)
    have = part.stat().st_size if part.exists() and known.get("url") == url else 0
    # Packed bytes could neither be counted nor resumed.
    headers = {"Accept-Encoding": "identity"}
    if have and known.get("validator"):
        headers |= {"Range": f"bytes={have}-", "If-Range": known["validator"]}
    with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
        if answer.status_code == 416:
            # The part is as long as the file, or longer: begin again.
            _discard(part)
            raise _CutError("the server could not go on from there")
        if answer.status_code in (408, 425, 429, 500, 502, 503, 504):
            raise _CutError(f"the server answered {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise WeightsError(f"{url} answered {answer.status_code} {answer.reason}")
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise WeightsError(f"{url} sent a web page instead of a file")
        resumed = answer.status_code == 206
        if resumed and _first_byte(answer) != have:
            _discard(part)
            raise _CutError("the server went on from another place")
        have = have if resumed else 0
        length = answer.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else 0
        validator = answer.headers.get("ETag", "")
        if not validator or validator.startswith("W/"):
            # A weak tag does not promise the same bytes; a date is the next best thing.
            validator = answer.headers.get("Last-Modified", "")
        notes.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
        with part.open("ab" if resumed else "wb") as file:
            for chunk in answer.iter_content(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(name, have, total)
        if total and have != total:
            raise _CutError(f"{have:,} of {total:,} bytes came")


def _first_byte(answer: requests.Response) -> int:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def hub_file(
    repository: str, filename: str, revision: str | None = None, *, offline: bool | None = None
) -> Path:
    """Return a file of the model hub, from its cache or downloaded into it.

    Args:
        repository: owner/name.
        filename: path inside it.
        revision: branch, tag or commit.
        offline: look into the cache alone; as ``cache.is_offline`` says when None.

    Raises:
        MissingOnHubError: the repository has no such file.
        OfflineError: it is not in the cache and downloads are forbidden.
        UnreachableHubError: it is not in the cache and the hub does not answer.
        WeightsError: it cannot be downloaded.
    """
    forbidden = is_offline() if offline is None else offline
    reference = f"{HUB}{repository}/{filename}" + (f"@{revision}" if revision else "")
    try:
        return Path(hf_hub_download(repository, filename, revision=revision, local_files_only=forbidden))
    except LocalEntryNotFoundError as error:
        what = f"{reference} is not in the hub's cache and cannot be downloaded"
        hint = "go online once, or fill the cache elsewhere and point HF_HOME to it"
        if forbidden:
            raise OfflineError(f"{what} (offline)", hint) from error
        # The client's own words are a paragraph on connections; what it met is the cause.
        raise UnreachableHubError(what, _short(error.__cause__ or error), hint) from error
    except GatedRepoError as error:
        raise WeightsError(
            f"{reference} is behind terms that its publisher asks to accept",
            "accept them on the page of the repository, and log in with `hf auth login`",
        ) from error
    except EntryNotFoundError as error:
        raise MissingOnHubError(
            f"{reference} does not exist", "check owner, repository, file and revision"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise WeightsError(
            f"{reference} cannot be downloaded: {_short(error)}", "check owner, repository, file and revision"
        ) from error


class UnreachableHubError(WeightsError):
    """The hub did not answer; ``reason`` is what was met instead."""

    def __init__(self, message: str, reason: str, hint: str) -> None:
        super().__init__(f"{message}: {reason}", hint)
        self.reason = reason


class MissingOnHubError(WeightsError):
    """The hub answered, and the repository has no file of that name."""


def _from_hub(reference: str, offline: bool) -> Path:
    path, _, revision = reference.removeprefix(HUB).partition("@")
    owner, _, rest = path.partition("/")
    repository, _, filename = rest.partition("/")
    if not (owner and repository and filename):
        raise WeightsError(
            f"{reference!r} is no hub reference",
            "write hf://owner/repository/file, with @revision if need be",
        )
    return hub_file(f"{owner}/{repository}", filename, revision or None, offline=offline)


def _make_room(item: Pretrained, target: Path) -> None:
    free, need = shutil.disk_usage(target.parent).free, item.size or 0
    if need > free:
        raise WeightsError(
            f"weights {item.name} need {need / 1e6:,.0f} MB, {target.parent} has {free / 1e6:,.0f} MB left",
            "free some space, or name another folder by RESTOREKIT_CACHE_DIR",
        )


def _locked(target: Path) -> FileLock:
    """Return the lock that keeps a second process from writing the same file."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(
            f"{target.parent} cannot be made: {error.strerror}",
            "name a folder that can be written to by RESTOREKIT_CACHE_DIR",
        ) from error
    return FileLock(target.parent / ".lock")


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_notes(path: Path) -> dict[str, str]:
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Without notes nobody knows what the part is a part of: it is fetched anew.
        return {}
    return notes if isinstance(notes, dict) else {}


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def _short(error: BaseException) -> str:
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
