"""What an image file says beside its pixels: colour profile, EXIF, XMP, resolution, orientation.

Upright pixels and an orientation tag that says so are one thing, so both are made here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Self

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ExifTags

Dpi = tuple[float, float] | None

# Tags of the first EXIF directory that describe the picture; the others describe how one file stores it.
_DESCRIPTIVE = frozenset(
    (270, 271, 272, 274, 282, 283, 296, 305, 306, 315, 316, 18246, 18249, 33432, *range(40091, 40096))
)
_ORIENTATION, _XMP, _ICC, _INTEROPERABILITY = 274, 700, 34675, 40965
_QUARTER_TURNS = (5, 6, 7, 8)
_EXIF_SIDES = (40962, 40963)
_XMP_SIDES = (b"exif:PixelXDimension|tiff:ImageWidth", b"exif:PixelYDimension|tiff:ImageLength")
_SUBDIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


@dataclass(frozen=True)
class Metadata:
    """What a file says beside its pixels.

    Attributes:
        format: PNG, JPEG, WEBP, BMP, TIFF or GIF; empty for arrays and tensors.
        mode: of the PIL image, such as RGB or I;16.
        icc: colour profile of the pixels.
        exif: with the orientation reset to 1, since the pixels are upright, and without the thumbnail.
        xmp: with the orientation reset likewise.
        dpi: pixels per inch, horizontal and vertical.
    """

    format: str = ""
    mode: str = ""
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None

    def for_size(self, width: int, height: int) -> Self:
        """Return what a file of that many pixels should say: EXIF and XMP that name a size name this one."""
        size = (width, height)
        return replace(self, exif=_exif_for_size(self.exif, size), xmp=_xmp_for_size(self.xmp, size))


def from_info(image: PIL.Image.Image) -> tuple[Metadata, int]:
    """Return the metadata of a PIL image, and the orientation of its pixels as stored."""
    exif = image.getexif()
    orientation = int(exif.get(_ORIENTATION, 1))
    profile = _bytes(image.info.get("icc_profile"))
    meta = Metadata(
        # MPO is JPEG with further pictures behind the first.
        format="JPEG" if image.format == "MPO" else image.format or "",
        mode=image.mode,
        # Other colours are converted to RGB; the profile of their space would be wrong then.
        icc=profile if profile and profile[16:20] in (b"RGB ", b"GRAY") else None,
        exif=_kept_exif(exif, orientation),
        # Pillow before 11 has the XMP of PNG under its long name only.
        xmp=_upright_xmp(_bytes(image.info.get("xmp") or image.info.get("XML:com.adobe.xmp"))),
        dpi=_swapped(_dpi(image.info.get("dpi")), orientation),
    )
    return meta, orientation


def from_tiff(file: BinaryIO, dpi: Dpi) -> tuple[Metadata, int]:
    """Return the metadata of a TIFF that Pillow cannot open, and the orientation of its pixels."""
    file.seek(0)
    exif = PIL.Image.Exif()
    exif.load_from_fp(file)
    orientation = int(exif.get(_ORIENTATION, 1))
    meta = Metadata(
        format="TIFF",
        icc=_bytes(exif.get(_ICC)),
        exif=_kept_exif(exif, orientation),
        xmp=_upright_xmp(_bytes(exif.get(_XMP))),
        dpi=_swapped(dpi, orientation),
    )
    return meta, orientation


def turned(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn (H, W, C) upright; the numbers of orientations are those of EXIF."""
    turns: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }
    return turns[orientation](samples) if orientation in turns else samples


def _swapped(dpi: Dpi, orientation: int) -> Dpi:
    return (dpi[1], dpi[0]) if dpi and orientation in _QUARTER_TURNS else dpi


def _kept_exif(exif: PIL.Image.Exif, orientation: int) -> bytes | None:
    kept = PIL.Image.Exif()
    for tag in _DESCRIPTIVE & set(exif):
        kept[tag] = exif[tag]
    for directory in _SUBDIRECTORIES:
        entries = {tag: value for tag, value in exif.get_ifd(directory).items() if tag != _INTEROPERABILITY}
        if entries:
            kept[directory] = entries
    if orientation in _QUARTER_TURNS and {282, 283} <= set(kept):
        kept[282], kept[283] = kept[283], kept[282]
    if _ORIENTATION in kept:
        kept[_ORIENTATION] = 1
    return kept.tobytes() if len(kept) else None


def _exif_for_size(exif: bytes | None, size: tuple[int, int]) -> bytes | None:
    if not exif:
        return exif
    known = PIL.Image.Exif()
    known.load(exif)
    entries = known.get_ifd(ExifTags.IFD.Exif)
    stated = {tag: side for tag, side in zip(_EXIF_SIDES, size, strict=True) if tag in entries}
    if not stated:
        return exif
    known[ExifTags.IFD.Exif] = {**entries, **stated}
    return known.tobytes()


def _upright_xmp(xmp: bytes | None) -> bytes | None:
    return re.sub(rb'(tiff:Orientation(?:="|>))[0-9]', rb"\g<1>1", xmp) if xmp else None


def _xmp_for_size(xmp: bytes | None, size: tuple[int, int]) -> bytes | None:
    for names, side in zip(_XMP_SIDES, size, strict=True):
        xmp = re.sub(rb'((?:%s)(?:="|>))[0-9]+' % names, rb"\g<1>%d" % side, xmp) if xmp else None
    return xmp


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, str):
        return value.encode()
    return bytes(value) if isinstance(value, bytes | bytearray) and value else None


def _dpi(value: Any) -> Dpi:
    try:
        x, y = (float(side) for side in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < math.inf and 0 < y < math.inf else None
