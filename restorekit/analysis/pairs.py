"""Pairs of a degraded and a clean image as networks of any size multiple and scale take them.

Shapes as in contracts.py; s is the scale of the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from restorekit.contracts import Backbone
from restorekit.errors import ImageError
from restorekit.tiling import pad_to_multiple

# Weights of red, green and blue in luma (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
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


def pairs_of(pairs: Iterable[Sequence[Any]], network: Backbone) -> Iterator[Pair]:
    """Check pairs for a network, one by one as they are asked for.

    Args:
        pairs: of degraded and clean images, (C, H, W) or (1, C, H, W), optionally with a name as third.
        network: what they are for.

    Raises:
        ImageError: a pair does not fit itself or the network; it is named.
    """
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
            (one, "degraded", network.channels),
            (other, "clean", network.out_channels or network.channels),
        ):
            if image.dim() != 4 or len(image) != 1:
                raise ImageError(
                    f"{name}: the {what} image has shape {tuple(image.shape)}",
                    "attribution looks at one image at a time: give (C, H, W) or (1, C, H, W)",
                )
            if image.shape[1] != channels:
                raise ImageError(
                    f"{name}: the {what} image has {image.shape[1]} channels, {type(network).__name__}"
                    f" expects {channels}",
                    "convert the images",
                )
            if not bool(torch.isfinite(image).all()):
                raise ImageError(f"{name}: the {what} image holds NaN or infinity", "leave it out")
        expected = tuple(side * network.scale for side in one.shape[-2:])
        if tuple(other.shape[-2:]) != expected:
            raise ImageError(
                f"{name}: degraded is {_size(one)} and clean {_size(other)}, expected for a network of scale"
                f" {network.scale} is clean {expected[1]} x {expected[0]}",
                "crop both alike",
            )
        yield Pair(one, other, name)


def restored(network: Backbone, degraded: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, sH, sW): padded to the network's multiple and cropped, as in pipelines."""
    height, width = (side * network.scale for side in degraded.shape[-2:])
    output: Tensor = network(pad_to_multiple(degraded, network.size_multiple, network.padding))
    return output[..., :height, :width]


def pseudo_pairs(network: Backbone, images: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
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
