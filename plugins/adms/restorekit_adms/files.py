"""Files of adapters: whole, or one degradation alone; and what is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from restorekit.catalog import COMPONENT_KEY, PARAMS_KEY
from restorekit.errors import OutputError, WeightsError
from restorekit.files import replacing

KIND_KEY = "restorekit.kind"
CHOICE_KEY = "adms.choice"


@dataclass(frozen=True)
class Contents:
    """What a file holds for one degradation.

    Attributes:
        numbers: that are added, by tensor.
        index_bytes: that say where.
        value_bytes: that say what.
        share: of all parameters of the base, where the file states how many these are.
    """

    numbers: Mapping[str, int]
    index_bytes: int
    value_bytes: int
    share: float | None

    @property
    def total(self) -> int:
        """Numbers in all."""
        return sum(self.numbers.values())


@dataclass(frozen=True)
class Inspection:
    """What a file of an adapter holds.

    Attributes:
        base: fingerprint of the network that it was made for.
        degradations: by name.
        classifier: its parameters, 0 without one.
        facts: what the file says of itself.
    """

    base: str
    degradations: Mapping[str, Contents]
    classifier: int
    facts: Mapping[str, str]


def inspect(path: str | Path) -> Inspection:
    """Return what a file of an adapter holds: numbers by layer, bytes with the indices, base.

    Raises:
        WeightsError: it cannot be read, or is of something else.
    """
    tensors, facts = read(path)
    parameters = int(facts.get("adms.base_parameters", 0))
    numbers: dict[str, dict[str, int]] = {}
    sizes: dict[str, list[int]] = {}
    classifier = 0
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "classifier":
            classifier += value.numel() if value.is_floating_point() else 0
        elif kind == "deltas":
            name, _, rest = rest.partition(".")
            tensor, _, role = rest.removeprefix("tensors.").rpartition(".")
            own = sizes.setdefault(name, [0, 0])
            own[role != "idx"] += value.nbytes
            if role != "idx":
                numbers.setdefault(name, {})[tensor] = value.numel()
    degradations = {
        name: Contents(
            own, sizes[name][0], sizes[name][1], sum(own.values()) / parameters if parameters else None
        )
        for name, own in numbers.items()
    }
    return Inspection(bytes(tensors["base"].tolist()).hex(), degradations, classifier, facts)


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a file.

    Raises:
        WeightsError: it cannot be read, or is of something else.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            facts = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read: {error}", "give a whole .safetensors file") from error
    if "base" not in tensors:
        raise WeightsError(f"{path} is no ADMS adapter", "give what `restorekit train` or Adms.save wrote")
    return tensors, facts


def write(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    arguments: Mapping[str, object],
    facts: Mapping[str, str],
    *,
    half: bool = False,
) -> Path:
    """Write a file that a pipeline takes as weights of ``adms``; an existing one is replaced as a whole.

    Args:
        path: ends in .safetensors.
        tensors: of the adapter.
        arguments: of its constructor, to be stated.
        facts: to be stated beside.
        half: store values in 16 bits; indices keep theirs.

    Raises:
        WeightsError: a value does not fit into 16 bits.
        OutputError: the file cannot be written.
    """
    stored = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().clone().contiguous()
        if half and value.is_floating_point():
            value = value.half()
            if not bool(value.isfinite().all()):
                raise WeightsError(f"{name!r} holds values beyond 16 bits", "save it without half")
        stored[name] = value
    stated = {COMPONENT_KEY: "adms", KIND_KEY: "adapter", **facts, PARAMS_KEY: json.dumps(dict(arguments))}
    try:
        with replacing(Path(path)) as temporary:
            save_file(stored, temporary, stated)
    # The second is what the library makes of the first.
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path} cannot be written: {error}", "name a folder that can be written to"
        ) from error
    return Path(path)


def by_degradation(tensors: Mapping[str, Tensor], order: Sequence[str] = ()) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each degradation, its name taken off theirs; in this order where it is known."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "deltas":
            name, _, rest = rest.partition(".")
            found.setdefault(name, {})[rest] = value
    return {name: found[name] for name in dict.fromkeys([*order, *found]) if name in found}


def load_values(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module; one on the meta device, built for its names and shapes, has no values."""
    if not next(module.parameters()).is_meta:
        module.load_state_dict(dict(tensors))


def classifier_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the classifier, by its own names; none where a file has none."""
    prefix = "classifier."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def stated_by(path: str | Path, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return the constructor's arguments that a file states.

    Raises:
        WeightsError: they cannot be read.
    """
    return _stated(path, facts, PARAMS_KEY)


def chosen_by(path: str | Path, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments by which the filters of a file were chosen, as far as it states them.

    Raises:
        WeightsError: they cannot be read.
    """
    return _stated(path, facts, CHOICE_KEY)


def _stated(path: str | Path, facts: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        return dict(json.loads(facts.get(key, "{}")))
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"{path} is damaged: {error}", "give a file that `restorekit train` wrote"
        ) from error
