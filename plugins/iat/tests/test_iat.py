from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_cases import noise, restored_shape
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import batch_norm, conv2d, gelu, layer_norm, leaky_relu, linear

from restorekit.errors import WeightsError
from restorekit.testing import check_backbone
from restorekit.tiling import Tiler
from restorekit.weights import load_into, read_tensors
from restorekit_iat.network import IAT

SHARED = Path(__file__).parents[4] / "shared"
REAL = SHARED / "weights" / "iat"
CBSD68 = SHARED / "data" / "test" / "cbsd68"
SMALL = dict(width=4, blocks=1, features=8, heads=2)
# The published network of LOL-v2 works on images from -1 to 1.
FILES = {"lol_v1": {}, "lol": {"centred": True}, "exposure": {}}
needs_weights = pytest.mark.skipif(
    not REAL.is_dir(), reason="IAT's weights are not here: ../shared/weights/iat"
)
needs_images = pytest.mark.skipif(
    not CBSD68.is_dir(), reason="CBSD68 is not here: ../shared/data/test/cbsd68"
)


def randomised(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.4 * (torch.rand(parameter.shape, generator=generator) - 0.5)
    return network.eval()


def real(name):
    network, path = IAT(**FILES[name]), REAL / f"best_Epoch_{name}.pth"
    load_into(network, read_tensors(path), path)
    return network.eval()


def photograph(number, step):
    """Return an image of CBSD68, every pixel of it or every other."""
    levels = np.asarray(Image.open(CBSD68 / f"{number:04d}.png").convert("RGB"))
    return torch.from_numpy(levels[::step, ::step].copy()).permute(2, 0, 1)[None] / 255


def exposed(clean, stops):
    """Return an 8-bit image with as many stops more light."""
    light = clean**2.2 * 2.0**stops
    return (255 * light ** (1 / 2.2)).round().clamp(0, 255) / 255


def psnr(one, other):
    return float(-10 * torch.log10((one - other).square().mean()))


@pytest.mark.parametrize("params", [{}, {"centred": True}, {"heads": 1, "blocks": 2}])
def test_contract_is_kept(params):
    check_backbone(IAT, **(SMALL | params))


def test_values_are_those_of_the_formula():
    network, image = randomised(IAT(**SMALL)), noise(1, 3, 10, 13)
    p = network.state_dict()

    def conv(name, x, **how):
        weight = p[f"{name}.weight"]
        return conv2d(x, weight, p[f"{name}.bias"], padding=weight.shape[-1] // 2, **how)

    def light(name, x):
        mixed = x.permute(0, 2, 3, 1) @ p[f"{name}.color"].T
        return (mixed * p[f"{name}.alpha"] + p[f"{name}.beta"]).permute(0, 3, 1, 2)

    def block(name, x):
        x = x + conv(f"{name}.pos_embed", x, groups=4)
        inner = conv(f"{name}.attn", conv(f"{name}.conv1", light(f"{name}.norm1", x)), groups=4)
        x = x + p[f"{name}.gamma_1"] * conv(f"{name}.conv2", inner)
        hidden = gelu(conv(f"{name}.mlp.fc1", light(f"{name}.norm2", x)))
        return x + p[f"{name}.gamma_2"] * conv(f"{name}.mlp.fc2", hidden)

    x = leaky_relu(conv("local_net.conv1", image), 0.2)
    factors = conv("local_net.mul_end.0", block("local_net.mul_blocks.0", x) + x).relu()
    summands = conv("local_net.add_end.0", block("local_net.add_blocks.0", x) + x).tanh()

    def normalised(name, x):
        values = (p[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        return batch_norm(x, *values)

    def dense(name, x):
        return linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    def layer_normalised(name, x):
        return layer_norm(x, (8,), p[f"{name}.weight"], p[f"{name}.bias"])

    place = "global_net.conv_large.proj"
    x = gelu(normalised(f"{place}.1", conv(f"{place}.0", image, stride=2)))
    x = normalised(f"{place}.4", conv(f"{place}.3", x, stride=2))
    place = "global_net.generator"
    x = x + conv(f"{place}.pos_embed", x, groups=8)
    cells = layer_normalised(f"{place}.norm1", x.flatten(2).transpose(1, 2))
    questions = p[f"{place}.attn.q"].reshape(1, 10, 2, 4).transpose(1, 2)
    keys, values = (dense(f"{place}.attn.{n}", cells).reshape(1, -1, 2, 4).transpose(1, 2) for n in "kv")
    asked = (questions @ keys.mT / 2).softmax(-1) @ values
    x = dense(f"{place}.attn.proj", asked.transpose(1, 2).reshape(1, 10, 8))
    hidden = gelu(dense(f"{place}.mlp.fc1", layer_normalised(f"{place}.norm2", x)))
    x = x + dense(f"{place}.mlp.fc2", hidden)
    gamma = dense("global_net.gamma_linear", x[0, 0]) + p["global_net.gamma_base"]
    colour = dense("global_net.color_linear", x[0, 1:]).reshape(3, 3) + p["global_net.color_base"]

    bright = (colour @ (image * factors + summands)[0].flatten(1)).reshape(3, 10, 13)
    with torch.no_grad():
        torch.testing.assert_close(network(image)[0], bright.clamp(1e-8, 1) ** gamma)


def test_parameters_are_as_many_as_in_the_published_files():
    with torch.device("meta"):
        network = IAT()
    assert sum(parameter.numel() for parameter in network.parameters()) == 91_154
    # With means and variances of batches and their two counts.
    assert sum(tensor.numel() for tensor in network.state_dict().values()) == 91_348


def test_gradients_reach_every_parameter():
    network = randomised(IAT(**SMALL)).train()
    network(noise(2, 3, 16, 24)).square().mean().backward()
    for name, parameter in network.named_parameters():
        # What normalisation over the batch subtracts, a bias before it cannot change.
        assert parameter.grad.abs().sum() > 0 or name.endswith(("proj.0.bias", "proj.3.bias")), name


@pytest.mark.parametrize("rows", [1, 4, 9, 24, 100])
def test_light_found_in_strips_is_that_of_the_whole_image(rows):
    branch, image = randomised(IAT(**SMALL)).global_net.double(), noise(2, 3, 41, 30, dtype=torch.float64)
    with torch.no_grad():
        whole, parts = branch(image), branch.in_strips(image, rows)
    torch.testing.assert_close(parts.gamma, whole.gamma)
    torch.testing.assert_close(parts.colour, whole.colour)


def test_tiles_equal_the_whole_image():
    network, image = randomised(IAT(**SMALL)).double(), noise(1, 3, 53, 47, dtype=torch.float64)
    image[..., 20:] *= 0.2
    tiler = Tiler(2 * network.overlap, network.overlap)
    assert tiler.count(53, 47) > 1
    with torch.no_grad():
        tiled = tiler(network.for_image(image, 2 * network.overlap), image)
        torch.testing.assert_close(tiled, network(image), atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (37, 21)])
def test_any_size_is_restored(size, tmp_path):
    assert restored_shape("iat", IAT, SMALL, size, tmp_path) == (*size, 3)


def test_maps_are_those_of_the_formula():
    network, image = randomised(IAT(**SMALL)), noise(1, 3, 12, 16)
    with torch.no_grad():
        maps = network.maps(image)
    assert maps["factors"].shape == maps["summands"].shape == image.shape
    assert maps["gamma"].shape == (1, 1)
    assert maps["factors"].min() >= 0 and maps["summands"].abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(width=0), "width is 0, not 1 or more"),
        (dict(blocks=0), "blocks is 0, not 1 or more"),
        (dict(features=10, heads=4), "10 features are not shared out among 2 halves and 4 heads"),
        (dict(features=9, heads=3), "9 features are not shared out among 2 halves"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        IAT(**arguments)


def test_weights_of_another_width_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(IAT(**(SMALL | {"width": 6})).state_dict(), path)
    with pytest.raises(WeightsError, match="differ in shape, first 'local_net"):
        load_into(IAT(**SMALL), read_tensors(path), path)


# The gamma that the network for exposure finds depends on the size: small images are too dark under it.
@needs_weights
@needs_images
@pytest.mark.parametrize(
    ("name", "step", "stops", "gain"),
    [
        ("lol_v1", 2, -3, 10.9),
        ("lol", 2, -3, 11.8),
        ("exposure", 1, -1.5, 6.4),
        ("exposure", 1, 1.5, 5.8),
    ],
)
def test_published_networks_correct_the_light_of_photographs(name, step, stops, gain):
    network, gains = real(name), []
    for number in (0, 30):
        clean = photograph(number, step)
        wrong = exposed(clean, stops)
        with torch.no_grad():
            gains.append(psnr(network(wrong), clean) - psnr(wrong, clean))
    assert np.mean(gains) == pytest.approx(gain, abs=0.2)
