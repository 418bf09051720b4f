"""Decoded photographs as 8-bit files that are mapped into memory, found by the content of their source.

Decoding costs more than a training step of a small network; a mapped file costs a few microseconds, is read
back only where a patch is cut, and is shared by the processes of a run and by later runs. The folder can be
deleted at any time: what is missing is decoded again.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from restorekit import cache
from restorekit.errors import ImageError
from restorekit.files import replacing
from restorekit.image import Image

Pixels = NDArray[np.uint8]

log = logging.getLogger(__name__)

# Raised when the same file and scale would decode to other values.
_VERSION = 1
# How npy files of the first version of the format begin.
_NPY_1 = b"\x93NUMPY\x01\x00"
# Mapped files that stay open; a kernel allows some 65,000 for a process.
_OPEN = 4096


@dataclass(frozen=True)
class Photograph:
    """A file that was decoded once.

    Attributes:
        name: how reports call it.
        path: the file.
        sha256: of its content.
        size: height and width in pixels, upright.
    """

    name: str
    path: Path
    sha256: str
    size: tuple[int, int]


class Decoded:
    """The decoded photographs of a folder of files.

    Args:
        folder: where they are kept; made when the first is written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache.root() / "training"
        self._in_memory: dict[tuple[str, float], Pixels] = {}
        self._mapped = functools.lru_cache(_OPEN)(self._map)

    def add(self, name: str, path: Path, scales: tuple[float, ...] = (1.0,)) -> Photograph:
        """Decode a photograph at every scale that is not there yet.

        Raises:
            ImageError: it cannot be read.
        """
        try:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}", "check the file") from error
        photograph = Photograph(name, path, content, (0, 0))
        missing = [scale for scale in {1.0, *scales} if not self._file(photograph, scale).exists()]
        if missing:
            image = PIL.Image.fromarray(_decode(path))
            for scale in missing:
                self._keep(photograph, scale, _reduced(image, scale))
        height, width = self.pixels(photograph).shape[:2]
        return Photograph(name, path, content, (height, width))

    def pixels(self, photograph: Photograph, scale: float = 1.0) -> Pixels:
        """Return a photograph (H, W, 3) reduced by a factor, read-only.

        Raises:
            ImageError: neither the decoded nor the source file can be read any more.
        """
        key = photograph.sha256, scale
        if key in self._in_memory:
            return self._in_memory[key]
        try:
            return self._mapped(photograph, scale)
        except (OSError, ValueError, EOFError):
            log.warning("%s was decoded again", photograph.path)
            pixels = _reduced(PIL.Image.fromarray(_decode(photograph.path)), scale)
            self._keep(photograph, scale, pixels)
            return pixels

    def _map(self, photograph: Photograph, scale: float) -> Pixels:
        path = self._file(photograph, scale)
        # numpy reads the header with ast, which fails now and then when several threads use it
        # (python/cpython#106905, Python 3.11).
        with path.open("rb") as file:
            preamble = file.read(10)
            header = file.read(int.from_bytes(preamble[8:10], "little")).decode("latin1")
        shape = re.search(r"'shape': \((\d+), (\d+), 3\)", header)
        if preamble[:8] != _NPY_1 or shape is None:
            raise ValueError(f"{path} holds no decoded photograph")
        size = int(shape[1]), int(shape[2]), 3
        return np.memmap(path, np.uint8, "r", len(preamble) + len(header), size)

    def _file(self, photograph: Photograph, scale: float) -> Path:
        return self.folder / f"{photograph.sha256[:32]}-{scale:g}-v{_VERSION}.npy"

    def _keep(self, photograph: Photograph, scale: float, pixels: Pixels) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._file(photograph, scale)) as temporary:
                np.save(temporary, pixels)
        except OSError as error:
            log.warning("%s stays in memory, %s cannot be written: %s", photograph.name, self.folder, error)
            self._in_memory[photograph.sha256, scale] = pixels


def _decode(path: Path) -> Pixels:
    pixels = Image.of(path).pixels
    if pixels.shape[0] not in (1, 3):
        raise ImageError(f"{path} has {pixels.shape[0]} channels", "train on gray or colour images")
    levels = (pixels.clamp(0, 1) * 255).round().expand(3, -1, -1).permute(1, 2, 0)
    return np.ascontiguousarray(levels.numpy().astype(np.uint8))


def _reduced(image: PIL.Image.Image, scale: float) -> Pixels:
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.array(image if size == image.size else image.resize(size, PIL.Image.Resampling.LANCZOS))
