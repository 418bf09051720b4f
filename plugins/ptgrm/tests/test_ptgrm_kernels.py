"""Kernels that every pixel gets for itself, beside convolutions of torch."""

import pytest
import torch
from ptgrm_cases import built
from torch.nn.functional import conv2d, pad, unfold

from restorekit_ptgrm.attention import by_taps, dynamic_convolution
from restorekit_ptgrm.strips import Work


def filtered(x, kernels):
    return dynamic_convolution(pad(x, (1, 1, 1, 1), mode="replicate"), kernels, 3)


def test_kernel_that_is_one_in_the_middle_is_the_identity():
    x, kernels = torch.rand(2, 4, 7, 9), torch.zeros(2, 9, 4, 7, 9)
    kernels[:, 4] = 1
    assert torch.equal(filtered(x, kernels.flatten(1, 2)), x)


def test_same_kernel_at_every_pixel_is_a_depthwise_convolution():
    x, kernel = torch.rand(2, 4, 7, 9), torch.rand(4, 1, 3, 3)
    kernels = by_taps(kernel.flatten(), 4)[None, :, None, None].expand(2, -1, 7, 9)
    expected = conv2d(pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=4)
    torch.testing.assert_close(filtered(x, kernels), expected)


def test_shifting_equals_unfolding_in_the_published_order():
    x, kernels = torch.rand(2, 4, 7, 9), torch.rand(2, 36, 7, 9)
    neighbours = unfold(pad(x, (1, 1, 1, 1), mode="replicate"), 3).view(2, 4, 9, 7, 9)
    expected = (neighbours * kernels.view(2, 4, 9, 7, 9)).sum(2)
    ordered = by_taps(kernels.transpose(0, 1), 4).transpose(0, 1)
    torch.testing.assert_close(filtered(x, ordered), expected)
    with torch.no_grad():
        torch.testing.assert_close(filtered(x, ordered), expected)


@pytest.mark.parametrize(("channel", "row", "column"), [(0, 0, 0), (2, 0, 2), (3, 2, 1)])
def test_one_weight_of_a_kernel_shifts_its_channel(channel, row, column):
    x, kernels = torch.rand(1, 4, 7, 9), torch.zeros(36, 1, 7, 9)
    kernels[channel * 9 + 3 * row + column] = 1
    result = filtered(x, by_taps(kernels, 4).transpose(0, 1))
    padded = pad(x, (1, 1, 1, 1), mode="replicate")
    assert torch.equal(result[:, channel], padded[:, channel, row : row + 7, column : column + 9])
    assert all(result[:, other].abs().sum() == 0 for other in range(4) if other != channel)


def test_gradients_of_the_dynamic_convolution_are_right():
    x = torch.rand(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    kernels = torch.rand(1, 18, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(filtered, (x, kernels))


def test_kernels_of_some_rows_at_a_time_are_those_of_all():
    network, f = built().double().attention, torch.rand(1, 16, 20, 24, dtype=torch.float64)
    embedded = network.prior(torch.rand(1, 16, dtype=torch.float64))
    with torch.no_grad():
        whole = network.spatial.filtered(f, embedded, None, Work())
        for budget in (1, 200_000, 10**9):
            rows = network.spatial.filtered(f, embedded, None, Work(budget))
            torch.testing.assert_close(rows, whole, atol=1e-12, rtol=0)
