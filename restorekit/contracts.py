"""The promises that components keep: Backbone, Adapter, Refiner, Prior.

They are ``nn.Module`` base classes: the pipeline needs ``eval``, ``to`` and ``load_state_dict``, and a wrong
class is refused by ``isinstance`` with a clear message. This room runs nothing and finds nothing.

Shape letters, fixed for the whole project: ``B`` batch, ``C`` colour channels, ``H W`` pixels, ``F`` prior
features, ``h w`` prior grid. Images are RGB float; clean images lie in [0, 1], degraded ones may lie outside.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from restorekit.errors import ContractError

Padding = Literal["reflect", "replicate", "zeros"]
Tiling = Literal["supported", "discouraged", "never"]


class Backbone(nn.Module, ABC):
    """A restoration network: degraded image in, restored image out.

    Attributes:
        size_multiple: H and W are padded to a multiple of this before ``forward`` and cropped after.
        padding: how they are padded, always at the right and at the bottom.
        scale: side of the output divided by side of the input; above 1 for super-resolution.
        channels: C; a gray network (1) is given the colours of an image one by one.
        out_channels: C of the output where it differs, as for two views (6) that become one image (3).
        overlap: pixels that neighbouring tiles should share. At four times the radius of the receptive field
            (what ``for_image`` shares left aside) tiles equal the whole image; less is enough where the edge
            of that field hardly counts: measure it.
        tiling: ``discouraged`` where a tile is computed differently from the whole image, however large the
            overlap: it is done when memory demands it, and reported. ``never``: the whole image or an error.
        precisions: those that it is known to work in; asked for another one, it is run in float32, and that
            is reported.
    """

    size_multiple: int = 1
    padding: Padding = "reflect"
    scale: int = 1
    channels: int = 3
    out_channels: int | None = None
    overlap: int = 32
    tiling: Tiling = "supported"
    precisions: frozenset[torch.dtype] = frozenset({torch.float32, torch.bfloat16, torch.float16})
    latent_features: int | None = None

    @abstractmethod
    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), by ``scale`` larger; H and W are multiples of ``size_multiple``."""

    def for_image(self, degraded: Tensor, tile: int) -> Callable[[Tensor], Tensor]:
        """Return the network as it acts on tiles of this one image.

        Called once with the whole padded image before its tiles are run, so that whatever depends on the
        whole image (a degradation classifier, global statistics) is computed once and shared: no seams.

        Args:
            degraded: (1, C, H, W), on the CPU when the image is larger than the device.
            tile: side of the tiles in pixels, a bound on how much may be run at a time.
        """
        return self

    def training_outputs(self, degraded: Tensor) -> Sequence[Tensor]:
        """Return every output that training compares with the clean image, the final one first."""
        return (self(degraded),)

    def encode(self, degraded: Tensor) -> tuple[Tensor, Any]:
        """Return the deepest features (B, D, h, w), and whatever else ``decode`` needs.

        Optional, for what refines or describes images by a network's own features; ``latent_features`` says
        whether it is offered.

        Raises:
            ContractError: it is not.
        """
        raise ContractError(
            f"{type(self).__name__} offers no deepest features", "use a backbone that states latent_features"
        )

    def decode(self, latent: Tensor, rest: Any) -> Tensor:
        """Go on from ``encode``: together they are ``forward``, exactly; ``rest`` may be used again."""
        raise ContractError(
            f"{type(self).__name__} offers no deepest features", "use a backbone that states latent_features"
        )

    def maps(self, degraded: Tensor) -> Mapping[str, Tensor]:
        """Return what is worth looking at inside, by name, as ``Refiner.maps``; nothing by default."""
        return {}


class DetectedBackbone(Backbone):
    """A backbone whose architecture is read off its weights: a bridge to another library of networks.

    It is never built without weights. What a pipeline gives as ``params`` are the arguments of
    ``from_tensors`` after the first two; the constructor is the bridge's own affair.

    Attributes:
        architecture: what was recognised, as the library calls it.
    """

    architecture: str

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], path: Path) -> Self:
        """Return the network that the tensors of a file belong to, with their values in it.

        Args:
            tensors: as ``restorekit.weights.read_tensors`` gives them, on the CPU; left untouched.
            path: the file they came from, for messages: it has been read, safely.

        Raises:
            WeightsError: they belong to no known network, or to one that is no backbone.
        """


class Adapter(nn.Module, ABC):
    """Turns a backbone into another backbone, for example by adding filters dedicated to a degradation."""

    @abstractmethod
    def attach(self, backbone: Backbone) -> Backbone:
        """Return the adapted backbone; the one given is left untouched."""


@dataclass(frozen=True)
class PriorFeatures:
    """What a prior says of an image: ``glob`` (B, F), ``dense`` (B, F', h, w) with its stride in pixels."""

    glob: Tensor
    dense: Tensor | None = None
    stride: int = 0


class Prior(nn.Module, ABC):
    """A frozen pretrained model that describes an image: no gradients, always in eval mode."""

    features: int

    @abstractmethod
    def forward(self, image: Tensor) -> PriorFeatures:
        """(B, C, H, W) in [0, 1] -> features."""

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: what trains around a prior leaves it as it is."""
        return super().train(False)


class Refiner(nn.Module, ABC):
    """Improves a restored image, guided by the degraded one and by a prior.

    Attributes:
        channels: C of the images it takes; None for any. A gray network (1) is given the colours of an image
            one by one, a gray image is repeated for a colour network.
        prior_features: width of the prior that it takes; None for any.
        in_parts: it offers ``refine_in_parts``; another one is run on tiles, which changes its result where
            it takes sums over the image.
        inside: it works inside the backbone of the step before, see ``attach``, and not on its result.
    """

    size_multiple: int = 1
    padding: Padding = "reflect"
    overlap: int = 32
    channels: int | None = None
    prior_features: int | None = None
    in_parts: bool = False
    inside: bool = False

    @classmethod
    def fitted(cls, params: Mapping[str, Any], backbone: Backbone | None, prior: Prior) -> dict[str, Any]:
        """Return the constructor's arguments, completed by what a network to be trained will work with.

        Args:
            params: as a config gives them; what they say holds.
            backbone: to be refined; None where it is not known before its weights are.
            prior: will guide it.
        """
        takes = "prior_features" in inspect.signature(cls).parameters
        return {**({"prior_features": prior.features} if takes else {}), **params}

    @abstractmethod
    def forward(self, degraded: Tensor, restored: Tensor, prior: PriorFeatures) -> Tensor:
        """Two images (B, C, H, W) and the prior of the degraded one -> refined image (B, C, H, W)."""

    def refine_in_parts(self, degraded: Tensor, restored: Tensor, prior: PriorFeatures, tile: int) -> Tensor:
        """Return what ``forward`` returns, for images that are too large for the device, in several passes.

        Args:
            degraded: (1, C, H, W), sides multiples of ``size_multiple``; on the CPU when larger than the
                device. The result lies where it lies.
            restored: likewise.
            prior: of the degraded image.
            tile: only about ``tile * tile`` pixels may be run at a time.

        Raises:
            ContractError: it is not offered, see ``in_parts``.
        """
        raise ContractError(f"{type(self).__name__} does not run in parts", "state in_parts where it does")

    def attach(self, backbone: Backbone, prior: Prior) -> Backbone:
        """Return the backbone with this refiner working inside, for one that states ``inside``.

        Raises:
            ContractError: it does not, or the backbone is none that it can work in.
        """
        raise ContractError(
            f"{type(self).__name__} refines images, not the inside of a backbone",
            "put it behind the backbone",
        )

    def maps(self, degraded: Tensor, restored: Tensor, prior: PriorFeatures) -> Mapping[str, Tensor]:
        """Return what is worth looking at inside, by name; nothing by default.

        Each is an image or a map of any size (B, D, h, w), or a value a channel (B, D).
        """
        return {}
