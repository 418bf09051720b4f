"""Deltas of several degradations made into one, and how much they are in each other's way.

Supports are sparse and mostly disjoint: only where they meet is there anything to decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from restorekit.errors import RestoreKitError
from restorekit_adms.deltas import Delta, SparseTensor, units_of

How = Literal["linear", "ties", "dare", "max_score"]
HOWS: tuple[How, ...] = ("linear", "ties", "dare", "max_score")


@dataclass(frozen=True)
class Overlap:
    """What two deltas have in common.

    Attributes:
        shared: numbers that both add to.
        union: numbers that either adds to.
        conflicts: of the shared ones, how many they pull in opposite directions.
    """

    shared: int
    union: int
    conflicts: int

    @property
    def iou(self) -> float:
        """Shared numbers as a share of the union."""
        return self.shared / max(1, self.union)

    @property
    def conflict_rate(self) -> float:
        """Conflicts as a share of the shared numbers."""
        return self.conflicts / max(1, self.shared)


def overlap(network: nn.Module, one: Delta, other: Delta) -> Overlap:
    """Compare two deltas of one network, number by number."""
    shared = union = conflicts = 0
    rows = [_by_number(network, delta) for delta in (one, other)]
    for name in dict.fromkeys([*rows[0], *rows[1]]):
        pair = [own[name] for own in rows if name in own]
        if len(pair) == 1:
            union += len(pair[0][0])
            continue
        places, values = _aligned(pair)
        both = ~values[:, :, 0].isnan().any(0)
        shared += int(both.sum())
        union += len(places)
        conflicts += int((values[0, both, 0] * values[1, both, 0] < 0).sum())
    return Overlap(shared, union, conflicts)


@torch.no_grad()
def combined(
    network: nn.Module,
    deltas: Mapping[str, Delta],
    weights: Mapping[str, float],
    how: How = "linear",
    *,
    density: float = 1.0,
    seed: int = 0,
) -> Delta:
    """Return one delta in place of several.

    Args:
        network: the base.
        deltas: by name.
        weights: by name; may be negative.
        how: ``linear`` adds up; ``ties`` trims each to its largest numbers and, where several meet, takes the
            mean of those of the stronger sign (Yadav et al., NeurIPS 2023); ``dare`` drops numbers by chance
            and scales up the rest, then adds (Yu et al., ICML 2024); ``max_score`` takes of each filter the
            one that weighs most there.
        density: share of the numbers that ties and dare keep, in (0, 1].
        seed: of dare.

    Raises:
        RestoreKitError: there is no such way, or no such density.
    """
    if how not in HOWS:
        raise RestoreKitError(f"deltas cannot be combined by {how!r}", f"use {', '.join(HOWS)}")
    if not 0 < density <= 1:
        raise RestoreKitError(f"a density of {density} is not in (0, 1]", "write 0.5 to keep half")
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for name, weight in weights.items():
        scaled = {
            tensor: (places, values * weight)
            for tensor, (places, values) in _rows(network, deltas, name).items()
        }
        if how == "dare":
            scaled = {key: (at, _dropped(values, density, generator)) for key, (at, values) in scaled.items()}
        elif how == "ties":
            scaled = _trimmed(scaled, density)
        rows.append(scaled)
    sizes: dict[str, tuple[Tensor, int]] = {}
    vectors: dict[str, int] = {}
    contents: dict[str, Tensor] = {}
    whole = {name for delta in deltas.values() for name, leaf in delta.leaves() if leaf.is_vector}
    for name in dict.fromkeys(name for own in rows for name in own):
        places, values = _aligned([own[name] for own in rows if name in own])
        contents[name] = _reduced(values, how)
        if name in whole:
            vectors[name] = len(places)
        else:
            sizes[name] = (places, values.shape[2])
    made = Delta(sizes, vectors)
    for name, leaf in made.leaves():
        leaf.values.copy_(contents[name].view_as(leaf.values))
    return made


def _rows(network: nn.Module, deltas: Mapping[str, Delta], name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return filters (U,) and values (U, M) of each tensor; by number where deltas are of other filters."""
    sizes: dict[str, set[int]] = {}
    for delta in deltas.values():
        for tensor, leaf in delta.leaves():
            sizes.setdefault(tensor, set()).add(0 if leaf.is_vector else leaf.val.shape[1])
    by_number = _by_number(network, deltas[name])
    return {
        tensor: (leaf.idx.long(), leaf.val.detach())
        if len(sizes[tensor]) == 1 and not leaf.is_vector
        else by_number[tensor]
        for tensor, leaf in deltas[name].leaves()
    }


def _by_number(network: nn.Module, delta: Delta) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the places in each flattened tensor (N,) and what is added there (N, 1)."""
    units = units_of(network, delta)

    def one(name: str, leaf: SparseTensor) -> tuple[Tensor, Tensor]:
        return leaf.elements(name, units), leaf.values.detach().reshape(-1, 1)

    return {name: one(name, leaf) for name, leaf in delta.leaves()}


def _aligned(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return all places (U,) ascending, and what each adds there (D, U, M), NaN for nothing."""
    places = torch.unique(torch.cat([own for own, _ in rows]))
    values = rows[0][1].new_full((len(rows), len(places), rows[0][1].shape[1]), torch.nan)
    for index, (own, content) in enumerate(rows):
        values[index, torch.searchsorted(places, own)] = content
    return places, values


def _reduced(values: Tensor, how: How) -> Tensor:
    """(D, U, M) -> (U, M)."""
    present, filled = ~values.isnan(), values.nan_to_num()
    if how == "ties":
        sign = filled.sum(0).sign()
        agreeing = present & (filled.sign() == sign) & (filled != 0)
        total: Tensor = (filled * agreeing).sum(0)
        return total / agreeing.sum(0).clamp(min=1)
    if how == "max_score":
        best = filled.abs().sum(2).argmax(0)
        return filled[best, torch.arange(filled.shape[1], device=best.device)]
    added: Tensor = filled.sum(0)
    return added


def _dropped(values: Tensor, density: float, generator: torch.Generator) -> Tensor:
    kept = torch.rand(values.shape, generator=generator).to(values.device) < density
    return values * kept / density


def _trimmed(rows: Mapping[str, tuple[Tensor, Tensor]], density: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Set all but the largest numbers of a delta to zero."""
    sizes = torch.cat([own.abs().flatten() for _, own in rows.values()])
    count = max(1, round(density * len(sizes)))
    least = sizes.sort(descending=True).values[count - 1]
    return {name: (places, values * (values.abs() >= least)) for name, (places, values) in rows.items()}
