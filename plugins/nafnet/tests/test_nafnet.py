import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from restorekit.bench import parity
from restorekit.testing import check_backbone, check_weights
from restorekit.tiling import Tiler, pad_to_multiple
from restorekit_nafnet.network import Baseline, NAFNet
from restorekit_nafnet.pooling import LocalMean, global_mean
from restorekit_nafnet.published import WEIGHTS

HERE = Path(__file__).parent
PARITY = HERE.parents[3] / "shared" / "parity" / "dev"
CASES = sorted(PARITY.glob("*naf*/meta.json")) + sorted(PARITY.glob("baseline*/meta.json"))
KEY_LISTS = sorted(PARITY.glob("official_keys/nafnet*.json")) + sorted(
    PARITY.glob("official_keys/baseline*.json")
)
SMALL = dict(width=8, encoder_blocks=(1, 1, 1), middle_blocks=1, decoder_blocks=(1, 1, 1))
needs_fixtures = pytest.mark.skipif(
    not CASES, reason="the official networks' outputs are not here: ../shared/parity/dev"
)


def make_golden():
    spec = importlib.util.spec_from_file_location("make_golden", HERE / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def randomised(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) - 0.5
    return network.eval().requires_grad_(False)


@needs_fixtures
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.parent.name)
def test_official_outputs_are_matched(path):
    rows = parity.matches(path)
    assert rows and [row for row in rows if not row.holds] == []


@needs_fixtures
@pytest.mark.parametrize("path", KEY_LISTS, ids=lambda path: path.stem)
def test_published_sizes_have_the_published_names_and_shapes(path):
    assert parity.key_match(path).differences == ()


@pytest.mark.parametrize("name", ["nafnet", "nafnet_local", "baseline", "baseline_wide"])
def test_golden_outputs_are_kept(name):
    golden = load_file(HERE / "golden.safetensors")
    network = make_golden().NETWORKS[name]().eval()
    prefix = f"{name}."
    state = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    expected = state.pop("output")
    network.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(network(golden["input"]), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", [NAFNet, Baseline])
def test_contract_is_kept(kind):
    check_backbone(kind, **SMALL)
    check_backbone(kind, **SMALL, local_window=16)


def test_fresh_network_is_nearly_the_identity_of_its_blocks():
    block = NAFNet(**SMALL).encoders[0][0]
    x = torch.rand(1, 8, 6, 6)
    assert torch.equal(block(x, global_mean), x)


def test_gradients_reach_every_parameter():
    network = randomised(NAFNet(**SMALL)).requires_grad_(True)
    network(torch.rand(1, 3, 16, 16)).square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters()
    )


def test_output_does_not_depend_on_memory_format():
    network, image = (
        randomised(NAFNet(**SMALL)),
        torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0)),
    )
    plain = network(image)
    nhwc = network.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    assert (nhwc - plain).abs().max() < 1e-5 * plain.abs().max()


@pytest.mark.parametrize("size", [(64, 48), (61, 75), (16, 16)])
@pytest.mark.parametrize("tile", [16, 64, 1000])
def test_means_in_strips_are_those_of_the_whole_image(size, tile):
    network = randomised(NAFNet(**SMALL)).double()
    image = torch.rand(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    padded = pad_to_multiple(image, network.size_multiple, network.padding)
    whole = []

    def recorded(features, stride):
        whole.append(global_mean(features))
        return whole[-1]

    network.run(padded, recorded)
    for strip_mean, mean in zip(network.channel_means(padded, rows=tile), whole, strict=True):
        torch.testing.assert_close(strip_mean, mean, atol=1e-10, rtol=1e-10)


def test_tiles_agree_with_the_whole_image():
    network = randomised(NAFNet(**SMALL)).double()
    image = torch.rand(1, 3, 210, 310, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = network(image)
    padded = pad_to_multiple(image, network.size_multiple, network.padding)
    tiler = Tiler(192, 96)
    tiled = tiler(
        network.for_image(padded, 192), image, multiple=network.size_multiple, padding=network.padding
    )
    alone = tiler(network, image, multiple=network.size_multiple, padding=network.padding)
    assert (tiled - whole).abs().max() < 1e-4 * whole.std()
    assert (alone - whole).abs().max() > 100 * (tiled - whole).abs().max()


def test_local_mean_is_a_box_mean_inside_and_replicated_at_the_border():
    features = torch.rand(1, 2, 9, 11, generator=torch.Generator().manual_seed(0))
    means = LocalMean(3, 5)(features)
    assert means.shape == features.shape
    torch.testing.assert_close(means[0, 0, 4, 5], features[0, 0, 3:6, 3:8].mean())
    torch.testing.assert_close(means[0, 1, 0, 0], features[0, 1, :3, :5].mean())
    torch.testing.assert_close(means[0, 1, 8, 10], features[0, 1, -3:, -5:].mean())


def test_local_mean_shrinks_with_the_level_and_covers_small_maps():
    features = torch.rand(1, 2, 8, 8)
    torch.testing.assert_close(LocalMean(12, 12)(features, stride=4), LocalMean(3, 3)(features))
    assert LocalMean(8, 8)(features).shape == (1, 2, 1, 1)
    assert LocalMean(8, 4)(features).shape == (1, 2, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_local_mean_is_accumulated_in_float32(dtype):
    # Plain running sums overflow float16 here: 200 * 300 * 4 is above 65504.
    features = torch.full((1, 1, 200, 300), 4.0).to(dtype)
    assert torch.equal(LocalMean(96, 96)(features), features)


def test_depth_sets_the_size_multiple():
    assert NAFNet(width=4, encoder_blocks=(1,), decoder_blocks=(1,), middle_blocks=0).size_multiple == 2
    assert NAFNet(**SMALL).size_multiple == 8


@pytest.mark.parametrize("item", WEIGHTS, ids=lambda item: item.name)
def test_published_checkpoints_are_declared_soundly(item):
    check_weights(item)
