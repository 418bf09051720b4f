"""Deltas of several degradations put into one network: theta = theta_um + sum_d c_d * delta_d.

Two ways that do the same arithmetic: ``written`` puts the values into the network's own tensors for a while
and then puts the saved ones back, ``replaced`` makes new tensors and leaves gradients their way. Neither
subtracts: what was rounded once does not come back by subtraction.

Shapes: D degradations, N numbers that any of them adds to, over all tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from restorekit_adms.deltas import Delta, SparseTensor, units_of


@dataclass(frozen=True, eq=False)
class _Place:
    """Where one tensor is added to.

    Attributes:
        name: of the tensor in the network.
        names: all of its names, where modules share it.
        owner: module that holds it.
        own: what it calls it; the tensor itself may be replaced when a network is moved.
        order: its axes by descending stride; so permuted, its memory is one line.
        elements: places in that line, ascending.
    """

    name: str
    names: tuple[str, ...]
    owner: nn.Module
    own: str
    order: tuple[int, ...]
    elements: Tensor

    @property
    def tensor(self) -> nn.Parameter:
        """The parameter as it is now."""
        return cast(nn.Parameter, getattr(self.owner, self.own))

    def line(self, tensor: Tensor) -> Tensor:
        """Return the memory of a tensor as one line, a view."""
        return tensor.permute(self.order).view(-1)

    def shaped(self, line: Tensor, like: Tensor) -> Tensor:
        """Return a line as a tensor with the shape and strides of another one."""
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return line.view([like.shape[axis] for axis in self.order]).permute(back)


class Mixer:
    """Where the deltas of several degradations fall in one network.

    Args:
        network: the base; its strides and device count.
        deltas: by degradation, in the order of the weights.

    Raises:
        WeightsError: a delta does not fit the network.
    """

    def __init__(self, network: nn.Module, deltas: Mapping[str, Delta]) -> None:
        # Modules that are shared come once, parameters that several modules share come under each.
        owners = {
            f"{prefix}.{name}".lstrip("."): (module, name)
            for prefix, module in network.named_modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        }
        self._owners = owners
        parts: dict[str, list[tuple[int, SparseTensor, Tensor]]] = {}
        for index, delta in enumerate(deltas.values()):
            units = units_of(network, delta)
            for name, leaf in delta.leaves():
                parts.setdefault(name, []).append((index, leaf, leaf.elements(name, units)))
        self.places: list[_Place] = []
        self._sources: list[list[SparseTensor]] = [[] for _ in deltas]
        where: list[list[Tensor]] = [[] for _ in deltas]
        total = 0
        for name in (name for name in owners if name in parts):
            module, own = owners[name]
            tensor = getattr(module, own)
            order = _order(tensor)
            union, slots = _union([_in_memory(elements, tensor, order) for _, _, elements in parts[name]])
            same = tuple(other for other, (one, its) in owners.items() if getattr(one, its) is tensor)
            self.places.append(_Place(name, same, module, own, order, union))
            for (index, leaf, _), own_slots in zip(parts[name], slots, strict=True):
                self._sources[index].append(leaf)
                where[index].append(own_slots + total)
            total += len(union)
        self._where = [torch.cat(slots) if slots else None for slots in where]
        self.sizes = [len(place.elements) for place in self.places]

    def values(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Return what is added at the places of each tensor, for weights (D,)."""
        mixed = weights.new_zeros(sum(self.sizes))
        for index, (leaves, where) in enumerate(zip(self._sources, self._where, strict=True)):
            if where is not None:
                own = torch.cat([leaf.values.flatten() for leaf in leaves])
                mixed = mixed.index_add(0, where, (own * weights[index]).to(mixed.dtype))
        return torch.split(mixed, self.sizes)

    def frozen(self) -> dict[str, Tensor]:
        """Return every parameter of the network, by each of its names, without its gradient."""
        return {name: getattr(module, own).detach() for name, (module, own) in self._owners.items()}

    def placed(self, tensors: dict[str, Tensor], values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return all tensors of a network, those that are added to with these values at the places."""
        made = dict(tensors)
        for place, own in zip(self.places, values, strict=True):
            base = tensors[place.name]
            line = place.line(base).index_add(0, place.elements, own.to(base.dtype))
            made |= dict.fromkeys(place.names, place.shaped(line, base))
        return made

    def members(self, count: int) -> list[Tensor]:
        """Return where the numbers of each of the degradations stand among all that are added to."""
        empty = torch.zeros(0, dtype=torch.long)
        return [empty if where is None else where for where in self._where[:count]]

    @torch.no_grad()
    def saved(self) -> list[Tensor]:
        """Return what stands at the places now, for ``put``."""
        return [place.line(place.tensor)[place.elements] for place in self.places]

    @torch.no_grad()
    def added(self, saved: list[Tensor], weights: Tensor) -> list[Tensor]:
        """Return what stands there with the mixture added."""
        values = self.values(weights)
        return [kept + value.to(kept.dtype) for kept, value in zip(saved, values, strict=True)]

    @torch.no_grad()
    def put(self, contents: list[Tensor]) -> None:
        """Write into the network's own tensors, bit for bit."""
        for place, content in zip(self.places, contents, strict=True):
            place.line(place.tensor)[place.elements] = content

    @contextmanager
    def written(self, weights: Tensor) -> Iterator[None]:
        """Put the mixture into the network for a while."""
        saved = self.saved()
        mixture = self.added(saved, weights)
        try:
            self.put(mixture)
            yield
        finally:
            self.put(saved)

    @property
    def is_current(self) -> bool:
        """Whether the network is still where, and laid out as, it was when this was made."""
        return all(
            place.elements.device == place.tensor.device and place.order == _order(place.tensor)
            for place in self.places
        )

    @property
    def can_write(self) -> bool:
        """Whether the network's tensors may be written to here: those of inference mode only there."""
        return torch.is_inference_mode_enabled() or not any(
            place.tensor.is_inference() for place in self.places
        )


def _order(tensor: Tensor) -> tuple[int, ...]:
    # Axes of one element have arbitrary strides and never move; a stable sort leaves them where they are.
    strides = tensor.stride()
    return tuple(sorted(range(tensor.dim()), key=lambda axis: -strides[axis]))


def _in_memory(elements: Tensor, tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return places in the flattened tensor as places in its memory."""
    if order == tuple(range(len(order))):
        return elements.to(tensor.device)
    coordinates = list(torch.unravel_index(elements, tensor.shape))
    line = torch.zeros_like(elements)
    for axis in order:
        line = line * tensor.shape[axis] + coordinates[axis]
    return line.to(tensor.device)


def _union(lines: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the places that occur, ascending and each once, and for each line where its places are there."""
    if len(lines) == 1:
        return lines[0], [torch.arange(len(lines[0]), device=lines[0].device)]
    joined = torch.cat(lines)
    if joined.is_meta:
        # How many places are shared is a matter of values; counted as none, memory is not underestimated.
        return joined, list(
            torch.split(torch.arange(len(joined), device="meta"), [len(one) for one in lines])
        )
    union, inverse = torch.unique(joined, return_inverse=True)
    return union, list(torch.split(inverse, [len(one) for one in lines]))
