"""Weights whose gate is turned round, as in the published code."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_LAST = "enhancement.score.last.weight"


def turn_gate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the same function for the other ``gate``.

    The published code lets the range map multiply the long-range branch, eq. 3 the short-range one. The last
    layer of the map has no bias, and sigmoid(-z) is 1 - sigmoid(z): negating it turns one into the other.

    Args:
        state: of a PTGRM, by its own names.

    Raises:
        KeyError: it has no range map.
    """
    return {**state, _LAST: -state[_LAST]}
