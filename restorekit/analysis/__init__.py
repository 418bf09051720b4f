"""Which filters of a network do what: attribution between two trained networks, and what it is good for.

What is measured on: pairs, walk, rules. What ranks filters: attribution (FAIG), rankers, contrast, joining;
its sums on the way, and its result.
What the ranks are used for: protocols. The published experiment as a whole: reproduce. Scores of filters,
their order and their files are ``restorekit.filterscores``; networks that use them are plug-ins.

Names are imported on first use: the commands that only look at scores need no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from restorekit.lazy import on_first_use

if TYPE_CHECKING:
    from restorekit.analysis.attribution import attribute
    from restorekit.analysis.contrast import contrasted
    from restorekit.analysis.joining import joined
    from restorekit.analysis.pairs import Pair, pairs_of, pseudo_pairs, restored
    from restorekit.analysis.rankers import METHODS, rank
    from restorekit.analysis.result import Completeness, FAIGResult
    from restorekit.analysis.rules import RULES, points

_HOMES = {
    "Completeness": "result",
    "FAIGResult": "result",
    "METHODS": "rankers",
    "Pair": "pairs",
    "RULES": "rules",
    "attribute": "attribution",
    "contrasted": "contrast",
    "joined": "joining",
    "pairs_of": "pairs",
    "points": "rules",
    "pseudo_pairs": "pairs",
    "rank": "rankers",
    "restored": "pairs",
}

__all__ = [
    "METHODS",
    "RULES",
    "Completeness",
    "FAIGResult",
    "Pair",
    "attribute",
    "contrasted",
    "joined",
    "pairs_of",
    "points",
    "pseudo_pairs",
    "rank",
    "restored",
]

__getattr__, __dir__ = on_first_use(__name__, _HOMES)
