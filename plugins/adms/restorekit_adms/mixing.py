"""Deltas of several degradations put into one network: theta = theta_um + sum_d c_d * delta_d.

Three ways that give the same. ``lent`` gives the network a copy of its tensors for a while, in which only the
mixture is written: for every day. ``placed`` makes new tensors and leaves gradients their way. ``write``
changes the network's own tensors until what was saved is put back; nothing is ever subtracted, since what was
rounded once does not come back so.

Shapes: D degradations, N numbers that any of them adds to, over all tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from restorekit_adms.deltas import Delta, SparseTensor, units_of
from restorekit_adms.sharing import turn


@dataclass(frozen=True, eq=False)
class _Place:
    """Where one tensor is added to.

    Attributes:
        name: of the tensor in the network.
        names: all of its names, where modules share it.
        slots: modules that hold it, and what they call it; the tensor may be replaced when a network moves.
        order: its axes by descending stride; so permuted, its memory is one line.
        strides: of the tensor.
        elements: places in that line, ascending.
    """

    name: str
    names: tuple[str, ...]
    slots: tuple[tuple[nn.Module, str], ...]
    order: tuple[int, ...]
    strides: tuple[int, ...]
    elements: Tensor

    def hold(self, tensor: Tensor) -> None:
        """Let the modules use a tensor as this parameter."""
        for module, own in self.slots:
            # Not through setattr, which takes nothing but parameters.
            module._parameters[own] = cast(nn.Parameter, tensor)

    @property
    def tensor(self) -> nn.Parameter:
        """The parameter as it is now."""
        module, own = self.slots[0]
        return cast(nn.Parameter, module._parameters[own])

    def line(self, tensor: Tensor) -> Tensor:
        """Return the memory of a tensor as one line, a view."""
        return tensor.permute(self.order).view(-1)

    def shaped(self, line: Tensor, like: Tensor) -> Tensor:
        """Return a line as a tensor with the shape and strides of another one."""
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return line.view([like.shape[axis] for axis in self.order]).permute(back)


@dataclass(frozen=True, eq=False)
class Kept:
    """What stands, or stood, at some places of a network.

    Attributes:
        network: whose they are.
        places: as they were then; its tensors may have moved since, or be laid out otherwise.
        contents: at the elements of each.
    """

    network: nn.Module
    places: Sequence[_Place]
    contents: Sequence[Tensor]

    @torch.no_grad()
    def put_back(self) -> None:
        """Write into the network's own tensors, bit for bit."""
        with turn(self.network):
            for place, content in zip(self.places, self.contents, strict=True):
                tensor = place.tensor.permute(place.order)
                # By coordinates, not along the memory, which another layout gives another order.
                where = torch.unravel_index(place.elements.to(tensor.device), tensor.shape)
                tensor[where] = content.to(tensor)


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
        self._network, self._owners = network, owners
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
            tensor = cast(nn.Parameter, module._parameters[own])
            order = _order(tensor)
            union, slots = _union([_in_memory(elements, tensor, order) for _, _, elements in parts[name]])
            names = tuple(other for other, (one, its) in owners.items() if one._parameters[its] is tensor)
            holders = tuple(owners[each] for each in names)
            self.places.append(_Place(name, names, holders, order, tensor.stride(), union))
            for (index, leaf, _), own_slots in zip(parts[name], slots, strict=True):
                self._sources[index].append(leaf)
                where[index].append(own_slots + total)
            total += len(union)
        self._device = next((place.elements.device for place in self.places), torch.device("cpu"))
        self._where = [torch.cat(slots) if slots else None for slots in where]
        self.sizes = [len(place.elements) for place in self.places]
        self._copy: _Copy | None = None
        # What each degradation adds at all places (D, N), and what tells that it still does.
        self._dense: tuple[_Watched, Tensor] | None = None
        # Of which weights (D,) the mixture in the copy is.
        self._written: Tensor | None = None

    def values(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Return what is added at the places of each tensor, for weights (D,)."""
        return torch.split(self.mixture(weights), self.sizes)

    def mixture(self, weights: Tensor) -> Tensor:
        """Return what is added at all places (N,), for weights (D,)."""
        # In the wider of both precisions: shares of a double network are rounded to no less than its filters.
        precise = (leaf.values.dtype for leaves in self._sources for leaf in leaves)
        dtype = reduce(torch.promote_types, precise, weights.dtype)
        mixed = weights.new_zeros(sum(self.sizes), dtype=dtype)
        for leaves, where, weight in zip(self._sources, self._where, weights.to(dtype), strict=True):
            if where is not None:
                own = torch.cat([leaf.values.flatten() for leaf in leaves])
                mixed = mixed.index_add(0, where, own.to(dtype) * weight)
        return mixed

    def apart(self, count: int) -> Tensor:
        """Return what each degradation adds at all places, (D, N)."""
        return torch.stack([self.mixture(unit) for unit in torch.eye(count, device=self._device)])

    def frozen(self) -> dict[str, Tensor]:
        """Return every parameter of the network, by each of its names, without its gradient."""
        return {
            name: cast(Tensor, module._parameters[own]).detach()
            for name, (module, own) in self._owners.items()
        }

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

    @contextmanager
    def lent(self, weights: Tensor) -> Iterator[None]:
        """Lend the network tensors with the mixture in them for a while; its own are never written to.

        They are a copy of those that are added to, made once: only the numbers that change are written, in
        one go, and not again for the next tile of an image. Whoever else would use the base by way of an
        adapter waits until they are given back.
        """
        with turn(self._network):
            lent = self._with(weights)
            try:
                lent.lend(self.places)
                yield
            finally:
                for place, tensor in zip(self.places, lent.owned, strict=True):
                    place.hold(tensor)

    def _with(self, weights: Tensor) -> _Copy:
        """Return the copy of the tensors, the mixture in it."""
        if self._copy is None or not self._copy.is_current():
            self._copy, self._written = _Copy(self.places), None
        if self._dense is None or not self._dense[0].is_unchanged():
            watched = _Watched(leaf.holder for leaves in self._sources for leaf in leaves)
            with torch.inference_mode(False), torch.no_grad():
                self._dense = watched, self.apart(len(weights))
            self._written = None
        if not _equal(self._written, weights):
            self._copy.write(weights, self._dense[1])
            self._written = weights.clone()
        return self._copy

    @torch.no_grad()
    def write(self, weights: Tensor, *, check: bool = False) -> Kept | None:
        """Add a mixture to the network's own tensors; return what stood there.

        Args:
            weights: (D,).
            check: write nothing, and return nothing, where a number would not be finite.
        """
        with turn(self._network):
            saved = [place.line(place.tensor)[place.elements] for place in self.places]
            values = self.values(weights)
            mixed = [kept + value.to(kept.dtype) for kept, value in zip(saved, values, strict=True)]
            if check and not all(bool(content.isfinite().all()) for content in mixed):
                return None
            Kept(self._network, self.places, mixed).put_back()
            return Kept(self._network, self.places, saved)

    @property
    def is_current(self) -> bool:
        """Whether the network is still where, and laid out as, it was when this was made."""
        return all(
            place.elements.device == place.tensor.device and place.strides == place.tensor.stride()
            for place in self.places
        )

    @property
    def can_lend(self) -> bool:
        """Whether all tensors that are added to have one precision, so that one line holds them."""
        return len({place.tensor.dtype for place in self.places}) == 1

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the network makes its own copy of the tensors, when it runs.
        return {**self.__dict__, "_copy": None, "_dense": None, "_written": None}


class _Copy:
    """The tensors that are added to, once more, one after the other in one line."""

    def __init__(self, places: Sequence[_Place]) -> None:
        held = [(module._parameters, own) for module, own in (place.slots[0] for place in places)]
        self._watched = _Watched(held)
        self.owned = [place.tensor for place in places]
        # Made outside of inference mode, so that it may be written to inside and outside.
        with torch.inference_mode(False), torch.no_grad():
            self._line = torch.cat(
                [place.line(tensor) for place, tensor in zip(places, self.owned, strict=True)]
            )
            parts = torch.split(self._line, [tensor.numel() for tensor in self.owned])
            self._views = [
                place.shaped(part, tensor)
                for place, part, tensor in zip(places, parts, self.owned, strict=True)
            ]
            starts = torch.tensor([0, *(tensor.numel() for tensor in self.owned[:-1])], device="cpu").cumsum(
                0
            )
            shifted = zip(places, starts.tolist(), strict=True)
            self._elements = torch.cat([place.elements + start for place, start in shifted])
            self._saved = self._line[self._elements]

    def is_current(self) -> bool:
        """Whether the network's tensors are those that were copied, and hold what they held."""
        return self._watched.is_unchanged()

    @torch.no_grad()
    def write(self, weights: Tensor, deltas: Tensor) -> None:
        """Put a mixture into the copy: weights (D,) of deltas (D, N)."""
        # In the steps of Mixer.mixture, each rounded on its own, so that merged filters give the same bits; a
        # product of matrices is rounded as the processor's library sees fit.
        mixed = torch.zeros_like(deltas[0])
        for delta, weight in zip(deltas, weights.to(deltas.dtype), strict=True):
            mixed += delta * weight
        self._line.index_copy_(0, self._elements, mixed.to(self._saved.dtype).add_(self._saved))

    def lend(self, places: Sequence[_Place]) -> None:
        """Let the network use the copy."""
        for place, view in zip(places, self._views, strict=True):
            place.hold(view)


class _Watched:
    """Parameters as they are now, to be told later whether one was replaced or written to.

    Args:
        holders: dictionaries of modules that hold them, and their names there.
    """

    def __init__(self, holders: Iterable[tuple[Mapping[str, Tensor | None], str]]) -> None:
        # Where it lies, and torch's count of writes where it keeps one.
        self._seen = [
            (held, name, tensor, tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version)
            for held, name in holders
            if (tensor := held[name]) is not None
        ]

    def is_unchanged(self) -> bool:
        """Whether all of them are the same, with the same numbers."""
        # Hundreds of these are asked for every image, and calls cost more than comparisons.
        for held, name, tensor, pointer, version in self._seen:
            if held[name] is not tensor or tensor.data_ptr() != pointer:
                return False
            if version >= 0 and tensor._version != version:
                return False
        return True


def _equal(one: Tensor | None, other: Tensor) -> bool:
    # On the meta device there are no values to compare.
    return one is not None and one.dtype == other.dtype and not one.is_meta and torch.equal(one, other)


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
