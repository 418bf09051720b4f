"""From the components that a config names to the networks that are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from restorekit import registry
from restorekit.building import build, check_guide, construct
from restorekit.catalog import find
from restorekit.config import ComponentRef
from restorekit.contracts import Adapter, Backbone, DetectedBackbone, Prior, Refiner
from restorekit.download import ensure
from restorekit.errors import ConfigError, TrainingError
from restorekit.plan import Part
from restorekit.training.spec import TrainSpec
from restorekit.training.trainee import BackboneTrainee, RefinerTrainee, Trainee
from restorekit.weights import load_into, read_tensors

_REGISTRIES: dict[str, registry.Registry[Any]] = {
    "backbone": registry.backbones,
    "adapter": registry.adapters,
    "refiner": registry.refiners,
    "prior": registry.priors,
    "perceptual": registry.priors,
}


# The prior comes before the refiner, whose width it decides.
_ORDER = ("backbone", "adapter", "prior", "refiner", "perceptual")


@dataclass(frozen=True)
class Networks:
    """The networks of a run.

    Attributes:
        trainee: what is trained, and what it needs.
        perceptual: what the perceptual loss compares with.
        parts: every component by its key in the config, with its arguments complete.
    """

    trainee: Trainee
    perceptual: Prior | None
    parts: dict[str, Part]


def build_networks(spec: TrainSpec) -> Networks:
    """Build what a config names; parts with weights start from them, the others from the seed.

    Names and arguments of all components are checked before any weights are read.

    Raises:
        ConfigError: an argument is unknown or refused, patches do not fit the network, or a refiner's weights
            were trained with another prior.
        WeightsError: a frozen network has no weights, or they do not fit.
        UnknownComponentError: a component is not installed.
    """
    parts = find_parts(spec)
    _sketched(parts)
    parts = {key: _with_file(part) for key, part in parts.items()}
    torch.manual_seed(spec.seed)
    trained = spec.trained_parts
    modules: dict[str, nn.Module] = {}
    for key in _ORDER:
        if key in parts:
            if key == "refiner":
                parts[key] = _fitting(parts[key], modules)
            modules[key] = _fresh(parts[key]) if key in trained else build(parts[key])
    backbone = cast(Backbone, modules["backbone"])
    if "refiner" in parts:
        if "adapter" in parts:
            backbone = cast(Adapter, modules["adapter"]).attach(backbone)
        refiner, prior = cast(Refiner, modules["refiner"]), cast(Prior, modules["prior"])
        check_guide(parts["refiner"], refiner, parts["prior"], prior)
        trainee: Trainee = RefinerTrainee(refiner, prior, backbone, joint="backbone" in trained)
    else:
        adapter = cast("Adapter | None", modules.get("adapter"))
        trainee = BackboneTrainee(backbone, adapter, spec.kinds, restores={*spec.loss} != {"kind"})
    _check_trainee(trainee, spec)
    return Networks(trainee, cast("Prior | None", modules.get("perceptual")), parts)


def find_parts(spec: TrainSpec) -> dict[str, Part]:
    """Look up the components of a config; imports none of them.

    Raises:
        UnknownComponentError: one is not installed.
    """
    refs: dict[str, ComponentRef | None] = {key: getattr(spec, key) for key in _REGISTRIES}
    return {
        key: Part(
            key,
            _REGISTRIES[key].kind,
            _REGISTRIES[key][ref.name],
            ref,
            find(ref.name, ref.weights) if ref.weights else None,
        )
        for key, ref in refs.items()
        if ref is not None
    }


def sketch(spec: TrainSpec) -> None:
    """Build what a config names without values, and put an adapter on its backbone: it takes no memory.

    Raises:
        ConfigError: an argument is unknown or refused.
        RestoreKitError: the adapter does not fit the backbone.
        UnknownComponentError: a component is not installed.
    """
    modules = _sketched(find_parts(spec))
    if {"adapter", "backbone"} <= modules.keys():
        cast(Adapter, modules["adapter"]).attach(cast(Backbone, modules["backbone"]))


def _sketched(parts: Mapping[str, Part]) -> dict[str, nn.Module]:
    """Build components on the meta device: no memory, no values."""
    modules: dict[str, nn.Module] = {}
    with torch.device("meta"):
        for key in (key for key in _ORDER if key in parts):
            kind = parts[key].entry.load()
            # A bridge takes its arguments with the tensors of a file, which is not opened yet.
            if not (isinstance(kind, type) and issubclass(kind, DetectedBackbone)):
                modules[key] = construct(_fitting(parts[key], modules))
    return modules


def _with_file(part: Part) -> Part:
    return replace(part, checkpoint=ensure(part.checkpoint)) if part.checkpoint else part


def _fitting(part: Part, modules: Mapping[str, nn.Module]) -> Part:
    """Complete the arguments of a refiner by what its prior and its backbone are like."""
    kind = part.entry.load()
    if part.kind != "refiner" or not hasattr(kind, "fitted"):
        return part
    backbone = cast("Backbone | None", modules.get("backbone"))
    params = kind.fitted(part.params, backbone, cast(Prior, modules["prior"]))
    return replace(part, ref=part.ref.model_copy(update={"params": params}))


def _fresh(part: Part) -> nn.Module:
    if part.checkpoint is None:
        return construct(part)
    # Reading the hash compares it with the declared one.
    _ = part.checkpoint.sha256
    tensors = read_tensors(part.checkpoint.file)
    module = construct(part, tensors)
    if not isinstance(module, DetectedBackbone):
        load_into(module, tensors, part.checkpoint.file)
    return module


def _check_trainee(trainee: Trainee, spec: TrainSpec) -> None:
    if not trainee.trained_parameters():
        named = " and ".join(getattr(spec, part).name for part in spec.trained_parts)
        raise TrainingError(f"{named} has no parameters to train", "name a network that has weights")
    if "kind" in spec.loss:
        image = torch.zeros(1, trainee.channels, *(2 * [trainee.size_multiple]))
        if trainee.tell(image) is None:
            raise TrainingError(
                "nothing here tells kinds of degradation, which the loss kind compares",
                "name an adapter that has a classifier, and let it be trained",
            )
    if trainee.channels not in (1, 3):
        raise TrainingError(
            f"the network takes {trainee.channels} channels, photographs have 3", "name another network"
        )
    trainee.check(spec.stages)
    for index, stage in enumerate(spec.stages):
        if stage.patch % trainee.size_multiple:
            fitting = -(-stage.patch // trainee.size_multiple) * trainee.size_multiple
            raise ConfigError(
                f"stages[{index}].patch",
                f"{stage.patch} is no multiple of {trainee.size_multiple}, which the network needs",
                f"write {fitting}",
            )
    if spec.precision == "bf16" and torch.bfloat16 not in trainee.precisions:
        raise ConfigError("precision", "the network is not known to work in bf16", "write fp32")
