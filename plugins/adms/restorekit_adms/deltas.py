"""What is added to a network for one degradation: a few filters, stored as index and value.

Shapes: U filters kept of a tensor, M numbers in each, N numbers kept in all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from restorekit.errors import ConfigError, WeightsError
from restorekit.filters import FilterTable, FilterTensor, Unit

Vectors = Literal["none", "all"]


class SparseTensor(nn.Module):
    """What is added to one tensor: whole filters at a few places, or all of a vector.

    Args:
        indices: of the filters within the tensor (U,), ascending.
        size: numbers in a filter, M.
        length: of a vector that is added to densely; then there are no filters.
    """

    idx: Tensor
    val: nn.Parameter
    vec: nn.Parameter

    def __init__(self, indices: Tensor | None, size: int = 0, length: int = 0) -> None:
        super().__init__()
        self.is_vector = indices is None
        if indices is None:
            self.vec = nn.Parameter(torch.zeros(length))
        else:
            self.register_buffer("idx", indices.to(torch.int32))
            self.val = nn.Parameter(torch.zeros(len(indices), size, device=indices.device))

    @property
    def values(self) -> nn.Parameter:
        """(U, M), or (length,) of a vector."""
        # Looked up as a module's attributes, hundreds of these took longer than the numbers themselves.
        held, name = self.holder
        return cast(nn.Parameter, held[name])

    @property
    def holder(self) -> tuple[dict[str, nn.Parameter | None], str]:
        """What holds the values, and their name there."""
        return self._parameters, "vec" if self.is_vector else "val"

    def elements(self, name: str, units: Mapping[str, FilterTensor]) -> Tensor:
        """Return where the values lie in the flattened tensor: (U * M,), int64.

        Raises:
            WeightsError: an index lies outside of the tensor.
        """
        if self.is_vector:
            return torch.arange(self.vec.numel(), device=self.vec.device)
        tensor = units[name]
        if self.idx.numel() and not self.idx.is_meta:
            first, last = int(self.idx.min()), int(self.idx.max())
            if first < 0 or last >= tensor.count:
                raise WeightsError(
                    f"the adapter names filter {first if first < 0 else last} of {name}, "
                    f"which has {tensor.count}",
                    "give an adapter that was made for this network",
                )
            if len(torch.unique(self.idx)) < len(self.idx):
                raise WeightsError(
                    f"the adapter names a filter of {name} twice", "give a file that is not damaged"
                )
        places = tensor.elements().to(self.idx.device)
        return places[self.idx.long()].flatten()


class _Tree(nn.Module):
    """Holds modules under names with dots, so that state dicts carry the names of the network's tensors."""

    def put(self, name: str, leaf: nn.Module) -> None:
        head, _, rest = name.partition(".")
        if not rest:
            self.add_module(head, leaf)
            return
        if head not in self._modules:
            self.add_module(head, _Tree())
        cast(_Tree, self._modules[head]).put(rest, leaf)


class Delta(nn.Module):
    """What one degradation adds to a network.

    Args:
        sizes: by tensor, the filters to keep (U,) and the numbers in each, M.
        vectors: by tensor, the length of what is added to all of it.
    """

    def __init__(self, sizes: Mapping[str, tuple[Tensor, int]], vectors: Mapping[str, int]) -> None:
        super().__init__()
        self.tensors = _Tree()
        for name, (indices, size) in sizes.items():
            self.tensors.put(name, SparseTensor(indices, size))
        for name, length in vectors.items():
            self.tensors.put(name, SparseTensor(None, length=length))

    def leaves(self) -> Iterator[tuple[str, SparseTensor]]:
        """Yield each tensor that is added to, by its name in the network."""
        for name, module in self.tensors.named_modules():
            if isinstance(module, SparseTensor):
                yield name, module

    @property
    def parameter_count(self) -> int:
        """Numbers that are added, N."""
        return sum(leaf.values.numel() for _, leaf in self.leaves())

    @property
    def byte_count(self) -> int:
        """Bytes in memory, those of the indices included."""
        return sum(
            leaf.values.nbytes + (0 if leaf.is_vector else leaf.idx.nbytes) for _, leaf in self.leaves()
        )

    @classmethod
    def choose(cls, table: FilterTable, filters: Tensor, vectors: Mapping[str, int]) -> Delta:
        """Return zeros at the filters (K,) of a table, and at all numbers of the vectors."""
        sizes = {tensor.name: tensor.size for tensor in table}
        chosen = table.chosen(filters)
        return cls({name: (indices, sizes[name]) for name, indices in chosen.items()}, vectors)

    @classmethod
    def shaped_like(cls, tensors: Mapping[str, Tensor]) -> Delta:
        """Return zeros with the indices and sizes of a state dict of this class.

        Raises:
            WeightsError: it is of something else.
        """
        sizes, vectors = {}, {}
        for key, value in tensors.items():
            name, _, kind = key.removeprefix("tensors.").rpartition(".")
            partner = tensors.get(f"tensors.{name}.val")
            if kind == "vec" and value.dim() == 1:
                vectors[name] = len(value)
            elif kind == "idx" and value.dim() == 1 and partner is not None and partner.dim() == 2:
                # Made on the device that modules are being built on: meta where only names and shapes count.
                indices = torch.empty(len(value), dtype=torch.int32)
                if not indices.is_meta:
                    indices.copy_(value)
                sizes[name] = (indices, partner.shape[1])
            elif kind != "val" or f"tensors.{name}.idx" not in tensors:
                raise WeightsError(
                    f"{key!r} {tuple(value.shape)} is no part of an adapter",
                    "give a file that `restorekit train` or Adms.save wrote",
                )
        return cls(sizes, vectors)

    @torch.no_grad()
    def copy_difference(self, network: nn.Module, other: Mapping[str, Tensor]) -> None:
        """Set the values to what another network of the same shapes has there beyond this one.

        Args:
            network: the base.
            other: state of the other network.

        Raises:
            WeightsError: a tensor is missing in the other network, or has another shape.
        """
        base, units = dict(network.state_dict()), units_of(network, self)
        for name, leaf in self.leaves():
            if name not in other or other[name].shape != base[name].shape:
                raise WeightsError(
                    f"the specialist has no {name} of {tuple(base[name].shape)}",
                    "give a checkpoint of the same network, fine-tuned from the base",
                )
            difference = (other[name].to(base[name]) - base[name]).reshape(-1)
            leaf.values.copy_(difference[leaf.elements(name, units)].view_as(leaf.values))


def vectors_of(network: nn.Module) -> dict[str, int]:
    """Return biases, norms and scales by name with their length: parameters along a single axis."""
    return {
        name: parameter.numel()
        for name, parameter in network.named_parameters()
        if parameter.is_floating_point() and parameter.numel() == max(parameter.shape, default=1)
    }


def units_of(network: nn.Module, delta: Delta) -> dict[str, FilterTensor]:
    """Return how each tensor of a network is cut into filters of the size that a delta has there.

    Where two kinds of filter have the same size they are the same filters in the same order, so the size
    alone says which ones are meant.

    Raises:
        WeightsError: the network has no such tensor, or no filters of that size in it.
    """
    state = network.state_dict()
    groups = {tensor.name: tensor.groups for tensor in FilterTable.of(network)}
    found = {}
    for name, leaf in delta.leaves():
        if name not in state:
            raise WeightsError(
                f"the network has no {name}, which the adapter adds to",
                "give an adapter that was made for this network",
            )
        shape, expected = state[name].shape, leaf.values.shape
        if leaf.is_vector:
            if shape.numel() == len(leaf.vec):
                continue
        else:
            cut = _cut(name, shape, leaf.val.shape[1], groups.get(name, 0))
            if cut is not None:
                found[name] = cut
                continue
        raise WeightsError(
            f"{name} is {tuple(shape)} in the network, the adapter has values {tuple(expected)} for it",
            "give an adapter that was made for this network",
        )
    return found


def _cut(name: str, shape: torch.Size, size: int, groups: int) -> FilterTensor | None:
    if len(shape) < 2:
        return None
    counts = {
        "kernel": shape[0] * shape[1],
        "out": shape[1] * groups if groups else shape[0],
        "weight": shape.numel(),
    }
    for count in counts.values():
        if count * size == shape.numel():
            return FilterTensor(name, tuple(shape), count, size, 0, groups)
    return None


def check_unit(unit: str) -> Unit:
    """Return a kind of filter.

    Raises:
        ConfigError: there is none of that name.
    """
    if unit not in get_args(Unit):
        raise ConfigError("params.unit", f"{unit!r} is no kind of filter", f"use {', '.join(get_args(Unit))}")
    return cast(Unit, unit)


def random_scores(table: FilterTable, seed: int, label: str) -> Tensor:
    """Return a random score for each filter (F,), the same for the same seed and label."""
    word = int.from_bytes(hashlib.sha256(f"{seed} {label}".encode()).digest()[:7])
    return torch.rand(len(table), generator=torch.Generator().manual_seed(word), device="cpu")
