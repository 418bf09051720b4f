"""What an attribution found: scores of filters, and how well their parts add up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from restorekit.errors import WeightsError
from restorekit.filterscores import FilterScores

# What a result has beside its scores.
_FACTS = ("rule", "steps", "loss", "images", "completeness", "others")


@dataclass(frozen=True)
class Completeness:
    """How well the parts add up to the whole.

    Attributes:
        change: loss of the baseline less loss of the target, mean over images.
        attributed: what all weights, biases and buffers account for together, mean over images.
        filters: what filters account for, mean over images.
        error: sum over images of the difference between ``attributed`` and ``change``, as a share of the sum
            of the changes; what more steps make smaller.
        whole: those changes without their signs, mean over images; that of the mean change where a file does
            not say.
    """

    change: float
    attributed: float
    filters: float
    error: float
    whole: float = 0.0

    def __post_init__(self) -> None:
        if not self.whole:
            object.__setattr__(self, "whole", abs(self.change))

    @property
    def unattributed(self) -> float:
        """Share of the change that no filter accounts for: that of biases, norms and buffers; may be < 0."""
        return 1 - self.filters / self.attributed if self.attributed else 0.0


class FAIGResult(FilterScores):
    """Scores of filters with the facts of their attribution; a file of it is one of ``FilterScores``."""

    @property
    def images(self) -> int:
        """How many images were looked at."""
        return int(self.details["images"])

    @property
    def rule(self) -> str:
        """The rule by which the path was walked."""
        return str(self.details["rule"])

    @property
    def steps(self) -> int:
        """Gradients for each image."""
        return int(self.details["steps"])

    @property
    def loss(self) -> str:
        """Name of the loss."""
        return str(self.details["loss"])

    @property
    def completeness(self) -> Completeness:
        """How well the parts add up; that of the attribution itself, also after a contrast."""
        return Completeness(**self.details["completeness"])

    @property
    def others(self) -> dict[str, float]:
        """Absolute attribution of each moved tensor without filters (biases, norms), mean over images."""
        return dict(self.details["others"])

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what ``save`` wrote.

        Raises:
            WeightsError: the file is missing, damaged, of another kind, or its scores are no attribution's.
        """
        found = super().load(path)
        missing = [name for name in _FACTS if name not in found.details]
        if missing:
            raise WeightsError(
                f"the scores of {path} are by {found.method} and say nothing of an attribution:"
                f" {', '.join(missing)} missing",
                "read it with FilterScores.load",
            )
        return found
