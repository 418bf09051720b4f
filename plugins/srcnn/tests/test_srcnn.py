import importlib.util
from pathlib import Path

import pytest
import torch
from backbone_cases import noise
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import conv2d, leaky_relu, pixel_shuffle

from restorekit.errors import WeightsError
from restorekit.testing import check_backbone
from restorekit.tiling import Tiler
from restorekit.weights import load_into, read_tensors
from restorekit_srcnn import SRCNN

HERE = Path(__file__).parent
SMALL = dict(widths=(4, 6))
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
    check_backbone(SRCNN, **SMALL, scale=scale)
    check_backbone(SRCNN, **SMALL, scale=scale, channels=1)


@pytest.mark.parametrize("scale", SCALES)
def test_golden_outputs_are_kept(scale):
    golden = load_file(HERE / "golden.safetensors")
    network = SRCNN(**make_golden().SMALL, scale=scale).eval()
    prefix = f"{scale}."
    state = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    expected = state.pop("output")
    network.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(network(golden["input"]), expected, atol=2e-5, rtol=0)


def test_values_are_those_of_the_formula():
    network, image = randomised(SRCNN(**SMALL, scale=4)), noise(2, 3, 9, 7)
    p = network.state_dict()

    def conv(place, x):
        return conv2d(x, p[f"features.{place}.weight"], p[f"features.{place}.bias"], padding=1)

    x = leaky_relu(conv(2, leaky_relu(conv(0, image), 0.1)), 0.1)
    for place in (4, 7):
        x = leaky_relu(pixel_shuffle(conv(place, x), 2), 0.1)
    expected = conv(12, leaky_relu(conv(10, x), 0.1))
    with torch.no_grad():
        torch.testing.assert_close(network(image), expected)


def test_parameters_are_counted_by_hand():
    inner = 128 * 128 * 9 + 128
    shared = (3 * 64 * 9 + 64) + (64 * 128 * 9 + 128) + 4 * inner + inner + (128 * 3 * 9 + 3)
    by_shuffle = {2: 128 * 512 * 9 + 512, 3: 128 * 1152 * 9 + 1152}
    by_hand = {
        1: shared,
        2: shared + by_shuffle[2],
        3: shared + by_shuffle[3],
        4: shared + 2 * by_shuffle[2],
        8: shared + 3 * by_shuffle[2],
    }
    assert by_hand[2] == 1_407_363
    with torch.device("meta"):
        for scale, expected in by_hand.items():
            network = SRCNN(scale=scale)
            assert sum(parameter.numel() for parameter in network.parameters()) == expected, scale


def test_filters_are_as_many_as_in_the_faig_paper():
    with torch.device("meta"):
        network = SRCNN(scale=2)
    convs = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    assert list(convs) == [f"features.{place}" for place in (0, 2, 4, 6, 8, 10, 12, 15, 17)]
    assert sum(conv.weight.shape[:2].numel() for conv in convs.values()) == 156_224


def test_fresh_network_does_not_fade_what_it_sees():
    torch.manual_seed(0)
    with torch.no_grad():
        output = SRCNN(scale=2)(noise(1, 3, 24, 24) - 0.5)
    assert 0.05 < output.std() < 1


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_reach_every_parameter(scale):
    network = randomised(SRCNN(**SMALL, scale=scale))
    network(noise(1, 3, 8, 8)).square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters()
    )


@pytest.mark.parametrize("scale", SCALES)
def test_receptive_field_is_a_quarter_of_the_overlap(scale):
    network = randomised(SRCNN(widths=(6, 8, 8), scale=scale)).double()
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
    network = randomised(SRCNN(widths=(4, 4, 4), scale=scale)).double()
    image = noise(1, 3, 83, 61, dtype=torch.float64)
    tiler = Tiler(2 * network.overlap, network.overlap)
    assert tiler.count(83, 61) > 4
    with torch.no_grad():
        torch.testing.assert_close(tiler(network, image, scale=scale), network(image), atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3)])
def test_small_images_are_enlarged(size):
    with torch.no_grad():
        output = SRCNN(**SMALL, scale=3)(noise(1, 3, *size))
    assert output.shape == (1, 3, 3 * size[0], 3 * size[1])


def test_output_does_not_depend_on_memory_format():
    network, image = randomised(SRCNN(**SMALL)), noise(1, 3, 24, 40)
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
        (dict(widths=()), "widths is empty"),
        (dict(widths=(4, 0)), "a number of widths is 0, not 1 or more"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SRCNN(**arguments)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(scale=4), "unknown to SRCNN, first 'features.10.bias'"),
        (dict(scale=3), "differ in shape, first 'features.4.weight'"),
        (dict(scale=2, widths=(8, 6)), "differ in shape, first 'features.0.weight'"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, other, message):
    path = tmp_path / "other.safetensors"
    save_file(SRCNN(**(SMALL | other)).state_dict(), path)
    with pytest.raises(WeightsError, match=message):
        load_into(SRCNN(**SMALL, scale=2), read_tensors(path), path)
