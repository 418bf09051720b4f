"""Clean images of an experiment: found, reduced and cropped as its config says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from torch.nn.functional import interpolate

from restorekit.analysis.experiment import ExperimentSpec, ImagesSpec
from restorekit.analysis.images import to_channels
from restorekit.errors import ImageError
from restorekit.image import Image
from restorekit.imagefiles import SUFFIXES
from restorekit.training.data import load_source

# Names and clean images (3, H, W), their sides multiples of the scale.
Gallery = Sequence[tuple[str, Tensor]]


def galleries_of(spec: ExperimentSpec, scale: int) -> dict[str, Gallery]:
    """Return the images of discovery, evaluation, classification and pictures, by these names.

    Args:
        spec: the experiment.
        scale: of its network.

    Raises:
        ConfigError, ImageError: a folder is missing or empty, or an image is smaller than its crop.
    """
    # Several folders stand in the names themselves.
    above = Path(spec.data.folder[0]) if len(spec.data.folder) == 1 else Path()
    held_out = [above / photograph.name for photograph in load_source(spec.data, scale).held_out]
    wanted = {
        "discovery": spec.discovery,
        "evaluation": spec.evaluation,
        "overlap": spec.overlap.images,
        "drawn": spec.drawn,
    }
    return {name: _gallery(images, held_out, scale) for name, images in wanted.items()}


def _gallery(images: ImagesSpec, held_out: Sequence[Path], scale: int) -> Gallery:
    files = list(_files(images, held_out))
    if not files:
        raise ImageError(
            f"{images.folder or 'the photographs held out'} holds no images", "check folder, first and count"
        )
    return [(path.name, _clean(path, images, scale)) for path in files]


def _files(images: ImagesSpec, held_out: Sequence[Path]) -> Iterator[Path]:
    if images.folder is None:
        found = sorted(held_out)
    else:
        folder = Path(images.folder)
        if not folder.is_dir():
            raise ImageError(f"{folder} is no folder", "check the path in the config")
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    yield from found[images.first : images.first + images.count]


def _clean(path: Path, images: ImagesSpec, scale: int) -> Tensor:
    clean = to_channels(Image.of(path).pixels, 3)
    if images.reduce > 1:
        size = [side // images.reduce for side in clean.shape[-2:]]
        clean = interpolate(clean[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    sides = [side // scale * scale for side in clean.shape[-2:]]
    if images.crop:
        if min(sides) < images.crop * scale:
            raise ImageError(
                f"{path} is smaller than {images.crop * scale} pixels", "lower crop or reduce in the config"
            )
        sides = [images.crop * scale] * 2
    top, left = ((have - want) // 2 for have, want in zip(clean.shape[-2:], sides, strict=True))
    return clean[:, top : top + sides[0], left : left + sides[1]]
