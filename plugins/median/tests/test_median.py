from __future__ import annotations

import pytest
import torch

from restorekit.errors import ConfigError
from restorekit.testing import check_backbone
from restorekit_median import Median


@pytest.mark.parametrize("window", [1, 3, 9])
def test_median_keeps_the_promises_of_a_backbone(window):
    check_backbone(Median, window=window)


def test_a_single_outlier_disappears():
    image = torch.full((1, 3, 5, 5), 0.25)
    image[..., 2, 2] = 1.0
    assert torch.equal(Median()(image), torch.full((1, 3, 5, 5), 0.25))


def test_values_by_hand_with_reflected_borders():
    image = torch.tensor([[0.0, 1, 2], [3, 4, 5], [6, 7, 8]]).reshape(1, 1, 3, 3)
    # Around the first pixel: 4 3 4 / 1 0 1 / 4 3 4, sorted 0 1 1 3 3 4 4 4 4.
    assert Median()(image)[0, 0].tolist() == [[3, 3, 4], [4, 4, 4], [4, 5, 5]]


def test_an_image_smaller_than_the_window_repeats_its_border():
    image = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    assert Median(window=5)(image)[0, 0].tolist() == [[0, 1]]


@pytest.mark.parametrize("window", [0, 2, -3])
def test_a_window_without_a_middle_is_refused(window):
    with pytest.raises(ConfigError, match=rf"params\.window: {window} is not odd and positive"):
        Median(window)
