"""Pictures that the tests of images share."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def photo(mode: str = "RGB", size: tuple[int, int] = (13, 9)) -> PIL.Image.Image:
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    return PIL.Image.fromarray(noise(size[1], size[0], *channels))


def some_exif(orientation: int = 1) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x010F] = "A maker"
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    exif.get_ifd(0x8825)[1] = "N"
    return exif.tobytes()


def opened(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as image:
        image.load()
        return image


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png16(samples: np.ndarray, colour_type: int, extra: bytes = b"") -> bytes:
    """Encode by the standard's plainest means, independent of the writer under test."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    data = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + data + png_chunk(b"IEND", b"")
