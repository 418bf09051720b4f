"""What is trained, behind one interface: a backbone, an adapter on one, or a refiner behind one.

The loop knows nothing else of networks. Which components these are is build.py.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from restorekit.contracts import Adapter, Backbone, GuidedBackbone, Prior, PriorFeatures, Refiner
from restorekit.errors import TrainingError
from restorekit.featurecache import CachedPrior
from restorekit.training.spec import StageSpec

# What the state of a refiner's training has beside its parts.
_MEAN, _SEEN = "guidance.mean", "guidance.seen"
# Of how many validation patches the prior's word is kept.
_KEPT = 1024


class Outputs(NamedTuple):
    """What a step compares.

    Attributes:
        images: with the clean images, the final one first.
        logits: with the kinds of degradation (B, K); None where nothing tells them.
    """

    images: tuple[Tensor, ...]
    logits: Tensor | None = None


class Trainee(nn.Module, ABC):
    """Maps degraded images to everything that is compared.

    Attributes:
        parts: what is trained, by name, the part first whose weights are the run's. Everything else is
            frozen and stays in eval mode.
        size_multiple: sides of patches are a multiple of this.
        channels: C of the images.
        scale: side of the outputs divided by side of the input.
        precisions: those that it is known to work in.
        restores: whether images are compared, or only what is told of them.
        scenes: whether it looks at the windows that patches are parts of.
    """

    size_multiple: int
    channels: int
    scale: int
    precisions: frozenset[torch.dtype]
    restores: bool = True
    scenes: bool = False

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, nn.Module]:
        """What is trained, by name."""

    @abstractmethod
    def forward(
        self,
        degraded: Tensor,
        kinds: Tensor | None = None,
        scenes: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Outputs:
        """(B, C, H, W) -> every output that is compared.

        Args:
            degraded: patches.
            kinds: of their degradation (B, K), where these are known.
            scenes: the windows that they are parts of, as in ``Batch``; None or empty where they are whole.
            places: where in these they lie, as in ``Batch``.
        """

    @abstractmethod
    def restore(self, degraded: Tensor, kinds: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), the final output alone; for validation."""

    def tell(self, degraded: Tensor) -> Tensor | None:
        """(B, C, H, W) -> logits of the kinds of degradation (B, K); None where nothing tells them."""
        return None

    def check(self, stages: Sequence[StageSpec]) -> None:
        """Refuse stages that it cannot be trained in; by default none."""

    def freeze_the_rest(self) -> Self:
        """Leave gradients to the parts that are trained; what a part froze itself stays frozen."""
        trained = {id(parameter) for parameter in self.trained_parameters().values()}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        return self.train()

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, as ``part.name``."""
        return {
            f"{part}.{name}": parameter
            for part, module in self.parts.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def state(self) -> dict[str, Tensor]:
        """Return the state of the parts that are trained, as ``part.name``."""
        return {
            f"{part}.{name}": value
            for part, module in self.parts.items()
            for name, value in module.state_dict().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what ``state`` returned.

        Raises:
            RuntimeError: names or shapes differ.
        """
        for part, module in self.parts.items():
            own = {name: value for name, value in state.items() if name.startswith(f"{part}.")}
            module.load_state_dict({name.removeprefix(f"{part}."): value for name, value in own.items()})

    def train(self, mode: bool = True) -> Self:
        """Switch the parts that are trained; the frozen ones stay in eval mode."""
        super().train(False)
        for module in self.parts.values():
            module.train(mode)
        return self


class BackboneTrainee(Trainee):
    """A backbone, or an adapter that is trained on a frozen one.

    Args:
        backbone: the network.
        adapter: is attached to the backbone. It must share its parameters with the network it makes.
        kinds: names of the kinds of degradation in the data, empty where nobody knows.
        restores: compare images; else only the kinds that the adapter tells are compared.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter | None = None,
        kinds: Sequence[str] = (),
        *,
        restores: bool = True,
    ) -> None:
        super().__init__()
        if adapter:
            adapter.learn_kinds(kinds)
        self.adapter, self.restores = adapter, restores
        self.network = adapter.attach(backbone) if adapter else backbone
        self.size_multiple, self.channels = self.network.size_multiple, self.network.channels
        self.scale, self.precisions = self.network.scale, self.network.precisions
        self.freeze_the_rest()

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The adapter, or else the backbone."""
        return {"adapter": self.adapter} if self.adapter else {"backbone": self.network}

    def forward(
        self,
        degraded: Tensor,
        kinds: Tensor | None = None,
        scenes: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Outputs:
        """(B, C, H, W) -> every output of the backbone, and what the adapter tells of the kinds."""
        images: tuple[Tensor, ...] = ()
        if self.restores:
            with self._given(degraded, kinds):
                images = tuple(self.network.training_outputs(degraded))
        return Outputs(images, self.tell(degraded))

    def restore(self, degraded: Tensor, kinds: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        with self._given(degraded, kinds):
            restored: Tensor = self.network(degraded)
        return restored

    def tell(self, degraded: Tensor) -> Tensor | None:
        """(B, C, H, W) -> logits of the kinds (B, K), where the adapter tells them."""
        return self.adapter.kind_logits(degraded) if self.adapter else None

    def _given(self, degraded: Tensor, kinds: Tensor | None) -> AbstractContextManager[None]:
        if self.adapter is None:
            return nullcontext()
        return self.adapter.given_kinds(degraded.new_zeros(len(degraded), 0) if kinds is None else kinds)


class RefinerTrainee(Trainee):
    """A refiner behind a backbone, which is frozen or trained with it.

    A trained backbone is compared with the clean image too, as PTG-RM trains (arXiv 2403.06793, eq. 8).

    Args:
        refiner: is trained.
        prior: guides it; sees the degraded image.
        backbone: what is refined.
        joint: train the backbone too.

    Attributes:
        mean: (F), of what the prior said of the images that were trained on.
        seen: how many these were.
    """

    scenes = True
    mean: Tensor

    def __init__(self, refiner: Refiner, prior: Prior, backbone: Backbone, *, joint: bool = False) -> None:
        super().__init__()
        if backbone.scale != 1:
            raise TrainingError(
                f"a refiner needs images of one size, the backbone enlarges {backbone.scale} times",
                "name a backbone of scale 1",
            )
        self.refiner, self.prior, self.backbone, self.joint = refiner, prior, backbone, joint
        self.size_multiple = math.lcm(refiner.size_multiple, backbone.size_multiple)
        self.channels, self.scale = backbone.channels, 1
        self.precisions = backbone.precisions
        if refiner.channels not in (None, backbone.channels):
            raise TrainingError(
                f"the refiner takes {refiner.channels} channels, the backbone {backbone.channels}",
                "give them the same",
            )
        self.register_buffer("mean", torch.zeros(prior.features), persistent=False)
        self.seen = 0
        prior.register_forward_hook(self._take_in)
        # Patches of a training never come back, those of its validation do.
        keeps = bool(prior.fingerprint)
        dense = refiner.dense_features != 0
        self._asked = CachedPrior(prior, in_memory=_KEPT, dense=dense) if keeps else prior
        # The two in one, where the refiner works on features.
        self.network = refiner.attach(backbone, prior) if refiner.inside else None
        self.freeze_the_rest()

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The refiner, and the backbone where both are trained."""
        return (
            {"refiner": self.refiner, "backbone": self.backbone} if self.joint else {"refiner": self.refiner}
        )

    def forward(
        self,
        degraded: Tensor,
        kinds: Tensor | None = None,
        scenes: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Outputs:
        """(B, C, H, W) -> the refined image, then the outputs of the backbone where it is trained.

        The prior is asked of the scenes, where there are any, as it is of whole images later.
        """
        if self.network is not None:
            network = self._told(self.network, degraded, scenes, places)
            if self.joint:
                return Outputs(tuple(network.training_outputs(degraded)))
            return Outputs((network(degraded),))
        said, where = self._guidance(degraded, scenes, places)
        if self.joint:
            outputs = tuple(self.backbone.training_outputs(degraded))
        else:
            with torch.no_grad():
                outputs = (self.backbone(degraded),)
        refined: Tensor = self.refiner(degraded, outputs[0], said, **where)
        return Outputs((refined, *outputs) if self.joint else (refined,))

    def restore(self, degraded: Tensor, kinds: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.network is None:
            said, _ = self._guidance(degraded)
            refined: Tensor = self.refiner(degraded, self.backbone(degraded), said)
            return refined
        inside: Tensor = self._told(self.network, degraded)(degraded)
        return inside

    def state(self) -> dict[str, Tensor]:
        """Return that of the parts, and what the prior said so far."""
        return {**super().state(), _MEAN: self.mean, _SEEN: torch.tensor(self.seen)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what ``state`` returned; a run of before means were kept begins a new one."""
        super().load_state(state)
        if _MEAN in state:
            self.mean.copy_(state[_MEAN])
            self.seen = int(state[_SEEN])

    def _take_in(self, prior: nn.Module, images: object, said: PriorFeatures) -> None:
        if self.refiner.training:
            self.seen += len(said.glob)
            self.mean.lerp_(said.glob.detach().to(self.mean).mean(0), len(said.glob) / self.seen)

    def check(self, stages: Sequence[StageSpec]) -> None:
        """Refuse windows that the refiner or what it makes of the backbone cannot be told of.

        Raises:
            TrainingError: it may take maps, which differ in size as photographs do; or it asks itself.
        """
        name = type(self.refiner).__name__
        if self.refiner.dense_features != 0 and any(stage.context == "whole" for stage in stages):
            raise TrainingError(
                f"{name} may take the prior's maps, and those of photographs of different sizes are no batch",
                "give stages.context in pixels; a refiner that takes no maps states dense_features = 0",
            )
        asks_itself = self.network is not None and not isinstance(self.network, GuidedBackbone)
        if asks_itself and any(stage.within for stage in stages):
            raise TrainingError(
                f"what {name}.attach() returns is no GuidedBackbone, and asks its prior of patches, not of "
                "what they are parts of",
                "leave out stages.context",
            )

    def _told(
        self,
        network: Backbone,
        degraded: Tensor,
        scenes: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Backbone:
        """Return the network with the refiner inside, told what the prior says where it takes that."""
        if not isinstance(network, GuidedBackbone):
            return network
        said, where = self._guidance(degraded, scenes, places)
        return network.under(said, **where)

    def _guidance(
        self, degraded: Tensor, scenes: Tensor | None = None, places: Tensor | None = None
    ) -> tuple[PriorFeatures, dict[str, Tensor]]:
        """Return what the prior says of patches or of their scenes, and where in these they lie."""
        prior = self.prior if self.refiner.training else self._asked
        with torch.no_grad():
            if scenes is None or places is None or scenes.numel() == 0:
                return prior.guidance(degraded), {}
            said = self._of_scenes(prior, scenes, places)
        return said, {"places": _shares(places, degraded.shape[2:])} if self.refiner.placed else {}

    def _of_scenes(self, prior: Prior, scenes: Tensor, places: Tensor) -> PriorFeatures:
        """Return what the prior says of scenes (B, C, H', W'), each of its own size."""
        sizes = [(int(height), int(width)) for height, width in places[:, 2:].tolist()]
        if len({*sizes}) == 1:
            (height, width) = sizes[0]
            return prior.guidance(scenes[:, :, :height, :width])
        scene = (one[None, :, :height, :width] for one, (height, width) in zip(scenes, sizes, strict=True))
        # Maps of several sizes are no batch; ``check`` refused what takes them.
        return PriorFeatures(torch.cat([prior.guidance(one).glob for one in scene]))


def _shares(places: Tensor, size: Sequence[int]) -> Tensor:
    """Return where patches of a size lie, as shares of their scenes: (B, 4), top, left, bottom, right."""
    start, scene = places[:, :2], places[:, 2:]
    return torch.cat([start, start + start.new_tensor(size)], 1) / scene.repeat(1, 2)
