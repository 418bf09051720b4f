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
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from restorekit.errors import ContractError

Padding = Literal["reflect", "replicate", "zeros"]
Tiling = Literal["supported", "discouraged", "never"]


@dataclass(frozen=True)
class Verdict:
    """What a network found an image to suffer from, and acts by.

    Attributes:
        shares: of each kind by name; they sum to one where the network chooses among them.
        source: what found it: a classifier, or the user.
        sure: whether it acts by it; where not, it acts as on an image that it found nothing in.
    """

    shares: Mapping[str, float]
    source: str
    sure: bool = True

    @property
    def kind(self) -> str:
        """The kind with the largest share."""
        return max(self.shares, key=lambda name: self.shares[name])

    def __str__(self) -> str:
        """Return kind and confidence, as ``rain 97 %``; the source where it found nothing to act by."""
        if not any(self.shares.values()):
            return f"nothing ({self.source})"
        text = f"{self.kind} {100 * self.shares[self.kind]:.0f} %"
        return text if self.sure else f"{text}, too little to act by"


@dataclass(frozen=True)
class Judged:
    """A network as it acts on tiles of one image, and what it found that image to suffer from."""

    act: Callable[[Tensor], Tensor]
    verdict: Verdict

    def __call__(self, window: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w), by the network's ``scale`` larger."""
        return self.act(window)


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
        judges: ``for_image`` is called for every image, also for one that is run in one piece; what it finds
            is told by returning a ``Judged``.
        latent_features: channels of what ``encode`` returns; None for a network that offers none.
    """

    size_multiple: int = 1
    padding: Padding = "reflect"
    scale: int = 1
    channels: int = 3
    out_channels: int | None = None
    overlap: int = 32
    tiling: Tiling = "supported"
    precisions: frozenset[torch.dtype] = frozenset({torch.float32, torch.bfloat16, torch.float16})
    judges: bool = False
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
            tile: side of the tiles in pixels, a bound on how much may be run at a time; 0 for an image that
                is run in one piece, which is asked only of a network that ``judges``.
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


class GuidedBackbone(Backbone):
    """A backbone that a prior guides inside.

    A pipeline asks the prior of its own input, once and as it came, and tells this network before it runs:
    by then the image was padded, and other steps may have changed it. Whoever runs it untold has the prior
    asked of what it is given.
    """

    @abstractmethod
    def under(self, features: PriorFeatures, places: Tensor | None = None) -> Backbone:
        """Return this network told what the prior says of images; weights are shared, nothing changes.

        Args:
            features: of one image, or of each in a batch.
            places: where the windows that it will be given lie in the images, as in ``Refiner.forward``; only
                for a refiner that is ``placed``.
        """


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
        """Return the adapted backbone; the one given is left untouched.

        What is trained must be this adapter's own parameters, not copies of them.
        """

    @property
    def is_filled(self) -> bool:
        """Whether the constructor's arguments have brought the weights, so that no file of them is needed."""
        return False

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate what the tensors of a file need, where the constructor's arguments do not say it.

        Called before they are compared with the adapter's own and copied into it; how many filters a file
        holds, only the file knows.

        Args:
            tensors: names and shapes count; on the CPU, left untouched.

        Raises:
            WeightsError: they are of no adapter of this kind.
        """

    def file_arguments(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the constructor's arguments that a file of its weights states.

        Args:
            given: those that it was built with. What only its making needed, such as the path of another
                file, is left out.
        """
        return given

    def file_facts(self) -> Mapping[str, str]:
        """Return what a file of its weights says beside component and arguments; nothing by default."""
        return {}

    def learn_kinds(self, names: Sequence[str]) -> None:
        """Be told, before ``attach`` and training, the kinds of degradation in the data; ignored by default.

        Args:
            names: in the order of the kinds (B, K) that come with batches; empty where nobody knows.

        Raises:
            RestoreKitError: it cannot be trained on these.
        """

    def given_kinds(self, kinds: Tensor) -> AbstractContextManager[None]:
        """Know for a while the kinds of the images that the adapted network is run on; ignored by default.

        Args:
            kinds: (B, K), the share of each kind in each image, one-hot for images of one kind.
        """
        return nullcontext()

    def kind_logits(self, degraded: Tensor) -> Tensor | None:
        """(B, C, H, W) -> (B, K), logits of the kinds as in ``learn_kinds``; None where it tells none."""
        return None


def one_view(degraded: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H, W), but of two views of a scene (6 channels) their mean (3)."""
    if degraded.shape[1] != 6:
        return degraded
    left, right = torch.split(degraded, 3, 1)
    return (left + right) / 2


@dataclass(frozen=True)
class PriorFeatures:
    """What a prior says of an image: ``glob`` (B, F), ``dense`` (B, F', h, w) with its stride in pixels."""

    glob: Tensor
    dense: Tensor | None = None
    stride: int = 0

    @property
    def is_finite(self) -> bool:
        """Whether every value is a number; on the meta device there are none."""
        parts = [part for part in (self.glob, self.dense) if part is not None and not part.is_meta]
        return all(bool(part.isfinite().all()) for part in parts)

    def checked(self, prior: object, hint: str = "check its weights and the input") -> Self:
        """Return these features.

        Raises:
            ContractError: a value is no number; the class of ``prior``, who said them, is named.
        """
        if not self.is_finite:
            raise ContractError(f"prior {type(prior).__name__} returned values that are not finite", hint)
        return self


class Prior(nn.Module, ABC):
    """A frozen pretrained model that describes an image: no gradients, always in eval mode.

    It follows its owner to another device, but keeps its own precision: what it says of an image does not
    depend on the precision that a pipeline runs in.

    Attributes:
        features: F, the width of what it says of a whole image.
        library: what computes it, with its version; features of two versions are not kept in one cache.
    """

    features: int
    library: str = ""

    @property
    def fingerprint(self) -> str:
        """What its features depend on (weights and arguments), as a short hash; empty where it cannot tell.

        Two priors of one fingerprint describe an image alike; without one, features are never kept.
        """
        return ""

    @abstractmethod
    def forward(self, image: Tensor) -> PriorFeatures:
        """(B, C, H, W) in [0, 1], float32 -> features."""

    def guidance(self, degraded: Tensor) -> PriorFeatures:
        """(B, C, H, W) as a network takes it -> features of what there is to see.

        Values are clamped to [0, 1], in float32 whatever the precision of the network; gray is shown as RGB,
        and of two views their mean.

        Raises:
            ContractError: features are not finite, or not one vector of ``features`` values for each image.
        """
        image = one_view(degraded.float()).clamp(0, 1)
        colour = image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image
        features: PriorFeatures = self(colour)
        wanted, found = (len(image), self.features), tuple(features.glob.shape)
        if found != wanted:
            raise ContractError(
                f"prior {type(self).__name__} returned global features {found}, where {wanted} belong",
                "check its attribute features, and that it describes the images of a batch one by one",
            )
        return features.checked(self)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: what trains around a prior leaves it as it is."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_precision(tensor: Tensor) -> Tensor:
            wanted = fn(tensor.new_empty(0))
            return fn(tensor) if wanted.dtype == tensor.dtype else tensor.to(wanted.device)

        # torch declares no types for this hook behind .to(), .half() and .cuda().
        return super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]


class Refiner(nn.Module, ABC):
    """Improves a restored image, guided by the degraded one and by a prior.

    Attributes:
        channels: C of the images it takes; None for any. A gray network (1) is given the colours of an image
            one by one, a gray image is repeated for a colour network.
        out_channels: C of the restored image and of the result where it differs, as for a degraded image of
            two views (6).
        prior_features: width of the prior that it takes; None for any.
        dense_features: channels of the prior's dense map that it takes; 0 where it takes none, None where
            that is not known.
        placed: ``forward`` takes ``places``, where windows lie in their images, (B, 4): top, left, bottom,
            right, as shares of height and width. Training gives them when it knows, see the config's
            ``stages.context``.
        in_parts: it offers ``refine_in_parts``; another one is run on tiles, which changes its result where
            it takes sums over the image.
        inside: it works inside the backbone of the step before, see ``attach``, and not on its result.
    """

    size_multiple: int = 1
    padding: Padding = "reflect"
    overlap: int = 32
    channels: int | None = None
    out_channels: int | None = None
    prior_features: int | None = None
    dense_features: int | None = None
    placed: bool = False
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

        A ``GuidedBackbone`` is told what the prior says of a pipeline's input.

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
