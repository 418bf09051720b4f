import importlib.util
from pathlib import Path

import pytest
import torch
from backbone_cases import noise
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import conv2d, interpolate, leaky_relu, pixel_shuffle

from restorekit.errors import WeightsError
from restorekit.testing import check_backbone
from restorekit.tiling import Tiler
from restorekit.weights import load_into, read_tensors
from restorekit_srresnet import SRResNet

HERE = Path(__file__).parent
SMALL = dict(width=4, blocks=2)
SCALES = (1, 2, 3, 4, 8)


def make_golden():
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomised(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) - 0.5
    return network.eval()


@pytest.mark.parametrize("scale", SCALES)
def test_contract_is_kept(scale):
    check_backbone(SRResNet, **SMALL, scale=scale)
    check_backbone(SRResNet, **SMALL, scale=scale, channels=1)


@pytest.mark.parametrize("scale", SCALES)
def test_golden_outputs_are_kept(scale):
    golden = load_file(HERE / "golden.safetensors")
    network = SRResNet(**make_golden().SMALL, scale=scale).eval()
    prefix = f"{scale}."
    state = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    expected = state.pop("output")
    network.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(network(golden["input"]), expected, atol=2e-5, rtol=0)


def test_values_are_those_of_the_formula():
    network, image = randomised(SRResNet(**SMALL, scale=4)), noise(2, 3, 9, 7)
    p = network.state_dict()

    def conv(name, x):
        return conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], padding=1)

    x = leaky_relu(conv("conv_first", image), 0.1)
    for block in ("body.0", "body.1"):
        x = x + conv(f"{block}.conv2", conv(f"{block}.conv1", x).clamp(min=0))
    for upconv in ("upconv1", "upconv2"):
        x = leaky_relu(pixel_shuffle(conv(upconv, x), 2), 0.1)
    x = conv("conv_last", leaky_relu(conv("conv_hr", x), 0.1))
    expected = x + interpolate(image, scale_factor=4, mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(network(image), expected)


def test_parameters_are_counted_by_hand():
    first, inner, last = 3 * 64 * 9 + 64, 64 * 64 * 9 + 64, 64 * 3 * 9 + 3
    by_shuffle = {2: 64 * 4 * 64 * 9 + 4 * 64, 3: 64 * 9 * 64 * 9 + 9 * 64}
    by_hand = {
        1: first + 33 * inner + last,
        2: first + 33 * inner + last + by_shuffle[2],
        3: first + 33 * inner + last + by_shuffle[3],
        4: first + 33 * inner + last + 2 * by_shuffle[2],
        8: first + 33 * inner + last + 3 * by_shuffle[2],
    }
    assert by_hand[4] == 1_517_571
    with torch.device("meta"):
        for scale, expected in by_hand.items():
            network = SRResNet(scale=scale)
            assert sum(parameter.numel() for parameter in network.parameters()) == expected, scale


def test_filters_are_as_many_as_in_the_faig_paper_and_in_its_order():
    with torch.device("meta"):
        network = SRResNet(scale=2)
    convs = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 36
    assert sum(conv.weight.shape[:2].numel() for _, conv in convs) == 151_936
    names = [name for name, _ in convs]
    assert names[:3] == ["conv_first", "body.0.conv1", "body.0.conv2"]
    assert names[-3:] == ["upconv1", "conv_hr", "conv_last"]


def test_fresh_network_is_nearly_bilinear():
    image = noise(1, 3, 12, 10)
    bilinear = interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
    with torch.no_grad():
        assert (SRResNet(scale=2)(image) - bilinear).abs().max() < 1e-2


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_reach_every_parameter(scale):
    network = randomised(SRResNet(**SMALL, scale=scale))
    network(noise(1, 3, 8, 8)).square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters()
    )


@pytest.mark.parametrize("scale", SCALES)
def test_receptive_field_is_a_quarter_of_the_overlap(scale):
    network = randomised(SRResNet(width=8, blocks=1, scale=scale)).double()
    radius = network.overlap // 4
    assert radius == 5
    image = noise(1, 3, 31, 31, dtype=torch.float64).requires_grad_()
    # All outputs of the pixel in the middle; where the network is blind, the gradient is zero exactly.
    middle = network(image)[..., 15 * scale : 16 * scale, 15 * scale : 16 * scale]
    (gradient,) = torch.autograd.grad(middle.square().sum(), image)
    seen = gradient.abs().sum((0, 1)).nonzero()
    assert (seen - 15).abs().amax(0).tolist() == [radius, radius]


@pytest.mark.parametrize("scale", SCALES)
def test_tiles_equal_the_whole_image(scale):
    network = randomised(SRResNet(width=4, blocks=1, scale=scale)).double()
    image = noise(1, 3, 83, 61, dtype=torch.float64)
    tiler = Tiler(2 * network.overlap, network.overlap)
    assert tiler.count(83, 61) > 4
    with torch.no_grad():
        torch.testing.assert_close(tiler(network, image, scale=scale), network(image), atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3)])
def test_small_images_are_enlarged(size):
    with torch.no_grad():
        output = SRResNet(**SMALL, scale=3)(noise(1, 3, *size))
    assert output.shape == (1, 3, 3 * size[0], 3 * size[1])


def test_output_does_not_depend_on_memory_format():
    network, image = randomised(SRResNet(**SMALL)), noise(1, 3, 24, 40)
    with torch.no_grad():
        plain = network(image)
        nhwc = network.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    assert (nhwc - plain).abs().max() < 1e-5 * plain.abs().max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(scale=5), "scale 5 is not one of 1, 2, 3, 4, 8"),
        (dict(scale=0), "scale 0 is not one of"),
        (dict(channels=0), "channels is 0, not 1 or more"),
        (dict(width=-1), "width is -1, not 1 or more"),
        (dict(blocks=0), "blocks is 0, not 1 or more"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SRResNet(**arguments)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(scale=4), "unknown to SRResNet, first 'upconv2.bias'"),
        (dict(scale=3), "differ in shape, first 'upconv1.weight'"),
        (dict(scale=2, blocks=3), "unknown to SRResNet, first 'body.2.conv1.bias'"),
        (dict(scale=2, width=8), "differ in shape, first 'conv_first.weight'"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, other, message):
    path = tmp_path / "other.safetensors"
    save_file(SRResNet(**(SMALL | other)).state_dict(), path)
    with pytest.raises(WeightsError, match=message):
        load_into(SRResNet(**SMALL, scale=2), read_tensors(path), path)
