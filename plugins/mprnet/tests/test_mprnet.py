import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from restorekit import restore
from restorekit.bench import parity
from restorekit.errors import ConfigError, WeightsError
from restorekit.testing import check_backbone, check_weights
from restorekit_mprnet.network import MPRNet
from restorekit_mprnet.published import WEIGHTS

HERE = Path(__file__).parent
PARITY = HERE.parents[3] / "shared" / "parity" / "dev"
CASES = sorted(PARITY.glob("mprnet*/meta.json"))
KEY_LISTS = sorted(PARITY.glob("official_keys/mprnet*.json"))
SMALL = dict(width=8, width_step=4, third_step=4, blocks=1)
needs_fixtures = pytest.mark.skipif(
    not CASES, reason="the official networks' outputs are not here: ../shared/parity/dev"
)

spec = importlib.util.spec_from_file_location("mprnet_golden", HERE / "make_golden.py")
make_golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_golden)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "mprnet.safetensors"
    save_file(make_golden.network().state_dict(), path)
    return path


def pipeline(path, **params):
    return {
        "steps": [
            {
                "restore": {
                    "name": "mprnet",
                    "params": {**make_golden.ARGUMENTS, **params},
                    "weights": str(path),
                }
            }
        ]
    }


@needs_fixtures
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.parent.name)
def test_official_outputs_of_every_stage_are_matched(path):
    rows = parity.matches(path)
    assert rows and [row for row in rows if not row.holds] == []


@needs_fixtures
@pytest.mark.parametrize("path", KEY_LISTS, ids=lambda path: path.stem)
def test_published_sizes_have_the_published_names_and_shapes(path):
    assert parity.key_match(path).differences == ()


def test_golden_outputs_of_every_stage_are_kept():
    golden = load_file(HERE / "golden.safetensors")
    network = MPRNet(**make_golden.ARGUMENTS).eval()
    prefix = "weights."
    network.load_state_dict(
        {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
    )
    with torch.no_grad():
        outputs = network.training_outputs(golden["degraded"])
    for index, output in enumerate(outputs):
        torch.testing.assert_close(output, golden[f"output{index}"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("params", [{}, {"channels": 1}, {"bias": True, "kernel": 1}, {"reduction": 2}])
def test_contract_is_kept(params):
    check_backbone(MPRNet, **SMALL, **params)


def test_one_slope_is_shared_and_listed_under_every_block():
    network = MPRNet(**SMALL)
    slopes = [name for name in network.state_dict() if name.endswith("body.1.weight") and "orb" not in name]
    assert len(slopes) == 31
    assert sum(parameter.numel() == 1 for parameter in network.parameters()) == 1
    with torch.no_grad():
        network.stage1_encoder.encoder_level1[0].body[1].weight.fill_(0.7)
    assert all(float(network.state_dict()[name]) == pytest.approx(0.7) for name in slopes)


def test_gradients_of_all_stages_reach_every_parameter():
    network = make_golden.network().train().requires_grad_(True)
    sum(output.square().mean() for output in network.training_outputs(torch.rand(1, 3, 24, 16))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # The few features inside of channel attention can all be below zero, where ReLU stops them.
        assert "conv_du" in name or parameter.grad.abs().sum() > 0, name


def test_output_does_not_depend_on_memory_format():
    network, image = make_golden.network(), make_golden.degraded()
    plain = network(image)
    innermost = network.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(innermost, plain, atol=1e-5, rtol=0)


def test_the_first_stage_sees_quarters_and_the_second_halves():
    network, image = make_golden.network(), torch.rand(1, 3, 32, 32)
    changed = image.clone()
    changed[..., 16:, 16:] += 0.5
    before, after = (network.training_outputs(each) for each in (image, changed))
    quarter, half = (slice(None), slice(None), slice(0, 16), slice(0, 16)), slice(0, 16)
    assert torch.equal(before[2][quarter], after[2][quarter])
    assert not torch.equal(before[2][..., 16:, 16:], after[2][..., 16:, 16:])
    assert not torch.equal(before[0][..., half, :], after[0][..., half, :])


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 7), (8, 8), (37, 21)])
def test_any_size_is_restored(size, saved):
    levels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert restore(levels, pipeline(saved)).shape == (*size, 3)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"kernel": 2}, "kernel 2 is not odd"),
        ({"width": 0}, "have to be positive"),
        ({"reduction": 9}, "leaves nothing of 4 features"),
    ],
)
def test_wrong_arguments_are_refused(params, says, saved):
    with pytest.raises(ConfigError, match=says):
        restore(np.zeros((8, 8, 3), np.uint8), pipeline(saved, **params))


def test_a_renamed_key_is_named_on_both_sides(tmp_path):
    state = make_golden.network().state_dict()
    state["sam12.conv4.weight"] = state.pop("sam12.conv3.weight")
    save_file(state, tmp_path / "renamed.safetensors")
    with pytest.raises(WeightsError, match=r"'sam12\.conv3\.weight'.*'sam12\.conv4\.weight'"):
        restore(np.zeros((8, 8, 3), np.uint8), pipeline(tmp_path / "renamed.safetensors"))


@pytest.mark.parametrize("item", WEIGHTS, ids=lambda item: item.name)
def test_published_checkpoints_are_declared_soundly(item):
    check_weights(item)
