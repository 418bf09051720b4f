"""What else could tell which filters matter: the methods that FAIG was compared with, and controls.

All give ``FilterScores``, so that every protocol runs on every method.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from restorekit.analysis.attribution import attribute
from restorekit.analysis.pairs import Pair, Terms, pairs_of, restored
from restorekit.analysis.rules import Rule, check_steps
from restorekit.analysis.sums import Count, Progress, Sums
from restorekit.analysis.walk import Loss, Network, Walk, check_same, mark_of, network_of, state_of, steady
from restorekit.errors import RestoreKitError, WeightsError
from restorekit.filters import FilterTable, Unit
from restorekit.filterscores import FilterScores

Method = Literal["faig", "ig", "delta", "gradxdelta", "random"]
METHODS: tuple[Method, ...] = get_args(Method)

# Smaller denominators are taken for this: a filter that was zero has no relative change.
_TINY = 1e-12


def rank(
    method: Method,
    base: Network,
    target: Network,
    pairs: Iterable[Sequence[Any]] = (),
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
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    checkpoint: str | Path | None = None,
) -> FilterScores:
    """Score filters by any method; arguments that a method does not need are not looked at.

    Args:
        method: ``faig`` is ``attribute``; ``ig`` integrates gradients along the image instead of the weights;
            ``delta`` is the relative change of the weights; ``gradxdelta`` is FAIG with a single gradient, at
            the target; ``random`` is chance.
        base: the baseline, a network or its state.
        target: the target, likewise.
        pairs: degraded and clean images, as for ``attribute``; delta and random look at none.
        label: what the filters matter for.
        rule: as for ``attribute``, for faig.
        steps: as for ``attribute``, for faig and ig; ``auto`` is 100 for ig.
        tolerance: as for ``attribute``, for faig.
        unit: what counts as one filter.
        include: pattern that names of weights must match.
        exclude: pattern of weights to leave out.
        raw: pattern of parameters outside of layers to score too.
        loss: as for ``attribute``, for faig and gradxdelta.
        seed: of ``random``.
        device: where to compute; where the network lies when not given.
        progress: as for ``attribute``.
        checkpoint: as for ``attribute``, for faig, ig and gradxdelta.

    Raises:
        RestoreKitError: the method is unknown or not for such a network, or what ``attribute`` refuses.
    """
    if method not in METHODS:
        raise RestoreKitError(f"no method called {method!r}; methods: {', '.join(METHODS)}", "use faig")
    if method in ("faig", "gradxdelta"):
        single = method == "gradxdelta"
        found = attribute(
            base,
            target,
            pairs,
            label=label,
            rule="left" if single else rule,
            steps=1 if single else steps,
            tolerance=0.0 if single else tolerance,
            unit=unit,
            include=include,
            exclude=exclude,
            raw=raw,
            loss=loss,
            device=device,
            progress=progress,
            checkpoint=checkpoint,
        )
        return replace(found, method=method)
    model = network_of(target, base)
    check_same(state_of(base), state_of(target), model)
    table = FilterTable.of(model, unit, include=include, exclude=exclude, raw=raw)
    marks = {"base": mark_of(base, model), "target": mark_of(target, model)}
    details: dict[str, Any] = {}
    if method == "ig":
        terms = Terms.of(model)
        if terms.out_channels not in (None, terms.channels):
            raise RestoreKitError(
                f"ig goes from the clean image to the degraded one, and {type(model).__name__} takes"
                f" {terms.channels} channels and gives {terms.out_channels}",
                "use faig, which goes along the weights",
            )
        steps = 100 if steps == "auto" else steps
        check_steps(steps)
        steps = int(steps)
        walk = Walk(base, target, table, torch.device(device) if device is not None else None)
        facts = {"method": method, "table": table.to_json(), "label": label, **marks, "asked": str(steps)}
        file = None if checkpoint is None else Path(checkpoint)
        sums = Sums.begun(file, facts)
        count = Count(progress, len(pairs) if isinstance(pairs, Sized) else 0)
        count.begin(steps, sums.images)
        values = _integrated(walk, pairs_of(pairs, model), steps, sums, count, file)
        details = {"steps": steps, "images": sums.images}
    elif method == "delta":
        values = relative_change(state_of(base), state_of(target), table)
    else:
        values = torch.rand(len(table), generator=torch.Generator().manual_seed(seed))
        details = {"seed": seed}
    return FilterScores(table, values, method, label, marks["base"], marks["target"], details)


def relative_change(base: Mapping[str, Tensor], target: Mapping[str, Tensor], table: FilterTable) -> Tensor:
    """Return the change of each filter relative to its size in the baseline: (F,).

    sum |theta - theta'| / sum |theta'|: the same for every degradation.

    Raises:
        WeightsError: a weight is not finite; its tensor is named.
    """
    rows = []
    for tensor in table:
        one, other = (tensor.rows(state[tensor.name].detach().float().cpu()) for state in (target, base))
        for weights, what in ((one, "target"), (other, "base")):
            if not bool(torch.isfinite(weights).all()):
                raise WeightsError(
                    f"{tensor.name} of the {what} holds NaN or infinity", "give weights that are finite"
                )
        rows.append((one - other).abs().sum(1) / other.abs().sum(1).clamp_min(_TINY))
    return torch.cat(rows)


def _integrated(
    walk: Walk, pairs: Iterable[Pair], steps: int, sums: Sums, count: Count, checkpoint: Path | None
) -> Tensor:
    """Score by gradients of the summed output of the target, along a line from a clean input to the degraded.

    As FAIG's authors ran it: the absolute value of each weight's sum over the line, without the product with
    the difference of the images. The clean input of a network that enlarges is the clean image reduced.
    """
    table = walk.table
    parameters = dict(walk.network.named_parameters())
    weights = {tensor.name: parameters[tensor.name] for tensor in table}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in weights)
    like = next(iter(weights.values()))

    def score(pair: Pair, into: Tensor) -> None:
        degraded = pair.degraded.to(like)
        clean = reduced_to(pair.clean.to(like), degraded)
        with steady(walk.device):
            for place in torch.linspace(0, 1, steps).tolist():
                torch.manual_seed(0)
                output = restored(walk.network, torch.lerp(clean, degraded, place))
                torch.autograd.backward(output.sum() / steps, inputs=list(weights.values()))
                count.step()
        for tensor in table:
            gradient, weights[tensor.name].grad = weights[tensor.name].grad, None
            if gradient is None:
                continue
            if not bool(torch.isfinite(gradient).all()):
                raise RestoreKitError(
                    f"{pair.name}: the gradient of {tensor.name} is not finite", "leave the image out"
                )
            part = into[tensor.offset : tensor.offset + tensor.count]
            part += tensor.rows(gradient.abs()).sum(1).to(part)

    sums.over(pairs, walk.scores, score, checkpoint)
    assert sums.scores is not None
    return sums.scores / sums.images


def reduced_to(clean: Tensor, degraded: Tensor) -> Tensor:
    """Return the clean image in the size of the degraded one, bicubic with an antialiasing filter."""
    if clean.shape[-2:] == degraded.shape[-2:]:
        return clean
    return interpolate(clean, degraded.shape[-2:], mode="bicubic", antialias=True)
