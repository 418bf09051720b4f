"""The convolutions of VGG16 and AlexNet in five parts, written from the papers; their widths are the file's.

VGG16: Simonyan and Zisserman, ICLR 2015, https://arxiv.org/abs/1409.1556. AlexNet: Krizhevsky,
https://arxiv.org/abs/1404.5997. Their maps after five of the activations are what LPIPS compares: Zhang et
al., CVPR 2018, https://arxiv.org/abs/1801.03924. Shift-tolerant ones halve behind a blur and pad the more:
Ghildyal and Liu, ECCV 2022, https://arxiv.org/abs/2207.13686.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from restorekit.errors import WeightsError

# Edge that a blur reflects before it looks.
_REFLECTED = 2


@dataclass(frozen=True)
class Layer:
    """One layer of a network, whatever its width."""

    kind: Literal["convolution", "activation", "pool", "blur"]
    kernel: int = 1
    stride: int = 1
    padding: int = 0

    def least(self, cells: int) -> int:
        """Return the smallest side that it makes at least so many cells of."""
        enough = (cells - 1) * self.stride + self.kernel - 2 * self.padding
        # What is reflected has to be there.
        return max(enough, self.padding + 1) if self.kind == "blur" else max(enough, 1)

    def build(self, channels: int, width: int) -> nn.Module:
        """Return the layer, from so many channels to a width that convolutions alone may change."""
        match self.kind:
            case "convolution":
                return nn.Conv2d(channels, width, self.kernel, padding=self.padding)
            case "activation":
                return nn.ReLU(inplace=True)
            case "pool":
                return nn.MaxPool2d(self.kernel, self.stride)
            case "blur":
                return Blur()


@dataclass(frozen=True)
class Layout:
    """A network as files of weights know it: five parts, their layers numbered through.

    Attributes:
        name: for fingerprints and messages.
        key: of a layer in a file, by its ``part`` from 1 and its ``place`` among all layers from 0.
        parts: their layers; each ends with the activation whose maps are looked at.
        widths: of the published network's convolutions.
    """

    name: str
    key: str
    parts: tuple[tuple[Layer, ...], ...]
    widths: tuple[int, ...]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Where each part ends: the place of its activation."""
        return tuple(count - 1 for count in accumulate(len(part) for part in self.parts))

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image per cell of each part's maps."""
        return tuple(accumulate((prod(each.stride for each in part) for part in self.parts), int.__mul__))

    @cached_property
    def convolutions(self) -> dict[int, str]:
        """What a file calls the convolution at each place."""
        numbered = [(part, layer) for part, layers in enumerate(self.parts, 1) for layer in layers]
        return {
            place: self.key.format(part=part, place=place)
            for place, (part, layer) in enumerate(numbered)
            if layer.kind == "convolution"
        }

    def least(self, last: int) -> int:
        """Return the smallest side of an image that the parts up to ``last``, from 0, can take."""
        side = 1
        for layer in reversed(list(chain(*self.parts[: last + 1]))):
            side = layer.least(side)
        return side

    def named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights and biases of a file by the names that ``Features`` has for them."""
        names = {
            f"{key}.{what}": f"{place}.{what}"
            for place, key in self.convolutions.items()
            for what in ("weight", "bias")
        }
        return {
            names[name]: value
            for name, value in tensors.items()
            if name in names and value.is_floating_point()
        }


class Blur(nn.Module):
    """Halve maps behind a blur by [1 2 1] along both sides: BlurPool, Zhang, ICML 2019, padded by two."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, (H + 3) // 2, (W + 3) // 2)."""
        reflected = pad(maps, (_REFLECTED,) * 4, mode="reflect")
        # A mean of two neighbours twice is the binomial filter, and needs no filter of the width of the maps.
        return avg_pool2d(avg_pool2d(reflected, 2, stride=1), 2, stride=2)


class Features(nn.ModuleList):
    """The layers of a network up to the last part that is looked at, numbered as in its files.

    Args:
        layout: of which network.
        widths: of its convolutions, in order.
        chosen: parts that are looked at, from 0.
    """

    def __init__(self, layout: Layout, widths: Sequence[int], chosen: Sequence[int]) -> None:
        super().__init__()
        self.ends = {layout.ends[part] for part in chosen}
        remaining = iter(widths)
        width = 3
        self.features = 0
        for place, layer in enumerate(chain(*layout.parts[: max(chosen) + 1])):
            channels, width = width, next(remaining) if layer.kind == "convolution" else width
            self.append(layer.build(channels, width))
            self.features += width if place in self.ends else 0

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W), normalised -> (B, F', h, w) of each chosen part, in order."""
        maps: list[Tensor] = []
        for place, layer in enumerate(self):
            image = layer(image)
            if place in self.ends:
                maps.append(image)
        return maps


def recognised(tensors: Mapping[str, Tensor], origin: str) -> Layout:
    """Return the network that tensors are of, by the names of its convolutions.

    Args:
        tensors: of a file.
        origin: where they are from, for the message.

    Raises:
        WeightsError: they are of none that is known, or its filters are none of ours.
    """
    found = {
        name.removesuffix(".weight"): value
        for name, value in tensors.items()
        if name.endswith(".weight") and value.dim() == 4 and value.is_floating_point()
    }
    layout = next((each for each in LAYOUTS if set(each.convolutions.values()) == set(found)), None)
    if layout is None:
        raise WeightsError(
            f"{origin} is no VGG16 or AlexNet that this prior knows: {len(found)} convolutions, "
            f"first tensor {next(iter(tensors), 'none')!r}",
            "give a file of stlpips_pytorch, or VGG16 as torchvision names its tensors",
        )
    _check_filters(tensors, origin)
    return layout


def widths(layout: Layout, tensors: Mapping[str, Tensor]) -> list[int]:
    """Return how wide a file's convolutions are, in order."""
    return [len(tensors[f"{key}.weight"]) for key in layout.convolutions.values()]


def _check_filters(tensors: Mapping[str, Tensor], origin: str) -> None:
    """Raise WeightsError unless all blurs that a file holds are by [1 2 1]."""
    line = torch.tensor([1.0, 2.0, 1.0], device="cpu") / 4
    expected = torch.outer(line, line)
    for name, value in tensors.items():
        if not name.endswith(".filt"):
            continue
        fits = value.shape[-2:] == expected.shape and torch.allclose(
            value.float(), expected.expand_as(value), atol=1e-3
        )
        if not fits:
            raise WeightsError(
                f"{origin} was trained with another blur than [1 2 1]: {name!r} is {tuple(value.shape)}",
                "give the files of stlpips_pytorch 0.0.2",
            )


_RELU = Layer("activation")
_BLUR = Layer("blur", kernel=3, stride=2, padding=_REFLECTED)


def _convolution(kernel: int, padding: int) -> tuple[Layer, Layer]:
    return Layer("convolution", kernel, padding=padding), _RELU


def _vgg16(*halving: Layer) -> tuple[tuple[Layer, ...], ...]:
    counts = (2, 2, 3, 3, 3)
    return tuple((halving if part else ()) + _convolution(3, 1) * count for part, count in enumerate(counts))


_VGG16 = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
_SLICES = "net.slice{part}.{place}"

TORCHVISION = Layout("vgg16", "features.{place}", _vgg16(Layer("pool", kernel=2, stride=2)), _VGG16)
LAYOUTS = (
    TORCHVISION,
    Layout("shift-tolerant vgg16", _SLICES, _vgg16(Layer("pool", kernel=2), _BLUR), _VGG16),
    Layout(
        "shift-tolerant alexnet",
        _SLICES,
        (
            (Layer("convolution", kernel=11, padding=2), _BLUR, _RELU),
            (Layer("pool", kernel=3), _BLUR, *_convolution(5, 2)),
            (Layer("pool", kernel=3), _BLUR, *_convolution(3, 1)),
            _convolution(3, 1),
            _convolution(3, 1),
        ),
        (64, 192, 384, 256, 256),
    ),
)
