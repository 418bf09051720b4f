"""restorekit: degraded image in, restored image out.

Names are imported on first use: ``import restorekit`` costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restorekit.api import load_pipeline, restore
    from restorekit.config import PipelineSpec
    from restorekit.contracts import Adapter, Backbone, Prior, PriorFeatures, Refiner
    from restorekit.errors import RestoreKitError
    from restorekit.pipeline import Pipeline
    from restorekit.result import RestoreResult, StepRecord

_HOMES = {
    "Adapter": "contracts",
    "Backbone": "contracts",
    "Pipeline": "pipeline",
    "PipelineSpec": "config",
    "Prior": "contracts",
    "PriorFeatures": "contracts",
    "Refiner": "contracts",
    "RestoreKitError": "errors",
    "RestoreResult": "result",
    "StepRecord": "result",
    "load_pipeline": "api",
    "restore": "api",
}

__all__ = [
    "Adapter",
    "Backbone",
    "Pipeline",
    "PipelineSpec",
    "Prior",
    "PriorFeatures",
    "Refiner",
    "RestoreKitError",
    "RestoreResult",
    "StepRecord",
    "load_pipeline",
    "restore",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'restorekit' has no attribute {name!r}")
    value = getattr(import_module(f"restorekit.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
