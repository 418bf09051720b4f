"""What a pipeline would use, without torch: components, weights, licences, parameters, memory.

A plan looks every name up and opens every file of weights that it needs; it builds and runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from restorekit import registry
from restorekit.catalog import Checkpoint, find
from restorekit.config import ComponentRef, PipelineSpec, RefineSpec, RestoreSpec
from restorekit.registry import Entry


@dataclass(frozen=True)
class Part:
    """One component of a pipeline, found.

    Attributes:
        where: path in the pipeline, as ``steps[0].restore``.
        kind: backbone, adapter, refiner or prior.
        entry: where it comes from.
        ref: how the pipeline names it.
        checkpoint: its weights, if the pipeline gives any.
    """

    where: str
    kind: str
    entry: Entry[Any]
    ref: ComponentRef
    checkpoint: Checkpoint | None

    @property
    def params(self) -> dict[str, Any]:
        """Arguments of the constructor: those of the weights, with the pipeline's own on top."""
        return {**(self.checkpoint.params if self.checkpoint else {}), **self.ref.params}

    @property
    def licences(self) -> tuple[str, ...]:
        """SPDX expressions of code and weights."""
        found = [self.entry.licence or "unknown", *([self.checkpoint.licence] if self.checkpoint else [])]
        return tuple(dict.fromkeys(found))

    @property
    def parameters(self) -> int | None:
        """How many values the weights hold; 0 without weights, None for formats that need torch to read."""
        if self.checkpoint is None:
            return 0
        return self.checkpoint.parameter_count() if self.checkpoint.path.suffix == ".safetensors" else None

    @property
    def memory_per_pixel(self) -> int | None:
        """Working memory in bytes for each pixel that is run at a time, where the weights declare it."""
        declared = self.checkpoint.declared if self.checkpoint else None
        return declared.memory_per_pixel if declared and not self.ref.params else None

    def facts(self) -> dict[str, Any]:
        """Return what a person or a program wants to know, as plain values."""
        return {
            "where": self.where,
            "kind": self.kind,
            "name": self.entry.name,
            "distribution": f"{self.entry.dist} {self.entry.version}",
            "params": self.params,
            "weights": self.checkpoint.name if self.checkpoint else None,
            "weights_file": str(self.checkpoint.path) if self.checkpoint else None,
            "weights_sha256": self.checkpoint.sha256 if self.checkpoint else None,
            "licences": list(self.licences),
            "parameters": self.parameters,
            "memory_per_pixel": self.memory_per_pixel,
        }


def parts(spec: PipelineSpec) -> tuple[tuple[Part, ...], ...]:
    """Return the parts of each step: the component of the verb first, then its adapter or prior.

    Raises:
        UnknownComponentError: no installed distribution offers a component of that name.
        WeightsError: weights are missing.
    """
    return tuple(_step_parts(index, step) for index, step in enumerate(spec.steps))


def _step_parts(index: int, step: RestoreSpec | RefineSpec) -> tuple[Part, ...]:
    if isinstance(step, RestoreSpec):
        where, ref = f"steps[{index}].restore", step.restore
        found = [_part(where, registry.backbones, ref)]
        if ref.adapter:
            found.append(_part(f"{where}.adapter", registry.adapters, ref.adapter))
        return tuple(found)
    where = f"steps[{index}].refine"
    prior = step.refine.prior
    return (_part(where, registry.refiners, step.refine), _part(f"{where}.prior", registry.priors, prior))


def _part(where: str, kind: registry.Registry[Any], ref: ComponentRef) -> Part:
    entry = kind[ref.name]
    return Part(where, kind.kind, entry, ref, find(ref.name, ref.weights) if ref.weights else None)
