"""Tell the degradation of an image by which filters it excites: no label and no clean image is needed.

FAIG (Xie et al., NeurIPS 2021) finds that an image's own filters overlap with those discovered for its
degradation. How the paper finds an image's own filters is not stated in what we could read; here the target's
own output stands in for the clean image. Thresholds are fitted on labelled images that are not tested on.

Shape letters: ``F`` filters of the network, ``K`` chosen ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from restorekit.analysis.pairs import pairs_of, pseudo_pairs
from restorekit.analysis.rules import Rule, points
from restorekit.analysis.walk import Loss, Network, Walk, criterion_of, network_of
from restorekit.errors import RestoreKitError
from restorekit.filters import FilterTable
from restorekit.filterscores import FilterScores, Scope, select


class ImageScorer:
    """Scores filters for single images, without clean ones.

    Args:
        base: the baseline, a network or its state.
        target: the target, a network.
        table: the filters to score.
        rule: how the path is walked.
        steps: gradients for each image; 16 are enough for a ranking.
        loss: between what a network on the path and the target make of the image.
        device: where to compute.
    """

    def __init__(
        self,
        base: Network,
        target: Network,
        table: FilterTable,
        *,
        rule: Rule = "mid",
        steps: int = 16,
        loss: Loss = "sse",
        device: torch.device | None = None,
    ) -> None:
        self._walk = Walk(base, target, table, device)
        self._model = network_of(target, base)
        if self._model is not target:
            raise RestoreKitError("the target is a state", "give it as a network: its output is compared")
        self._places, self._criterion = points(rule, steps), criterion_of(loss)[0]

    def __call__(self, degraded: Tensor) -> Tensor:
        """(C, H, W) or (1, C, H, W) -> (F,)."""
        (pair,) = pairs_of(pseudo_pairs(self._model, [degraded]), self._model)
        scores = self._walk.scores()
        self._walk.score(pair, self._places, self._criterion, scores)
        return scores


@dataclass(frozen=True)
class OverlapClassifier:
    """Names the degradations of an image by the overlap of its filters with discovered ones.

    OS(x, D) = |filters of D among filters of x| / |filters of x|; x has D if it exceeds the threshold of D.

    Attributes:
        table: the filters of the network.
        discovered: filters (K,) of each degradation.
        ratio: share of filters that an image's own are.
        thresholds: of each degradation.
        scope: of the choice, as for ``select``.
        share: likewise.
    """

    table: FilterTable
    discovered: Mapping[str, Tensor]
    ratio: float
    thresholds: Mapping[str, float]
    scope: Scope = "network"
    share: float = 1.0

    def overlaps(self, scores: Tensor) -> dict[str, float]:
        """Return the overlap score of an image for each degradation, from its filters' scores (F,).

        Raises:
            RestoreKitError: the ratio is so small that an image has no filters.
        """
        own = select(self.table, scores, self.ratio, budget="filters", scope=self.scope, share=self.share)
        return {
            label: torch.isin(own, filters).float().mean().item()
            for label, filters in self.discovered.items()
        }

    def degradations(self, scores: Tensor) -> set[str]:
        """Return what an image suffers from; nothing where no overlap exceeds its threshold."""
        return {label for label, score in self.overlaps(scores).items() if score > self.thresholds[label]}

    def accuracy(self, labelled: Iterable[tuple[Tensor, AbstractSet[str]]]) -> dict[str, float]:
        """Return for each degradation the share of images of which it is told rightly whether they have it.

        Images with and without it weigh the same, however many there are.

        Args:
            labelled: scores (F,) of images, with what they suffer from.
        """
        told = [(self.degradations(scores), labels) for scores, labels in labelled]
        return {
            label: balanced([(label in found, label in labels) for found, labels in told])
            for label in self.discovered
        }


def fit_overlap(
    discovered: Mapping[str, FilterScores],
    labelled: Sequence[tuple[Tensor, AbstractSet[str]]],
    ratio: float = 0.01,
    *,
    scope: Scope = "network",
    share: float = 1.0,
) -> OverlapClassifier:
    """Return the classifier whose thresholds tell labelled images best.

    Args:
        discovered: scores of each degradation, contrasted with the others; their best filters are compared.
        labelled: scores (F,) of images with what they suffer from; not those that are tested on.
        ratio: share of filters that count as discovered, and as an image's own.
        scope: of both choices, as for ``select``.
        share: likewise.

    Raises:
        RestoreKitError: there are no scores, they are of different filters, or no labelled image has or lacks
            a degradation.
    """
    if not discovered:
        raise RestoreKitError("a classifier needs discovered filters", "give scores of a degradation")
    table = next(iter(discovered.values())).table
    if any(scores.table != table for scores in discovered.values()):
        raise RestoreKitError(
            "the scores of the degradations are of different filters", "attribute them alike"
        )
    filters = {
        label: scores.top(ratio, budget="filters", scope=scope, share=share)
        for label, scores in discovered.items()
    }
    unfitted = OverlapClassifier(table, filters, ratio, {}, scope, share)
    overlaps = [(unfitted.overlaps(scores), labels) for scores, labels in labelled]
    thresholds = {
        label: _threshold([(found[label], label in labels) for found, labels in overlaps], label)
        for label in filters
    }
    return replace(unfitted, thresholds=thresholds)


def balanced(told: Sequence[tuple[bool, bool]]) -> float:
    """Return the mean of the shares of hits among positives and among negatives: (told, true) pairs."""
    sides = [[found == true for found, true in told if true is side] for side in (True, False)]
    shares = [sum(side) / len(side) for side in sides if side]
    return sum(shares) / len(shares) if shares else 0.0


def _threshold(found: Sequence[tuple[float, bool]], label: str) -> float:
    """Return the middle of the best gap between those without and those with the degradation."""
    if len({true for _, true in found}) < 2:
        raise RestoreKitError(
            f"labelled images need some with and some without {label}", "add images of other degradations"
        )
    levels = sorted({score for score, _ in found})
    # Halfway between neighbours, and below and above all; of equally good ones the widest gap.
    edges = [levels[0] - 1e-6, *levels, levels[-1] + 1e-6]
    best, gap, threshold = -1.0, 0.0, 0.0
    for low, high in pairwise(edges):
        middle = (low + high) / 2
        right = balanced([(score > middle, true) for score, true in found])
        if (right, high - low) > (best, gap):
            best, gap, threshold = right, high - low, middle
    return threshold
