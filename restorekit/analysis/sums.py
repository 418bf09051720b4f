"""An attribution on its way: sums over the images that are done, their file, and the count of gradients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from restorekit.analysis.pairs import Pair
from restorekit.analysis.result import Completeness, FAIGResult
from restorekit.analysis.walk import Parts
from restorekit.errors import ImageError, OutputError, WeightsError
from restorekit.files import replacing
from restorekit.filters import FilterTable, fingerprint

# Called with gradients done and gradients in all, 0 where nobody knows how many images come. While automatic
# steps are looked for, these count too, and all grow when the steps double.
Progress = Callable[[int, int], None]

_STATE = "restorekit.attribution/1"


@dataclass
class Count:
    """Gradients that are done, told as they come.

    Attributes:
        progress: told after each.
        images: how many there are; 0 where nobody knows.
        done: gradients.
        searched: those of them, done or begun, that look for a number of steps.
        steps: gradients for each image, as far as is known.
    """

    progress: Progress | None
    images: int
    done: int = 0
    searched: int = 0
    steps: int = 0

    def search(self, steps: int, probes: int) -> None:
        """Try a number of steps on a few images."""
        self.steps = steps
        self.searched += steps * probes

    def begin(self, steps: int, images: int) -> None:
        """Go on with a number of steps where some images are done."""
        self.steps = steps
        self.done += steps * images

    def step(self) -> None:
        """Count one gradient."""
        self.done += 1
        if self.progress:
            self.progress(self.done, self.searched + self.images * self.steps if self.images else 0)


@dataclass
class Sums:
    """Sums over the images that are done, and their file.

    Attributes:
        facts: what is attributed, and how; a file goes on only with the same.
        steps: gradients for each image; 0 before that is decided.
        marks: fingerprints of the images that are done.
        scores: sum of the scores of each filter; None before the first image.
        change: sum of the changes; likewise ``attributed``, ``filters``, and by tensor ``others``.
        error: sum of the absolute differences between the two.
        whole: sum of the absolute changes.
    """

    facts: dict[str, Any]
    steps: int = 0
    marks: list[str] = field(default_factory=list)
    scores: Tensor | None = None
    change: float = 0.0
    attributed: float = 0.0
    filters: float = 0.0
    error: float = 0.0
    whole: float = 0.0
    others: dict[str, float] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many are done."""
        return len(self.marks)

    def over(
        self,
        pairs: Iterable[Pair],
        zeros: Callable[[], Tensor],
        score: Callable[[Pair, Tensor], None],
        path: Path | None,
    ) -> None:
        """Score all images but those that are done, and save after each.

        Args:
            pairs: all images, also those that are done.
            zeros: makes the scores (F,) to begin with.
            score: adds those of one image in place; nothing, where it fails.
            path: of the file; None for none.

        Raises:
            ImageError: there are none, fewer than are done, or others.
            OutputError: the file cannot be written.
        """
        given = 0
        for given, pair in enumerate(pairs, 1):
            mark = fingerprint({"degraded": pair.degraded, "clean": pair.clean})
            if given <= self.images:
                self.check(given - 1, mark, pair.name)
                continue
            if self.scores is None:
                self.scores = zeros()
            score(pair, self.scores)
            self.marks.append(mark)
            self.save(path)
        if given < self.images:
            raise ImageError(
                f"the checkpoint has {self.images} images, and {given} are given",
                "give all that it was begun with, or remove the checkpoint",
            )
        if not given:
            raise no_images()

    def add(self, image: Parts) -> None:
        """Add what one image says beside its scores."""
        self.change += image.change
        self.attributed += image.attributed
        self.filters += image.filters
        self.error += abs(image.attributed - image.change)
        self.whole += abs(image.change)
        for name, value in image.others.items():
            self.others[name] = self.others.get(name, 0.0) + value

    def check(self, index: int, mark: str, name: str) -> None:
        """Refuse an image that is not the one that was done.

        Raises:
            ImageError: it is another; it is named.
        """
        if self.marks[index] != mark:
            raise ImageError(
                f"{name} is not the image that the checkpoint has at place {index + 1}",
                "give the same images in the same order, or remove the checkpoint",
            )

    def result(self, table: FilterTable) -> FAIGResult:
        """Return the means."""
        assert self.scores is not None
        count, facts = self.images, self.facts
        error = self.error / self.whole if self.whole else 0.0
        means = (self.change / count, self.attributed / count, self.filters / count)
        complete = Completeness(*means, error, self.whole / count)
        details = {
            "rule": facts["rule"],
            "steps": self.steps,
            "loss": facts["loss"],
            "images": count,
            "completeness": asdict(complete),
            "others": {name: value / count for name, value in self.others.items()},
        }
        values = self.scores / count
        return FAIGResult(table, values, "faig", facts["label"], facts["base"], facts["target"], details)

    def save(self, path: Path | None) -> None:
        """Write everything, whole or not at all; floats survive exactly.

        Raises:
            OutputError: it cannot be written, for example because the disk is full.
        """
        if path is None:
            return
        rest = {key: value for key, value in vars(self).items() if key != "scores"}
        tensors = {"scores": self.scores} if self.scores is not None and self.marks else {}
        try:
            with replacing(path) as temporary:
                save_file(tensors, temporary, {"format": _STATE, "sums": json.dumps(rest)})
        # The second is what the library makes of the first.
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"{path} cannot be written: {error}",
                "make room, or name a folder that exists; what was saved before is intact",
            ) from error

    @classmethod
    def begun(cls, path: Path | None, facts: dict[str, Any]) -> Self:
        """Go on from a file where there is one, else begin.

        Raises:
            WeightsError: as ``resumed``.
        """
        return cls.resumed(path, facts) if path and path.exists() else cls(facts)

    @classmethod
    def resumed(cls, path: Path, facts: dict[str, Any]) -> Self:
        """Read what ``save`` wrote.

        Raises:
            WeightsError: it is damaged, or of another attribution; what differs is named.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                found = cls(**json.loads(metadata["sums"]))
                found.scores = file.get_tensor("scores") if found.marks else None
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise WeightsError(
                f"{path} is no checkpoint of an attribution: {error}", "remove it, or name another file"
            ) from error
        # JSON has no tuples: both sides went through it.
        for key, value in json.loads(json.dumps(facts)).items():
            if found.facts.get(key) != value:
                raise WeightsError(
                    f"{path} was begun with {_other(key, found.facts.get(key), value)}",
                    "remove it, or name another file",
                )
        return found


def no_images() -> ImageError:
    """Return what to raise where there is nothing to look at."""
    return ImageError("there are no images to attribute with", "give at least one pair")


def _other(key: str, was: Any, now: Any) -> str:
    """Say how a fact differs from what it was."""
    if key != "table" or not was:
        return f"another {key}: {_short(was)}, now {_short(now)}"
    before, after = FilterTable.from_json(was), FilterTable.from_json(now)
    if before.unit != after.unit:
        return f"another unit: {before.unit}, now {after.unit}"
    one, other = ({tensor.name: tensor.shape for tensor in table} for table in (before, after))
    for name in (*one, *other):
        if one.get(name) != other.get(name):
            shapes = (str(found.get(name, "not among them")) for found in (one, other))
            return f"other layers: {name} is {', now '.join(shapes)}"
    return "the same layers in other groups, or in another order"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
