"""What matters for one degradation and not for the others: FAIG's elimination."""

from __future__ import annotations

from collections.abc import Mapping

from restorekit.errors import RestoreKitError
from restorekit.filterscores import Against, FilterScores


def contrasted(
    scores: Mapping[str, FilterScores], against: Against = "mean", *, other_base: bool = False
) -> dict[str, FilterScores]:
    """Return the scores of each degradation less those of the others; they may then be negative.

    With two degradations this is the paper's elimination, and one contrast is the other's negative. For more
    the paper defines none: ``mean`` subtracts the mean of the others, ``max`` the largest of them.

    Args:
        scores: of the same filters, one for each degradation, by any key.
        against: what is made of several others.
        other_base: take scores of different bases too.

    Raises:
        RestoreKitError: there is only one, or they are of different filters or bases.
    """
    if len(scores) < 2:
        raise RestoreKitError(
            "a contrast needs the scores of two degradations or more", "attribute another degradation too"
        )
    return {
        label: one.minus(
            *(other for key, other in scores.items() if key != label), against=against, other_base=other_base
        )
        for label, one in scores.items()
    }
