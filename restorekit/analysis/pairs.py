"""Pairs of a degraded and a clean image as networks of any size multiple and scale take them.

Shapes as in contracts.py; s is the scale of the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from restorekit.contracts import Backbone, Padding
from restorekit.errors import ContractError, ImageError
from restorekit.tiling import pad_to_multiple

# Noise as wide as the whole range, 255 levels, stays within six times of it; levels go far beyond.
FARTHEST = 16.0
_PAIR = "give (degraded, clean) or (degraded, clean, name), each image as (C, H, W) or (1, C, H, W)"


class Pair(NamedTuple):
    """One image to look at.

    Attributes:
        degraded: (1, C, H, W).
        clean: (1, C, sH, sW).
        name: what errors call it.
    """

    degraded: Tensor
    clean: Tensor
    name: str


class Terms(NamedTuple):
    """What a network asks of its images, see ``Backbone``; any other module keeps size and channels.

    Attributes:
        scale: s.
        size_multiple: of H and W.
        padding: how they are padded to it.
        channels: C of degraded images; None where nobody says.
        out_channels: C of clean ones; None where it is that of the degraded.
    """

    scale: int = 1
    size_multiple: int = 1
    padding: Padding = "reflect"
    channels: int | None = None
    out_channels: int | None = None

    @classmethod
    def of(cls, network: nn.Module) -> Self:
        """Return the terms of a network."""
        # Not by the names alone: a convolution has a padding and channels too, which mean something else.
        if not isinstance(network, Backbone):
            return cls()
        return cls(*(getattr(network, name) for name in cls._fields))


def pairs_of(pairs: Iterable[Sequence[Any]], network: nn.Module) -> Iterator[Pair]:
    """Check pairs for a network, one by one as they are asked for.

    Args:
        pairs: of degraded and clean images in [0, 1], (C, H, W) or (1, C, H, W), optionally with a name as
            third; values may leave the range as noise does, not as 8-bit levels do.
        network: what they are for.

    Raises:
        ImageError: a pair does not fit itself or the network; it is named.
    """
    terms = Terms.of(network)
    for number, given in enumerate(pairs, 1):
        try:
            degraded, clean, *rest = given
        except (TypeError, ValueError) as error:
            raise ImageError(f"image {number} is no pair: {error}", _PAIR) from error
        name = str(rest[0]) if rest else f"image {number}"
        for image in (degraded, clean):
            if not isinstance(image, Tensor):
                raise ImageError(f"{name}: {type(image).__name__} is given instead of a tensor", _PAIR)
        one, other = (image[None] if image.dim() == 3 else image for image in (degraded, clean))
        for image, what, channels in (
            (one, "degraded", terms.channels),
            (other, "clean", terms.out_channels or terms.channels),
        ):
            if image.dim() != 4 or len(image) != 1:
                raise ImageError(
                    f"{name}: the {what} image has shape {tuple(image.shape)}",
                    "attribution looks at one image at a time: give (C, H, W) or (1, C, H, W)",
                )
            if not image.numel():
                raise ImageError(f"{name}: the {what} image is empty: {_size(image)}", "leave it out")
            if image.shape[1] != (channels or image.shape[1]):
                raise ImageError(
                    f"{name}: the {what} image has {image.shape[1]} channels, {type(network).__name__}"
                    f" expects {channels}",
                    "convert the images",
                )
            if not bool(torch.isfinite(image).all()):
                raise ImageError(f"{name}: the {what} image holds NaN or infinity", "leave it out")
            if float(image.abs().max()) > FARTHEST:
                raise ImageError(
                    f"{name}: the {what} image holds values from {float(image.min()):.4g} to"
                    f" {float(image.max()):.4g}, images are in [0, 1], and with noise within {FARTHEST:g}",
                    "divide 8-bit levels by 255",
                )
        if terms.channels is None and one.shape[1] != other.shape[1]:
            raise ImageError(
                f"{name}: the degraded image has {one.shape[1]} channels and the clean one {other.shape[1]},"
                f" {type(network).__name__} is taken to keep them",
                "convert the images, or wrap the network in a Backbone, which states its channels",
            )
        expected = tuple(side * terms.scale for side in one.shape[-2:])
        if tuple(other.shape[-2:]) != expected:
            raise ImageError(
                f"{name}: degraded is {_size(one)} and clean {_size(other)}, expected for a network of scale"
                f" {terms.scale} is clean {expected[1]} x {expected[0]}",
                "crop both alike",
            )
        yield Pair(one, other, name)


def restored(network: nn.Module, degraded: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, sH, sW): padded to the network's multiple and cropped, as in pipelines.

    Raises:
        ImageError: the image is empty.
        ContractError: a network that is no ``Backbone`` does not keep the shape of its images.
    """
    if not degraded.numel():
        raise ImageError(f"an image of {_size(degraded)} is empty", "leave it out")
    terms = Terms.of(network)
    height, width = (side * terms.scale for side in degraded.shape[-2:])
    output: Tensor = network(pad_to_multiple(degraded, terms.size_multiple, terms.padding))
    if not isinstance(network, Backbone) and getattr(output, "shape", None) != degraded.shape:
        made = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ContractError(
            f"{type(network).__name__} makes {made} of {tuple(degraded.shape)}",
            "give a network that keeps the shape, or wrap it in a Backbone, which states scale and channels",
        )
    return output[..., :height, :width]


def pseudo_pairs(network: nn.Module, images: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair degraded images with what a network makes of them, where no clean ones are known.

    The loss of the network itself is then zero, and that of another the distance between the two.

    Args:
        network: usually the target.
        images: degraded, (C, H, W) or (1, C, H, W).
    """
    home = next(network.parameters())
    for image in images:
        batch = image[None] if image.dim() == 3 else image
        # Not around the yield: whoever takes the pair would compute without gradients too.
        with torch.no_grad():
            output = restored(network, batch.to(home))
        yield batch, output


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]} x {image.shape[-2]}"
