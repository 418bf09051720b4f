from pathlib import Path

import numpy as np
import pytest
import torch
from backbone_cases import noise, restored_shape
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import conv2d

from restorekit.errors import WeightsError
from restorekit.testing import check_backbone
from restorekit.tiling import Tiler
from restorekit.weights import load_into, read_tensors
from restorekit_prenet import PReNet

SHARED = Path(__file__).parents[4] / "shared"
REAL = SHARED / "weights" / "prenet"
RAIN100H = SHARED / "data" / "test" / "rain100h"
SMALL = dict(width=4, blocks=2, stages=2)
FILES = ("Rain100H_PReNet6.pth", "Rain100L_PReNet6.pth", "Rain1400_PReNet6.pth", "real_PReNet1.pth")
needs_weights = pytest.mark.skipif(
    not REAL.is_dir(), reason="PReNet's weights are not here: ../shared/weights/prenet"
)
needs_images = pytest.mark.skipif(
    not RAIN100H.is_dir(), reason="Rain100H is not here: ../shared/data/test/rain100h"
)


def randomised(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) - 0.5
    return network.eval()


def real(name):
    network = PReNet()
    load_into(network, read_tensors(REAL / name), REAL / name)
    return network.eval()


def pair(number):
    """Return 128 x 128 pixels from the middle of a rainy and a clean image."""
    for folder in ("input", "target"):
        levels = np.asarray(Image.open(RAIN100H / folder / f"{number}.png").convert("RGB"))
        yield torch.from_numpy(levels[96:224, 96:224].copy()).permute(2, 0, 1)[None] / 255


def psnr(one, other):
    return float(-10 * torch.log10((one.clamp(0, 1) - other).square().mean()))


@pytest.mark.parametrize("params", [{}, {"channels": 1}, {"stages": 1}, {"stages": 3, "blocks": 1}])
def test_contract_is_kept(params):
    check_backbone(PReNet, **(SMALL | params))


@pytest.mark.parametrize("stages", [1, 3])
def test_values_are_those_of_the_formula(stages):
    network, image = randomised(PReNet(**(SMALL | {"stages": stages}))), noise(2, 3, 9, 7)
    p = network.state_dict()

    def conv(name, x):
        return conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], padding=1)

    estimate, hidden, cell = image, torch.zeros(2, 4, 9, 7), torch.zeros(2, 4, 9, 7)
    for _ in range(stages):
        x = torch.cat([conv("conv0.0", torch.cat([image, estimate], 1)).relu(), hidden], 1)
        kept, let_in, out = (torch.sigmoid(conv(f"conv_{gate}.0", x)) for gate in "fio")
        cell = kept * cell + let_in * torch.tanh(conv("conv_g.0", x))
        x = hidden = out * torch.tanh(cell)
        for number in (1, 2):
            x = (x + conv(f"res_conv{number}.2", conv(f"res_conv{number}.0", x).relu()).relu()).relu()
        estimate = image + conv("conv.0", x)
    with torch.no_grad():
        torch.testing.assert_close(network(image), estimate)


def test_parameters_are_as_many_as_in_the_published_files():
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in PReNet().parameters()) == 168_963


def test_gradients_reach_every_parameter():
    network = randomised(PReNet(**SMALL))
    network(noise(1, 3, 16, 16)).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_one_module_sees_the_image_once_and_returns_the_deepest_features():
    network, seen = randomised(PReNet(**SMALL)), []
    network.deepest.register_forward_hook(lambda module, inputs, output: seen.append(output))
    image = noise(1, 3, 8, 8)
    with torch.no_grad():
        network(image)
        assert len(seen) == 1
        torch.testing.assert_close(network.encode(image)[0], seen[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (37, 21)])
def test_any_size_is_restored(size, tmp_path):
    assert restored_shape("prenet", PReNet, SMALL, size, tmp_path) == (*size, 3)


@pytest.mark.parametrize("name", ["channels", "width", "blocks", "stages"])
def test_wrong_arguments_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0, not 1 or more"):
        PReNet(**{name: 0})


def test_weights_of_more_blocks_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(PReNet(width=4, blocks=3).state_dict(), path)
    with pytest.raises(WeightsError, match=r"unknown to PReNet, first 'res_conv3\.0\.bias'"):
        load_into(PReNet(**SMALL), read_tensors(path), path)


@needs_weights
@pytest.mark.parametrize("name", FILES)
def test_published_files_fit(name):
    image = noise(1, 3, 8, 8)
    with torch.no_grad():
        assert real(name)(image).isfinite().all()


@needs_weights
@needs_images
def test_published_network_removes_the_rain_of_rain100h():
    network, rows = real("Rain100H_PReNet6.pth"), []
    for number in (1, 2, 6, 12, 23):
        rainy, clean = pair(number)
        with torch.no_grad():
            rows.append((psnr(rainy, clean), psnr(network(rainy), clean)))
    before, after = np.mean(rows, 0)
    assert before == pytest.approx(12.92, abs=0.05)
    assert after == pytest.approx(28.38, abs=0.1)


@needs_weights
@needs_images
def test_each_stage_of_the_published_network_removes_more():
    rainy, clean = pair(2)
    quality = [psnr(rainy, clean)]
    for stages in (2, 4, 6):
        network = real("Rain100H_PReNet6.pth")
        network.stages = stages
        with torch.no_grad():
            quality.append(psnr(network(rainy), clean))
    assert quality == sorted(quality)


@needs_weights
@needs_images
def test_tiles_of_a_rainy_photograph_are_those_of_the_whole():
    network = real("Rain100H_PReNet6.pth")
    rainy, _ = pair(2)
    wide = torch.cat([rainy, rainy.flip(3)], 3)
    with torch.no_grad():
        difference = 255 * (Tiler(2 * network.overlap, network.overlap)(network, wide) - network(wide)).abs()
    assert difference.max() < 3 and difference.mean() < 0.1
