"""The filters of a network as one flat list: the space in which attribution, masks and adapters speak.

A filter is one k x k slice of a convolution's weight, as FAIG counts them (Xie et al., NeurIPS 2021). Scores
of filters travel as a file (``FilterScores``): what finds filters and what uses them never meet.
Attribution itself is the analysis room.

Shape letters: ``F`` filters of the network, ``U`` filters of one tensor, ``M`` numbers in each of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from restorekit.errors import ConfigError, OutputError, RestoreKitError, WeightsError, near
from restorekit.files import replacing

Unit = Literal["kernel", "out", "weight"]
Budget = Literal["parameters", "filters"]
Scope = Literal["network", "layer"]
Against = Literal["mean", "max"]

FORMAT = "restorekit.filter-scores/1"

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# What the hooks torch.nn.utils.weight_norm, and spectral_norm and prune, make a layer's weight from.
_HOOKED = ("weight_v", "weight_orig")


@dataclass(frozen=True)
class FilterTensor:
    """The filters of one weight tensor.

    Attributes:
        name: of the tensor in the state dict.
        shape: of the tensor.
        count: filters in it, U.
        size: numbers in a filter, M.
        offset: number of its first filter in the network.
        groups: of a transposed convolution, whose outputs lie along the second axis; 0 for other layers.
    """

    name: str
    shape: tuple[int, ...]
    count: int
    size: int
    offset: int
    groups: int = 0

    @property
    def parameters(self) -> int:
        """Numbers in the tensor."""
        return self.count * self.size

    def rows(self, weight: Tensor) -> Tensor:
        """Return a tensor of this shape as (U, M), one filter a row; a view where that is possible."""
        if self.groups and self.count == self.shape[1] * self.groups:
            # (groups * in, out, ...) -> (groups * out, in, ...): the filters of one output together.
            grouped = weight.reshape(self.groups, -1, *self.shape[1:]).transpose(1, 2)
            return grouped.reshape(self.count, self.size)
        return weight.reshape(self.count, self.size)

    def elements(self) -> Tensor:
        """Return where the numbers of each filter lie in the flattened tensor: (U, M), int64."""
        return self.rows(torch.arange(math.prod(self.shape)).reshape(self.shape))


@dataclass(frozen=True)
class FilterTable:
    """All filters of a network, in the order of its state dict.

    Attributes:
        unit: ``kernel`` is a k x k slice, a single number for 1 x 1 and linear layers; ``out`` everything
            that makes one output channel; ``weight`` each number by itself.
        tensors: the weights that have filters.
    """

    unit: Unit
    tensors: tuple[FilterTensor, ...]

    @classmethod
    def of(
        cls, module: nn.Module, unit: Unit = "kernel", *, include: str = "", exclude: str = "", raw: str = ""
    ) -> Self:
        """Return the filters of a network's convolutions and linear layers; biases and norms have none.

        Weights that several layers share count once. A weight under a parametrization (weight or spectral
        norm) is represented by the parameter of the same shape behind it.

        Args:
            module: the network; may be on the meta device.
            unit: what counts as one filter.
            include: pattern (regular expression, searched) that names of tensors must match; empty for all.
            exclude: pattern of tensors to leave out; empty for none.
            raw: pattern of further parameters of two or more dimensions to take, which a network uses
                without a layer around them.

        Raises:
            RestoreKitError: the unit is unknown, nothing is left, a pattern is no regular expression, or a
                weight is computed by a hook of torch.nn.utils.
        """
        _check_word("unit", unit, get_args(Unit))
        wanted = {"include": include, "exclude": exclude, "raw": raw}
        try:
            patterns = {key: re.compile(text) for key, text in wanted.items()}
        except re.error as error:
            raise RestoreKitError(f"{error.pattern!r} is no regular expression: {error}") from error
        tensors: list[FilterTensor] = []
        offset = 0
        for name, weight, groups in _weights(module, patterns["raw"] if raw else None):
            if not patterns["include"].search(name) or (exclude and patterns["exclude"].search(name)):
                continue
            if name.rpartition(".")[2] in _HOOKED:
                # Such a network cannot be copied either, once it has run.
                raise RestoreKitError(
                    f"{name} is no weight of a layer, which is computed from it by a hook of torch.nn.utils",
                    "use torch.nn.utils.parametrizations, whose weight_norm reads the same files",
                )
            count, size = _split(weight.shape, unit, groups)
            tensors.append(FilterTensor(name, tuple(weight.shape), count, size, offset, groups))
            offset += count
        if not tensors:
            kind = type(module).__name__
            raise RestoreKitError(
                f"{kind} has no filters to choose from: no convolution or linear layer"
                + (
                    f" whose weight fits include={include!r}, exclude={exclude!r}"
                    if include or exclude
                    else ""
                ),
                "loosen the patterns"
                if include or exclude
                else "take a network with convolutions or linear layers; `raw` names weights without a layer",
            )
        return cls(unit, tuple(tensors))

    def __len__(self) -> int:
        """Return the number of filters, F."""
        last = self.tensors[-1]
        return last.offset + last.count

    def __iter__(self) -> Iterator[FilterTensor]:
        return iter(self.tensors)

    @property
    def parameters(self) -> int:
        """Numbers in all filters."""
        return sum(tensor.parameters for tensor in self.tensors)

    @cached_property
    def sizes(self) -> Tensor:
        """Numbers in each filter: (F,), int64."""
        return torch.cat([torch.full((tensor.count,), tensor.size) for tensor in self.tensors])

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """(F, ...) -> (U, ...) for each tensor by name."""
        parts = torch.split(values, [tensor.count for tensor in self.tensors])
        return {tensor.name: part for tensor, part in zip(self.tensors, parts, strict=True)}

    def chosen(self, filters: Tensor) -> dict[str, Tensor]:
        """Sort numbers of filters (K,) by tensor: ascending numbers within each tensor that has any."""
        filters = filters.sort().values
        chosen = {}
        for tensor in self.tensors:
            own = filters[(filters >= tensor.offset) & (filters < tensor.offset + tensor.count)]
            if own.numel():
                chosen[tensor.name] = own - tensor.offset
        return chosen

    def masks(self, filters: Tensor) -> dict[str, Tensor]:
        """Return a boolean tensor of the shape of each weight, true in the filters (K,)."""
        chosen = self.chosen(filters)
        masks = {}
        for tensor in self.tensors:
            mask = torch.zeros(tensor.parameters, dtype=torch.bool)
            if tensor.name in chosen:
                mask[tensor.elements()[chosen[tensor.name]].flatten()] = True
            masks[tensor.name] = mask.reshape(tensor.shape)
        return masks

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain values."""
        return {"unit": self.unit, "tensors": [asdict(tensor) for tensor in self.tensors]}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` gave."""
        tensors = (FilterTensor(**{**row, "shape": tuple(row["shape"])}) for row in table["tensors"])
        return cls(table["unit"], tuple(tensors))


def _weights(module: nn.Module, raw: re.Pattern[str] | None) -> Iterator[tuple[str, Tensor, int]]:
    """Yield name, tensor and groups (0 unless transposed) of every weight, in the order of the parameters."""
    kinds: dict[str, int] = {}
    for prefix, layer in module.named_modules():
        if isinstance(layer, (*_LAYERS, *_TRANSPOSED)):
            name = f"{prefix}.weight" if prefix else "weight"
            if parametrize.is_parametrized(layer, "weight"):
                hidden = cast(nn.ModuleDict, layer.parametrizations)["weight"]
                same = (own for own, value in hidden.named_parameters() if value.shape == layer.weight.shape)
                name = f"{prefix}.parametrizations.weight.{next(same)}".lstrip(".")
            for own, _ in layer.named_parameters(recurse=False):
                if own in _HOOKED:
                    name = f"{prefix}.{own}".lstrip(".")
            kinds[name] = layer.groups if isinstance(layer, _TRANSPOSED) else 0
    # A shared parameter comes once, under its first name.
    for name, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            continue
        if name in kinds:
            yield name, parameter, kinds[name]
        elif raw and raw.search(name) and parameter.dim() >= 2:
            yield name, parameter, 0


def _check_word(what: str, word: object, known: tuple[str, ...]) -> None:
    if word not in known:
        raise ConfigError(what, f"is {word!r}", near(str(word), known) or f"use one of {', '.join(known)}")


def _split(shape: torch.Size, unit: Unit, groups: int) -> tuple[int, int]:
    numbers = shape.numel()
    counts = {
        "kernel": shape[0] * shape[1],
        "out": shape[1] * groups if groups else shape[0],
        "weight": numbers,
    }
    return counts[unit], numbers // counts[unit]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, shapes, precisions and values: equal for equal networks on any device."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{tuple(value.shape)}|{value.dtype}|".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return total.hexdigest()


def select(
    table: FilterTable,
    values: Tensor,
    ratio: float,
    *,
    budget: Budget = "parameters",
    scope: Scope = "network",
    share: float = 1.0,
) -> Tensor:
    """Return the numbers of the filters with the highest values, best first; ties go to the lower number.

    Args:
        table: the filters.
        values: one for each filter (F,).
        ratio: how much to take, in (0, 1].
        budget: what the ratio counts. ``filters`` takes int(F * ratio), as FAIG's release does;
            ``parameters`` takes filters in their order while their numbers together stay within the ratio.
        scope: choose over the whole network, as FAIG does, or in each layer by itself.
        share: largest part of one layer that may be chosen, a guard for scope ``network``.

    Raises:
        RestoreKitError: the ratio lies outside (0, 1] or chooses nothing, budget or scope is unknown, or
            values do not fit the table or are not finite.
    """
    _check_word("budget", budget, get_args(Budget))
    _check_word("scope", scope, get_args(Scope))
    if not 0 < ratio <= 1 or not 0 < share <= 1:
        raise RestoreKitError(
            f"a ratio of {ratio} and a share of {share} are not both in (0, 1]",
            "write 0.03 for three per cent",
        )
    if values.shape != (len(table),):
        raise RestoreKitError(
            f"{tuple(values.shape)} values for {len(table)} filters", "use the same network"
        )
    if not bool(torch.isfinite(values).all()):
        raise RestoreKitError(
            f"{int((~torch.isfinite(values)).sum())} filters have a score that is no number"
        )
    if scope == "layer":
        best = [
            tensor.offset + _first(part, torch.full((tensor.count,), tensor.size), ratio, budget)
            for tensor, part in zip(table, table.split(values).values(), strict=True)
        ]
        chosen = torch.cat(best)
        chosen = chosen[values[chosen].argsort(descending=True, stable=True)]
    else:
        order = values.argsort(descending=True, stable=True)
        if share < 1:
            allowed = torch.zeros(len(table), dtype=torch.bool)
            for tensor, part in zip(table, table.split(values).values(), strict=True):
                keep = part.argsort(descending=True, stable=True)[: math.ceil(tensor.count * share)]
                allowed[tensor.offset + keep] = True
            order = order[allowed[order]]
        sizes = table.sizes[order]
        chosen = order[: _within(sizes, len(table), table.parameters, ratio, budget)]
    if not len(chosen):
        raise RestoreKitError(
            f"a ratio of {ratio:g} of {len(table)} filters is less than one filter"
            + (" in every layer" if scope == "layer" else ""),
            f"use a ratio of {least_ratio(table, values, budget=budget, scope=scope):g} or more",
        )
    return chosen


def least_ratio(
    table: FilterTable, values: Tensor, *, budget: Budget = "parameters", scope: Scope = "network"
) -> float:
    """Return the least ratio, rounded up to three digits, with which ``select`` chooses a filter."""
    if scope == "layer":
        return _rounded_up(1 / max(tensor.count for tensor in table))
    if budget == "filters":
        return _rounded_up(1 / len(table))
    best = values.argsort(descending=True, stable=True)[0]
    return _rounded_up(int(table.sizes[best]) / table.parameters)


def _first(values: Tensor, sizes: Tensor, ratio: float, budget: Budget) -> Tensor:
    order = values.argsort(descending=True, stable=True)
    return order[: _within(sizes[order], len(sizes), int(sizes.sum()), ratio, budget)]


def _within(sizes: Tensor, filters: int, parameters: int, ratio: float, budget: Budget) -> int:
    if budget == "filters":
        return int(filters * ratio)
    return int((sizes.cumsum(0) <= parameters * ratio).sum())


def _rounded_up(value: float) -> float:
    # What is typed must be enough: one more digit at the end is, one less is not.
    digits = 2 - math.floor(math.log10(value))
    return min(1.0, math.ceil(value * 10.0**digits) / 10.0**digits)


@dataclass(frozen=True, eq=False)
class FilterScores:
    """How much each filter of a network matters for one thing, and how that was found.

    Attributes:
        table: the filters.
        values: (F,), higher matters more; float32 in files.
        method: what ranked them: faig, ig, delta, random ...
        label: what they matter for: the name of a degradation.
        base: fingerprint of the base network's state.
        target: fingerprint of the target network's state, empty where there is none.
        details: how they were found, plain values.
    """

    table: FilterTable
    values: Tensor
    method: str
    label: str
    base: str
    target: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def top(
        self, ratio: float, *, budget: Budget = "parameters", scope: Scope = "network", share: float = 1.0
    ) -> Tensor:
        """Return the numbers of the best filters, best first: ``select`` with these scores."""
        return select(self.table, self.values, ratio, budget=budget, scope=scope, share=share)

    def mean_size(self) -> Self:
        """Return the scores divided by the size of their filter, for networks that mix kernel sizes."""
        return replace(self, values=self.values / self.table.sizes)

    def minus(self, *others: FilterScores, against: Against = "mean", other_base: bool = False) -> Self:
        """Return these scores less those of others: FAIG's elimination of what matters for both.

        Args:
            *others: one or more, of the same filters.
            against: what is made of several: their mean, or the largest of each filter.
            other_base: take those of another base too, whose filters need not mean the same.

        Raises:
            RestoreKitError: there are none, they belong to other filters, or to another base; both are named.
        """
        _check_word("against", against, get_args(Against))
        if not others:
            raise RestoreKitError(f"{self.label} has nothing to be contrasted with", "give other scores")
        for other in others:
            if other.table != self.table:
                raise RestoreKitError(
                    f"the scores of {self.label} and {other.label} are of different filters"
                )
            if other.base != self.base and not other_base:
                raise RestoreKitError(
                    f"the scores of {self.label} are for the base {self.base[:16]}, those of {other.label}"
                    f" for {other.base[:16]}",
                    "attribute both from one base, or allow it with --other-base, in Python other_base=True",
                )
        stack = torch.stack([other.values for other in others])
        taken = stack.amax(0) if against == "max" else stack.mean(0)
        record = {"against": against, "labels": [other.label for other in others]}
        return replace(self, values=self.values - taken, details={**self.details, "minus": record})

    def overlap(self, other: FilterScores, ratio: float) -> float:
        """Return the share of this one's best filters that are also the other's, in [0, 1]."""
        mine, theirs = self.top(ratio), other.top(ratio)
        return torch.isin(mine, theirs).float().mean().item()

    def per_layer(self) -> dict[str, float]:
        """Return the sum of the scores of each tensor."""
        return {name: float(part.sum()) for name, part in self.table.split(self.values).items()}

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with everything in it; an existing one is replaced as a whole.

        Raises:
            OutputError: it cannot be written, for example because the folder is missing or the disk is full.
        """
        path = Path(path)
        facts = {
            "format": FORMAT,
            "table": self.table.to_json(),
            "method": self.method,
            "label": self.label,
            "base": self.base,
            "target": self.target,
            "details": dict(self.details),
        }
        metadata = {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()
        }
        try:
            with replacing(path) as temporary:
                save_file({"scores": self.values.float().contiguous()}, temporary, metadata)
        # The second is what the library makes of the first.
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"{path} cannot be written: {error}", "make room, or name a file in a folder that exists"
            ) from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            WeightsError: the file is missing, damaged or of another kind.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                values = file.get_tensor("scores") if facts.get("format") == FORMAT else None
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"{path} cannot be read as scores of filters: {error}", "make it with `restorekit faig`"
            ) from error
        if values is None:
            raise WeightsError(
                f"{path} holds {facts.get('format', 'something else')!r}, not {FORMAT!r}",
                "make it with `restorekit faig`",
            )
        try:
            table, details = FilterTable.from_json(json.loads(facts["table"])), json.loads(facts["details"])
            if values.shape != (len(table),):
                raise ValueError(f"{tuple(values.shape)} scores for {len(table)} filters")
            return cls(
                table,
                values,
                facts["method"],
                facts["label"],
                facts["base"],
                facts["target"],
                {**details},
            )
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise WeightsError(
                f"the metadata of {path} are damaged: {type(error).__name__}: {error}",
                "make it again with `restorekit faig`",
            ) from error

    def check_base(self, tensors: Mapping[str, Tensor], what: str = "the network") -> None:
        """Refuse a network that these scores were not made for.

        Args:
            tensors: state of the network.
            what: how to call it in the message.

        Raises:
            WeightsError: its fingerprint differs; both are named.
        """
        found = fingerprint(tensors)
        if found != self.base:
            raise WeightsError(
                f"scores of {self.label} are for the base {self.base[:16]}, {what} is {found[:16]}",
                "give the weights that the attribution started from, in the same precision",
            )
