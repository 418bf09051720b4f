"""Which filters a degradation gets: by scores or by chance, how many, and what they begin with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from restorekit.errors import ConfigError, RestoreKitError, WeightsError, near
from restorekit.filters import FilterTable, Unit
from restorekit.filterscores import Budget, FilterScores, Scope, select
from restorekit.weights import read_tensors
from restorekit_adms.deltas import Delta, Vectors, check_unit, random_scores, units_of, vectors_of

Mask = Literal["scores", "random"]
Init = Literal["zeros", "copy"]


@dataclass(frozen=True)
class Choice:
    """How filters are chosen; see ``Adms`` for what the arguments mean.

    Raises:
        ConfigError: an argument makes no sense.
    """

    scores: Mapping[str, str] = field(default_factory=dict)
    ratio: float = 0.03
    budget: Budget = "parameters"
    unit: Unit | None = None
    scope: Scope = "network"
    share: float = 1.0
    exclusive: bool = False
    mask: Mask = "scores"
    seed: int = 0
    vectors: Vectors = "none"
    init: Init = "zeros"
    specialists: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        words: dict[str, Any] = {
            "budget": Budget,
            "scope": Scope,
            "mask": Mask,
            "vectors": Vectors,
            "init": Init,
        }
        for key, allowed in words.items():
            check_word(key, getattr(self, key), get_args(allowed))
        if not 0 < self.ratio <= 1:
            raise ConfigError(
                "params.ratio", f"{self.ratio} is not in (0, 1]", "write 0.03 for three per cent"
            )
        if self.unit:
            check_unit(self.unit)

    @property
    def facts(self) -> dict[str, Any]:
        """What a file says of it: what counts for filters that are added, too."""
        stated = ("ratio", "budget", "unit", "scope", "share", "exclusive", "mask", "vectors")
        return {key: getattr(self, key) for key in stated}

    def begin(self, backbone: nn.Module, names: Iterable[str]) -> dict[str, Delta]:
        """Return filters for degradations by the files of scores, at what they begin with.

        Raises:
            ConfigError: there is no file of scores or of a specialist for one.
            RestoreKitError: as ``among`` does.
        """
        names = tuple(names)
        # By chance, where scores are named, too: those say of what filters.
        chance = self.mask == "random"
        found = self.among(backbone, {name: self._scores(name) for name in names}, chance=chance)
        if self.init == "copy":
            for name in names:
                found[name].copy_difference(backbone, self._specialist(name))
        return found

    def among(
        self,
        backbone: nn.Module,
        scores: Mapping[str, FilterScores | None],
        ratio: float | None = None,
        *,
        others: Iterable[Delta] = (),
        chance: bool = False,
    ) -> dict[str, Delta]:
        """Return filters for degradations, at zero.

        Args:
            backbone: the base.
            scores: by degradation; None for filters by chance.
            ratio: share of the filters; the own one when not given.
            others: that have filters already, and keep them where filters are exclusive: what these scored
                there is not known any more.
            chance: take as many of the scored filters by chance.

        Raises:
            RestoreKitError: scores are of another base or of different filters, the network has no filters,
                the ratio is too small, or others have all the filters that were chosen.
        """
        given = [each for each in scores.values() if each]
        for each in given:
            each.check_base(backbone.state_dict())
        table = given[0].table if given else FilterTable.of(backbone, self.unit or "kernel")
        if any(each.table != table for each in given):
            raise RestoreKitError(
                "the scores are of different kinds of filters", "score all degradations with the same unit"
            )
        values = {
            name: each.values if each and not chance else random_scores(table, self.seed, name)
            for name, each in scores.items()
        }
        part = self.ratio if ratio is None else ratio
        chosen = {
            name: select(table, each, part, budget=self.budget, scope=self.scope, share=self.share)
            for name, each in values.items()
        }
        if self.exclusive:
            held = _held(backbone, table, others)
            chosen = {name: _free(name, each, held) for name, each in _exclusive(chosen, values).items()}
        vectors = vectors_of(backbone) if self.vectors == "all" else {}
        found = {}
        for name, filters in chosen.items():
            delta = Delta.choose(table, filters, vectors)
            if delta.parameter_count == 0:
                raise RestoreKitError(
                    f"a ratio of {part} is less than one filter of this network", "raise params.ratio"
                )
            found[name] = delta.to(next(backbone.parameters()).device)
        return found

    def _scores(self, name: str) -> FilterScores | None:
        path = self.scores.get(name)
        if path is None:
            if self.mask == "random":
                return None
            raise ConfigError(
                "params.scores",
                f"there are no scores for {name}",
                f"scores: {{{name}: FILE}} as `restorekit faig` writes, or mask: random",
            )
        scores = FilterScores.load(path)
        if self.unit and scores.table.unit != self.unit:
            raise ConfigError(
                "params.unit",
                f"is {self.unit}, the scores in {path} are of {scores.table.unit}",
                f"write unit: {scores.table.unit}",
            )
        return scores

    def _specialist(self, name: str) -> dict[str, Tensor]:
        if name not in self.specialists:
            raise ConfigError(
                "params.specialists",
                f"init: copy needs the network that was fine-tuned on {name}",
                f"specialists: {{{name}: FILE}}",
            )
        path = Path(self.specialists[name])
        if not path.is_file():
            raise WeightsError(f"no file {path}", "check the path")
        return read_tensors(path)


def check_word(key: str, word: str, known: tuple[str, ...]) -> None:
    """Refuse an argument that is none of the known words.

    Raises:
        ConfigError: names the nearest.
    """
    if word not in known:
        raise ConfigError(
            f"params.{key}", f"is {word!r}", near(str(word), known) or f"use {', '.join(known)}"
        )


def _exclusive(chosen: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave each filter to the degradation that it scores highest for; the first of equals."""
    names = list(chosen)
    held = torch.full((len(names), len(values[names[0]])), -torch.inf)
    for row, name in enumerate(names):
        held[row, chosen[name]] = values[name][chosen[name]].float()
    best = held.argmax(0)
    return {name: filters[best[filters] == row] for row, (name, filters) in enumerate(chosen.items())}


def _held(backbone: nn.Module, table: FilterTable, deltas: Iterable[Delta]) -> Tensor:
    """Return which filters of a table (F,) deltas add to; vectors are everyone's."""
    masks = {tensor.name: torch.zeros(tensor.parameters, dtype=torch.bool) for tensor in table}
    for delta in deltas:
        units = units_of(backbone, delta)
        for name, leaf in delta.leaves():
            if name in masks and not leaf.is_vector:
                masks[name][leaf.elements(name, units).cpu()] = True
    return torch.cat([tensor.rows(masks[tensor.name].view(tensor.shape)).any(1) for tensor in table])


def _free(name: str, filters: Tensor, held: Tensor) -> Tensor:
    free = filters[~held.to(filters.device)[filters]]
    if len(filters) and not len(free):
        raise RestoreKitError(
            f"other degradations have all the filters that were chosen for {name}",
            "raise the ratio, or set params.exclusive: false",
        )
    return free
