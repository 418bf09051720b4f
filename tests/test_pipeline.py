import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from strangers import Brightness, Judge, Trained

import restorekit
from restorekit import load_pipeline, restore
from restorekit.building import built_facts
from restorekit.config import PipelineSpec
from restorekit.contracts import PriorFeatures
from restorekit.errors import ConfigError, ContractError, UnknownComponentError, WeightsError
from restorekit.plan import parts

pytestmark = pytest.mark.usefixtures("strangers")
IMAGE = np.random.default_rng(0).random((37, 51, 3), dtype=np.float32)


def chain(*steps, **more):
    return {"steps": list(steps), **more}


def gain(value):
    return {"restore": {"name": "gain", "params": {"gain": value}}}


def test_steps_follow_each_other():
    np.testing.assert_allclose(restore(IMAGE, chain(gain(2.0), gain(3.0))), IMAGE * 6, rtol=1e-6)


def test_values_outside_the_range_reach_the_network_unclipped():
    image = IMAGE * 4 - 2
    np.testing.assert_allclose(restore(image, chain(gain(1.0))), image)


def test_adapter_is_attached_to_the_backbone():
    step = {"restore": {"name": "gain", "adapter": {"name": "louder", "params": {"by": 0.5}}}}
    np.testing.assert_allclose(restore(IMAGE, chain(step)), IMAGE + 0.5, rtol=1e-6)


def test_adapter_makes_room_for_what_its_file_holds(tmp_path):
    save_file({f"numbers.{i}": torch.tensor(0.25) for i in range(3)}, tmp_path / "entries.safetensors")
    adapter = {"name": "entries", "weights": str(tmp_path / "entries.safetensors")}
    spec = PipelineSpec.load(chain({"restore": {"name": "gain", "adapter": adapter}}))
    np.testing.assert_allclose(restore(IMAGE, spec), IMAGE + 0.75, rtol=1e-6)
    facts = [built_facts(part) for part in parts(spec)[0]]
    assert facts[1]["parameters"] == 3


@pytest.mark.parametrize(("tile", "size"), [(0, 0), (128, 128)])
@pytest.mark.parametrize(("channels", "looks"), [(3, 1), (1, 3)])
def test_verdict_on_the_whole_image_stands_in_the_record(tile, size, channels, looks):
    image = np.tile(IMAGE, (10, 10, 1))
    Judge.looks = 0
    judge = {"restore": {"name": "judge", "params": {"channels": channels}}}
    result = restore(image, chain(judge, gain(1.0)), tile=tile, return_result=True)
    assert Judge.looks == looks and result.steps[0].tile == size
    assert result.verdict.shares["bright"] == pytest.approx(float(image.mean()), abs=1e-3)
    assert result.steps[1].verdict is None
    stored = json.loads(result.to_json())["steps"]
    assert stored[0]["verdict"] == {"shares": result.verdict.shares, "source": "a look", "sure": True}


def test_network_that_does_not_judge_has_no_verdict():
    assert restore(IMAGE, chain(gain(1.0)), return_result=True).verdict is None


@pytest.mark.parametrize("tile", [0, 256])
def test_refiner_sees_the_degraded_image_the_restored_one_and_the_prior(tile):
    image = np.tile(IMAGE, (10, 10, 1))
    refine = {"refine": {"name": "blend", "prior": "brightness"}}
    restored = restore(image, chain(gain(2.0), refine), tile=tile)
    expected = image * 1.5 + image.mean((0, 1), dtype=np.float64)
    np.testing.assert_allclose(restored, expected, atol=1e-5)


def test_prior_sees_the_same_whatever_the_precision_of_the_pipeline(monkeypatch):
    seen = []

    def watched(self, image):
        seen.append(image)
        return PriorFeatures(image.mean((2, 3)))

    monkeypatch.setattr(Brightness, "forward", watched)
    image = np.random.default_rng(0).random((9, 11, 3), dtype=np.float32) * 1.2 - 0.1
    for dtype in ("fp32", "bf16"):
        restore(image, chain({"refine": {"name": "blend", "prior": "brightness"}}), dtype=dtype)
    assert [one.dtype for one in seen] == [torch.float32] * 2 and torch.equal(*seen)
    assert seen[0].amin() == 0 and seen[0].amax() == 1


def test_gray_network_keeps_the_colours_of_a_colour_image():
    np.testing.assert_allclose(restore(IMAGE, chain({"restore": "gray"})), IMAGE / 2, rtol=1e-6)


def test_gray_image_passes_through_a_colour_network():
    gray = IMAGE[..., 0]
    np.testing.assert_allclose(restore(gray, chain(gain(0.5))), gray / 2, rtol=1e-6)


@pytest.mark.parametrize("tile", [0, 128])
def test_scale_grows_the_image_and_its_alpha(tile):
    image = np.random.default_rng(1).integers(0, 256, (200, 150, 4), dtype=np.uint8)
    restored = restore(image, chain({"restore": "double"}), tile=tile)
    assert restored.shape == (400, 300, 4)
    assert (restored[::2, ::2, :3] == image[..., :3]).all()


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (257, 129)])
@pytest.mark.parametrize("tile", [0, 128])
def test_any_size_comes_back_in_its_size(size, tile):
    image = np.zeros((*size, 3), np.float32)
    assert restore(image, chain(gain(1.0)), tile=tile).shape == image.shape


def test_what_depends_on_the_whole_image_is_the_same_in_tiles():
    image = np.random.default_rng(1).random((300, 420, 3), dtype=np.float32)
    image[:, :100] = 0
    whole, tiled = (restore(image, chain({"restore": "level"}), tile=tile) for tile in (0, 128))
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_tile_of_the_pipeline_is_used_and_the_argument_wins():
    pipeline = load_pipeline(chain(gain(1.0), tile={"size": 128, "overlap": 16}))
    image = np.zeros((300, 300, 3), np.float32)
    record = restore(image, pipeline, return_result=True).steps[0]
    assert (record.tile, record.overlap) == (128, 16)
    assert restore(image, pipeline, tile=0, return_result=True).steps[0].tile == 0
    assert restore(image, pipeline, tile=200, return_result=True).steps[0].tile == 200


def test_wrong_tile_is_refused():
    with pytest.raises(ConfigError, match="expected auto or a number of pixels"):
        restore(IMAGE, chain(gain(1.0)), tile=-5)


def test_half_precision_that_fails_is_run_again_in_float32_and_recorded():
    result = restore(IMAGE, chain({"restore": "fragile"}), dtype="bf16", return_result=True)
    assert np.isfinite(result.to_numpy()).all()
    assert result.steps[0].dtype == "float32"
    assert any("not finite" in event for event in result.steps[0].events)
    assert any("fragile" in warning for warning in result.warnings)


def test_result_that_is_never_finite_is_an_error():
    step = {"restore": {"name": "fragile", "params": {"broken": True}}}
    with pytest.raises(ContractError, match="fragile returned values that are not finite"):
        restore(IMAGE, chain(step))


def test_network_that_breaks_its_promise_is_named():
    with pytest.raises(ContractError):
        restore(IMAGE, chain({"restore": "misshapen"}))


def test_seed_makes_random_networks_repeat_and_leaves_the_generator_alone():
    torch.manual_seed(4)
    state = torch.random.get_rng_state()
    first, second = (restore(IMAGE, chain({"restore": "random"}), seed=7) for _ in range(2))
    assert (first == second).all()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (restore(IMAGE, chain({"restore": "random"}), seed=8) != first).any()


def test_unknown_component_has_a_near_name():
    with pytest.raises(UnknownComponentError, match="no backbone called 'gian'") as caught:
        restore(IMAGE, chain({"restore": "gian"}))
    assert caught.value.hint == "did you mean 'gain'?"


@pytest.mark.parametrize(
    ("params", "message", "hint"),
    [
        ({"gian": 2}, "gain takes no 'gian'", "did you mean 'gain'?"),
        ({"gain": -1}, "gain must be positive", "it takes: gain"),
    ],
)
def test_wrong_arguments_are_refused_with_their_place(params, message, hint):
    with pytest.raises(ConfigError) as caught:
        restore(IMAGE, chain({"restore": {"name": "gain", "params": params}}))
    assert caught.value.where == "steps[0].restore.params"
    assert message in caught.value.message and caught.value.hint == hint


@pytest.mark.parametrize(
    ("params", "key", "message", "hint"),
    [
        ({"gain": "2"}, "params.gain", "gain refuses '2'", "give a number"),
        ({"gain": [2]}, "params.gain", r"gain refuses \[2\]", "give a number"),
    ],
)
def test_an_argument_of_another_type_is_told_by_its_key(params, key, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        restore(IMAGE, chain({"restore": {"name": "gain", "params": params}}))
    assert caught.value.where == f"steps[0].restore.{key}" and caught.value.hint == hint


def test_an_argument_that_is_needed_and_not_given_is_named():
    prior = {"name": "referred"}
    with pytest.raises(ConfigError, match="referred needs 'reference'") as caught:
        restore(IMAGE, chain(gain(1.0), {"refine": {"name": "blend", "prior": prior}}))
    assert caught.value.where == "steps[1].refine.prior.params"
    assert caught.value.hint == "write params: {reference: ...}; it takes: reference"


def test_network_without_weights_is_refused():
    with pytest.raises(WeightsError, match="trained is a network, and no weights are given"):
        restore(IMAGE, chain({"restore": "trained"}))


def test_weights_of_a_file_are_used_and_recorded(tmp_path):
    network = Trained()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    step = {"restore": {"name": "trained", "weights": str(tmp_path / "net.safetensors")}}
    result = restore(IMAGE, chain(step), return_result=True)
    with torch.no_grad():
        expected = network(torch.from_numpy(IMAGE).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(result.to_numpy(), expected.numpy(), atol=1e-6)
    assert len(result.steps[0].weights_sha256) == 64


def test_plan_with_build_finds_tensors_that_do_not_fit(tmp_path):
    save_file(Trained(width=4).state_dict(), tmp_path / "net.safetensors")
    step = {"restore": {"name": "trained", "weights": str(tmp_path / "net.safetensors")}}
    part = parts(PipelineSpec.parse(chain(step)))[0][0]
    assert part.facts()["parameters"] == 4 * 27 + 4
    with pytest.raises(WeightsError, match="differ in shape"):
        built_facts(part)


@pytest.fixture
def two_layers(tmp_path):
    path = tmp_path / "two.safetensors"
    save_file({name: torch.eye(3).reshape(3, 3, 1, 1) / 2 for name in ("first", "second")}, path)
    return str(path)


@pytest.mark.parametrize(("params", "gain"), [({}, 1.0), ({"gain": 3.0}, 3.0)])
def test_architecture_is_read_off_the_weights(two_layers, params, gain):
    step = {"restore": {"name": "detected", "weights": two_layers, "params": params}}
    result = restore(IMAGE, chain(step), return_result=True)
    np.testing.assert_allclose(result.to_numpy(), IMAGE * gain**2 / 4, rtol=1e-5)
    assert len(result.steps[0].weights_sha256) == 64


def test_plan_with_build_names_the_architecture_that_was_detected(two_layers):
    step = {"restore": {"name": "detected", "weights": two_layers}}
    facts = built_facts(parts(PipelineSpec.parse(chain(step)))[0][0])
    assert facts["architecture"] == "2 layers"
    assert facts["parameters"] == 18
    assert facts["memory_per_pixel"] > 0


def test_detected_network_needs_weights_that_it_recognises_and_arguments_that_it_knows(two_layers, tmp_path):
    with pytest.raises(WeightsError, match="detected is a network, and no weights are given"):
        restore(IMAGE, chain({"restore": "detected"}))
    step = {"name": "detected", "weights": two_layers, "params": {"gian": 1}}
    with pytest.raises(ConfigError, match="detected takes no 'gian'"):
        restore(IMAGE, chain({"restore": step}))
    save_file({"bias": torch.zeros(3)}, tmp_path / "other.safetensors")
    step = {"name": "detected", "weights": str(tmp_path / "other.safetensors")}
    with pytest.raises(WeightsError, match="is not recognised"):
        restore(IMAGE, chain({"restore": step}))


def test_precision_that_a_network_does_not_know_is_replaced_by_float32_and_reported():
    result = restore(IMAGE, chain({"restore": "careful"}, gain(1.0)), dtype="bf16", return_result=True)
    assert [record.dtype for record in result.steps] == ["float32", "bfloat16"]
    assert result.steps[0].events == ("not known to work in bfloat16, ran in float32",)


def test_network_with_tensors_of_five_dimensions_is_run():
    np.testing.assert_allclose(restore(IMAGE, chain({"restore": "volume"})), IMAGE / 2, rtol=1e-6)


def test_result_tells_its_history(tmp_path):
    result = restore(IMAGE, chain(gain(2.0)), return_result=True)
    facts = json.loads(result.to_json())
    record = facts["steps"][0]
    assert (facts["width"], facts["height"]) == (51, 37)
    assert record["component"] == "gain" and record["version"] == "1.2" and record["licences"] == ["MIT"]
    assert (
        record["parameters"] == {"gain": 2.0} and record["dtype"] == "float32" and record["device"] == "cpu"
    )
    assert record["seconds"] >= 0
    assert np.asarray(result).shape == IMAGE.shape
    assert result.to_pil().size == (51, 37)
    assert result.save(tmp_path / "x.png").exists()


def test_result_tells_which_prior_guided_it():
    refine = {"refine": {"name": "blend", "prior": "brightness"}}
    result = restore(IMAGE, chain(gain(2.0), refine), return_result=True)
    steps = json.loads(result.to_json())["steps"]
    assert steps[0]["prior"] is None
    assert steps[1]["prior"] == {"name": "brightness", "fingerprint": "", "library": ""}


def test_pipeline_is_built_once_for_many_images():
    pipeline = load_pipeline("median")
    first = restore(IMAGE, pipeline)
    np.testing.assert_array_equal(restore([IMAGE, IMAGE], pipeline)[1], first)


def test_public_names_are_all_there():
    assert set(restorekit.__all__) == set(restorekit._HOMES)
    for name in restorekit.__all__:
        assert getattr(restorekit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = restorekit.nothing


def test_networks_can_be_written_to_after_a_run():
    pipeline = load_pipeline("denoise")
    restore(np.zeros((16, 16, 3), np.uint8), pipeline)
    assert not any(parameter.is_inference() for parameter in pipeline.steps[0].network.parameters())
