"""What a pipeline would use, without torch: components, weights, licences, parameters, memory.

A plan looks every name up and opens every file of weights that it needs; it builds and runs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from restorekit import registry
from restorekit.catalog import PRIOR_KEY, Checkpoint, Pretrained, declared, find
from restorekit.config import ComponentRef, PipelineSpec, RefineSpec, RestoreSpec
from restorekit.errors import ConfigError
from restorekit.references import source, state
from restorekit.registry import Entry

# In the place of a prior's name: the refiner is guided by a mean that its weights hold.
NO_PRIOR = "none"


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
    def claims(self) -> tuple[tuple[str, str], ...]:
        """What of it has which licence, as SPDX expressions: the code, and the weights."""
        found = [(f"{self.kind} {self.entry.name}", self.entry.licence or "unknown")]
        if self.checkpoint is not None:
            found.append((f"weights {self.checkpoint.name}", self.checkpoint.licence))
        if self.model is not None:
            found.append((f"weights {self.model.name}", self.model.licence))
        return (*found, *(self.inner.claims if self.inner else ()))

    @cached_property
    def inner(self) -> Part | None:
        """The network that a prior is made of, as its arguments ``backbone``, ``params`` and ``weights`` say.

        Raises:
            WeightsError: it has no such weights.
        """
        name, params, weights = (self.params.get(key) for key in ("backbone", "params", "weights"))
        # Of a stranger's prior the argument may mean something else.
        if self.kind != "prior" or not isinstance(name, str) or name not in registry.backbones:
            return None
        ref = ComponentRef(
            name=name,
            params=params if isinstance(params, Mapping) else {},
            weights=weights if isinstance(weights, str) else None,
        )
        return _part(f"{self.where}.params.backbone", registry.backbones, ref)

    @cached_property
    def model(self) -> Model | None:
        """The model that a prior reads by itself, as its argument ``reference`` says."""
        known = [item for item in declared() if item.reference and item.component == self.entry.name]
        wanted = self.params.get("reference", next((item.tag for item in known if item.default), None))
        if self.kind != "prior" or not known or not isinstance(wanted, str):
            return None
        return Model(wanted, next((item for item in known if wanted in (item.tag, item.reference)), None))

    @cached_property
    def trained_with(self) -> Mapping[str, Any]:
        """What a refiner's weights state of the prior of their training: name, params, and its fingerprint.

        Empty where they state nothing, or are not on this machine yet. Files written before fingerprints were
        kept have none.
        """
        here = self.checkpoint is not None and self.checkpoint.is_here
        facts = self.checkpoint.metadata() if self.checkpoint and here else {}
        return cast(Mapping[str, Any], json.loads(facts.get(PRIOR_KEY, "null")) or {})

    def differs_from(self, prior: Part) -> bool:
        """Whether this refiner's weights state another prior than the one given, by name or by params."""
        stated = self.trained_with
        given = json.loads(json.dumps({"name": prior.entry.name, "params": prior.params}))
        return bool(stated) and any(given[key] != stated[key] for key in given)

    def untrained(self, prior: Part, fingerprint: str = "") -> ConfigError:
        """Return the error that this refiner's weights were trained with another prior.

        Args:
            prior: the one that is given.
            fingerprint: of it, where that alone is another one.
        """
        assert self.checkpoint is not None
        weights, then = self.checkpoint.name, _said(self.trained_with)
        if fingerprint:
            return ConfigError(
                f"{self.where}.prior",
                f"{weights} was trained with {then} of fingerprint {self.trained_with['fingerprint']}, here "
                f"its fingerprint is {fingerprint}: its files are not the same",
                "give the prior the files of then (of a hub, by hub:owner/repository@revision), or train "
                "again",
            )
        now = _said({"name": prior.entry.name, "params": prior.params})
        return ConfigError(
            f"{self.where}.prior",
            f"{weights} was trained with {then}, this is {now}",
            "name the prior that it was trained with, and its params",
        )

    @property
    def licences(self) -> tuple[str, ...]:
        """SPDX expressions of code and weights."""
        return tuple(dict.fromkeys(licence for _, licence in self.claims))

    @property
    def parameters(self) -> int | None:
        """How many values the weights hold; 0 without any, None where only torch or a download can tell."""
        if self.model is not None:
            return self.model.declared.parameters if self.model.declared else None
        if self.inner is not None:
            return self.inner.parameters
        if self.checkpoint is None:
            return 0
        declared = self.checkpoint.declared
        if declared and declared.parameters is not None:
            return declared.parameters
        path = self.checkpoint.path
        readable = path is not None and path.suffix == ".safetensors" and path.is_file()
        return self.checkpoint.parameter_count() if readable else None

    @property
    def memory_per_pixel(self) -> int | None:
        """Working memory in bytes for each pixel that is run at a time, where the weights declare it."""
        declared = self.checkpoint.declared if self.checkpoint else None
        return declared.memory_per_pixel if declared and not self.ref.params else None

    @property
    def to_download(self) -> int | None:
        """Bytes that have to be downloaded first; 0 when nothing has to be, None when nobody knows."""
        if self.model is not None:
            return self.model.to_download
        if self.inner is not None:
            return self.inner.to_download
        if self.checkpoint is None or self.checkpoint.is_here:
            return 0
        return self.checkpoint.declared.size if self.checkpoint.declared else None

    def facts(self) -> dict[str, Any]:
        """Return what a person or a program wants to know, as plain values."""
        weights = self.inner.checkpoint if self.inner else self.checkpoint
        named = weights or self.model
        here = weights is not None and weights.is_here
        return {
            "where": self.where,
            "kind": self.kind,
            "name": self.entry.name,
            "distribution": f"{self.entry.dist} {self.entry.version}",
            "params": self.params,
            "weights": named.name if named else None,
            "weights_file": str(weights.path) if weights and here else None,
            "weights_sha256": (weights.sha256 if here else weights.expected_sha256) if weights else None,
            "to_download": self.to_download,
            "licences": list(self.licences),
            "parameters": self.parameters,
            "memory_per_pixel": self.memory_per_pixel,
        }


@dataclass(frozen=True)
class Model:
    """A pretrained model of several files that a prior reads by itself.

    Attributes:
        reference: a tag, or where it is, as the prior takes it.
        declared: what a distribution says of it, if any does.
    """

    reference: str
    declared: Pretrained | None

    @property
    def name(self) -> str:
        """``component/tag`` when it is declared, else the reference."""
        return self.declared.name if self.declared else self.reference

    @property
    def licence(self) -> str:
        """SPDX expression, or ``unknown``."""
        return self.declared.licence if self.declared else "unknown"

    @property
    def to_download(self) -> int | None:
        """Bytes that have to be downloaded first; 0 when nothing has to be, None when nobody knows.

        Raises:
            WeightsError: it is no reference, or nothing is there.
        """
        if self.declared is not None:
            there = state(self.declared)
            return 0 if there == "here" else self.declared.size if there == "remote" else None
        # Which files of a repository a prior wants, only its tags say.
        return None if source(self.reference).is_remote else 0


def parts(spec: PipelineSpec) -> tuple[tuple[Part, ...], ...]:
    """Return the parts of each step: the component of the verb first, then its adapter or prior, if any.

    Raises:
        ConfigError: the prior ``none`` is given arguments, or a refiner was trained with another prior.
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
    prior, refiner = step.refine.prior, _part(where, registry.refiners, step.refine)
    if prior.name != NO_PRIOR:
        guide = _part(f"{where}.prior", registry.priors, prior)
        stated = refiner.trained_with
        if stated and stated["name"] != guide.entry.name:
            # Known before anything is fetched for it.
            raise refiner.untrained(guide)
        return (refiner, guide)
    if prior.params or prior.weights:
        raise ConfigError(f"{where}.prior", "none takes no params and no weights", "leave them out")
    return (refiner,)


def _part(where: str, kind: registry.Registry[Any], ref: ComponentRef) -> Part:
    entry = kind[ref.name]
    return Part(where, kind.kind, entry, ref, find(ref.name, ref.weights) if ref.weights else None)


def _said(prior: Mapping[str, Any]) -> str:
    params = ", ".join(f"{key} {value}" for key, value in prior["params"].items())
    return f"{prior['name']} ({params})" if params else str(prior["name"])
