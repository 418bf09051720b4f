"""FAIG: which filters turned a network without an ability into one that has it.

Xie, Wang, Dong, Zhang, Shan: "Finding Discriminative Filters for Specific Degradations in Blind
Super-Resolution", NeurIPS 2021. Along the straight line from the target theta to the baseline theta' the
change of the loss L(theta') - L(theta) is the sum over all weights of (theta' - theta)_j times the mean
gradient; the score of a filter is the sum of the absolute values of its weights' parts, for one image, and
then the mean over images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence, Sized
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from restorekit.analysis.pairs import Pair, pairs_of
from restorekit.analysis.result import FAIGResult
from restorekit.analysis.rules import Rule, points
from restorekit.analysis.sums import Count, Progress, Sums, no_images
from restorekit.analysis.walk import (
    Criterion,
    Loss,
    Network,
    Walk,
    criterion_of,
    mark_of,
    network_of,
)
from restorekit.errors import RestoreKitError
from restorekit.filters import FilterTable, Unit

log = logging.getLogger(__name__)

# Where the search for a number of steps begins, ends, and how many images it looks at.
_FEWEST, _MOST, _PROBES = 8, 256, 2


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
            raise no_images()
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
