"""What matters for one degradation and not for the others: FAIG's elimination."""

from __future__ import annotations

from collections.abc import Mapping

from restorekit.errors import RestoreKitError
from restorekit.filterscores import Against, FilterScores


def contrasted(
    scores: Mapping[str, FilterScores],
    against: Against = "mean",
    *,
    shares: bool = False,
    weight: float = 1.0,
    other_base: bool = False,
) -> dict[str, FilterScores]:
    """Return the scores of each degradation less those of the others; they may then be negative.

    With two degradations this is the paper's elimination, and one contrast is the other's negative. For more
    the paper defines none: ``mean`` subtracts the mean of the others, ``max`` the largest of them.

    Args:
        scores: of the same filters, one for each degradation, by any key.
        against: what is made of several others.
        shares: compare shares of the sums of scores.
        weight: how often the others are subtracted.
        other_base: take scores of different bases too.

    Raises:
        RestoreKitError: there is only one, or what ``FilterScores.minus`` refuses.
    """
    if len(scores) < 2:
        raise RestoreKitError(
            "a contrast needs the scores of two degradations or more", "attribute another degradation too"
        )
    return {
        label: one.minus(
            *(other for key, other in scores.items() if key != label),
            against=against,
            shares=shares,
            weight=weight,
            other_base=other_base,
        )
        for label, one in scores.items()
    }
