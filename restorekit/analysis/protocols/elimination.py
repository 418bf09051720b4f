"""Eliminate from the filters of one degradation those that serve another, as far as a network needs it.

FAIG subtracts the scores of the other degradation once (Xie et al., NeurIPS 2021). Where that leaves much
that serves both, it can be subtracted more often; how often is right differs between networks, and masking
tells. The rule is ours: no publication has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from restorekit.analysis.contrast import contrasted
from restorekit.analysis.protocols.substitution import Metric, mask_drops
from restorekit.analysis.walk import Network
from restorekit.errors import RestoreKitError
from restorekit.filterscores import Budget, FilterScores

#: How often the others may be subtracted. Beyond, next to nothing is left of the own degradation.
WEIGHTS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 7.0, 8.0)

# A choice of filters: what they serve, how often the others were subtracted (0 for plain scores), the ratio.
_Key = tuple[str, float, float]
_PLAIN = 0.0


def eliminated(
    target: nn.Module,
    base: Network,
    scores: Mapping[str, FilterScores],
    images: Mapping[str, Iterable[Tensor]],
    *,
    ratios: Sequence[float] = (0.01, 0.05),
    weights: Sequence[float] = WEIGHTS,
    limit: float = 0.2,
    budget: Budget = "filters",
    metric: Metric = "luma",
    progress: Callable[[], None] = lambda: None,
) -> dict[str, FilterScores]:
    """Return scores contrasted in shares, each label's others subtracted as often as masking says.

    For every label and weight the best filters are taken out of the target. Of the weights that leave the
    others alone the one is chosen whose filters matter most for their own degradation: on images of another
    label they may cost at most ``limit`` of what that label's own filters cost there (those of the plain
    contrast), and the product of what they cost on images of their own, over all ratios, is the largest.
    Where no weight leaves the others alone, that is chosen which costs them least. The plain contrast takes
    part.

    Choose on other images than those on which you report what masking costs.

    Args:
        target: runs where it lies.
        base: the baseline, whose filters are put in.
        scores: of the same filters, one for each degradation, not contrasted.
        images: degraded, (C, H, W) or (1, C, H, W), by the labels of ``scores``.
        ratios: how much of the filters to look at, each in (0, 1].
        weights: those to choose from.
        limit: what others may lose, as a share of what their own filters cost them.
        budget: what ratios count.
        metric: see ``mask_drop``.
        progress: called after every image.

    Returns:
        Scores by label; ``details["minus"]`` says the weight of each.

    Raises:
        RestoreKitError: labels of images are others, there are no ratios or weights, or what ``contrasted``
            and ``mask_drops`` refuse.
    """
    if set(images) != set(scores):
        raise RestoreKitError(
            f"there are scores of {', '.join(scores)} and images of {', '.join(images)}",
            "give degraded images for each label that has scores",
        )
    if not ratios or not weights or not limit > 0:
        raise RestoreKitError("there is nothing to choose from", "give ratios, weights, and a limit above 0")
    found = {_PLAIN: contrasted(scores)}
    found |= {weight: contrasted(scores, shares=True, weight=weight) for weight in weights}
    choices: dict[_Key, Tensor] = {
        (label, weight, ratio): own[label].top(ratio, budget=budget)
        for weight, own in found.items()
        for label in scores
        for ratio in ratios
    }
    table = next(iter(scores.values())).table
    costs = {
        shown: {
            key: drop[metric].mean
            for key, drop in mask_drops(target, base, table, choices, pictures, (metric,), progress).items()
        }
        for shown, pictures in images.items()
    }
    return {label: found[_best(label, tuple(found), ratios, limit, costs)][label] for label in scores}


def _best(
    label: str,
    weights: Sequence[float],
    ratios: Sequence[float],
    limit: float,
    costs: Mapping[str, Mapping[_Key, float]],
) -> float:
    def harm(weight: float) -> float:
        return max(
            _share(costs[other][label, weight, ratio], costs[other][other, _PLAIN, ratio])
            for other in costs
            if other != label
            for ratio in ratios
        )

    def worth(weight: float) -> float:
        return math.prod(costs[label][label, weight, ratio] for ratio in ratios)

    gentle = [weight for weight in weights if harm(weight) <= limit]
    return max(gentle, key=worth) if gentle else min(weights, key=harm)


def _share(part: float, whole: float) -> float:
    if whole > 0:
        return part / whole
    return math.inf if part > 0 else 0.0
