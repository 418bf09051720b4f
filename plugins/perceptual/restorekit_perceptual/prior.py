"""VGG16 and AlexNet, as perceptual metrics use them: maps of one part or several, and their means.

Shapes as in restorekit.contracts. The networks are networks.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from restorekit.arguments import chosen_layers
from restorekit.errors import ConfigError, WeightsError
from restorekit.frozen import FrozenPrior, fill, on_meta, read_tensors_of
from restorekit.references import source
from restorekit_perceptual.networks import TORCHVISION, Features, recognised, widths
from restorekit_perceptual.published import TENSORS, WEIGHTS

# Of ImageNet's images in [0, 1], as torchvision's networks were shown them.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NATIVE = 224


class Perceptual(FrozenPrior):
    """VGG16 or AlexNet: maps after the last activation of each of five parts, as LPIPS compares them.

    ``dense`` are the maps of the chosen parts, ``glob`` their means over the image, as a unit vector. Nothing
    is computed behind the last part that is chosen. Which network it is the file tells: the shift-tolerant
    ones of Ghildyal and Liu (ECCV 2022), or VGG16 with the names that torchvision has for its tensors.

    Args:
        reference: a tag (``restorekit weights list perceptual``), the path of a file,
            ``hub:owner/repository``, or the path of a folder with ``model.safetensors``. ``vgg16`` when None.
        layers: of the five, joined over channels, so of one stride; 0 is the finest, -1 the last. VGG16's are
            of strides 1, 2, 4, 8 and 16, AlexNet's of 2, 4, 8, 8 and 8. One that is named twice counts once.
        mode: squash, long or dynamic, see ``restorekit.frozen.FrozenPrior``.
        size: in pixels; 224 when None, as in training.
        dtype: fp32, bf16 or fp16.
        differentiable: let gradients through to the image.
        shuffled: seed; the weights in a random order, as a control.

    Raises:
        ConfigError: an argument is none of those, or the images of ``size`` would be too small.
        WeightsError: a file is missing, or holds another network.
    """

    def __init__(
        self,
        reference: str | None = None,
        layers: Sequence[int] = (-1,),
        mode: str = "squash",
        size: int | None = None,
        dtype: str = "fp32",
        differentiable: bool = False,
        shuffled: int | None = None,
    ) -> None:
        super().__init__(mode=mode, size=size, dtype=dtype, differentiable=differentiable, shuffled=shuffled)
        if reference is None:
            reference = next(item.tag for item in WEIGHTS if item.default)
        count = len(TORCHVISION.parts)
        chosen = chosen_layers(layers, count, f"there are {count}, from 0 to {count - 1}")
        places = [layer % count for layer in chosen]
        place = source(reference, WEIGHTS)
        layout, wide, tensors = TORCHVISION, list(TORCHVISION.widths), {}
        # To check arguments nothing is downloaded: repositories of the hub hold what torchvision published.
        if not on_meta() or not place.is_remote or place.is_here([TENSORS]):
            tensors = read_tensors_of(place, TENSORS)
            layout = recognised(tensors, place.reference)
            wide = widths(layout, tensors)
        strides = {layout.strides[each] for each in places}
        if len(strides) > 1:
            raise ConfigError(
                "params.layers", f"are of strides {sorted(strides)}", "choose layers of one stride"
            )
        least = layout.least(max(places))
        if mode == "squash" and size is not None and size < least:
            raise ConfigError(
                "params.size", f"is {size}, too small for these layers", f"give at least {least}"
            )
        mean, std = _normalisation(tensors, place.reference)
        with torch.device("meta"):
            network = Features(layout, wide, places)
        if not on_meta():
            fill(network, layout.named(tensors), place.reference)
        self.adopt(
            network,
            features=network.features,
            native=_NATIVE,
            multiple=1,
            least=least,
            mean=mean,
            std=std,
            facts={"network": layout.name, "layers": chosen},
            source=place,
        )

    def describe(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H', W') -> (B, F), (B, F, h, w)."""
        dense = torch.cat(self.network(image), 1)
        # Sums over an image are more than half precision holds.
        return dense.mean((2, 3), dtype=torch.float32), dense


def _normalisation(tensors: Mapping[str, Any], origin: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and std of images in [0, 1]; files of metrics hold them of images in [-1, 1]."""
    stated = [tensors.get(f"scaling_layer.{name}") for name in ("shift", "scale")]
    shift, scale = (each.flatten().tolist() if each is not None else [] for each in stated)
    if not (shift or scale):
        return _MEAN, _STD
    if len(shift) != 3 or len(scale) != 3 or min(scale) <= 0:
        raise WeightsError(
            f"{origin} does not say what images are normalised by: shift {shift[:3]}, scale {scale[:3]}",
            "give the file as it was published",
        )
    # Written as float32: 0.485 and not 0.48500001.
    return [round((each + 1) / 2, 6) for each in shift], [round(each / 2, 6) for each in scale]
