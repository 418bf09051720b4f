"""Where a restoration network knows most of an image: the module whose output is its deepest map.

Found by running a small image and looking at the outputs of all modules. Shapes as in restorekit.contracts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from restorekit.contracts import Backbone
from restorekit.errors import ConfigError, near


@dataclass(frozen=True)
class Place:
    """A module, and the map that it returns.

    Attributes:
        name: of the module.
        channels: F of its map.
        stride: pixels per cell, along each side.
    """

    name: str
    channels: int
    stride: int


@dataclass(frozen=True)
class _Seen(Place):
    whole: bool


def place_of(backbone: Backbone, name: str | None) -> Place:
    """Return a module of a backbone by its name, or its deepest when None.

    The deepest are those of the largest stride; of these the last one that is made of others, as the end of a
    U-net's middle, else the last of those with the most channels, as before the final convolution. Left out
    are modules whose map does not grow with the image, as of squeeze and excitation, those that return
    no more channels than images have, and those that see it in parts, as quarters, one after the other or as
    a batch (MPRNet).

    Raises:
        ConfigError: there is no such module, or it returns no map of the whole image, or several.
    """
    seen = _outputs(backbone)
    runs = Counter(place.name for place in seen)
    if name is not None:
        found = next((place for place in reversed(seen) if place.name == name), None)
        if found is None:
            names = list(dict.fromkeys(place.name for place in seen))
            known = dict(backbone.named_modules())
            raise ConfigError(
                "params.layer",
                f"{type(backbone).__name__}'s {name!r} returns no map of the whole image"
                if name in known
                else f"no {name!r}",
                near(name, names) or f"the last that do: {', '.join(names[-5:]) or 'none'}",
            )
        if runs[name] > 1:
            # A prior stops at the first, where a recurrent network knows least.
            once = [each for each in dict.fromkeys(place.name for place in seen) if each and runs[each] == 1]
            raise ConfigError(
                "params.layer",
                f"{type(backbone).__name__}'s {name!r} runs {runs[name]} times an image",
                f"name one that runs once: {', '.join(once[-5:]) or 'none does'}",
            )
        return found
    images = max(backbone.channels, backbone.out_channels or 0)
    inside = [place for place in seen if place.name and place.channels > images and runs[place.name] == 1]
    if not inside:
        raise ConfigError(
            "params.layer",
            f"{type(backbone).__name__} has no layers inside with more than {images} channels",
            "name one with as many, or another backbone",
        )
    stride = max(place.stride for place in inside)
    deepest = [place for place in inside if place.stride == stride]
    composed = [place for place in deepest if place.whole]
    most = max(place.channels for place in deepest)
    return (composed or [place for place in deepest if place.channels == most])[-1]


def _outputs(backbone: Backbone) -> list[_Seen]:
    """Run a small image and return every map, in the order in which they were made."""
    multiple = backbone.size_multiple
    height, width = (-(-side // multiple) * multiple for side in (96, 160))
    seen: list[_Seen] = []

    def note(name: str, module: nn.Module, output: object) -> None:
        if not isinstance(output, Tensor) or output.dim() != 4 or min(output.shape[-2:]) < 2:
            return
        # Parts of the one image, as a batch.
        if len(output) > 1:
            return
        cells = output.shape[-2:]
        if height % cells[0] or width % cells[1] or height * cells[1] != width * cells[0]:
            return
        composed = next(module.children(), None) is not None
        seen.append(_Seen(name, output.shape[1], height // cells[0], composed))

    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
        for name, module in backbone.named_modules()
    ]
    parameter = next(backbone.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            backbone(parameter.new_full((1, backbone.channels, height, width), 0.5))
    finally:
        for handle in handles:
            handle.remove()
    return seen
