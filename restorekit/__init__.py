"""restorekit: degraded image in, restored image out.

Names are imported on first use: ``import restorekit`` costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from restorekit.lazy import on_first_use

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

__getattr__, __dir__ = on_first_use(__name__, _HOMES)
