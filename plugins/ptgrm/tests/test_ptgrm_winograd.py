"""The convolution with fewer multiplications: what it computes, and where it is chosen."""

import pytest
import torch
from torch.nn.functional import conv2d, pad

from restorekit.contracts import PriorFeatures
from restorekit_ptgrm import winograd
from restorekit_ptgrm.network import PTGRM
from restorekit_ptgrm.winograd import WinogradConvolution, matrices, pays


def case(height, width, batch=1, features=(5, 7), dtype=torch.float64, last=True):
    generator = torch.Generator().manual_seed(height * 100 + width)
    x = torch.randn(batch, features[0], height, width, generator=generator, dtype=dtype)
    weight = torch.randn(features[1], features[0], 3, 3, generator=generator, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x, weight


def test_six_values_come_of_eight_products():
    after, taps, before = matrices()
    values, filter = torch.randn(8, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = values.unfold(0, 3, 1) @ filter
    torch.testing.assert_close(after @ ((taps @ filter) * (before @ values)), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 1), (6, 8), (7, 3), (12, 12), (13, 17), (31, 45)])
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_result_is_that_of_the_plain_convolution(size, last):
    x, weight = case(*size, batch=2, last=last)
    result = WinogradConvolution.of(weight)(x)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert (result - conv2d(x, weight, padding=1)).abs().max() < 1e-10


@pytest.mark.parametrize(("above", "below"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_border_is_zero_where_it_is_asked_for(above, below):
    x, weight = case(15, 10)
    expected = conv2d(pad(x, (1, 1, above, below)), weight)
    assert (WinogradConvolution.of(weight)(x, above, below) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("size", [1, 30_000])
def test_blocks_do_not_change_the_result(size, monkeypatch):
    monkeypatch.setattr(winograd, "_BLOCK_BYTES", size)
    x, weight = case(40, 21)
    assert (WinogradConvolution.of(weight)(x) - conv2d(x, weight, padding=1)).abs().max() < 1e-10


def test_single_precision_loses_little():
    x, weight = case(32, 40, features=(144, 144), dtype=torch.float32)
    exact = conv2d(x.double(), weight.double(), padding=1)
    apart = (WinogradConvolution.of(weight)(x) - exact).abs().max()
    assert apart < 1e-5 * exact.abs().max()


def test_it_is_chosen_for_wide_large_maps_in_float_without_gradients():
    wide, large = torch.empty(144, 144, 3, 3), 128 * 128
    assert not pays(wide, large)
    with torch.no_grad():
        assert pays(wide, large) and pays(wide.double(), large)
        assert not pays(wide, 32 * 32) and not pays(wide[:, :32], large)
        assert not pays(wide.bfloat16(), large) and not pays(wide.to("meta"), large)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not pays(wide, large)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_refined_image_is_the_same_with_and_without_it(dtype, tolerance, monkeypatch):
    torch.manual_seed(0)
    network = PTGRM(prior_features=16, start="random").to(dtype).eval()
    degraded, restored = torch.rand(2, 1, 3, 258, 266, dtype=dtype)
    images = degraded, restored, PriorFeatures(torch.randn(1, 16, dtype=dtype))
    used = []
    plain = WinogradConvolution.__call__
    monkeypatch.setattr(WinogradConvolution, "__call__", lambda *given: used.append(1) or plain(*given))
    with torch.no_grad():
        fast, parts = network(*images), network.refine_in_parts(*images, 96)
        assert used
        monkeypatch.setattr("restorekit_ptgrm.attention.pays", lambda weight, pixels: False)
        assert (fast - network(*images)).abs().max() < tolerance
        assert (fast - parts).abs().max() < tolerance


def test_weights_are_stored_once():
    network = PTGRM(prior_features=16)
    names = set(network.state_dict())
    with torch.no_grad():
        network(*torch.rand(2, 1, 3, 260, 260), prior_of(16))
    assert set(network.state_dict()) == names


def prior_of(features):
    return PriorFeatures(torch.randn(1, features))
