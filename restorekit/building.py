"""From the parts of a plan to networks with their weights, and what can be said of them before any is run."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from restorekit.arguments import missing, mistyped
from restorekit.catalog import PRIOR_MEAN_KEY, Checkpoint
from restorekit.config import ComponentRef
from restorekit.contracts import Adapter, Backbone, DetectedBackbone, Prior, PriorFeatures, Refiner
from restorekit.errors import ConfigError, WeightsError, near
from restorekit.featurecache import CachedPrior
from restorekit.memory import memory_per_pixel
from restorekit.plan import Part
from restorekit.registry import backbones
from restorekit.weights import check_fit, load_into, read_tensors


def construct(part: Part, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build a component from its constructor's arguments, without the values of its weights.

    A DetectedBackbone is built from ``tensors``, the content of its checkpoint, and has their values; an
    Adapter makes room for them.

    Raises:
        ConfigError: an argument is unknown, missing, or refused by the constructor.
        PluginLoadError: the component cannot be imported.
        WeightsError: a DetectedBackbone has no weights, or does not recognise them.
    """
    kind: Callable[..., Any] = part.entry.load()
    where = f"{part.where}.params"
    if isinstance(kind, type) and issubclass(kind, DetectedBackbone):
        if tensors is None or part.checkpoint is None:
            raise _without_weights(part)
        kind = partial(kind.from_tensors, tensors, part.checkpoint.file)
    known = inspect.signature(kind).parameters
    for name in part.params:
        if name not in known:
            raise ConfigError(
                where,
                f"{part.entry.name} takes no {name!r}",
                near(name, known) or f"it takes: {', '.join(known) or 'none'}",
            )
    if absent := missing(kind, part.params):
        raise ConfigError(
            where,
            f"{part.entry.name} needs {' and '.join(map(repr, absent))}",
            f"write params: {{{', '.join(f'{name}: ...' for name in absent)}}}; it takes: {', '.join(known)}",
        )
    try:
        module = cast(nn.Module, kind(**part.params))
    except ConfigError as error:
        # Its own arguments it calls params, whatever part of a pipeline it is.
        raise (error.below(part.where) if error.where.startswith("params") else error) from error
    except (TypeError, ValueError) as error:
        wrong = mistyped(kind, part.params)
        if wrong is not None:
            name, wanted = wrong
            raise ConfigError(
                f"{where}.{name}", f"{part.entry.name} refuses {part.params[name]!r}", f"give {wanted}"
            ) from error
        raise ConfigError(
            where, f"{part.entry.name} refuses them: {error}", f"it takes: {', '.join(known) or 'none'}"
        ) from error
    if isinstance(module, Adapter) and tensors is not None:
        module.make_room(tensors)
    return module


def build(part: Part) -> nn.Module:
    """Build a component with its weights, in eval mode, without gradients.

    Raises:
        WeightsError: it has parameters and no weights are given, or they do not fit.
    """
    tensors = _tensors(part)
    module = construct(part, tensors)
    if part.checkpoint and tensors is not None:
        if not isinstance(module, DetectedBackbone):
            load_into(module, tensors, part.checkpoint.file)
    elif _needs_weights(part, module):
        raise _without_weights(part)
    return module.eval().requires_grad_(False)


def _needs_weights(part: Part, module: nn.Module) -> bool:
    if part.kind == "prior" or (isinstance(module, Adapter) and module.is_filled):
        return False
    return next(module.parameters(), None) is not None


class Priors:
    """Builds every prior of a chain once, however many steps it guides.

    Args:
        folder: where what it says is kept; None to keep nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._built: dict[tuple[str, str], Prior] = {}
        self._cached: dict[tuple[Prior, bool], CachedPrior] = {}

    def of(self, part: Part, refiner: Refiner) -> Prior:
        """Return the prior of a part, for a refiner."""
        key = part.entry.name, json.dumps(part.params, sort_keys=True, default=repr)
        if key not in self._built:
            self._built[key] = cast(Prior, build(part))
        prior = self._built[key]
        if self._folder is None or not prior.fingerprint:
            return prior
        # Maps are a hundred times as large as vectors.
        dense = refiner.dense_features != 0
        if (prior, dense) not in self._cached:
            self._cached[prior, dense] = CachedPrior(prior, self._folder, dense=dense)
        return self._cached[prior, dense]


class MeanPrior(Prior):
    """Says the same of every image: the mean of what a prior said of the images of a training.

    Args:
        mean: (F).
    """

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.features = len(mean)
        self.register_buffer("mean", mean)

    def forward(self, image: Tensor) -> PriorFeatures:
        """(B, C, H, W) -> (B, F)."""
        mean = cast(Tensor, self.mean)
        return PriorFeatures(mean.expand(len(image), -1))


def check_guide(main: Part, refiner: Refiner, guide: Part, prior: Prior) -> None:
    """Refuse a prior that a refiner does not know.

    Args:
        main: the refiner's part, whose weights may state what they were trained with.
        refiner: built from it.
        guide: the prior's part.
        prior: built from it.

    Raises:
        ConfigError: it is of another width than the refiner takes, or another one than it was trained with.
    """
    then = main.trained_with.get("fingerprint", "")
    # Equal files and arguments make equal features, however they were named.
    if then and then == prior.fingerprint:
        return
    if main.differs_from(guide):
        raise main.untrained(guide)
    if then and prior.fingerprint:
        raise main.untrained(guide, prior.fingerprint)
    if refiner.prior_features not in (None, prior.features):
        raise ConfigError(
            f"{main.where}.prior",
            f"{main.entry.name} was built for a prior of {refiner.prior_features} features, "
            f"{guide.entry.name} has {prior.features}",
            "name the prior that it was trained with",
        )


def stand_in(refiner: Part) -> MeanPrior:
    """Return the mean that the weights of a refiner hold, to guide it where there is no prior.

    Raises:
        ConfigError: they hold none.
    """
    said = (refiner.checkpoint.metadata() if refiner.checkpoint else {}).get(PRIOR_MEAN_KEY)
    if said is None:
        name = refiner.checkpoint.name if refiner.checkpoint else f"{refiner.entry.name}, without weights,"
        raise ConfigError(
            f"{refiner.where}.prior",
            f"{name} holds no mean of a prior's features, which would stand in",
            "name the prior that it was trained with; only newer trainings keep the mean",
        )
    return MeanPrior(torch.tensor(json.loads(said), dtype=torch.float32)).eval()


def _tensors(part: Part) -> dict[str, Tensor] | None:
    if part.checkpoint is None:
        return None
    # Reading the hash compares it with the declared one, before anything is loaded.
    _ = part.checkpoint.sha256
    return read_tensors(part.checkpoint.file)


def _without_weights(part: Part) -> WeightsError:
    name = part.entry.name
    return WeightsError(
        f"{part.where}: {name} is a network, and no weights are given",
        f"name them: {{name: {name}, weights: TAG or FILE}}; see `restorekit list weights`",
    )


def memory_of(network: nn.Module) -> int | None:
    """Return ``memory_per_pixel`` of a backbone or a refiner; None when it cannot be measured."""
    if isinstance(network, Backbone):
        return memory_per_pixel(network)
    if not isinstance(network, Refiner) or network.prior_features is None or network.inside:
        return None
    channels, features, dense = network.channels or 3, network.prior_features, network.dense_features
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)

    def example(side: int) -> tuple[Tensor, Tensor, PriorFeatures]:
        degraded, restored = (
            torch.empty(1, count, side, side, dtype=dtype, device="meta")
            for count in (channels, network.out_channels or channels)
        )
        glob = torch.empty(1, features, dtype=dtype, device="meta")
        # Of no particular stride: a map this small counts for little.
        map_ = torch.empty(1, dense, 4, 4, dtype=dtype, device="meta") if dense else None
        return degraded, restored, PriorFeatures(glob, map_)

    return memory_per_pixel(network, example)


def built_facts(part: Part) -> dict[str, Any]:
    """Return the facts of a part, checked by building it on the meta device: no memory, no values.

    A DetectedBackbone is built with its values, and its facts name the architecture that it recognised.

    Raises:
        RestoreKitError: the arguments or the tensors of the weights do not fit.
    """
    tensors = _tensors(part)
    with torch.device("meta"):
        module = construct(part, tensors)
    facts = part.facts()
    if isinstance(module, DetectedBackbone):
        facts["architecture"] = module.architecture
    elif part.checkpoint and tensors is not None:
        check_fit(module, tensors, part.checkpoint.file)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    memory = memory_of(module)
    return {**facts, "parameters": parameters, "memory_per_pixel": memory}


def fits(checkpoint: Checkpoint, component: str) -> str:
    """Return the class of the backbone that a checkpoint fits, by names and shapes; nothing is allocated.

    A backbone that recognises its architecture by the tensors says which one it is.

    Raises:
        RestoreKitError: the file cannot be read, or does not fit.
    """
    part = Part("weights", "backbone", backbones[component], ComponentRef(name=component), checkpoint)
    tensors = read_tensors(checkpoint.file)
    with torch.device("meta"):
        network = construct(part, tensors)
    if isinstance(network, DetectedBackbone):
        return network.architecture
    check_fit(network, tensors, checkpoint.file)
    return type(network).__name__
