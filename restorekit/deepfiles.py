"""PNG and TIFF files with more than 8 bits a sample, which PIL images can hold for gray only.

Arrays are (H, W, C), C as in imagefiles.py, where everything else about files is.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import tifffile
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from restorekit.errors import ImageError
from restorekit.metadata import Dpi

_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_INCH = 0.0254


def read_deep(image: PIL.Image.Image, open_again: Callable[[], PIL.Image.Image]) -> NDArray[np.uint16] | None:
    """Return all 16 bits of a colour image that Pillow would cut to 8, None for any other image.

    Pillow unpacks 16-bit colour into 8-bit by taking the high byte, in the order that its raw mode names.
    Named the other way round, the same decoder yields the low byte, so two passes give the whole sample.

    Args:
        image: opened, not yet loaded.
        open_again: opens the same file once more.
    """
    tiles = getattr(image, "tile", [])
    if not tiles:
        return None
    raw = _raw_mode(tiles[0])
    if image.format == "PNG" and raw == "LA;16B":
        # Two 16-bit samples take the four bytes of an 8-bit RGBA pixel.
        pairs = np.asarray(_as_raw(open_again(), lambda _: "RGBA"))
        high, low = pairs[..., ::2].astype(np.uint16), pairs[..., 1::2]
        both: NDArray[np.uint16] = high << 8 | low
        return both
    if image.format not in ("PNG", "TIFF") or raw[:-1] not in ("RGB;16", "RGBA;16", "RGBX;16"):
        return None
    low = np.asarray(_as_raw(open_again(), lambda name: name[:-1] + _OTHER_BYTE[name[-1]]))
    # Opened once more, because the second pass has moved the file under the first.
    samples: NDArray[np.uint16] = np.asarray(open_again()).astype(np.uint16) << 8 | low
    if "transparency" in image.info:
        opaque = (samples != np.array(image.info["transparency"], np.uint16)).any(axis=-1, keepdims=True)
        samples = np.concatenate([samples, opaque.astype(np.uint16) * np.uint16(65535)], axis=-1)
    return samples


def read_other_tiff(
    file: BinaryIO, where: str, check_size: Callable[[int, int, str], None]
) -> tuple[NDArray[Any], Dpi]:
    """Read a TIFF that Pillow does not: float colour, half or double precision, deep gray with alpha, large.

    Args:
        file: at its start.
        where: what messages call it.
        check_size: called with width, height and ``where`` before pixels are decoded.

    Raises:
        ImageError: its colours, channels or compression cannot be read.
    """
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        check_size(page.imagewidth, page.imagelength, where)
        plain = page.photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
        premultiplied = tifffile.EXTRASAMPLE.ASSOCALPHA in page.extrasamples
        if not plain or premultiplied or page.samplesperpixel > 4:
            raise ImageError(
                f"{where}: this kind of TIFF cannot be read ({page.samplesperpixel} channels of "
                f"{page.dtype}{', multiplied by alpha' if premultiplied else ''})",
                "convert it to gray or RGB, alpha not multiplied in",
            )
        try:
            samples = page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise ImageError(
                f"{where}: {error}", "pip install imagecodecs, or save it uncompressed"
            ) from error
        planar = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and samples.ndim == 3
        x, y = page.get_resolution("INCH") if "XResolution" in page.tags else (0, 0)
    samples = np.moveaxis(samples, 0, -1) if planar else samples
    samples = samples[..., None] if samples.ndim == 2 else samples
    return samples.astype(samples.dtype.newbyteorder("=")), (float(x), float(y)) if x > 0 and y > 0 else None


def write_deep_png(
    path: Path,
    samples: NDArray[np.uint16],
    icc: bytes | None,
    exif: bytes | None,
    xmp: bytes | None,
    dpi: Dpi,
) -> None:
    """Write (H, W, C) of uint16 as a 16-bit PNG.

    Raises:
        OSError: the file cannot be written.
    """
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    # Filter 2, "up": each byte less the one above.
    filtered[:, 0] = 2
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])

    def chunks() -> Iterator[tuple[bytes, bytes]]:
        yield b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
        if icc:
            yield b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc)
        if dpi:
            yield b"pHYs", struct.pack(">IIB", round(dpi[0] / _INCH), round(dpi[1] / _INCH), 1)
        if exif:
            yield b"eXIf", exif.removeprefix(b"Exif\0\0")
        if xmp:
            yield b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
        packed = zlib.compress(filtered.data)
        for start in range(0, len(packed), 2**24):
            yield b"IDAT", packed[start : start + 2**24]
        yield b"IEND", b""

    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in chunks():
            file.write(struct.pack(">I", len(data)) + name + data)
            file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))


def write_tiff(
    path: Path, samples: NDArray[Any], icc: bytes | None, exif: bytes | None, xmp: bytes | None, dpi: Dpi
) -> None:
    """Write (H, W, C) of uint8, uint16 or float32 as a deflated TIFF.

    Raises:
        OSError: the file cannot be written.
        ValueError: it would pass the 4 GB that TIFF can address.
    """
    height, width, channels = samples.shape
    whole = samples.dtype.kind == "u"
    stored = np.diff(samples, axis=1, prepend=samples.dtype.type(0)) if whole else samples
    little = stored.astype(stored.dtype.newbyteorder("<"))
    data = zlib.compress(np.ascontiguousarray(little).data)
    if len(data) >= 2**32 - 2**24:
        raise ValueError("the image takes more than the 4 GB that TIFF can hold")
    tags: dict[int, Any] = {
        256: width,
        257: height,
        258: (samples.dtype.itemsize * 8,) * channels,
        259: 8,  # deflate
        262: 2 if channels > 2 else 1,  # RGB, gray
        273: 0,  # where the samples start; the directory adds its own length
        277: channels,
        278: height,
        279: len(data),
        284: 1,  # samples of a pixel side by side
        317: 2 if whole else 1,  # each sample less its left neighbour
        339: (1 if whole else 3,) * channels,
    }
    if channels in (2, 4):
        tags[338] = 2  # alpha, colours not multiplied by it
    if icc:
        tags[34675] = icc
    if xmp:
        tags[700] = xmp
    directory = ImageFileDirectory_v2()
    for tag, value in (_exif_tags(exif) | _resolution_tags(dpi) | tags).items():
        directory[tag] = value
    with path.open("wb") as file:
        directory.save(file)
        file.write(data)


def _raw_mode(tile: Any) -> str:
    arguments = tile[3]
    return str(arguments if isinstance(arguments, str) else arguments[0])


def _as_raw(image: PIL.Image.Image, rename: Callable[[str], str]) -> PIL.Image.Image:
    """Let an opened image unpack its bytes by another raw mode."""

    def renamed(tile: Any) -> Any:
        codec, extents, offset, arguments = tile
        if isinstance(arguments, str):
            new: Any = rename(arguments)
        else:
            new = (rename(arguments[0]), *arguments[1:])
        return (
            type(tile)(codec, extents, offset, new)
            if hasattr(tile, "_fields")
            else (codec, extents, offset, new)
        )

    opened: Any = image
    opened.tile = [renamed(tile) for tile in opened.tile]
    return image


def _exif_tags(exif: bytes | None) -> dict[int, Any]:
    if not exif:
        return {}
    known = PIL.Image.Exif()
    known.load(exif)
    # The values of a directory inside are read by get_ifd; the item itself is only its place in the file.
    return {tag: known.get_ifd(tag) if tag in (34665, 34853) else value for tag, value in known.items()}


def _resolution_tags(dpi: Dpi) -> dict[int, Any]:
    return {282: dpi[0], 283: dpi[1], 296: 2} if dpi else {}
