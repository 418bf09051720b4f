import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from restorekit import restore
from restorekit.bench import parity
from restorekit.errors import ConfigError, ContractError, WeightsError
from restorekit.testing import check_backbone, check_weights
from restorekit.tiling import pad_to_multiple
from restorekit_restormer import windows
from restorekit_restormer.blocks import Block
from restorekit_restormer.network import Restormer
from restorekit_restormer.published import WEIGHTS

HERE = Path(__file__).parent
PARITY = HERE.parents[3] / "shared" / "parity" / "dev"
CASES = sorted(PARITY.glob("restormer*/meta.json"))
KEY_LISTS = sorted(PARITY.glob("official_keys/restormer*.json"))
needs_fixtures = pytest.mark.skipif(
    not CASES, reason="the official networks' outputs are not here: ../shared/parity/dev"
)

spec = importlib.util.spec_from_file_location("restormer_golden", HERE / "make_golden.py")
make_golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_golden)


@pytest.fixture
def saved(tmp_path):
    def save(variant="with-bias"):
        path = tmp_path / f"{variant}.safetensors"
        save_file(make_golden.network(variant).state_dict(), path)
        return path

    return save


def pipeline(path, **params):
    return {
        "steps": [
            {
                "restore": {
                    "name": "restormer",
                    "params": {**make_golden.SMALL, **params},
                    "weights": str(path),
                }
            }
        ]
    }


@needs_fixtures
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.parent.name)
def test_official_outputs_are_matched(path):
    rows = parity.matches(path)
    assert rows and [row for row in rows if not row.holds] == []


@needs_fixtures
@pytest.mark.parametrize("path", KEY_LISTS, ids=lambda path: path.stem)
def test_published_sizes_have_the_published_names_and_shapes(path):
    assert parity.key_match(path).differences == ()


@pytest.mark.parametrize("variant", make_golden.VARIANTS)
def test_golden_outputs_are_kept(variant):
    golden = load_file(HERE / "golden.safetensors")
    network = Restormer(**make_golden.SMALL, **make_golden.VARIANTS[variant]).eval()
    prefix = f"{variant}.weights."
    network.load_state_dict(
        {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
    )
    with torch.no_grad():
        restored = network(golden[f"{variant}.degraded"])
    expected = golden[f"{variant}.restored"]
    # Processors round differently, by about a millionth of the largest value, which is 36 without bias.
    torch.testing.assert_close(restored, expected, atol=5e-6 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"norm": "bias-free"},
        {"bias": True, "expansion": 1.3},
        {"channels": 1},
        {"channels": 6, "out_channels": 3, "dual_pixel": True},
    ],
)
def test_contract_is_kept(params):
    check_backbone(Restormer, **make_golden.SMALL, **params)


@pytest.mark.parametrize("variant", make_golden.VARIANTS)
@pytest.mark.parametrize("cache", [500, 3000, 40_000])
@pytest.mark.parametrize("batch", [1, 2])
def test_windows_change_nothing(variant, cache, batch, monkeypatch):
    network = make_golden.network(variant).double()
    degraded = torch.cat([make_golden.degraded(network.channels)] * batch).double()
    degraded[-1] *= 0.5
    with torch.enable_grad():
        whole = network(degraded)
    monkeypatch.setattr(windows, "_CACHE_BYTES", cache)
    with torch.no_grad():
        assert len(windows.windows(degraded.permute(0, 2, 3, 1), 24)) > 1
        torch.testing.assert_close(network(degraded), whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 200), (200, 1), (37, 41)])
def test_windows_cover_a_map_once(height, width, monkeypatch):
    monkeypatch.setattr(windows, "_CACHE_BYTES", 4 * 300)
    written = torch.zeros(1, height, width, 1)
    with torch.no_grad():
        places = windows.windows(written, 3)
    for place in places:
        written[place.core] += 1
        assert torch.equal(written[place.outer][place.inner], written[place.core])
    assert torch.equal(written, torch.ones_like(written))


def test_sums_over_many_pixels_stay_exact():
    torch.manual_seed(0)
    block = Block(16, 2, 2.0, bias=False, norm="with-bias").eval()
    features = torch.randn(1, 16, 384, 384) + 3
    with torch.no_grad():
        exact = block.double()(features.double())
        single = block.float()(features)
    # One running sum of float32 over 147 456 pixels misses by thirty times as much.
    assert float((single - exact).abs().max()) < 5e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_pixels_survive_half_precision(dtype):
    torch.manual_seed(0)
    block = Block(4, 1, 2.0, bias=True, norm="bias-free").eval()
    features = torch.randn(1, 4, 96, 96, generator=torch.Generator().manual_seed(0)) * 20
    with torch.no_grad():
        exact = block(features)
        half = block.to(dtype)(features.to(dtype)).float()
    assert half.isfinite().all()
    assert float((half - exact).abs().max()) < 0.05 * float(exact.abs().max())


@pytest.mark.parametrize("variant", make_golden.VARIANTS)
def test_gradients_reach_every_parameter(variant):
    network = make_golden.network(variant).train().requires_grad_(True)
    network(make_golden.degraded(network.channels)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_gradients_of_a_black_image_are_finite():
    network = make_golden.network().train().requires_grad_(True)
    network(torch.zeros(1, 3, 16, 16)).mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("variant", make_golden.VARIANTS)
def test_output_does_not_depend_on_memory_format(variant):
    network = make_golden.network(variant)
    image = make_golden.degraded(network.channels)
    plain = network(image)
    innermost = network.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(innermost, plain, atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (8, 8), (37, 21)])
def test_any_size_is_restored(size, saved):
    levels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert restore(levels, pipeline(saved())).shape == (*size, 3)


def test_two_views_of_a_dual_pixel_sensor_give_one_image(saved):
    views = np.random.default_rng(0).random((21, 13, 6), dtype=np.float32)
    params = {"channels": 6, "out_channels": 3, "dual_pixel": True}
    restored = restore(views, pipeline(saved("dual-pixel"), **params))
    assert restored.shape == (21, 13, 3)
    padded = pad_to_multiple(torch.from_numpy(views).permute(2, 0, 1)[None], 8, "reflect")
    expected = make_golden.network("dual-pixel")(padded)[0, :, :21, :13].permute(1, 2, 0)
    np.testing.assert_allclose(restored, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize("size", [(8, 8), (8, 8, 3)])
def test_one_view_for_a_network_of_two_is_refused(saved, size):
    params = {"channels": 6, "out_channels": 3, "dual_pixel": True}
    with pytest.raises(ContractError, match=rf"takes 6 channels, the image has {len(size) * 2 - 3}"):
        restore(np.zeros(size, np.uint8), pipeline(saved("dual-pixel"), **params))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"dim": 5}, "dim is 5, not even"),
        ({"blocks": (1, 1, 1)}, "blocks has 3 numbers"),
        ({"blocks": (1, 1, 1, -1)}, "less than 0"),
        ({"heads": (3, 1, 1, 1)}, "3 does not divide 4"),
        ({"refinement_blocks": -1}, "refinement_blocks is -1"),
        ({"expansion": 0.1}, "no hidden features"),
        ({"norm": "group"}, "not one of: with-bias, bias-free"),
        ({"channels": 6, "out_channels": 3}, "a residual of the image has its channels"),
    ],
)
def test_wrong_arguments_are_refused(params, says, saved):
    with pytest.raises(ConfigError, match=says):
        restore(np.zeros((8, 8, 3), np.uint8), pipeline(saved(), **params))


def test_a_renamed_key_is_named_on_both_sides(tmp_path):
    state = make_golden.network().state_dict()
    state["latent.0.attention.temperature"] = state.pop("latent.0.attn.temperature")
    save_file(state, tmp_path / "renamed.safetensors")
    with pytest.raises(WeightsError, match=r"latent\.0\.attn\.temperature.*latent\.0\.attention\.temp"):
        restore(np.zeros((8, 8, 3), np.uint8), pipeline(tmp_path / "renamed.safetensors"))


def test_weights_of_the_other_normalisation_are_refused(saved):
    with pytest.raises(WeightsError, match=r"norm1\.body\.bias"):
        restore(np.zeros((8, 8, 3), np.uint8), pipeline(saved(), norm="bias-free"))


# One for each set of arguments: a declaration differs from its like in name, training set and figures.
@pytest.mark.parametrize(
    "item", {str(item.params): item for item in WEIGHTS}.values(), ids=lambda item: item.name
)
def test_published_checkpoints_are_declared_soundly(item):
    check_weights(item)
