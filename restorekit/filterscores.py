"""How much each filter of a network matters for one degradation, and which are the best.

Scores travel as a file: what finds filters and what uses them never meet. Attribution itself is the analysis
room.

Shape letters: ``F`` filters of the network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from restorekit.errors import OutputError, RestoreKitError, WeightsError
from restorekit.files import replacing
from restorekit.filters import FilterTable, check_word, fingerprint

Budget = Literal["parameters", "filters"]
Scope = Literal["network", "layer"]
Against = Literal["mean", "max"]

FORMAT = "restorekit.filter-scores/1"


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
    check_word("budget", budget, get_args(Budget))
    check_word("scope", scope, get_args(Scope))
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

    def minus(
        self,
        *others: FilterScores,
        against: Against = "mean",
        shares: bool = False,
        weight: float = 1.0,
        other_base: bool = False,
    ) -> Self:
        """Return these scores less those of others: FAIG's elimination of what matters for both.

        A degradation that costs more has larger scores all over: less those of a lighter one, they keep what
        serves both. As shares of their sums neither does.

        Args:
            *others: one or more, of the same filters.
            against: what is made of several: their mean, or the largest of each filter.
            shares: compare each filter's share of the sum of its scores.
            weight: how often the others are subtracted; the more, the less is left that serves them.
            other_base: take those of another base too, whose filters need not mean the same.

        Raises:
            RestoreKitError: there are none, they belong to other filters, or to another base; both are named;
                scores that are to be shares have no positive sum, or the weight is not positive.
        """
        check_word("against", against, get_args(Against))
        if not 0 < weight < math.inf:
            raise RestoreKitError(f"a weight of {weight:g} is not positive", "write 1 to subtract once")
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
        own = _shares(self) if shares else self.values
        rows = torch.stack([_shares(other) if shares else other.values for other in others])
        taken = rows.amax(0) if against == "max" else rows.mean(0)
        record = {
            "against": against,
            "labels": [other.label for other in others],
            "shares": shares,
            "weight": weight,
        }
        return replace(self, values=own - weight * taken, details={**self.details, "minus": record})

    def overlap(self, other: FilterScores, ratio: float) -> float:
        """Return the share of this one's best filters that are also the other's, in [0, 1].

        Raises:
            RestoreKitError: they are of other filters.
        """
        if other.table != self.table:
            raise RestoreKitError(f"the scores of {self.label} and {other.label} are of different filters")
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


def _shares(scores: FilterScores) -> Tensor:
    """Return the share of each filter in the sum of all scores (F,)."""
    total = scores.values.sum()
    if "minus" in scores.details or not total > 0:
        raise RestoreKitError(
            f"the scores of {scores.label} have no shares: they are contrasted already, or sum to nothing",
            "give scores as attribute wrote them",
        )
    return scores.values / total
