"""The filters of a network as one flat list: the space in which attribution, masks and adapters speak.

A filter is one k x k slice of a convolution's weight, as FAIG counts them (Xie et al., NeurIPS 2021). Scores
of them are ``restorekit.filterscores``.

Shape letters: ``F`` filters of the network, ``U`` filters of one tensor, ``M`` numbers in each of them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from restorekit.errors import ConfigError, RestoreKitError, near

Unit = Literal["kernel", "out", "weight"]

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
        check_word("unit", unit, get_args(Unit))
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


def check_word(what: str, word: object, known: tuple[str, ...]) -> None:
    """Refuse a word that is none of those known.

    Raises:
        ConfigError: it names what the word is for.
    """
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
