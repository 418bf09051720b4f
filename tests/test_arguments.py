import pytest

from restorekit.arguments import chosen_layers
from restorekit.errors import ConfigError


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [([-1], [-1]), ((2,), [-1]), ((2, -1), [-1]), ([0, -3], [0]), ((-1, 0), [-1, 0]), ([1, 0, 1], [0, 1])],
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
