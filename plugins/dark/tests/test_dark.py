from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_cases import noise, parameter_count, restored_shape
from PIL import Image
from torch.nn.functional import batch_norm, conv2d, interpolate, pad

from restorekit.testing import check_backbone
from restorekit.tiling import Tiler
from restorekit.weights import load_into, read_tensors
from restorekit_dark.pairlie import PairLIE
from restorekit_dark.sci import SCI
from restorekit_dark.zerodcepp import ZeroDCEpp

SHARED = Path(__file__).parents[4] / "shared"
REAL = SHARED / "weights"
CBSD68 = SHARED / "data" / "test" / "cbsd68"
needs_weights = pytest.mark.skipif(
    not (REAL / "sci").is_dir(), reason="the published weights are not here: ../shared/weights/sci"
)
needs_images = pytest.mark.skipif(
    not CBSD68.is_dir(), reason="CBSD68 is not here: ../shared/data/test/cbsd68"
)
NETWORKS = [
    (ZeroDCEpp, {"width": 4}),
    (ZeroDCEpp, {"width": 8, "reduction": 3, "curves": 2}),
    (SCI, {}),
    (SCI, {"width": 5, "blocks": 2, "calibration": 4, "calibrations": 1, "stages": 2}),
    (PairLIE, {"width": 8}),
]
every_network = pytest.mark.parametrize(("cls", "params"), NETWORKS)


def stirred(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.6 * (torch.rand(parameter.shape, generator=generator) - 0.5)
    return network.eval()


def real(cls, file, **params):
    network = cls(**params)
    load_into(network, read_tensors(REAL / file), REAL / file)
    return network.eval()


def photograph(number):
    levels = np.asarray(Image.open(CBSD68 / f"{number:04d}.png").convert("RGB"))
    return torch.from_numpy(levels.copy()).permute(2, 0, 1)[None] / 255


def darkened(clean, stops):
    """Return an 8-bit image with so many stops less light."""
    return (255 * (clean**2.2 * 2.0**-stops) ** (1 / 2.2)).round() / 255


def psnr(one, other):
    return float(-10 * torch.log10((one - other).square().mean()))


@every_network
def test_contract_is_kept(cls, params):
    check_backbone(cls, **params)


@pytest.mark.parametrize("reduction", [1, 3])
def test_values_of_zerodcepp_are_those_of_the_formula(reduction):
    network = stirred(ZeroDCEpp(width=4, curves=5, reduction=reduction))
    degraded = noise(2, 3, 12, 9)
    p = network.state_dict()

    def layer(number, *x):
        name, x = f"e_conv{number}", torch.cat(x, 1)
        weight = p[f"{name}.depth_conv.weight"]
        x = conv2d(x, weight, p[f"{name}.depth_conv.bias"], padding=1, groups=len(weight))
        return conv2d(x, p[f"{name}.point_conv.weight"], p[f"{name}.point_conv.bias"])

    x = degraded if reduction == 1 else degraded[..., 1::3, 1::3]
    one = layer(1, x).relu()
    two = layer(2, one).relu()
    three = layer(3, two).relu()
    four = layer(4, three).relu()
    five = layer(5, three, four).relu()
    six = layer(6, two, five).relu()
    curve = layer(7, one, six).tanh()
    if reduction > 1:
        curve = interpolate(curve, size=(12, 9), mode="bilinear")
    assert curve.std() > 0.05
    expected = degraded
    for _ in range(5):
        expected = expected + curve * (expected**2 - expected)
    with torch.no_grad():
        torch.testing.assert_close(network(degraded), expected)
        torch.testing.assert_close(network.maps(degraded)["curve"], curve)


def test_values_of_sci_are_those_of_the_formula():
    network, degraded = stirred(SCI(width=3, blocks=2)), noise(2, 3, 9, 11)
    p = network.state_dict()

    def conv(name, x):
        return conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], padding=1)

    def normalised(name, x):
        values = (p[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return batch_norm(x, *values)

    x = conv("enhance.in_conv.0", degraded).relu()
    for _ in range(2):
        x = x + normalised("enhance.conv.1", conv("enhance.conv.0", x)).relu()
    light = (torch.sigmoid(conv("enhance.out_conv.0", x)) + degraded).clamp(1e-4, 1)
    with torch.no_grad():
        torch.testing.assert_close(network(degraded), (degraded / light).clamp(0, 1))
        torch.testing.assert_close(network.maps(degraded)["light"], light)
        # A stage sees what the one before made brighter, corrected.
        first, second = network.training_outputs(degraded)[:2]
        x = normalised("calibrate.in_conv.1", conv("calibrate.in_conv.0", first)).relu()
        for _ in range(3):
            inner = normalised("calibrate.convs.1", conv("calibrate.convs.0", x)).relu()
            x = x + normalised("calibrate.convs.4", conv("calibrate.convs.3", inner)).relu()
        corrected = degraded + first - torch.sigmoid(conv("calibrate.out_conv.0", x))
        torch.testing.assert_close(second, (degraded / network.enhance(corrected)).clamp(0, 1))


def test_values_of_pairlie_are_those_of_the_formula():
    network, degraded = stirred(PairLIE(width=4, light=0.3)), noise(2, 3, 8, 10)
    p = network.state_dict()

    def branch(name, x):
        for layer in (1, 4, 7, 10, 13):
            x = x if layer == 1 else x.relu()
            key = f"{name}.{name}.{layer}"
            x = conv2d(pad(x, (1,) * 4, mode="reflect"), p[f"{key}.weight"], p[f"{key}.bias"])
        return torch.sigmoid(x)

    quiet = branch("N_net", degraded)
    light, reflectance = branch("L_net", quiet), branch("R_net", quiet)
    with torch.no_grad():
        torch.testing.assert_close(network(degraded), light**0.3 * reflectance)
        maps = network.maps(degraded)
    torch.testing.assert_close(maps["light"], light)
    torch.testing.assert_close(maps["reflectance"], reflectance)
    torch.testing.assert_close(maps["quiet"], quiet)


@pytest.mark.parametrize(("cls", "count"), [(ZeroDCEpp, 10_561), (SCI, 5_877), (PairLIE, 341_767)])
def test_parameters_are_as_many_as_in_the_published_files(cls, count):
    assert parameter_count(cls) == count


@every_network
def test_gradients_reach_every_parameter(cls, params):
    network = stirred(cls(**params)).train()
    outputs = network.training_outputs(noise(2, 3, 18, 24))
    sum((output * noise(2, 3, 18, 24, seed=1)).mean() for output in outputs).backward()
    for name, parameter in network.named_parameters():
        # What normalisation over the batch subtracts, a bias before it cannot change.
        assert parameter.grad.abs().sum() > 0 or ("conv" in name and name.endswith(("0.bias", "3.bias"))), (
            name
        )


@every_network
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (37, 21)])
def test_any_size_is_restored(cls, params, size, tmp_path):
    assert restored_shape(cls.__name__.lower(), cls, params, size, tmp_path) == (*size, 3)


@every_network
def test_tiles_equal_the_whole_image(cls, params):
    network = stirred(cls(**params)).double()
    multiple, tile = network.size_multiple, 2 * network.overlap
    height, width = (multiple * (side * tile // (8 * multiple)) for side in (13, 11))
    degraded = noise(1, 3, height, width, dtype=torch.float64)
    tiler = Tiler(tile, network.overlap)
    assert tiler.count(height, width) > 1
    with torch.no_grad():
        torch.testing.assert_close(tiler(network, degraded), network(degraded), atol=1e-12, rtol=0)


@every_network
def test_images_that_noise_took_out_of_range_come_back_into_it(cls, params):
    with torch.no_grad():
        restored = stirred(cls(**params))(3 * noise(1, 3, 12, 12) - 1)
    assert restored.min() >= 0 and restored.max() <= 1


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (ZeroDCEpp, dict(width=0), "width is 0, not 1 or more"),
        (ZeroDCEpp, dict(curves=0), "curves is 0, not 1 or more"),
        (ZeroDCEpp, dict(reduction=0), "reduction is 0, not 1 or more"),
        (SCI, dict(stages=0), "stages is 0, not 1 or more"),
        (SCI, dict(calibrations=0), "calibrations is 0, not 1 or more"),
        (PairLIE, dict(width=0), "width is 0, not 1 or more"),
        (PairLIE, dict(light=0), "light is 0, not above 0"),
        (PairLIE, dict(light=float("nan")), "light is nan, not above 0"),
    ],
)
def test_wrong_arguments_are_refused(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@needs_weights
@needs_images
@pytest.mark.parametrize(
    ("cls", "file", "params", "stops", "gain"),
    [
        (ZeroDCEpp, "zerodcepp/Epoch99.pth", {}, 3, 7.3),
        (ZeroDCEpp, "zerodcepp/Epoch99.pth", {"reduction": 12}, 3, 8.3),
        (SCI, "sci/easy.pt", {}, 2, 14.3),
        (SCI, "sci/medium.pt", {}, 4, 11.8),
        (SCI, "sci/difficult.pt", {}, 4, 13.4),
        (PairLIE, "pairlie/PairLIE.pth", {}, 4, 7.9),
    ],
)
def test_published_networks_brighten_photographs(cls, file, params, stops, gain):
    network, gains = real(cls, file, **params), []
    for number in (0, 12, 30, 40):
        clean = photograph(number)[..., :300, :300]
        dark = darkened(clean, stops)
        with torch.no_grad():
            gains.append(psnr(network(dark), clean) - psnr(dark, clean))
    assert np.mean(gains) == pytest.approx(gain, abs=0.5)
