from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pytest

from restorekit.arguments import chosen_layers, missing, mistyped
from restorekit.errors import ConfigError


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [([-1], [-1]), ((2,), [-1]), ((2, -1), [-1]), ([0, -3], [0]), ((-1, 0), [0, -1]), ([1, 0, 1], [0, 1])],
)
def test_layers_are_counted_once_and_the_last_is_always_called_the_same(layers, chosen):
    assert chosen_layers(layers, 3, "there are 3") == chosen


@pytest.mark.parametrize("layers", [-1, "ab", [1.5], [True], None, ["0"]])
def test_what_is_no_list_of_layers_is_told_what_is_wanted(layers):
    with pytest.raises(ConfigError, match=r"params\.layers: are .*\n.*give a list of whole numbers"):
        chosen_layers(layers, 3, "there are 3")


@pytest.mark.parametrize("layers", [[3], [-4], []])
def test_layers_that_do_not_exist_are_told_how_many_do(layers):
    with pytest.raises(ConfigError, match=r"params\.layers: are \[.*\n.*there are 3"):
        chosen_layers(layers, 3, "there are 3")


def network(
    width: int,
    blocks: Sequence[int] = (1, 1),
    share: float | None = None,
    gray: bool = False,
    start: Literal["still", "random"] = "still",
    name: str | None = None,
    more: Mapping[str, Any] | None = None,
    whatever: Any = None,
    *rest: int,
    untold=None,
    **others: object,
) -> None:
    """Take an argument of each kind."""


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"width": "3"}, ("width", "a whole number")),
        ({"width": 3.5}, ("width", "a whole number")),
        ({"width": True}, ("width", "a whole number")),
        ({"width": None}, ("width", "a whole number")),
        ({"width": 3, "blocks": 2}, ("blocks", "a list of whole numbers")),
        ({"blocks": "12"}, ("blocks", "a list of whole numbers")),
        ({"blocks": [1, "2"]}, ("blocks", "a list of whole numbers")),
        ({"share": "1e-3"}, ("share", "a number")),
        ({"gray": "no"}, ("gray", "true or false")),
        ({"start": 3}, ("start", "still or random")),
        ({"name": 3}, ("name", "text")),
        ({"more": [1]}, ("more", "a mapping of names to values")),
    ],
)
def test_an_argument_of_another_type_is_found_with_what_is_wanted(given, wanted):
    assert mistyped(network, given) == wanted


def test_arguments_of_the_right_type_are_left_alone():
    rest = {"start": "random", "name": None, "more": {}, "whatever": 1j, "untold": 1, "new": 2}
    assert mistyped(network, {"width": 3, "blocks": [1, 2], "share": 1, "gray": True, **rest}) is None
    # Which words there are a component says itself.
    assert mistyped(network, {"start": "stil"}) is None


def test_annotations_that_cannot_be_read_are_taken_to_be_met():
    def build(width: "Unknown") -> None:  # noqa: F821
        """Take what is known to type checkers alone."""

    assert mistyped(build, {"width": "x"}) is None


def test_what_has_no_default_is_missing_until_it_is_given():
    assert missing(network, []) == ["width"]
    assert missing(network, ["width"]) == []
    assert missing(partial(network, 3), []) == []
