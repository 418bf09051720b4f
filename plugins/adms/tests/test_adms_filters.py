"""Which filters are chosen, and how they come and go."""

import copy
from dataclasses import replace

import pytest
import torch
from adms_cases import KINDS, adapter_of, bits, images, network_of, same
from torch import nn

from restorekit.contracts import Backbone
from restorekit.errors import RestoreKitError, WeightsError
from restorekit.filters import FilterTable, fingerprint
from restorekit.filterscores import FilterScores
from restorekit_adms.adapter import Adms
from restorekit_adms.deltas import units_of
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


def test_adapter_that_was_read_chooses_new_filters_as_it_chose_its_own(tmp_path):
    network = network_of()
    table, base = FilterTable.of(network, "out"), fingerprint(network.state_dict())
    scores = FilterScores(table, torch.arange(len(table)).flip(0).float(), "faig", "noise", base)
    path = scores.save(tmp_path / "scores.safetensors")
    params = {"ratio": 0.2, "unit": "out", "vectors": "all", "exclusive": True, "router": "uniform"}
    adapter = Adms(["rain"], scores={"rain": str(path)}, **params)
    adapter.attach(network)
    again = Adms.load(adapter.save(tmp_path / "adms.safetensors"))
    assert again.choice.facts == adapter.choice.facts
    with pytest.raises(RestoreKitError, match="other degradations have all the filters"):
        again.attach(network).add_adapter("noise", scores)


def test_scores_that_are_given_are_gone_by_where_the_first_filters_were_of_chance():
    network = network_of()
    table, base = FilterTable.of(network), fingerprint(network.state_dict())
    scores = FilterScores(table, torch.arange(len(table)).flip(0).float(), "faig", "noise", base)
    adapter, adaptive = adapter_of(network)
    adaptive.add_adapter("noise", scores, ratio=0.05)
    chosen = {name: leaf.idx.tolist() for name, leaf in adapter.delta("noise").leaves()}
    assert chosen == {name: rows.tolist() for name, rows in table.chosen(scores.top(0.05)).items()}


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
