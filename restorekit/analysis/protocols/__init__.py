"""What discovered filters are good for, one experiment of the FAIG paper a file.

They take any list of filters, whatever ranked it; ``substitution`` makes the networks between two networks
that the others run. Nothing here ranks, but that ``elimination`` chooses between contrasts by masking.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from restorekit.lazy import on_first_use

if TYPE_CHECKING:
    from restorekit.analysis.protocols.distribution import Distribution, distribution_map, distributions
    from restorekit.analysis.protocols.elimination import eliminated
    from restorekit.analysis.protocols.modulation import SHARES, modulate, strip
    from restorekit.analysis.protocols.overlap import ImageScorer, OverlapClassifier, fit_overlap
    from restorekit.analysis.protocols.retraining import retrain
    from restorekit.analysis.protocols.substitution import Drop, blended, gradient_map, mask_drop, mask_drops

_HOMES = {
    "Distribution": "distribution",
    "Drop": "substitution",
    "ImageScorer": "overlap",
    "OverlapClassifier": "overlap",
    "SHARES": "modulation",
    "blended": "substitution",
    "distribution_map": "distribution",
    "distributions": "distribution",
    "eliminated": "elimination",
    "fit_overlap": "overlap",
    "gradient_map": "substitution",
    "mask_drop": "substitution",
    "mask_drops": "substitution",
    "modulate": "modulation",
    "retrain": "retraining",
    "strip": "modulation",
}

__all__ = [
    "SHARES",
    "Distribution",
    "Drop",
    "ImageScorer",
    "OverlapClassifier",
    "blended",
    "distribution_map",
    "distributions",
    "eliminated",
    "fit_overlap",
    "gradient_map",
    "mask_drop",
    "mask_drops",
    "modulate",
    "retrain",
    "strip",
]

__getattr__, __dir__ = on_first_use(__name__, _HOMES)
