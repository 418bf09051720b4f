"""Which filters are chosen, and what becomes of them: verbs, combination, what cannot be."""

import copy
import gc
import pickle
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from adms_cases import KINDS, adapter_of, bits, images, network_of, same
from torch import nn

from restorekit.contracts import Backbone
from restorekit.errors import ConfigError, RestoreKitError, WeightsError
from restorekit.filters import FilterScores, FilterTable, fingerprint
from restorekit.registry import adapters, backbones
from restorekit_adms.adapter import Adms
from restorekit_adms.deltas import Delta, units_of, vectors_of
from restorekit_adms.files import inspect
from restorekit_adms.network import Adaptive
from restorekit_adms.routing import RouterChoice


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_grouped_transposed_convolutions_have_their_outputs_as_filters():
    class Enlarging(Backbone):
        scale = 2

        def __init__(self):
            super().__init__()
            self.spread = nn.Conv2d(3, 6, 1)
            self.up = nn.ConvTranspose2d(6, 6, 2, stride=2, groups=2)
            self.out = nn.Conv2d(6, 3, 1)

        def forward(self, degraded):
            return self.out(self.up(self.spread(degraded)))

    network = Enlarging().eval().requires_grad_(False)
    table = FilterTable.of(network, "out")
    scores = FilterScores(table, torch.zeros(len(table)), "faig", "rain", fingerprint(network.state_dict()))
    up = next(tensor for tensor in table if tensor.name == "up.weight")
    scores.values[up.offset + 4] = 1
    adapter = Adms(["rain"], mask="random")
    adapter.choice = replace(adapter.choice, mask="scores")
    adapter.choose(network, {"rain": scores}, ratio=0.2)
    adaptive = adapter.attach(network)
    adapter.delta("rain").get_submodule("tensors.up.weight").val.data += 1
    x = torch.rand(1, 3, 5, 5)
    spread = network.spread(x)
    hidden = adaptive._act(lambda image: network.up(network.spread(image)), x, torch.ones(1, 1))
    changed = (hidden - network.up(spread)).abs().amax((0, 2, 3))
    assert changed.nonzero().flatten().tolist() == [4]


def test_scores_choose_the_best_and_exclusive_filters_go_to_the_higher_score():
    network = network_of()
    table, base = FilterTable.of(network), fingerprint(network.state_dict())
    best = torch.arange(len(table)).flip(0).float()
    given = {
        "rain": FilterScores(table, best, "faig", "rain", base),
        "blur": FilterScores(table, best * 0.5, "faig", "blur", base),
    }
    adapter = Adms(KINDS, mask="random")
    adapter.choice = replace(adapter.choice, mask="scores")
    adapter.choose(network, given, ratio=0.05)
    chosen = [{name: leaf.idx.tolist() for name, leaf in adapter.delta(kind).leaves()} for kind in KINDS]
    assert chosen[0] == chosen[1] == {k: v.tolist() for k, v in table.chosen(given["rain"].top(0.05)).items()}
    adapter.choice = replace(adapter.choice, exclusive=True)
    given["blur"].values[:2] += 1e6
    adapter.choose(network, given, ratio=0.05)
    overlap = Adaptive(network, adapter).combine("both", {"rain": 1, "blur": 1})["rain", "blur"]
    assert overlap.shared == 0
    assert next(adapter.delta("blur").leaves())[1].idx.tolist()[:2] == [0, 1]


@pytest.mark.parametrize("unit", ["kernel", "out", "weight"])
def test_exclusive_filters_of_others_are_left_to_them_by_who_comes_later(unit):
    network = network_of()
    table, base = FilterTable.of(network, unit), fingerprint(network.state_dict())
    scores = FilterScores(table, torch.arange(len(table)).flip(0).float(), "faig", "noise", base)
    adapter, adaptive = adapter_of(network, degradations=["rain"], exclusive=True, vectors="all")
    adapter.choice = replace(adapter.choice, mask="scores")
    before = bits(adapter.delta("rain"))
    adaptive.add_adapter("noise", scores, ratio=0.2)
    adapter.choice = replace(adapter.choice, exclusive=False)
    adaptive.add_adapter("greedy", scores, ratio=0.2)
    assert same(bits(adapter.delta("rain")), before)
    places = [
        {
            (name, place)
            for name, leaf in adapter.delta(kind).leaves()
            if not leaf.is_vector
            for place in leaf.elements(name, units_of(network, adapter.delta(kind))).tolist()
        }
        for kind in ("rain", "noise", "greedy")
    ]
    rain, noise, greedy = places
    assert rain & greedy and not rain & noise and noise < greedy
    if unit != "out":
        # Filters that are as small as rain's, or smaller, are left out one by one.
        assert noise == greedy - rain
    adapter.choice = replace(adapter.choice, exclusive=True)
    with pytest.raises(RestoreKitError, match="other degradations have all the filters that were chosen for"):
        adaptive.add_adapter("again", scores, ratio=0.2)


# Verbs.


def test_adapters_come_and_go():
    network = network_of()
    adapter, adaptive = adapter_of(network)
    adaptive.add_adapter("noise", ratio=0.05)
    assert adapter.names == ("rain", "blur", "noise") == adaptive.active_adapters
    x = images(network)
    adaptive.set_adapter("noise")
    assert torch.equal(adaptive(x), network(x)), "fresh filters add nothing"
    adaptive.delete_adapter("noise")
    assert adapter.names == ("rain", "blur")
    with pytest.raises(RestoreKitError, match="no degradation 'noise'; it knows: rain, blur"):
        adaptive.delete_adapter("noise")
    with pytest.raises(
        RestoreKitError, match=r"no degradation 'ran'; it knows: rain, blur(.|\n)*did you mean 'rain'"
    ):
        adaptive.set_adapter({"ran": 1.0})
    adaptive.requires_grad_(False)
    trained, total = adaptive.get_nb_trainable_parameters()
    assert trained == 0 and total == sum(p.numel() for p in (*network.parameters(), *adapter.parameters()))


def test_deleted_degradation_leaves_no_weight_and_no_scale_behind():
    adapter, adaptive = adapter_of(network_of())
    x = images(adaptive)
    expected = adaptive(x)
    rain = copy.deepcopy(adapter.delta("rain"))
    adaptive.set_scale("rain", 0.1)
    adaptive.set_adapter("rain")
    adaptive.delete_adapter("rain")
    assert adaptive.active_adapters == ("blur",) and adaptive.judge(x)[1] == "uniform"
    blur = copy.deepcopy(adapter.delta("blur"))
    adaptive.set_adapter({})
    adaptive.delete_adapter("blur")
    assert adaptive.judge(x)[1] == "user", "no weight at all was asked for"
    adaptive.set_adapter(None)
    adapter.put("rain", rain)
    adapter.put("blur", blur)
    assert torch.equal(adaptive(x), expected)


@pytest.mark.parametrize("gone", [["rain"], ["blur"], ["noise", "rain"]])
def test_classifier_goes_on_among_the_degradations_that_are_left(gone, tmp_path):
    network = network_of()
    kinds = ["rain", "blur", "noise"]
    adapter, adaptive = adapter_of(network, router="classifier", degradations=kinds, none="clean")
    x = images(network, 2)
    shares = adaptive.judge(x)[0]
    left = [index for index, name in enumerate((*kinds, "clean")) if name not in gone]
    for name in gone:
        adaptive.delete_adapter(name)
    found = adaptive.judge(x)[0]
    torch.testing.assert_close(found, shares[:, left] / shares[:, left].sum(1, keepdim=True))
    path = adapter.save(tmp_path / "left.safetensors")
    for again in (Adms.load(path), Adms(parts=[str(path)])):
        assert again.classifier.kinds == again.kinds == adapter.kinds
        restored = again.attach(network).eval().requires_grad_(False)
        torch.testing.assert_close(restored.judge(x)[0], found)
        torch.testing.assert_close(restored(x), adaptive(x))


def test_filters_that_take_the_place_of_deleted_ones_have_their_share(tmp_path):
    network = network_of()
    adapter, adaptive = adapter_of(network, router="classifier")
    x = images(network)
    shares, expected = adaptive.judge(x)[0], adaptive(x)
    adaptive.save_adapter("rain", tmp_path / "rain.safetensors")
    adaptive.delete_adapter("rain")
    assert adaptive.judge(x)[0].tolist() == [[1.0]]
    adaptive.load_adapter(tmp_path / "rain.safetensors")
    assert adapter.kinds == ("blur", "rain") and torch.equal(adaptive.judge(x)[0], shares.flip(1))
    torch.testing.assert_close(adaptive(x), expected)
    again = Adms.load(adapter.save(tmp_path / "adms.safetensors")).attach(network).eval()
    torch.testing.assert_close(again(x), adaptive(x))


def test_degradation_that_came_after_the_classifier_is_refused_in_a_file_with_the_ways_out(tmp_path):
    network = network_of()
    adapter, adaptive = adapter_of(network, router="classifier")
    x = images(network)
    expected = adaptive(x)
    adaptive.add_adapter("noise")
    torch.testing.assert_close(adaptive(x), expected)
    assert adaptive.judge(x)[0][0, 2] == 0
    with pytest.raises(
        RestoreKitError,
        match=r"tells rain, blur, the filters are for rain, blur, noise"
        r"(.|\n)*save_delta(.|\n)*train: classifier"
        r"(.|\n)*classifier = None(.|\n)*set_adapter(.|\n)*router",
    ):
        adapter.save(tmp_path / "adms.safetensors")
    written = [str(adaptive.save_adapter(name, tmp_path / f"{name}.safetensors")) for name in adapter.names]
    again = Adms(parts=written, train="classifier")
    assert again.classifier.kinds == adapter.names
    adapter.classifier = None
    adapter.router = RouterChoice.of("uniform")
    assert Adms.load(adapter.save(tmp_path / "adms.safetensors")).names == adapter.names


@pytest.mark.parametrize("router", ["auto", "classifier"])
@pytest.mark.parametrize("degradations", [KINDS, ["rain"]])
def test_network_whose_degradations_are_all_gone_says_so(router, degradations):
    network = network_of()
    adapter, adaptive = adapter_of(network, router=router, degradations=degradations)
    x = images(network)
    for name in degradations:
        adaptive.delete_adapter(name)
    with pytest.raises(RestoreKitError, match=r"no degradation left|the filters are for none"):
        adaptive(x)
    assert adapter.kinds == () and torch.equal(adaptive.unload()(x), network(x))
    adaptive.add_adapter("noise")
    adaptive.set_adapter("noise")
    assert torch.equal(adaptive(x), network(x))


def test_classifier_of_unknown_order_is_not_cut(tmp_path):
    adapter, _ = adapter_of(network_of(), router="classifier")
    other = Adms(["blur", "rain"])
    other.make_room(adapter.state_dict())
    other.load_state_dict(adapter.state_dict())
    other.drop("blur")
    with pytest.raises(WeightsError, match="not trained to tell blur, rain, in this order"):
        other.save(tmp_path / "adms.safetensors")


@pytest.mark.parametrize(
    "router",
    ["uniform", "classifier", {"name": "overlap", "steps": 2}, lambda x: torch.full((len(x), 2), 0.5)],
)
def test_combined_filters_are_not_routed_to(router, tmp_path):
    network = network_of()
    adapter, adaptive = adapter_of(network, router=router)
    x = images(network, 2)
    expected, shares = adaptive(x), adaptive.judge(x)[0]
    adaptive.combine("both", {"rain": 1.0, "blur": 1.0})
    # The order of the filters in a mixture, and so rounding, may change; the shares do not.
    torch.testing.assert_close(adaptive(x), expected)
    assert torch.equal(adaptive.judge(x)[0], torch.nn.functional.pad(shares, (0, 1)))
    assert adaptive.active_adapters == ("rain", "blur")
    again = Adms.load(adapter.save(tmp_path / "adms.safetensors"))
    parts = Adms(parts=[str(tmp_path / "adms.safetensors")])
    assert again.routed == parts.routed == ("rain", "blur") and again.names == ("rain", "blur", "both")
    adaptive.set_adapter("both")
    found = again.attach(network).eval().requires_grad_(False)
    found.set_adapter("both")
    assert torch.equal(found(x), adaptive(x)) and not torch.equal(found(x), expected)


def test_only_degradation_stays_the_only_one_when_others_are_combined_of_it():
    adapter, adaptive = adapter_of(network_of(), router="auto", degradations=["rain"])
    x = images(adaptive)
    expected = adaptive(x)
    adaptive.combine("drizzle", {"rain": 0.5})
    assert torch.equal(adaptive(x), expected)
    adaptive.delete_adapter("drizzle")
    adapter.put("drizzle", copy.deepcopy(adapter.delta("rain")))
    with pytest.raises(RestoreKitError, match="nothing tells rain, drizzle apart"):
        adaptive(x)


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


# What cannot be.


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
