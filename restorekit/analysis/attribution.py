"""FAIG: which filters turned a network without an ability into one that has it.

Xie, Wang, Dong, Zhang, Shan: "Finding Discriminative Filters for Specific Degradations in Blind
Super-Resolution", NeurIPS 2021. Along the straight line from the target theta to the baseline theta' the
change of the loss L(theta') - L(theta) is the sum over all weights of (theta' - theta)_j times the mean
gradient; the score of a filter is the sum of the absolute values of its weights' parts, for one image, and
then the mean over images.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from restorekit.analysis.pairs import Pair, pairs_of
from restorekit.analysis.rules import Rule, points
from restorekit.analysis.walk import (
    Criterion,
    Loss,
    Network,
    Parts,
    Walk,
    criterion_of,
    mark_of,
    network_of,
)
from restorekit.errors import ImageError, OutputError, RestoreKitError, WeightsError
from restorekit.files import replacing
from restorekit.filters import FilterTable, Unit, fingerprint
from restorekit.filterscores import FilterScores

log = logging.getLogger(__name__)

# Called with gradients done and gradients in all, 0 where nobody knows how many images come. While automatic
# steps are looked for, these count too, and all grow when the steps double.
Progress = Callable[[int, int], None]

_STATE = "restorekit.attribution/1"
# What a result has beside its scores.
_FACTS = ("rule", "steps", "loss", "images", "completeness", "others")
# Where the search for a number of steps begins, ends, and how many images it looks at.
_FEWEST, _MOST, _PROBES = 8, 256, 2


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


def attribute(
    base: Network,
    target: Network,
    pairs: Iterable[Sequence[Any]],
    *,
    label: str,
    rule: Rule = "mid",
    steps: int | Literal["auto"] = "auto",
    tolerance: float = 0.02,
    unit: Unit = "kernel",
    include: str = "",
    exclude: str = "",
    raw: str = "",
    loss: Loss = "sse",
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
) -> FAIGResult:
    """Score every filter by its part in what training on a degradation changed: FAIG.

    ``rule="left", steps=100`` is the release's discretisation. The contrast with other degradations is
    ``FilterScores.minus``: attribute each degradation once, then subtract.

    Args:
        base: the baseline without the ability, as a network or as its state.
        target: the network with the ability, fine-tuned from the baseline; one of the two is a network: a
            ``Backbone``, or any module that keeps the shape of its images (B, C, H, W).
        pairs: degraded and clean images in [0, 1], which noise may leave, (C, H, W) or (1, C, H, W),
            optionally with a name as third; for a network of scale s the clean one is s times as large.
            Degraded images are padded to the network's multiple as in pipelines, and only pixels of the image
            enter the loss. Images that come again must be the same: with ``checkpoint``, those that are done
            are compared.
        label: what the filters matter for, the name of a degradation.
        rule: how the path is walked, see ``points``.
        steps: gradients for each image; ``auto`` doubles from 8 to at most 256, until on the first two images
            the completeness error is below the tolerance.
        tolerance: see ``steps``.
        unit: what counts as one filter, see ``FilterTable``.
        include: pattern that names of weights must match.
        exclude: pattern of weights to leave out; they move along the path, and are not scored.
        raw: pattern of parameters outside of layers to score too.
        loss: ``sse`` as in FAIG, ``mse`` where images differ in size, or any function of restored and clean
            images (1, C, H, W) that returns a scalar.
        device: where to compute; where the network lies when not given.
        progress: called after every gradient with how many are done, and how many there are in all.
        checkpoint: file that is written after every image and, where it exists, gone on from; the result is
            the same bit by bit. It is left in place: remove it once the result is saved.

    Returns:
        scores of all filters, each 0 or more, in the precision of the network; float32 in files.

    Raises:
        ImageError: a pair does not fit; it is named. Or there are none, or fewer than the
            checkpoint has.
        WeightsError: base and target differ in their architecture, or the checkpoint is of something else.
        OutputError: the checkpoint cannot be written.
        RestoreKitError: the unit, the rule, the loss or the number of steps is unknown, the tolerance is no
            number of 0 or more, nothing differs, or a loss or a gradient is not finite: it is named.
    """
    model = network_of(target, base)
    table = FilterTable.of(model, unit, include=include, exclude=exclude, raw=raw)
    criterion, loss_name = criterion_of(loss)
    if not isinstance(tolerance, Real) or not tolerance >= 0:
        raise RestoreKitError(
            f"a completeness error of {tolerance!r} cannot be reached",
            "use a tolerance of 0 or more, as 0.02",
        )
    auto = steps == "auto"
    points(rule, _FEWEST if steps == "auto" else steps)
    walk = Walk(base, target, table, torch.device(device) if device is not None else None)
    facts = {
        "method": "faig",
        "table": table.to_json(),
        "label": label,
        "base": mark_of(base, model),
        "target": mark_of(target, model),
        "rule": rule,
        "loss": loss_name,
        "asked": str(tolerance) if auto else str(steps),
    }
    file = None if checkpoint is None else Path(checkpoint)
    sums = Sums.begun(file, facts)
    count = Count(progress, len(pairs) if isinstance(pairs, Sized) else 0)
    checked = pairs_of(pairs, model)
    if not sums.steps:
        first = list(islice(checked, _PROBES))
        # Before a number of steps that no image asked for is kept.
        if not first:
            raise _no_images()
        checked = chain(first, checked)
        sums.steps = (
            _enough(walk, first, rule, criterion, tolerance, count) if steps == "auto" else int(steps)
        )
        sums.save(file)
    places = points(rule, sums.steps)
    count.begin(sums.steps, sums.images)

    def score(pair: Pair, into: Tensor) -> None:
        sums.add(walk.score(pair, places, criterion, into, count.step))

    sums.over(checked, walk.scores, score, file)
    return sums.result(table)


def _enough(
    walk: Walk, probes: Sequence[Pair], rule: Rule, criterion: Criterion, tolerance: float, count: Count
) -> int:
    """Return how many steps make the parts of a few images add up."""
    steps = _FEWEST
    while True:
        count.search(steps, len(probes))
        scored = [walk.score(pair, points(rule, steps), criterion, step=count.step) for pair in probes]
        change = sum(abs(one.change) for one in scored)
        error = sum(abs(one.attributed - one.change) for one in scored)
        if error <= tolerance * change:
            return steps
        if steps == _MOST:
            log.warning(
                "%d steps still miss %.3g of a change of %.3g in the loss: the order of filters may be off",
                *(steps, error, change),
            )
            return steps
        steps *= 2


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
            raise _no_images()

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


def _no_images() -> ImageError:
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
