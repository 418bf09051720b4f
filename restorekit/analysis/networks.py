"""The networks that an analysis compares, by name and by their files of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from restorekit.building import build
from restorekit.catalog import COMPONENT_KEY, HUB, find
from restorekit.config import ComponentRef
from restorekit.contracts import Backbone
from restorekit.download import ensure
from restorekit.errors import ConfigError
from restorekit.plan import Part
from restorekit.registry import backbones


def load_backbone(
    name: str, params: Mapping[str, Any], weights: str, where: str = "weights"
) -> tuple[Backbone, str, Mapping[str, Any]]:
    """Return a backbone with its weights, in eval mode, on the CPU; its name and its complete arguments.

    Args:
        name: of the backbone; empty where the file says it, as files that were trained here do.
        params: arguments of its constructor, over those that the weights say.
        weights: tag of declared weights, or path of a file.
        where: what errors call it.

    Raises:
        ConfigError: no name is given, and the file says none or there is no file.
        UnknownComponentError: there is no such backbone.
        WeightsError: the weights are missing, or do not fit.
    """
    if not name and not weights.startswith(HUB) and not Path(weights).is_file():
        raise ConfigError(
            where,
            f"{weights} is no file, and whose tag it could be is not said",
            "name the backbone with -b, as -b nafnet, or check the path",
        )
    checkpoint = ensure(find(name, weights))
    name = name or checkpoint.metadata().get(COMPONENT_KEY, "")
    if not name:
        raise ConfigError(
            where,
            f"{weights} does not say which backbone it belongs to",
            "name the backbone with -b, as -b nafnet",
        )
    ref = ComponentRef(name=name, params=params, weights=weights)
    part = Part(where, "backbone", backbones[name], ref, checkpoint)
    return cast(Backbone, build(part)), name, part.params
