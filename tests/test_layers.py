import pytest
import torch
from torch.nn.functional import layer_norm

from restorekit.layers import ChannelNorm, luma


def normed():
    layer = ChannelNorm(5, eps=1e-6)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(1.0, 6.0))
        layer.bias.copy_(torch.linspace(-1, 1, 5))
    return layer


def test_each_pixel_is_normalised_over_its_channels_alone():
    x = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    layer = normed()
    whole = layer(x).detach()
    for row in range(3):
        for column in range(4):
            pixel = x[:, :, row, column].double()
            centred = pixel - pixel.mean(1, keepdim=True)
            expected = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
            expected = expected * layer.weight.detach() + layer.bias.detach()
            torch.testing.assert_close(whole[:, :, row, column].double(), expected, atol=1e-5, rtol=0)


def test_eps_counts():
    x = torch.full((1, 5, 1, 1), 1e-3)
    x[:, 0] = 0
    small, large = (float(ChannelNorm(5, eps)(x).detach().abs().max()) for eps in (1e-12, 1.0))
    assert small > 1 > 1e-2 > large


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_order_changes_nothing_but_itself(memory_format):
    x = torch.rand(1, 5, 6, 7)
    output = normed()(x.to(memory_format=memory_format))
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, normed()(x), atol=1e-6, rtol=0)


def test_half_precision_is_summed_in_float32():
    # 300 squares of 300 are beyond float16.
    x = 300 * torch.randn(1, 300, 2, 2, generator=torch.Generator().manual_seed(0))
    layer = ChannelNorm(300, eps=1e-6)
    exact = layer(x)
    half = layer.half()(x.half()).float()
    assert float((half - exact).detach().abs().max()) < 0.01


def test_gradients_are_those_of_layer_norm():
    x = torch.rand(1, 5, 3, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(normed().double(), x)
    plain = layer_norm(x.permute(0, 2, 3, 1), (5,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ChannelNorm(5, eps=1e-5).double()(x), plain)


def test_luma_is_that_of_television_and_leaves_gray_as_it_is():
    colours = torch.eye(3, dtype=torch.double).reshape(3, 3, 1, 1)
    torch.testing.assert_close(
        luma(colours).flatten(), torch.tensor([0.299, 0.587, 0.114], dtype=torch.double)
    )
    gray = torch.rand(2, 1, 4, 5)
    torch.testing.assert_close(luma(gray.expand(-1, 3, -1, -1)), gray)
    assert luma(gray[0].expand(3, -1, -1)).shape == (1, 4, 5)
