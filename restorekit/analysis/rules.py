"""Where a path from target to baseline is looked at, and how much each place counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Literal, get_args

import numpy as np

from restorekit.errors import RestoreKitError

Rule = Literal["mid", "left", "gauss"]
RULES: tuple[Rule, ...] = get_args(Rule)
# The rule and the number of steps of FAIG's release.
RELEASE: tuple[Rule, int] = ("left", 100)


def points(rule: Rule, steps: int) -> tuple[tuple[float, float], ...]:
    """Return places on the path, 0 the target and 1 the baseline, each with its weight; these sum to one.

    Args:
        rule: ``mid`` is the middle of each of the steps, exact where gradients are linear in the place;
            ``left`` is their end towards the target, as in FAIG's release; ``gauss`` is Gauss-Legendre, exact
            for gradients that are polynomials of a degree up to 2 * steps - 1.
        steps: how many places.

    Raises:
        RestoreKitError: the rule is unknown, there are no steps, or they are no whole number.
    """
    if rule not in RULES:
        raise RestoreKitError(f"no rule called {rule!r}; rules: {', '.join(RULES)}", "use mid")
    check_steps(steps)
    if rule == "gauss":
        places, weights = np.polynomial.legendre.leggauss(steps)
        return tuple(
            (float(place + 1) / 2, float(weight) / 2) for place, weight in zip(places, weights, strict=True)
        )
    offset = 0.5 if rule == "mid" else 0.0
    return tuple(((step + offset) / steps, 1 / steps) for step in range(steps))


def check_steps(steps: object) -> None:
    """Refuse what is no number of steps.

    Raises:
        RestoreKitError: it is no whole number of 1 or more.
    """
    if not isinstance(steps, Integral) or steps < 1:
        raise RestoreKitError(
            f"a path of {steps if isinstance(steps, Integral) else repr(steps)} steps cannot be walked",
            "use a whole number of 1 or more, or auto where steps are looked for",
        )


def spans(places: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return the part of the path that each place stands for, as its two ends: they join, and fill it.

    Args:
        places: as ``points`` gives them, in their order.
    """
    inner = list(accumulate(weight for _, weight in places))[:-1]
    # Not the last sum: rounded it may miss the end, or lie beyond it.
    return tuple(pairwise((0.0, *inner, 1.0)))
