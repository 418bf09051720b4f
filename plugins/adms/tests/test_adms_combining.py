"""Filters put together: scaled, combined, merged into the base and out of it; what cannot be."""

import copy
import gc
import json
import pickle
import weakref

import numpy as np
import pytest
import torch
from adms_cases import KINDS, adapter_of, bits, images, network_of, same
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from restorekit.catalog import PARAMS_KEY
from restorekit.contracts import Backbone
from restorekit.errors import ConfigError, OutputError, RestoreKitError, WeightsError
from restorekit.filters import fingerprint
from restorekit.registry import adapters, backbones
from restorekit_adms.adapter import Adms
from restorekit_adms.deltas import Delta, vectors_of
from restorekit_adms.files import inspect


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_scale_multiplies_what_is_added():
    network = network_of()
    _, adaptive = adapter_of(network)
    x = images(network)
    adaptive.set_adapter({"rain": 0.35})
    expected = adaptive(x)
    adaptive.set_adapter("rain")
    adaptive.set_scale("rain", 0.35)
    torch.testing.assert_close(adaptive(x), expected)


def test_degradations_of_different_people_are_put_together(tmp_path):
    network = network_of()
    _adapter, adaptive = adapter_of(network)
    for name in KINDS:
        adaptive.save_adapter(name, tmp_path / f"{name}.safetensors")
    other = Adms(parts=[str(tmp_path / f"{name}.safetensors") for name in KINDS], router="uniform").attach(
        network
    )
    x = images(network)
    assert torch.equal(other(x), adaptive(x))
    assert other.load_adapter(tmp_path / "rain.safetensors", rename="drizzle") == "drizzle"
    other.set_adapter("drizzle")
    adaptive.set_adapter("rain")
    assert torch.equal(other(x), adaptive(x))


def test_inspection_tells_layers_share_bytes_and_base(tmp_path):
    network = network_of()
    adapter, _ = adapter_of(network, router="classifier")
    found = inspect(adapter.save(tmp_path / "adms.safetensors"))
    rain = found.degradations["rain"]
    assert found.base == fingerprint(network.state_dict())
    assert rain.total == adapter.delta("rain").parameter_count == sum(rain.numbers.values())
    assert rain.share == pytest.approx(rain.total / sum(p.numel() for p in network.parameters()))
    assert rain.value_bytes + rain.index_bytes == adapter.delta("rain").byte_count
    assert rain.value_bytes == 4 * rain.total
    assert adapter.classifier is not None
    assert found.classifier == sum(parameter.numel() for parameter in adapter.classifier.parameters())


@pytest.mark.parametrize("how", ["linear", "ties", "dare", "max_score"])
def test_combined_filters_add_what_they_should(how):
    network = network_of()
    adapter, adaptive = adapter_of(network, ratio=0.3)
    weights = {"rain": 0.6, "blur": 0.4}
    overlaps = adaptive.combine("both", weights, how, density=1.0)
    one = overlaps["rain", "blur"]
    assert 0 < one.shared < one.union and 0.3 < one.conflict_rate < 0.7
    x = images(network)
    adaptive.set_adapter("both")
    found = adaptive(x)
    adaptive.set_adapter(weights)
    if how in ("linear", "dare"):
        torch.testing.assert_close(found, adaptive(x), rtol=1e-4, atol=1e-5)
    else:
        assert not torch.allclose(found, adaptive(x), atol=1e-4)
    counts = {name: adapter.delta(name).parameter_count for name in (*KINDS, "both")}
    assert counts["both"] == counts["rain"] + counts["blur"] - one.shared


def test_ties_elects_a_sign_only_where_filters_meet():
    from restorekit_adms.combining import _reduced

    nan = torch.nan
    values = torch.tensor([[1.0, 4.0, nan, 2.0], [3.0, -1.0, 5.0, nan]])[..., None]
    assert _reduced(values, "ties").flatten().tolist() == [2.0, 4.0, 5.0, 2.0]
    assert _reduced(values, "max_score").flatten().tolist() == [3.0, 4.0, 5.0, 2.0]
    assert _reduced(values, "linear").flatten().tolist() == [4.0, 3.0, 5.0, 2.0]


def test_dare_keeps_a_share_and_scales_it_up():
    network = network_of()
    adapter, adaptive = adapter_of(network, ratio=0.5, degradations=["rain"])
    for _, leaf in adapter.delta("rain").leaves():
        leaf.values.data.fill_(1)
    adaptive.combine("thin", {"rain": 1.0}, "dare", density=0.25)
    values = torch.cat([leaf.values.flatten() for _, leaf in adapter.delta("thin").leaves()]).detach()
    assert set(values.tolist()) == {0.0, 4.0} and values.mean() == pytest.approx(1, abs=0.2)


def test_merge_that_is_not_finite_is_refused():
    network = network_of()
    adapter, adaptive = adapter_of(network)
    before = bits(network)
    next(adapter.delta("rain").leaves())[1].values.data[0] = torch.nan
    with pytest.raises(RestoreKitError, match="not finite, nothing was merged"):
        adaptive.merge_adapter("rain", safe_merge=True)
    assert same(bits(network), before)
    with pytest.raises(RestoreKitError, match="no one mixture to merge"):
        adaptive.merge_adapter()


def test_base_is_merged_into_by_one_network_at_a_time_and_is_afterwards_what_it_was():
    network = network_of()
    before, x = bits(network), images(network)
    _, one = adapter_of(network, degradations=["rain"], router="auto")
    _, other = adapter_of(network, degradations=["blur"], router="auto")
    expected = other(x)
    judged = other.for_image(x, 0)
    one.merge_adapter("rain")
    merged = bits(network)
    for refused in (
        lambda: other.merge_adapter("blur"),
        lambda: other.merge_and_unload("blur"),
        lambda: other.unload(),
        lambda: other(x),
        lambda: judged(x),
        lambda: Adms(["noise"], mask="random").attach(network),
    ):
        with pytest.raises(RestoreKitError, match="another network has merged its filters into the base"):
            refused()
    with other.disable_adapter(), pytest.raises(RestoreKitError, match="another network has merged"):
        other(x)
    other.unmerge_adapter()
    assert same(bits(network), merged), "who has merged nothing takes nothing out"
    assert torch.equal(one(x), network(x))
    one.unmerge_adapter()
    other.merge_adapter("blur")
    other.unmerge_adapter()
    assert same(bits(network), before) and torch.equal(other(x), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copy_of_a_network_with_merged_filters_has_them_in_its_own_base(copied):
    network = network_of()
    before, x = bits(network), images(network)
    _, one = adapter_of(network, degradations=["rain"])
    one.merge_adapter("rain")
    twin = copied(one)
    one.unmerge_adapter()
    with pytest.raises(RestoreKitError, match="another network has merged"):
        Adms(["blur"], mask="random").attach(twin.backbone)
    assert not torch.equal(twin(x), network(x))
    twin.unmerge_adapter()
    assert same(bits(twin.backbone), before) and same(bits(network), before)


def test_filters_that_a_network_left_in_the_base_are_not_taken_for_the_base():
    network = network_of()
    x = images(network)
    _, one = adapter_of(network, degradations=["rain"])
    _, other = adapter_of(network, degradations=["blur"])
    one.merge_adapter("rain")
    left = weakref.ref(one)
    del one
    gc.collect()
    assert left() is None, "that filters are merged keeps no network alive"
    with pytest.raises(RestoreKitError, match="merged by another network, which is gone"):
        other(x)
    fresh = copy.deepcopy(network)
    adapter_of(fresh)[1](x)


def test_weights_that_are_loaded_into_a_merged_base_are_not_unmerged():
    network, other = network_of(), network_of(seed=1)
    _, adaptive = adapter_of(network)
    adaptive.merge_adapter("rain")
    network.load_state_dict(other.state_dict())
    assert adaptive.settled is None
    adaptive.unmerge_adapter()
    assert same(bits(network), bits(other))


def test_state_that_was_taken_while_filters_were_merged_is_refused():
    network = network_of()
    x = images(network)
    _, adaptive = adapter_of(network)
    whole = bits(adaptive)
    adaptive.merge_adapter("rain")
    merged = bits(adaptive)
    adaptive.unmerge_adapter()
    _, twin = adapter_of(network_of())
    with pytest.raises(WeightsError, match=r"was made for the base .*, what was loaded is"):
        twin.load_state_dict(merged)
    twin.load_state_dict(whole)
    assert torch.equal(twin(x), adaptive(x))


def test_what_may_act_is_told_of_merged_and_disabled_filters():
    network = network_of()
    _, adaptive = adapter_of(network)
    assert adaptive.active_adapters == tuple(KINDS)
    adaptive.merge_adapter("blur")
    adaptive.set_adapter("rain")
    assert adaptive.active_adapters == ("blur",)
    adaptive.unmerge_adapter()
    assert adaptive.active_adapters == ("rain",)
    before = bits(network)
    with adaptive.disable_adapter():
        assert adaptive.active_adapters == ()
        with pytest.raises(RestoreKitError, match="the filters are disabled"):
            adaptive.merge_adapter("rain")
        assert not same(bits(adaptive.merge_and_unload("rain")), before)
    assert same(bits(network), before)


# What cannot be.


@pytest.mark.parametrize("indices", [[-1, 0], [0, 0]])
def test_file_with_indices_that_no_filter_has_is_refused(indices, tmp_path):
    network = network_of()
    adapter, _ = adapter_of(network)
    path = adapter.save(tmp_path / "adms.safetensors")
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    tensors = load_file(path)
    name = next(key for key, value in tensors.items() if key.endswith(".idx") and len(value) > 1)
    tensors[name][:2] = torch.tensor(indices)
    save_file(tensors, path, facts)
    with pytest.raises(WeightsError, match=r"names filter -1 of|names a filter of .* twice"):
        Adms.load(path).attach(network)


@pytest.mark.parametrize("stated", [{"foo": 3}, {"degradations": 3}])
def test_file_that_states_arguments_of_something_else_is_refused(stated, tmp_path):
    path = adapter_of(network_of())[0].save(tmp_path / "adms.safetensors")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        facts = {**file.metadata(), PARAMS_KEY: json.dumps(stated)}
    save_file(tensors, path, facts)
    with pytest.raises(WeightsError, match="states arguments that an adapter does not take"):
        Adms.load(path)


def test_file_that_cannot_be_written_is_one_error(tmp_path):
    adapter, adaptive = adapter_of(network_of())
    for write in (adapter.save, lambda path: adaptive.save_adapter("rain", path)):
        with pytest.raises(OutputError, match="cannot be written"):
            write(tmp_path / "missing" / "adms.safetensors")


def test_network_without_filters_is_refused_with_a_hint_that_can_be_followed():
    with pytest.raises(RestoreKitError, match="Median has no filters") as caught:
        Adms(["rain"], mask="random").attach(backbones["median"].load()())
    assert "take a network with convolutions or linear layers" in caught.value.hint


def test_network_whose_weights_a_hook_computes_is_refused_with_its_own_hint():
    class Hooked(Backbone):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.conv.weight_v = nn.Parameter(torch.ones(3, 3, 3, 3))

        def forward(self, degraded):
            return self.conv(degraded)

    with pytest.raises(RestoreKitError, match=r"parametrizations"):
        Adms(["rain"], mask="random").attach(Hooked())


@pytest.mark.parametrize("value", [torch.nan, float("inf"), "x", "0.5", None, [1, 2]])
def test_weight_or_scale_that_is_no_number_is_refused_and_changes_nothing(value):
    network = network_of()
    adapter, adaptive = adapter_of(network)
    x = images(network)
    expected = adaptive(x)
    for problem, refused in (
        ("the scale of rain is", lambda: adaptive.set_scale("rain", value)),
        ("the weight of rain is", lambda: adaptive.set_adapter({"rain": value})),
        ("the weight of rain is", lambda: adaptive.merge_adapter({"rain": value})),
        ("the weight of rain is", lambda: adaptive.combine("both", {"rain": value})),
    ):
        with pytest.raises(RestoreKitError, match=problem):
            refused()
    assert adapter.names == tuple(KINDS) and torch.equal(adaptive(x), expected)


def test_numbers_of_other_kinds_are_weights():
    network = network_of()
    _, adaptive = adapter_of(network)
    x = images(network)
    adaptive.set_adapter({"rain": 0.5, "blur": 1})
    expected = adaptive(x)
    adaptive.set_adapter({"rain": torch.tensor(0.5), "blur": np.float32(1)})
    assert torch.equal(adaptive(x), expected)


def test_what_names_no_degradations_is_refused():
    adapter, adaptive = adapter_of(network_of(), none="clean")
    with pytest.raises(RestoreKitError, match="there is nothing to combine"):
        adaptive.combine("nothing", {})
    with pytest.raises(RestoreKitError, match="no degradation 'clean'; it knows: rain, blur"):
        adaptive.combine("nothing", {"clean": 1.0})
    with pytest.raises(RestoreKitError, match="3 are no weights"):
        adaptive.set_adapter(3)
    with pytest.raises(RestoreKitError, match=r"no degradation \['rain'\]"):
        adaptive.set_adapter([["rain"]])
    assert adapter.names == tuple(KINDS)


@pytest.mark.parametrize("key", ["degradations", "parts", "combined"])
def test_one_text_in_place_of_a_list_is_refused(key):
    with pytest.raises(
        ConfigError, match=rf"params\.{key}: 'rain' is one text, not a list\n.*{key}: \[rain\]"
    ):
        Adms(**{"degradations": ["rain"], key: "rain"})


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"ratio": 0}, r"params\.ratio"),
        ({"temperature": 0}, r"params\.temperature"),
        ({"temperature": 1e-40}, r"params\.temperature: 1e-40 is no number above 1e-06"),
        ({"temperature": float("inf")}, r"params\.temperature"),
        ({"mode": "grup"}, "did you mean 'group'"),
        ({"unit": "filter"}, "no kind of filter"),
        ({"scores": {"snow": "x"}}, "'snow' is no degradation here"),
        ({"degradations": ["a.b"]}, "no name for a degradation"),
        ({"degradations": ["train"]}, "no name for a degradation"),
        ({"degradations": ["rain", "rain"]}, "stands twice"),
        ({"parts": ["missing.safetensors"]}, "cannot be read"),
    ],
)
def test_argument_that_makes_no_sense_is_refused(params, problem):
    with pytest.raises(RestoreKitError, match=problem):
        Adms(**{"degradations": ["rain"], **params})


def test_file_that_is_no_adapter_is_refused(tmp_path):
    network = network_of()
    with pytest.raises(WeightsError, match="no ADMS adapter"):
        Adms().make_room(network.state_dict())
    adapter, _ = adapter_of(network)
    state = adapter.state_dict()
    with pytest.raises(WeightsError, match="filters for rain, blur, asked for were snow"):
        Adms(["snow"]).make_room(state)
    strange = {**state, "deltas.rain.rubbish": torch.zeros(3)}
    with pytest.raises(WeightsError, match="no part of an adapter"):
        Adms().make_room(strange)


def test_filters_that_do_not_fit_the_network_are_refused():
    adapter, _ = adapter_of(network_of("srresnet"))
    other = Adms()
    other.make_room(adapter.state_dict())
    with pytest.raises(WeightsError, match="the network has no"):
        other.attach(network_of())


def test_vectors_are_parameters_along_one_axis():
    network = network_of()
    found = vectors_of(network)
    assert "intro.bias" in found and "encoders.0.0.beta" in found and "intro.weight" not in found
    assert isinstance(Delta({}, found).parameter_count, int)


def test_adapter_is_installed():
    assert adapters["adms"].load() is Adms
