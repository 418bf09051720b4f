"""A restoration network as a prior: its deepest features, of one that was trained on other images.

Shapes as in restorekit.contracts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from restorekit.contracts import DetectedBackbone
from restorekit.errors import ConfigError
from restorekit.frozen import FrozenPrior
from restorekit.layers import luma
from restorekit.ready import ready_backbone
from restorekit.tiling import pad_to_multiple
from restorekit_backbone_prior.deepest import place_of

# Side of squares for a network that takes any size.
_NATIVE = 256


class BackbonePrior(FrozenPrior):
    """Any installed backbone, as the prior ``-r`` of PTG-RM (Xu et al., CVPR 2024, section 4.2).

    ``dense`` is the map of one module, by default the deepest; ``glob`` is its mean, as a unit vector. What
    comes after that module is not run. Images keep their size up to a longest side of 2048, and are padded as
    the network asks: resizing would take away the noise that it was trained to see.

    Args:
        backbone: name of the backbone (``restorekit list backbone``).
        weights: its tag, file or hub reference, as in a pipeline.
        params: of its constructor, as in a pipeline.
        layer: name of the module; the deepest when None, see ``deepest.place_of``.
        mode: dynamic to keep the size; squash or long to resize, see ``restorekit.frozen.FrozenPrior``.
        size: in pixels; of ``dynamic`` the longest side, 2048 when None: the whole map is computed at once.
        dtype: fp32, bf16 or fp16.
        differentiable: let gradients through to the image.
        shuffled: seed; the weights in a random order, as a control.

    Raises:
        UnknownComponentError: there is no such backbone.
        ConfigError: an argument is none of those, or the backbone refuses its own.
        WeightsError: weights are missing or do not fit.
    """

    longest = 2048

    def __init__(
        self,
        backbone: str,
        weights: str | None = None,
        params: Mapping[str, Any] | None = None,
        layer: str | None = None,
        mode: str = "dynamic",
        size: int | None = None,
        dtype: str = "fp32",
        differentiable: bool = False,
        shuffled: int | None = None,
    ) -> None:
        super().__init__(mode=mode, size=size, dtype=dtype, differentiable=differentiable, shuffled=shuffled)
        network, part = ready_backbone(backbone, params or {}, weights)
        if network.channels not in (1, 3):
            raise ConfigError(
                "params.backbone",
                f"{backbone} takes {network.channels} channels, images have 3",
                "name another backbone",
            )
        place = place_of(network, layer)
        self.layer, self._stride = place.name, place.stride
        # A bridge runs the images of a batch one by one, and is stopped in the first.
        self._one_by_one = isinstance(network, DetectedBackbone)
        self._padding = network.padding
        self._pads = network.size_multiple
        dict(network.named_modules())[place.name].register_forward_hook(_stop)
        checkpoint = part.checkpoint
        self.library = f"{part.entry.dist} {part.entry.version}"
        self.adopt(
            network,
            features=place.channels,
            native=_NATIVE,
            multiple=network.size_multiple,
            mean=(0.0,) * 3,
            std=(1.0,) * 3,
            facts={
                "backbone": backbone,
                "params": dict(part.params),
                "layer": place.name,
                "weights": checkpoint.sha256 if checkpoint else None,
            },
        )

    def fit(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H', W'): padded; only what is larger than ``size`` is resized before."""
        assert self.size is not None
        if self.mode != "dynamic" or max(image.shape[-2:]) > self.size:
            return super().fit(image)
        return pad_to_multiple(image, self._pads, self._padding)

    def forward(self, image: Tensor) -> Any:
        """(B, 3, H, W) or gray (B, 1, H, W) in [0, 1] -> features, of the image without its padding."""
        self._shape = image.shape[-2:]
        return super().forward(image)

    def describe(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H', W') -> (B, F), (B, F, h, w)."""
        if self.network.channels == 1:
            image = luma(image)
        each = torch.split(image, 1) if self._one_by_one else (image,)
        seen = torch.cat([self._seen(one) for one in each])
        if self.mode == "dynamic":
            height, width = (math.ceil(side / self._stride) for side in self._shape)
            seen = seen[..., :height, :width]
        return seen.float().mean((2, 3)), seen

    def _seen(self, image: Tensor) -> Tensor:
        try:
            self.network(image)
        except _ReachedError as reached:
            seen = reached.output
            # What a bridge computes in inference mode could not be saved for a backward pass.
            return seen.clone() if seen.is_inference() else seen
        raise AssertionError(f"{self.layer} was run when the prior was built, and now is not")


class _ReachedError(Exception):
    """Ends a forward pass where the wanted module has returned."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _stop(module: nn.Module, inputs: object, output: Tensor) -> NoReturn:
    raise _ReachedError(output)
