from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_cases import noise, parameter_count, restored_shape
from PIL import Image
from torch.nn.functional import conv2d, conv_transpose2d

from restorekit.testing import check_backbone
from restorekit.tiling import Tiler
from restorekit.weights import load_into, read_tensors
from restorekit_haze.aodnet import AODNet
from restorekit_haze.gcanet import GCANet, edges

SHARED = Path(__file__).parents[4] / "shared"
REAL = SHARED / "weights"
SOTS = SHARED / "data" / "test" / "haze" / "SOTS"
RAIN100H = SHARED / "data" / "test" / "rain100h"
FILES = {
    "aodnet": (AODNet, {}, "aodnet/dehazer.pth"),
    "gcanet-haze": (GCANet, {}, "gcanet/wacv_gcanet_dehaze.pth"),
    "gcanet-rain": (GCANet, {"residual": False}, "gcanet/wacv_gcanet_derain.pth"),
}
needs_weights = pytest.mark.skipif(
    not (REAL / "gcanet").is_dir(), reason="the published weights are not here: ../shared/weights/gcanet"
)
needs_haze = pytest.mark.skipif(not SOTS.is_dir(), reason="SOTS is not here: ../shared/data/test/haze/SOTS")
needs_rain = pytest.mark.skipif(
    not RAIN100H.is_dir(), reason="Rain100H is not here: ../shared/data/test/rain100h"
)
every_network = pytest.mark.parametrize(
    ("cls", "params"), [(AODNet, {}), (GCANet, {"width": 4}), (GCANet, {"width": 4, "residual": False})]
)


def stirred(network, seed=0):
    """Move weights a little; convolutions of AOD-Net keep a K that differs from pixel to pixel."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.4 * torch.rand(parameter.shape, generator=generator)
    return network.eval()


def real(name):
    cls, params, file = FILES[name]
    network = cls(**params)
    load_into(network, read_tensors(REAL / file), REAL / file)
    return network.eval()


def image(path):
    levels = np.asarray(Image.open(path).convert("RGB"))
    return torch.from_numpy(levels.copy()).permute(2, 0, 1)[None] / 255


def psnr(one, other):
    return float(-10 * torch.log10((one.clamp(0, 1) - other).square().mean()))


@every_network
def test_contract_is_kept(cls, params):
    check_backbone(cls, **params)


def test_values_of_aodnet_are_those_of_the_formula():
    network, degraded = stirred(AODNet()), noise(2, 3, 11, 9)
    p = network.state_dict()

    def layer(number, *x):
        weight = p[f"e_conv{number}.weight"]
        padding = weight.shape[-1] // 2
        return conv2d(torch.cat(x, 1), weight, p[f"e_conv{number}.bias"], padding=padding).relu()

    one = layer(1, degraded)
    two = layer(2, one)
    three = layer(3, one, two)
    four = layer(4, two, three)
    k = layer(5, one, two, three, four)
    assert k.std() > 0
    with torch.no_grad():
        torch.testing.assert_close(network(degraded), (k * degraded - k + 1).clamp(min=0))
        torch.testing.assert_close(network.maps(degraded)["k"], k)


@pytest.mark.parametrize("residual", [True, False])
def test_values_of_gcanet_are_those_of_the_formula(residual):
    network = stirred(GCANet(width=4, residual=residual)).double()
    degraded = noise(2, 3, 16, 20, dtype=torch.float64)
    p = network.state_dict()

    def conv(name, x, **how):
        return conv2d(x, p[f"{name}.weight"], p.get(f"{name}.bias"), **how)

    def normalised(name, x):
        mean, deviation = x.mean((2, 3), True), x.var((2, 3), unbiased=False, keepdim=True).add(1e-5).sqrt()
        gain, offset = (p[f"{name}.{key}"].reshape(1, -1, 1, 1) for key in ("weight", "bias"))
        return gain * (x - mean) / deviation + offset

    def block(number, x, dilation):
        inner = x
        for layer in "12":
            if dilation > 1:
                kernel, width = p[f"res{number}.pre_conv{layer}.weight"], 2 * dilation - 1
                assert kernel.shape == (1, 1, width, width)
                inner = torch.cat([conv2d(one, kernel, padding=dilation - 1) for one in inner.split(1, 1)], 1)
            inner = conv(f"res{number}.conv{layer}", inner, padding=dilation, dilation=dilation)
            inner = normalised(f"res{number}.norm{layer}", inner)
            inner = inner.relu() if layer == "1" else inner
        return (x + inner).relu()

    levels = 255 * degraded
    x = torch.cat([levels, edges(levels)], 1) - 128
    for number, stride in ((1, 1), (2, 1), (3, 2)):
        x = normalised(f"norm{number}", conv(f"conv{number}", x, padding=1, stride=stride)).relu()
    seen = [x]
    for number, dilation in enumerate((2, 2, 2, 4, 4, 4, 1), 1):
        seen.append(block(number, seen[-1], dilation))
    levels_seen = (seen[0], seen[4], seen[7])
    gates = conv("gate", torch.cat(levels_seen, 1), padding=1)
    x = sum(level * gates[:, i : i + 1] for i, level in enumerate(levels_seen))
    x = conv_transpose2d(x, p["deconv3.weight"], p["deconv3.bias"], stride=2, padding=1)
    x = normalised("norm5", conv("deconv2", normalised("norm4", x).relu(), padding=1)).relu()
    x = conv("deconv1", x)
    expected = x + levels if residual else x.relu()
    with torch.no_grad():
        torch.testing.assert_close(network(degraded), expected / 255)


def test_edges_are_mean_differences_from_four_neighbours():
    point = torch.zeros(1, 3, 3, 3)
    point[:, 0, 0, 1] = 12.0
    expected = torch.tensor([[1.0, 3, 1], [0, 1, 0], [0, 0, 0]])
    torch.testing.assert_close(edges(point)[0, 0], expected)


def test_a_new_network_smooths_nothing_yet():
    x = noise(1, 4, 9, 9)
    for dilation in (2, 4):
        block = GCANet(width=4).get_submodule("res1" if dilation == 2 else "res4")
        torch.testing.assert_close(block.pre_conv1(x), x)


@pytest.mark.parametrize(("cls", "count"), [(AODNet, 1_761), (GCANet, 702_818)])
def test_parameters_are_as_many_as_in_the_published_files(cls, count):
    assert parameter_count(cls) == count


@every_network
def test_gradients_reach_every_parameter(cls, params):
    network = stirred(cls(**params)).train()
    (network(noise(2, 3, 16, 24)) * noise(2, 3, 16, 24, seed=1)).mean().backward()
    for name, parameter in network.named_parameters():
        # What normalisation subtracts, a bias before it cannot change.
        assert parameter.grad.abs().sum() > 0 or name in ("deconv3.bias", "deconv2.bias"), name


@every_network
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (37, 21)])
def test_any_size_is_restored(cls, params, size, tmp_path):
    assert restored_shape(cls.__name__.lower(), cls, params, size, tmp_path) == (*size, 3)


def test_tiles_of_aodnet_equal_the_whole_image():
    network, degraded = stirred(AODNet()).double(), noise(1, 3, 83, 71, dtype=torch.float64)
    tiler = Tiler(2 * network.overlap, network.overlap)
    assert tiler.count(83, 71) > 1
    with torch.no_grad():
        torch.testing.assert_close(tiler(network, degraded), network(degraded), atol=1e-12, rtol=0)


def test_no_features_are_refused():
    with pytest.raises(ValueError, match="width is 0, not 1 or more"):
        GCANet(width=0)


@needs_weights
@needs_haze
@pytest.mark.parametrize(("name", "after"), [("aodnet", 21.00), ("gcanet-haze", 26.88)])
def test_published_networks_remove_the_haze_of_four_images(name, after):
    network, rows = real(name), []
    for number in (1400, 1401):
        clean = image(SOTS / "gt" / f"{number}.png")[..., 10:470, 10:630]
        for kind in (1, 2):
            hazy = image(SOTS / "hazy" / f"{number}_{kind}.png")
            with torch.no_grad():
                rows.append((psnr(hazy, clean), psnr(network(hazy), clean)))
    before, found = np.mean(rows, 0)
    assert before == pytest.approx(15.78, abs=0.05)
    assert found == pytest.approx(after, abs=0.1)


@needs_weights
@needs_rain
def test_published_network_removes_rain_that_it_was_not_trained_for():
    network, rows = real("gcanet-rain"), []
    for number in (1, 2, 6):
        rainy, clean = (image(RAIN100H / folder / f"{number}.png") for folder in ("input", "target"))
        rainy, clean = rainy[..., :320, :320], clean[..., :320, :320]
        with torch.no_grad():
            rows.append(psnr(network(rainy), clean) - psnr(rainy, clean))
    assert min(rows) > 2
