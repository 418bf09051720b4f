"""Image files and PIL images <-> arrays (H, W, C) with their metadata.

Samples keep the type that the source has; what a sample value means, and tensors, are image.py.
"""

from __future__ import annotations

import io
import logging
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from numpy.typing import NDArray

# Importing a plug-in of Pillow is what fills PIL.Image.OPEN; only these formats are read.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    ImageCms,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from restorekit.deepfiles import read_deep, read_other_tiff, write_deep_png, write_tiff
from restorekit.errors import ImageError, near
from restorekit.metadata import Metadata, from_info, from_tiff, turned

READABLE = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
#: Format that is written for each suffix.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
#: Suffixes of files that count as images when a folder is read.
SUFFIXES = frozenset((*FORMATS, ".gif"))
#: Larger images are refused before they are decoded, as a small file can claim any size.
MAX_PIXELS = 10**9

# A JPEG segment holds 65,533 bytes, of which XMP loses 29 to its name.
_JPEG_XMP_BYTES = 65_504
_DECODING = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    PIL.Image.DecompressionBombError,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoded:
    """An upright image as stored.

    Attributes:
        samples: (H, W, C) of uint8, uint16 or float; C is 1 gray, 2 with alpha, 3 RGB, 4 with alpha.
        meta: what else was in the source.
        notes: what was changed in reading, for the user.
    """

    samples: NDArray[Any]
    meta: Metadata
    notes: tuple[str, ...] = ()


def read(path: Path, where: str = "") -> Decoded:
    """Read an image file; its content decides the format, not its suffix.

    Args:
        path: of the file.
        where: what messages call it, the path itself by default.

    Raises:
        ImageError: it is missing, a folder, empty, damaged, too large, or not an image.
    """
    where = where or str(path)
    if not path.exists():
        folder = path.parent
        beside = [other.name for other in folder.iterdir()] if folder.is_dir() else []
        hint = near(path.name, beside) or "check the name and the folder"
        raise ImageError(f"{where}: no such file", hint)
    if path.is_dir():
        raise ImageError(f"{where} is a folder, not an image", "name an image file in it")
    try:
        with path.open("rb") as file:
            return _decode(file, where)
    except OSError as error:
        raise ImageError(
            f"{where} cannot be read: {error.strerror or error}", "check its permissions"
        ) from error


def from_pil(image: PIL.Image.Image, where: str = "PIL image") -> Decoded:
    """Take the samples and metadata of a PIL image, turned upright as its EXIF says.

    Raises:
        ImageError: its mode has no defined range, or its lazily read file is damaged.
    """
    try:
        image.load()
    except _DECODING as error:
        raise _damaged(where, error) from error
    samples, notes = _samples(image, where)
    meta, orientation, more = _facts(image, where)
    return Decoded(turned(samples, orientation), meta, (*notes, *more))


def write(path: Path, samples: NDArray[Any], meta: Metadata, quality: int) -> None:
    """Write samples in the format of the suffix.

    Args:
        path: its suffix is one of ``FORMATS``.
        samples: (H, W, C) of uint8; for PNG and TIFF also uint16; for TIFF also float32.
        meta: kept as far as the format can hold it.
        quality: 1 to 100 for JPEG and WebP; at 100 WebP is lossless.

    Raises:
        OSError: the file cannot be written.
        ValueError: the format cannot hold such an image.
    """
    kind = FORMATS[path.suffix.lower()]
    gray = samples.shape[-1] < 3
    if meta.icc and (meta.icc[16:20] == b"GRAY") != gray:
        # A profile of another colour space is refused or misread by viewers.
        meta = replace(meta, icc=None)
    if kind == "TIFF":
        write_tiff(path, samples, meta.icc, meta.exif, meta.xmp, meta.dpi)
        return
    if kind == "PNG" and samples.dtype == np.uint16:
        write_deep_png(path, samples, meta.icc, meta.exif, meta.xmp, meta.dpi)
        return
    options: dict[str, Any] = {"icc_profile": meta.icc, "exif": meta.exif, "dpi": meta.dpi, "xmp": meta.xmp}
    if kind == "JPEG":
        options |= {"quality": quality, "subsampling": 0}
        if meta.xmp and len(meta.xmp) > _JPEG_XMP_BYTES:
            _log.warning("%s: JPEG cannot hold %d bytes of XMP; they are left out", path.name, len(meta.xmp))
            options["xmp"] = None
    elif kind == "WEBP":
        # exact keeps the colours below fully transparent pixels.
        options |= {"quality": quality, "lossless": quality == 100, "exact": True}
    elif kind == "PNG" and meta.xmp:
        options["pnginfo"] = text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", meta.xmp.decode("utf-8", "replace"))
    # Pillow tells "absent" from None for some of these.
    present = {name: value for name, value in options.items() if value is not None}
    as_pil(samples).save(path, format=kind, **present)


def as_pil(samples: NDArray[Any]) -> PIL.Image.Image:
    """Return uint8 samples (H, W, C) as a PIL image L, LA, RGB or RGBA."""
    return PIL.Image.fromarray(samples[..., 0] if samples.shape[-1] == 1 else samples)


def _decode(file: BinaryIO, where: str) -> Decoded:
    head = file.read(16)
    if not head:
        raise ImageError(f"{where} is empty (0 bytes)", "fetch or export the file again")
    factory = next((PIL.Image.OPEN[name][0] for name in READABLE if _accepts(name, head)), None)
    if factory is None:
        raise ImageError(
            f"{where} is not a PNG, JPEG, WebP, BMP, TIFF or GIF image", "convert it to PNG or TIFF first"
        )

    def open_again() -> PIL.Image.Image:
        # Image.open would warn or fail above Pillow's own pixel limit, which is a global setting.
        # Without a name, Pillow does not map the file into memory, which could outlive it.
        file.seek(0)
        return factory(file, "")

    try:
        image = open_again()
    except SyntaxError as error:
        if head[:2] in (b"II", b"MM"):
            return _decode_other_tiff(file, where)
        raise _damaged(where, error) from error
    except _DECODING as error:
        raise _damaged(where, error) from error
    _check_size(image.width, image.height, where)
    if image.format == "TIFF" and image.width * image.height > (PIL.Image.MAX_IMAGE_PIXELS or MAX_PIXELS):
        # Of these formats, Pillow holds TIFF to its own limit once more when it loads the pixels.
        return _decode_other_tiff(file, where)
    raw = str(getattr(image, "tile", "")) if image.format in ("PNG", "TIFF") else ""
    # Pillow turns a TIFF upright while it loads the pixels, and forgets how it lay.
    early = _facts(image, where) if image.format == "TIFF" else None
    try:
        deep = read_deep(image, open_again)
        if deep is None:
            image.load()
    except _DECODING as error:
        raise _damaged(where, error) from error
    samples, notes = (deep, list[str]()) if deep is not None else _samples(image, where)
    if ";16" in raw and samples.dtype == np.uint8:
        notes.append(f"{where}: this kind of 16-bit file is read with 8 bits")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        notes.append(f"{where}: only the first of {frames} frames is read")
    meta, orientation, more = early or _facts(image, where)
    upright = samples if early else turned(samples, orientation)
    return Decoded(upright, meta, (*notes, *more))


def _accepts(name: str, head: bytes) -> bool:
    accept = PIL.Image.OPEN[name][1]
    # Instead of False, Pillow returns a text where a decoder was not built in.
    return accept is not None and accept(head) is True


def _decode_other_tiff(file: BinaryIO, where: str) -> Decoded:
    try:
        file.seek(0)
        samples, dpi = read_other_tiff(file, where, _check_size)
        meta, orientation = from_tiff(file, dpi)
    except _DECODING as error:
        raise _damaged(where, error) from error
    return Decoded(turned(samples, orientation), meta)


def _check_size(width: int, height: int, where: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{where} claims {width} x {height} pixels; at most {MAX_PIXELS:,} are read",
            "cut it into parts first",
        )


def _damaged(where: str, error: Exception) -> ImageError:
    if isinstance(error, PIL.Image.DecompressionBombError):
        return ImageError(f"{where} is too large: {error}", "cut it into parts, or convert it to PNG first")
    return ImageError(f"{where} is damaged or incomplete: {error}", "fetch or export the file again")


def _samples(image: PIL.Image.Image, where: str) -> tuple[NDArray[Any], list[str]]:
    """Return the samples (H, W, C) of a loaded image in its own depth."""
    mode, transparent, notes = image.mode, image.has_transparency_data, list[str]()
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        # Pillow before 11 reads 16-bit gray PNG as 32-bit.
        gray = np.asarray(image).astype(np.uint16)[..., None]
        if "transparency" in image.info:
            opaque = gray != np.uint16(image.info["transparency"])
            gray = np.concatenate([gray, opaque.astype(np.uint16) * np.uint16(65535)], axis=-1)
        return gray, notes
    if mode == "I":
        raise ImageError(
            f"{where} holds 32-bit integers, whose range is not defined", "convert it to a uint16 array first"
        )
    if mode == "F":
        return np.asarray(image)[..., None], notes
    if mode in ("1", "L", "LA", "La"):
        target = "LA" if transparent else "L"
    elif mode in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX"):
        target = "RGBA" if transparent else "RGB"
    else:
        target = "RGB"
        notes.append(f"{where}: converted from {mode} to RGB")
        image = _to_rgb(image)
    # Neither step alone covers all modes: La goes to LA only, and RGBa to RGBA only.
    converted = image if image.mode == target else image.convert(target)
    samples = np.asarray(converted)
    return samples[..., None] if samples.ndim == 2 else samples, notes


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK" and profile:
        try:
            return _required(
                ImageCms.profileToProfile(
                    image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
                )
            )
        except ImageCms.PyCMSError as error:
            _log.warning("the CMYK profile cannot be used, plain conversion instead: %s", error)
    return image.convert("RGB")


def _required(image: PIL.Image.Image | None) -> PIL.Image.Image:
    assert image is not None  # None only when converting in place
    return image


def _facts(image: PIL.Image.Image, where: str) -> tuple[Metadata, int, list[str]]:
    """Return the metadata, the orientation of the stored pixels, and notes."""
    try:
        return *from_info(image), []
    except (*_DECODING, AttributeError) as error:
        # Pillow fails in many ways on damaged EXIF, and on a TIFF that was closed; the pixels are good.
        note = f"{where}: the metadata cannot be read and is left out: {error}"
        return Metadata(format=image.format or "", mode=image.mode), 1, [note]
