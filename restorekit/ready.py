"""Networks that are ready to run, for plug-ins that build on one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from restorekit.building import build, construct
from restorekit.catalog import find
from restorekit.config import ComponentRef
from restorekit.contracts import Backbone
from restorekit.download import ensure
from restorekit.plan import Part
from restorekit.registry import backbones
from restorekit.weights import read_tensors


def ready_backbone(name: str, params: Mapping[str, Any], weights: str | None) -> tuple[Backbone, Part]:
    """Build an installed backbone with its weights, frozen; and return what it was built from.

    On the meta device its weights stay unread, unless it is recognised by them.

    Args:
        name: of the backbone.
        params: of its constructor, on top of those of the weights.
        weights: tag, file or hub reference; downloaded if need be.

    Raises:
        UnknownComponentError: no installed distribution offers it.
        ConfigError: it refuses the arguments.
        WeightsError: weights are missing or do not fit.
    """
    part = Part(
        "params.backbone",
        "backbone",
        backbones[name],
        ComponentRef(name=name, params=dict(params), weights=weights),
        ensure(find(name, weights)) if weights else None,
    )
    if torch.get_default_device().type == "meta":
        tensors = read_tensors(part.checkpoint.file) if part.checkpoint else None
        # A bridge makes its networks with their values, wherever it is asked to.
        network = construct(part, tensors).to("meta")
    else:
        network = build(part)
    return cast(Backbone, network.eval().requires_grad_(False)), part
