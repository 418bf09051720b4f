"""Named protocols: everything that moves a figure, fixed and tested, under one name.

A protocol says how a degraded image is made from a clean one or taken from a pair, what is cut off, how the
result is rounded, and how it is compared. Its name is printed with every figure; figures of different
protocols are never averaged. Images here are (H, W, C) floats in [0, 1], C is 3, or 1 in gray.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from restorekit.errors import ConfigError, ImageError, near
from restorekit.evaluation.metrics import mae, psnr, ssim, ssim_3d, ssim_uniform, studio_luma

Levels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Settings = Mapping[str, float]
# Clean and restored image and the peak of their range -> a figure.
Metric = Callable[[NDArray[np.generic], NDArray[np.generic], float], float]

_RGB: Mapping[str, Metric] = {"psnr": psnr, "ssim": ssim}


@dataclass(frozen=True)
class Protocol:
    """One way to measure.

    Attributes:
        name: what is printed beside the figure.
        summary: one line for people.
        source: whose habit it is, and where it deviates.
        degrade: clean image and settings -> degraded image, which may leave [0, 1] or be smaller; None where
            degraded images have to be given.
        metrics: what is measured, by name; mean over images.
        gray: images are compared, and restored, in gray.
        eight_bit: both images are compared as 8-bit files would hold them; else as floats, clipped.
        luma: figures are of Y in studio range, ``rounded`` to whole levels or ``exact``.
        multiple: sides are cut to a multiple of this first, the same at both ends.
        centred: a clean image that is larger than its partner is cut to its middle.
        border: the setting that says how many pixels are not compared along each side.
        settings: what can be set, with the defaults.
    """

    name: str
    summary: str
    source: str
    degrade: Callable[[Floats, Settings], Floats] | None = None
    metrics: Mapping[str, Metric] = field(default_factory=lambda: _RGB)
    gray: bool = False
    eight_bit: bool = True
    luma: Literal["rounded", "exact"] | None = None
    multiple: int = 1
    centred: bool = False
    border: str | None = None
    settings: Settings = field(default_factory=dict)

    @property
    def ignores_pairs(self) -> bool:
        """Whether the degraded images of a paired dataset are left aside: what is measured is made here."""
        return self.degrade in (unclipped_gaussian, unchanged)

    def with_settings(self, given: Settings) -> dict[str, float]:
        """Return the settings with those given on top.

        Raises:
            ConfigError: one is unknown or not a number.
        """
        for name, value in given.items():
            if name not in self.settings:
                known = ", ".join(self.settings) or "none"
                hint = near(name, self.settings) or f"settings of {self.name}: {known}"
                raise ConfigError(f"--set {name}", f"protocol {self.name} has no setting {name!r}", hint)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(
                    f"--set {name}={value}", "expected a number", f"for example --set {name}=25"
                )
        return {**self.settings, **given}

    def pair(self, clean: Floats, degraded: Floats | None, settings: Settings) -> tuple[Floats, Floats]:
        """Return the clean image, cut, and the degraded one that belongs to it.

        Args:
            clean: (H, W, C).
            degraded: its partner; None where it is to be made.
            settings: complete.

        Raises:
            ImageError: there is no partner and the protocol makes none, or the sizes differ.
        """
        if self.gray:
            clean, degraded = gray(clean), None if degraded is None else gray(degraded)
        scale = int(settings.get("scale", 1))
        if degraded is None:
            if self.degrade is None:
                raise ImageError(
                    f"protocol {self.name} needs pairs of degraded and clean images",
                    "give a folder with both, as input/ and target/",
                )
            clean = _cut(clean, self.multiple)
            clean = clean[: clean.shape[0] // scale * scale, : clean.shape[1] // scale * scale]
            return clean, self.degrade(clean, settings)
        height, width = degraded.shape[0] * scale, degraded.shape[1] * scale
        if self.centred:
            clean = _middle(clean, height, width)
        if 0 <= clean.shape[0] - height < scale and 0 <= clean.shape[1] - width < scale:
            clean = clean[:height, :width]
        if clean.shape[:2] != (height, width):
            raise ImageError(
                f"the degraded image is {_size(degraded)}, the clean one {_size(clean)}"
                + (f", at scale {scale}" if scale > 1 else ""),
                "give the scale with --set scale=N" if "scale" in self.settings else "give pairs of one size",
            )
        return _cut(clean, self.multiple), _cut(degraded, self.multiple)

    def compared(
        self, clean: Floats, restored: NDArray[np.floating], settings: Settings
    ) -> tuple[NDArray[np.generic], NDArray[np.generic], float]:
        """Return both images as they are compared, before luma is taken, and the peak of their range.

        Raises:
            ImageError: the restored image has another size than the clean one.
        """
        if restored.shape != clean.shape:
            raise ImageError(
                f"the restored image is {_size(restored)}, the clean one {_size(clean)}",
                "use a pipeline of the protocol's scale"
                if "scale" in self.settings
                else "use another pipeline",
            )
        margin = int(settings[self.border]) if self.border else 0
        if margin:
            clean, restored = (image[margin:-margin, margin:-margin] for image in (clean, restored))
        if self.eight_bit:
            return to_levels(clean), to_levels(restored), 255.0
        return clean, np.clip(restored, 0, 1), 1.0

    def score(
        self,
        clean: Floats,
        restored: NDArray[np.floating],
        settings: Settings,
        more: Mapping[str, Metric] | None = None,
    ) -> dict[str, float]:
        """Return the figures of one image.

        Args:
            clean: as ``pair`` returned it.
            restored: of the same shape.
            settings: complete.
            more: metrics beyond those of the protocol; they see colours also where the protocol takes luma.

        Raises:
            ImageError: the restored image has another size than the clean one.
        """
        first, second, peak = self.compared(clean, restored, settings)
        figures = {name: metric(first, second, peak) for name, metric in (more or {}).items()}
        if self.luma and first.shape[2] == 3:
            first, second = (studio_luma(image, peak) for image in (first, second))
            if self.luma == "rounded":
                first, second = np.rint(first), np.rint(second)
            peak = 255.0
        return {name: metric(first, second, peak) for name, metric in self.metrics.items()} | figures


def unclipped_gaussian(clean: Floats, settings: Settings) -> Floats:
    """Add white Gaussian noise as Restormer's evaluation does: numpy seed 0 for every image, not clipped.

    The noise is drawn over (H, W, C) in float64; ``sigma`` is in 8-bit levels. Source: Restormer (arXiv
    2111.09881), its gaussian denoising test scripts.
    """
    noise = np.random.RandomState(0).normal(0, settings["sigma"] / 255, clean.shape)
    return (clean + noise).astype(np.float32)


def clipped_gaussian(clean: Floats, settings: Settings) -> Floats:
    """Add white Gaussian noise as the all-in-one papers do: clipped, and cast to 8 bits without rounding.

    ``sigma`` is in 8-bit levels. The cast makes the image darker by half a level, the clipping lighter in
    shadows. Source: AirNet (CVPR 2022) and PromptIR (arXiv 2306.13090); they draw without a seed, here it is
    numpy seed 0 for every image.
    """
    noise = np.random.RandomState(0).standard_normal(clean.shape) * settings["sigma"]
    return np.clip(to_levels(clean) + noise, 0, 255).astype(np.uint8).astype(np.float32) / np.float32(255)


def bicubic(clean: Floats, settings: Settings) -> Floats:
    """Return the image smaller by ``scale``, by antialiased bicubic interpolation, in 8 bits.

    Within a level or two of MATLAB's ``imresize``, by which the literature's low-resolution sets were made;
    give those as pairs where the last hundredth of a decibel counts.
    """
    scale = int(settings["scale"])
    size = (clean.shape[0] // scale, clean.shape[1] // scale)
    image = torch.from_numpy(np.ascontiguousarray(clean.transpose(2, 0, 1)))[None].double()
    small = interpolate(image, size, mode="bicubic", antialias=True, align_corners=False)[0]
    return to_levels(small.permute(1, 2, 0).numpy()).astype(np.float32) / np.float32(255)


def unchanged(clean: Floats, settings: Settings) -> Floats:
    """Return the clean image itself, to see whether a pipeline leaves it alone."""
    return clean


def to_levels(restored: NDArray[np.floating]) -> Levels:
    """Return 8-bit levels as a saved file would hold them: clipped, rounded half to even."""
    levels: Levels = np.rint(np.clip(restored, 0, 1) * 255).astype(np.uint8)
    return levels


def gray(image: Floats) -> Floats:
    """Return the luma (H, W, 1) of full range in 8 bits, as readers of gray images make it of RGB."""
    if image.shape[2] == 1:
        return image
    luma = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    return to_levels(luma[..., None]).astype(np.float32) / np.float32(255)


def _cut(image: Floats, multiple: int) -> Floats:
    """Return the middle with sides that are multiples; of an odd rest one more is cut at the end."""
    height, width = (side - side % multiple for side in image.shape[:2])
    if min(height, width) == 0:
        raise ImageError(f"the image is {_size(image)}, smaller than {multiple} pixels", "leave it out")
    return _middle(image, height, width)


def _middle(image: Floats, height: int, width: int) -> Floats:
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    if min(top, left) < 0:
        return image
    return image[top : top + height, left : left + width]


def _size(image: NDArray[np.generic]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


_ALL_IN_ONE: Mapping[str, Metric] = {"psnr": psnr, "ssim": ssim_uniform}
_WITH_VOLUME: Mapping[str, Metric] = {"psnr": psnr, "ssim": ssim, "ssim_3d": ssim_3d}

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "restormer-gaussian-color",
            "RGB PSNR and 2-D SSIM on 8-bit output; Gaussian noise unclipped, numpy seed 0 per image",
            "Restormer, SwinIR, DRUNet: CBSD68, Kodak24, McMaster, Urban100",
            unclipped_gaussian,
            settings={"sigma": 25},
        ),
        Protocol(
            "restormer-gaussian-gray",
            "gray PSNR and SSIM on 8-bit output; Gaussian noise unclipped, numpy seed 0 per image",
            "Restormer, SwinIR, DRUNet: Set12, BSD68, Urban100 in gray",
            unclipped_gaussian,
            gray=True,
            settings={"sigma": 25},
        ),
        Protocol(
            "allinone-rgb",
            "RGB PSNR and 7x7 SSIM on floats, sides cut to multiples of 16; pairs, or noise clipped and cast "
            "to 8 bits",
            "AirNet, PromptIR and later: BSD68, Rain100L, SOTS; they draw the noise without a seed",
            clipped_gaussian,
            _ALL_IN_ONE,
            eight_bit=False,
            multiple=16,
            settings={"sigma": 25},
        ),
        Protocol(
            "rain13k-y",
            "PSNR and SSIM of Y, studio range, of 8-bit images, Y rounded as MATLAB does; pairs",
            "MPRNet, Restormer: Test100, Rain100H, Rain100L, Test2800, Test1200",
            luma="rounded",
        ),
        Protocol(
            "gopro-rgb",
            "RGB PSNR, 2-D SSIM and 3-D SSIM (that of the papers' tables) of 8-bit images; pairs",
            "MPRNet, NAFNet, Restormer: GoPro, HIDE",
            metrics=_WITH_VOLUME,
        ),
        Protocol(
            "sidd-rgb",
            "RGB PSNR, 2-D SSIM and 3-D SSIM (that of the papers' tables) of floats; pairs",
            "NAFNet, Restormer: SIDD validation blocks",
            metrics=_WITH_VOLUME,
            eight_bit=False,
        ),
        Protocol(
            "dpdd-rgb",
            "RGB PSNR, 7x7 SSIM and mean absolute error of floats; pairs, also of 16 bits",
            "DPDNet, IFAN, Restormer: DPDD indoor and outdoor",
            metrics={"psnr": psnr, "ssim": ssim_uniform, "mae": mae},
            eight_bit=False,
        ),
        Protocol(
            "lol-rgb",
            "RGB PSNR and 2-D SSIM of 8-bit images, brightness not matched to the clean image (GT-mean off)",
            "LOL-v1, LOL-v2; figures with GT-mean on are higher and are another protocol's",
        ),
        Protocol(
            "sots-rgb",
            "RGB PSNR and 7x7 SSIM on floats, sides cut to multiples of 16; clean images cut to the size of "
            "the hazy ones; pairs",
            "AirNet, PromptIR: SOTS indoor and outdoor",
            metrics=_ALL_IN_ONE,
            eight_bit=False,
            multiple=16,
            centred=True,
        ),
        Protocol(
            "sr-y-crop",
            "PSNR and SSIM of Y, studio range, of 8-bit images, not rounded, without as many pixels at the "
            "border as the scale; pairs, or bicubic",
            "EDSR, SwinIR, BasicSR: Set5, Set14, BSD100, Urban100, Manga109",
            bicubic,
            luma="exact",
            border="scale",
            settings={"scale": 4},
        ),
        Protocol(
            "paired-rgb",
            "RGB PSNR and 2-D SSIM of 8-bit images; pairs",
            "no paper's in particular: real noise, snow, raindrops and whatever has a clean partner",
        ),
        Protocol(
            "clean-identity-rgb",
            "RGB PSNR and 2-D SSIM between a clean 8-bit image and what is made of it; the higher, the less "
            "harm is done",
            "ours",
            unchanged,
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name.

    Raises:
        ConfigError: there is none of that name; with near names.
    """
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ConfigError("--protocol", f"no protocol called {name!r}; known: {known}", near(name, PROTOCOLS))
    return PROTOCOLS[name]
