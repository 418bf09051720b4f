"""Files, PIL images, arrays and tensors in; (C, H, W) float pixels and metadata; the same kinds out.

Nothing else in the project turns samples into pixels or back. How files store them is imagefiles.py.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import PIL.Image
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from restorekit.errors import ConfigError, ContractError, ImageError, OutputError
from restorekit.files import replacing
from restorekit.imagefiles import FORMATS, Decoded, as_pil, from_pil, read, write
from restorekit.metadata import Metadata

# Value of white for whole numbers; floats have white at 1.
_WHITE = {"uint8": 255, "uint16": 65535}
# Gray, RGB, and two RGB views of one scene, such as the left and right half of dual pixels.
_COLOURS = (1, 3, 6)
_DEEP_FORMATS = ("PNG", "TIFF")
_ALPHA_FORMATS = ("PNG", "TIFF", "WEBP")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Form:
    """How an image came, so that it can be given back alike.

    Attributes:
        kind: path, pil, numpy or torch.
        flat: an array (H, W) without an axis for channels.
        device: of a tensor.
    """

    kind: Literal["path", "pil", "numpy", "torch"] = "torch"
    flat: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True, eq=False)
class Image:
    """An upright image with what is needed to give it back as it came.

    Attributes:
        pixels: (C, H, W) float32, C is 1 (gray), 3 (RGB) or 6 (two views of a scene, left and right); black
            is 0 and white 1, floats outside are kept.
        alpha: (1, H, W) float32 in [0, 1], None for an opaque image; networks never see it.
        depth: sample type of the source: uint8, uint16, float16, float32, float64 or bfloat16.
        form: kind and layout of the source.
        meta: colour profile, EXIF and so on of the source.
        notes: what was changed in reading, for the user.
    """

    pixels: Tensor
    alpha: Tensor | None = None
    depth: str = "float32"
    form: Form = field(default_factory=Form)
    meta: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: Any, *, where: str = "") -> Image:
        """Make an image of anything that holds one.

        The range follows from the sample type, never from the values: 0..255 for uint8, 0..65535 for uint16,
        0..1 for floats, whose values outside are kept. Colours are RGB. The source is copied, never changed.
        Files and PIL images are turned upright by their EXIF orientation.

        Args:
            source: path, PIL image, array (H, W) or (H, W, C) with C 1, 2 (gray, alpha), 3, 4 (RGB, alpha) or
                6 (two views), tensor (C, H, W) with C 1, 3 or 6, or an Image, which is returned itself.
            where: what messages call it; by default its path or kind.

        Raises:
            ImageError: it cannot be read, has another layout or sample type, or holds NaN or infinity.
        """
        if isinstance(source, Image):
            return source
        if isinstance(source, (str, os.PathLike)):
            where = where or os.fspath(source)
            return _of_decoded(read(Path(source), where), Form("path"), where)
        if isinstance(source, PIL.Image.Image):
            where = where or "PIL image"
            return _of_decoded(from_pil(source, where), Form("pil"), where)
        if isinstance(source, np.ndarray):
            return _of_array(source, where or "array")
        if isinstance(source, Tensor):
            return _of_tensor(source, where or "tensor")
        kind = type(source).__name__
        raise ImageError(
            f"{where or 'image'}: a {kind} cannot be taken as an image",
            "give a path, PIL image, array or tensor",
        )

    def replace_pixels(self, pixels: Tensor) -> Self:
        """Return the image with other pixels; alpha follows a change of size bilinearly.

        Args:
            pixels: (C, H, W), C 1, 3 or 6, any H and W.

        Raises:
            ContractError: the shape is another one.
        """
        if pixels.ndim != 3 or pixels.shape[0] not in _COLOURS:
            raise ContractError(f"pixels of shape {tuple(pixels.shape)} are not (C, H, W) with C 1, 3 or 6")
        alpha = self.alpha
        if alpha is not None and alpha.shape[-2:] != pixels.shape[-2:]:
            alpha = interpolate(alpha[None], pixels.shape[-2:], mode="bilinear", antialias=True)[0].clamp(
                0, 1
            )
        return replace(self, pixels=pixels.detach().float(), alpha=alpha)

    def to_array(self, dtype: DTypeLike | None = None) -> NDArray[Any]:
        """Return an array (H, W, C) with alpha last, or (H, W) for gray without.

        Args:
            dtype: uint8 and uint16 are clipped and rounded to the nearest level, half to even; floats are not
                clipped. By default that of the source for an array, else uint8.

        Raises:
            ImageError: the dtype is another one.
        """
        name = np.dtype(dtype or (self.depth if self.form.kind == "numpy" else np.uint8)).name
        samples = self._samples(name)
        flat = samples.shape[-1] == 1 and (self.form.kind != "numpy" or self.form.flat)
        return samples[..., 0] if flat else samples

    def to_pil(self) -> PIL.Image.Image:
        """Return an 8-bit PIL image of mode L, LA, RGB or RGBA, its profile, EXIF and dpi in ``info``."""
        return self._with_info(as_pil(self._samples("uint8")))

    def to_tensor(self) -> Tensor:
        """Return the pixels (C, H, W) without alpha, in type and device of a source tensor, else float32."""
        if self.form.kind != "torch":
            return self.pixels.clone()
        pixels = self.pixels.to(self.form.device)
        dtype: torch.dtype = getattr(torch, self.depth)
        if self.depth in _WHITE:
            # torch.round takes half to even, as numpy.rint does.
            return (pixels.clamp(0, 1) * _WHITE[self.depth]).round().to(torch.int32).to(dtype)
        return pixels.to(dtype, copy=True)

    def like_source(self) -> PIL.Image.Image | NDArray[Any] | Tensor:
        """Return the kind that the image was made of, same sample type and layout; a PIL image for a path.

        A PIL image has 8 bits a sample, except gray of mode I;16 or F, which stays so. A palette becomes RGB.
        """
        if self.form.kind == "torch":
            return self.to_tensor()
        if self.form.kind == "numpy":
            return self.to_array()
        deep = self.depth != "uint8" and len(self.pixels) == 1 and self.alpha is None
        if self.form.kind == "pil" and deep:
            return self._with_info(PIL.Image.fromarray(self._samples(self.depth)[..., 0]))
        return self.to_pil()

    def save(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        quality: int = 95,
        bit_depth: Literal["keep", 8, 16] = "keep",
    ) -> Path:
        """Write the image to a file, whole or not at all; missing folders are made.

        Colour profile, EXIF, XMP and dpi are kept where the format can hold them. JPEG and BMP have no alpha:
        the image is laid on white, with a warning in the log.

        Args:
            path: its suffix names the format: png, jpg, jpeg, webp, bmp, tif or tiff.
            overwrite: replace a file that exists.
            quality: 1 to 100 for JPEG (colour not subsampled) and WebP (lossless at 100).
            bit_depth: bits a sample. "keep" writes 16 of uint16 to PNG and TIFF, floats to TIFF, otherwise 8.

        Returns:
            The path.

        Raises:
            OutputError: the file exists, the suffix is unknown, or the format or the folder cannot take it.
            ConfigError: ``quality`` or ``bit_depth`` is out of range.
        """
        if len(self.pixels) not in (1, 3):
            raise OutputError(
                f"{path}: an image of {len(self.pixels)} channels has no file format", "save its views"
            )
        path = Path(path)
        kind = FORMATS.get(path.suffix.lower())
        if kind is None:
            raise OutputError(
                f"{path}: no image format has the suffix {path.suffix!r}", f"use one of {', '.join(FORMATS)}"
            )
        if not 1 <= quality <= 100:
            raise ConfigError("quality", f"{quality} is not within 1 to 100")
        depth = self._depth_in(kind, bit_depth, path)
        if path.is_dir():
            raise OutputError(f"{path} is a folder", "name a file")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists", "give another name, or --overwrite (overwrite=True)")
        image = self if kind in _ALPHA_FORMATS else self._on_white(path)
        samples = image._samples(depth)
        meta = self.meta.for_size(samples.shape[1], samples.shape[0])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                write(temporary, samples, meta, quality)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written: {error.strerror or error}", "name a folder that can be written to"
            ) from error
        except ValueError as error:
            raise OutputError(f"{path} cannot be written: {error}", "save it as .png or .tif") from error
        return path

    def _depth_in(self, kind: str, bit_depth: Literal["keep", 8, 16], path: Path) -> str:
        if bit_depth not in ("keep", 8, 16):
            raise ConfigError("bit_depth", f"{bit_depth!r} is not one of keep, 8, 16")
        if bit_depth == 8:
            return "uint8"
        if bit_depth == 16 and kind not in _DEEP_FORMATS:
            raise OutputError(f"{path}: {kind} holds 8 bits a sample, not 16", "save it as .png or .tif")
        if bit_depth == 16 or (self.depth == "uint16" and kind in _DEEP_FORMATS):
            return "uint16"
        if self.depth == "uint16":
            _log.warning(
                "%s: %s holds 8 bits a sample, the image has 16; .png and .tif keep them", path, kind
            )
        return "float32" if kind == "TIFF" and self.depth not in _WHITE else "uint8"

    def _on_white(self, path: Path) -> Image:
        if self.alpha is None:
            return self
        if bool((self.alpha < 1).any()):
            _log.warning("%s: the format has no alpha, the image is laid on white; .png keeps it", path)
        alpha = self.alpha.to(self.pixels.device)
        return replace(self, pixels=self.pixels.clamp(0, 1) * alpha + (1 - alpha), alpha=None)

    def _samples(self, dtype: str) -> NDArray[Any]:
        """Return samples (H, W, C) with alpha last."""
        if dtype not in _WHITE and not dtype.startswith("float"):
            raise ImageError(f"samples cannot be given as {dtype}", "use uint8, uint16 or a float type")
        planes = [self.pixels.cpu()] + ([] if self.alpha is None else [self.alpha.cpu()])
        values = torch.cat(planes).permute(1, 2, 0).contiguous().numpy()
        if dtype in _WHITE:
            values = np.rint(np.clip(values, 0, 1) * _WHITE[dtype])
        samples: NDArray[Any] = values.astype(dtype)
        return samples

    def _with_info(self, image: PIL.Image.Image) -> PIL.Image.Image:
        meta = self.meta.for_size(*image.size)
        facts = {"icc_profile": meta.icc, "exif": meta.exif, "dpi": meta.dpi}
        image.info.update({name: fact for name, fact in facts.items() if fact})
        return image


def _of_decoded(decoded: Decoded, form: Form, where: str) -> Image:
    return _of_samples(decoded.samples, form, where, decoded.meta, decoded.notes)


def _of_array(array: NDArray[Any], where: str) -> Image:
    shape = array.shape
    if array.ndim == 4:
        raise ImageError(
            f"{where} has shape {shape}, a batch of images", "give them one by one, or as a list"
        )
    if array.ndim not in (2, 3):
        raise ImageError(f"{where} has shape {shape}, not (H, W) or (H, W, C)", "reshape it")
    if array.ndim == 3 and shape[-1] not in (1, 2, 3, 4, 6):
        channels_first = shape[0] in _COLOURS
        hint = "use array.transpose(1, 2, 0)" if channels_first else "give 1, 2, 3, 4 or 6 channels last"
        raise ImageError(f"{where} has shape {shape}, not (H, W, C) with C 1 to 4 or 6", hint)
    samples = array[..., None] if array.ndim == 2 else array
    return _of_samples(samples, Form("numpy", flat=array.ndim == 2), where, Metadata(), ())


def _of_samples(
    samples: NDArray[Any], form: Form, where: str, meta: Metadata, notes: tuple[str, ...]
) -> Image:
    """Make an image of (H, W, C) samples."""
    depth = samples.dtype.name
    if depth not in _WHITE and samples.dtype.kind != "f":
        raise ImageError(
            f"{where} holds {depth}, whose range is not defined",
            "convert it to uint8 (0..255), uint16 (0..65535) or float32 (0..1)",
        )
    _refuse_empty(samples.shape, where)
    with np.errstate(over="ignore"):
        # What float32 cannot hold becomes infinity, and is refused as such.
        planes = np.array(samples.transpose(2, 0, 1), dtype=np.float32, order="C")
    if depth in _WHITE:
        planes /= _WHITE[depth]
    values = torch.from_numpy(planes)
    _refuse_not_finite(values, where)
    colours = {1: 1, 2: 1, 6: 6}.get(len(values), 3)
    alpha = values[colours:].clamp(0, 1) if len(values) > colours else None
    return Image(values[:colours], alpha, depth, form, meta, notes)


def _of_tensor(tensor: Tensor, where: str) -> Image:
    shape = tuple(tensor.shape)
    if tensor.ndim == 4:
        raise ImageError(
            f"{where} has shape {shape}, a batch of images",
            "restorekit.restore takes it; here give tensor[0]",
        )
    if tensor.ndim != 3:
        raise ImageError(
            f"{where} has shape {shape}, not (C, H, W)", "add the axis of channels: tensor[None]"
        )
    if shape[0] not in _COLOURS:
        last = shape[-1] in _COLOURS
        hint = (
            "use tensor.permute(2, 0, 1)" if last else "give 1 or 3 channels; alpha goes with arrays and PIL"
        )
        raise ImageError(f"{where} has shape {shape}, not (C, H, W) with C 1, 3 or 6", hint)
    depth = str(tensor.dtype).removeprefix("torch.")
    if depth not in _WHITE and not tensor.is_floating_point():
        raise ImageError(
            f"{where} holds {depth}, whose range is not defined",
            "convert it to uint8 (0..255), uint16 (0..65535) or float32 (0..1)",
        )
    _refuse_empty(shape, where)
    pixels = tensor.detach().to(torch.float32, copy=True).contiguous()
    if depth in _WHITE:
        pixels /= _WHITE[depth]
    _refuse_not_finite(pixels, where)
    return Image(pixels, depth=depth, form=Form("torch", device=tensor.device))


def _refuse_empty(shape: tuple[int, ...], where: str) -> None:
    if 0 in shape:
        raise ImageError(f"{where} has shape {shape}: there are no pixels", "give at least one pixel")


def _refuse_not_finite(values: Tensor, where: str) -> None:
    wrong = ~torch.isfinite(values)
    if count := int(wrong.sum()):
        channel, row, column = wrong.nonzero()[0].tolist()
        raise ImageError(
            f"{where} holds NaN or infinity in {count} of {values.numel()} samples, "
            f"the first at row {row}, column {column}, channel {channel}",
            "replace them, for example by numpy.nan_to_num",
        )
