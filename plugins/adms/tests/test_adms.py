"""Filters in networks of four kinds: bits that stay, modes that agree, files, verbs, routers."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from restorekit.contracts import Backbone, Verdict
from restorekit.errors import ConfigError, RestoreKitError, WeightsError
from restorekit.filters import FilterScores, FilterTable, fingerprint
from restorekit.registry import adapters, backbones
from restorekit.testing import check_adapter
from restorekit.tiling import Tiler, pad_to_multiple
from restorekit_adms.adapter import Adms
from restorekit_adms.classifier import Classifier, _details
from restorekit_adms.deltas import Delta, units_of, vectors_of
from restorekit_adms.files import inspect
from restorekit_adms.network import Adaptive

SMALL = {
    "nafnet": {"width": 8, "encoder_blocks": (1, 1), "middle_blocks": 1, "decoder_blocks": (1, 1)},
    "restormer": {"dim": 8, "blocks": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "refinement_blocks": 1},
    "mprnet": {"width": 8, "width_step": 4, "third_step": 4, "blocks": 1},
    "srresnet": {"width": 8, "blocks": 2, "scale": 2},
}
KINDS = ["rain", "blur"]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def network_of(name="nafnet", seed=0):
    torch.manual_seed(seed)
    network = backbones[name].load()(**SMALL[name]).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def adapter_of(network, stir=0.05, **params):
    """Return an adapter by chance whose filters do something, and the network that it makes."""
    torch.manual_seed(1)
    adapter = Adms(**{"degradations": KINDS, "mask": "random", "ratio": 0.1, "router": "uniform", **params})
    adaptive = adapter.attach(network)
    for parameter in adapter.parameters():
        parameter.data += stir * torch.randn_like(parameter)
    return adapter, adaptive.eval().requires_grad_(False)


def images(network, count=1, side=24, seed=3):
    side = -(-side // network.size_multiple) * network.size_multiple
    return torch.rand(count, network.channels, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list(SMALL))
def network(request):
    return network_of(request.param)


def bits(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Verification suite, item 8.


def test_zero_weights_are_the_base_bit_for_bit(network):
    _, adaptive = adapter_of(network)
    x = images(network)
    expected = network(x)
    adaptive.set_adapter({"rain": 0.0, "blur": 0.0})
    for mode in ("merge", "group", "soft"):
        adaptive.adapter.mode = mode
        assert torch.equal(adaptive(x), expected)
    adaptive.set_adapter("rain")
    assert not torch.equal(adaptive(x), expected)
    with adaptive.disable_adapter():
        assert torch.equal(adaptive(x), expected)


def test_full_mask_with_the_difference_copied_is_the_specialist(network, tmp_path):
    specialist = copy.deepcopy(network)
    for parameter in specialist.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save(specialist.state_dict(), tmp_path / "rain.pth")
    adapter = Adms(
        ["rain"],
        mask="random",
        ratio=1.0,
        vectors="all",
        init="copy",
        specialists={"rain": str(tmp_path / "rain.pth")},
    )
    adaptive = adapter.attach(network).eval()
    x = images(network)
    torch.testing.assert_close(adaptive(x), specialist(x), rtol=1e-4, atol=1e-5)


def test_base_is_bit_for_bit_the_same_after_every_run(network):
    before = bits(network)
    _, adaptive = adapter_of(network, vectors="all", mode="merge")
    adaptive(images(network, 2))
    adaptive.for_image(images(network), 0)(images(network))
    with torch.enable_grad():
        adaptive(images(network, 2))
    assert same(bits(network), before)

    def fails(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adaptive._act(fails, images(network), torch.ones(1, 2))
    assert same(bits(network), before)


@pytest.mark.parametrize("mode", ["auto", "soft"])
def test_threads_and_adapters_that_share_a_base_take_turns(mode):
    network = network_of()
    before = bits(network)
    x = images(network)
    judged, expected = [], []
    for seed, names in enumerate((KINDS, ["noise"])):
        _, adaptive = adapter_of(network, degradations=names, mode=mode, seed=seed)
        for name in names:
            adaptive.set_adapter(name)
            judged.append(adaptive.for_image(x, 0))
            expected.append(judged[-1](x))

    def alone(run):
        with torch.no_grad():
            return [torch.equal(judged[run](x), expected[run]) for _ in range(20)]

    with ThreadPoolExecutor(len(judged)) as threads:
        assert all(all(equal) for equal in threads.map(alone, range(len(judged))))
    assert same(bits(network), before)


def test_adaptive_network_is_copied_and_pickled_after_a_run():
    _, adaptive = adapter_of(network_of())
    x = images(adaptive)
    expected = adaptive(x)
    assert torch.equal(copy.deepcopy(adaptive)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(adaptive))(x), expected)


def test_filters_that_change_or_take_the_place_of_others_act_at_the_next_run():
    network = network_of()
    adapter, adaptive = adapter_of(network)
    x = images(network)
    adaptive.set_adapter("rain")
    rain = adaptive(x)
    assert torch.equal(adaptive(x), rain)
    for parameter in adapter.delta("rain").parameters():
        parameter.mul_(2)
    doubled = adaptive(x)
    assert not torch.equal(doubled, rain)
    other = copy.deepcopy(adapter.delta("blur"))
    adapter.drop("blur")
    adapter.drop("rain")
    adapter.put("rain", other)
    adapter.put("blur", copy.deepcopy(other))
    replaced = adaptive(x)
    adaptive.set_adapter("blur")
    assert torch.equal(adaptive(x), replaced) and not torch.equal(replaced, doubled)


def test_merge_then_unmerge_is_bit_for_bit(network):
    before = bits(network)
    _, adaptive = adapter_of(network)
    x = images(network)
    adaptive.set_adapter({"rain": 0.7, "blur": 0.3})
    expected = adaptive(x)
    adaptive.merge_adapter()
    assert torch.equal(network(x), expected) and torch.equal(adaptive(x), expected)
    with pytest.raises(RestoreKitError, match="merged into the base"):
        adaptive.merge_adapter("rain")
    adaptive.unmerge_adapter()
    assert same(bits(network), before)
    alone = adaptive.merge_and_unload()
    assert torch.equal(alone(x), expected) and same(bits(network), before) and adaptive.unload() is network


@pytest.mark.parametrize("unit", ["kernel", "out", "weight"])
def test_unmerge_is_bit_for_bit_after_a_change_of_layout_and_precision(unit):
    network = network_of("srresnet")
    before = bits(network)
    _, adaptive = adapter_of(network, unit=unit, vectors="all")
    adaptive.merge_adapter({"rain": 0.7, "blur": 0.3})
    merged = bits(network)
    adaptive.to(memory_format=torch.channels_last)
    adaptive.unmerge_adapter()
    assert same(bits(network), before) and not same(merged, before)
    adaptive.merge_adapter({"rain": 0.7, "blur": 0.3})
    assert same(bits(network), merged)
    adaptive.to(memory_format=torch.contiguous_format).double()
    adaptive.unmerge_adapter()
    assert same(bits(network.float()), before)


def test_modes_agree_for_a_batch_of_different_verdicts(network):
    x = images(network, 4)
    shares = torch.tensor([[0.7, 0.3], [0.0, 1.0], [0.7, 0.3], [0.25, 0.75]])
    _, adaptive = adapter_of(network, router=lambda batch: shares[: len(batch)])
    outputs = {}
    for mode in ("auto", "merge", "group", "soft"):
        adaptive.adapter.mode = mode
        outputs[mode] = adaptive(x)
    with torch.enable_grad():
        outputs["gradients"] = adaptive(x).detach()
    spread = outputs["auto"].std()
    for mode, output in outputs.items():
        assert (output - outputs["auto"]).abs().max() <= 1e-5 * max(1, spread), mode
    one = []
    for row in range(4):
        adaptive.set_adapter(dict(zip(KINDS, shares[row].tolist(), strict=True)))
        one.append(adaptive(x[row : row + 1]))
    assert (torch.cat(one) - outputs["auto"]).abs().max() <= 1e-5 * max(1, spread)
    adaptive.set_adapter(None)
    assert (network(x) - outputs["auto"]).abs().max() > 100 * 1e-5


def test_saved_adapter_comes_back_bit_for_bit(network, tmp_path):
    adapter, adaptive = adapter_of(network, vectors="all", router="classifier", none="clean")
    path = adapter.save(tmp_path / "adms.safetensors")
    again = Adms.load(path)
    assert (again.kinds, again.router.name) == (("rain", "blur", "clean"), "classifier")
    x = images(network, 2)
    assert torch.equal(again.attach(network).eval().requires_grad_(False)(x), adaptive(x))
    (small := adapter.save(tmp_path / "half.safetensors", half=True))
    assert small.stat().st_size < 0.75 * path.stat().st_size
    assert {v.dtype for k, v in load_file(small).items() if k.endswith(".idx")} == {torch.int32}


def test_adapter_of_parts_acts_as_its_classifier_did_and_is_saved_so(tmp_path):
    network = network_of()
    adapter, adaptive = adapter_of(network, none="clean", temperature=3.0, top1=True, router="classifier")
    path = adapter.save(tmp_path / "whole.safetensors")
    together = Adms(parts=[str(path)])
    again = Adms.load(together.save(tmp_path / "again.safetensors"))
    x = images(network, 2)
    for each in (together, again):
        assert (each.none, each.temperature, each.top1) == ("clean", 3.0, True)
        found = each.attach(network).eval().requires_grad_(False)
        assert torch.equal(found.judge(x)[0], adaptive.judge(x)[0])
        assert torch.equal(found(x), adaptive(x))
    assert Adms(parts=[str(path)], temperature=2.0).temperature == 2.0
    clash = adapter_of(network, degradations=["clean"])[0].save_delta("clean", tmp_path / "clean.safetensors")
    with pytest.raises(RestoreKitError, match="'clean'"):
        Adms(parts=[str(clash), str(path)])


def test_file_states_how_the_adapter_acts_by_now(tmp_path):
    adapter, _ = adapter_of(network_of(), router={"name": "overlap", "steps": 2})
    adapter.temperature, adapter.mode = 0.5, "soft"
    again = Adms.load(adapter.save(tmp_path / "overlap.safetensors"))
    assert (again.router, again.temperature, again.mode) == (adapter.router, 0.5, "soft")
    adapter, _ = adapter_of(network_of(), router={"name": "oracle", "label": "blur"})
    assert Adms.load(adapter.save(tmp_path / "oracle.safetensors")).router == adapter.router
    adapter, _ = adapter_of(network_of(), router=lambda batch: torch.ones(len(batch), 2))
    assert Adms.load(adapter.save(tmp_path / "custom.safetensors")).router.name == "auto"


def test_classifier_that_is_read_with_names_in_another_order_is_refused(tmp_path):
    network = network_of()
    adapter, _ = adapter_of(network, router="classifier")
    other = Adms(["blur", "rain"])
    other.make_room(adapter.state_dict())
    other.load_state_dict(adapter.state_dict())
    with pytest.raises(WeightsError, match="not trained to tell blur, rain, in this order"):
        other.attach(network)


def test_another_base_is_refused_with_both_hashes(network, tmp_path):
    adapter, _ = adapter_of(network)
    other = copy.deepcopy(network)
    next(other.parameters()).add_(1e-3)
    ours, theirs = (fingerprint(each.state_dict())[:16] for each in (network, other))
    with pytest.raises(WeightsError, match=f"made for the base {ours}, the network is {theirs}"):
        adapter.attach(other)
    path = adapter.save_delta("rain", tmp_path / "rain.safetensors")
    _, strange = adapter_of(other, degradations=["noise"])
    with pytest.raises(WeightsError, match=f"made for the base {ours}, the others for {theirs}"):
        strange.load_adapter(path)


@torch.enable_grad()
def test_nothing_but_the_filters_moves_under_decay(network):
    adapter, adaptive = adapter_of(network)
    adaptive.requires_grad_(True)
    before = bits(network)
    optimizer = torch.optim.AdamW(adapter.parameters(), 1e-2, weight_decay=0.5)
    for _ in range(2):
        adaptive(images(network)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert same(bits(network), before)
    assert all(parameter.grad is None for parameter in network.parameters())


@torch.enable_grad()
def test_gradient_of_a_value_is_that_of_its_place(network):
    adapter, adaptive = adapter_of(network, degradations=["rain"], vectors="all")
    adapter.requires_grad_(True)
    adaptive.set_adapter("rain")
    x = images(network)
    adaptive(x).square().mean().backward()
    merged = adaptive.merge_and_unload().requires_grad_(True)
    merged(x).square().mean().backward()
    dense = dict(merged.named_parameters())
    for place in adaptive.mixer.places:
        leaf = dict(adapter.delta("rain").leaves())[place.name]
        expected = place.line(dense[place.name].grad)[place.elements]
        torch.testing.assert_close(leaf.values.grad.flatten().sort().values, expected.sort().values)


def test_a_base_that_is_written_to_is_noticed(network):
    _, adaptive = adapter_of(network)
    x = images(network)
    adaptive(x)
    next(iter(adaptive.mixer.places)).tensor.mul_(1.1)
    adaptive.set_adapter({"rain": 0.0})
    assert torch.equal(adaptive(x), network(x))


# What the contract asks.


def test_contract_is_kept(network):
    check_adapter(Adms, network, degradations=KINDS, mask="random", ratio=0.1, router="classifier")


def test_memory_is_measured_like_that_of_any_network():
    from restorekit.memory import memory_per_pixel

    network = network_of()
    _, adaptive = adapter_of(network, router="classifier")
    assert 1 <= memory_per_pixel(adaptive) / memory_per_pixel(network) < 1.3


@pytest.mark.parametrize("unit", ["kernel", "out", "weight"])
def test_layout_in_memory_changes_nothing(unit):
    network = network_of("srresnet")
    _adapter, adaptive = adapter_of(network, unit=unit)
    x = images(network)
    expected = adaptive(x)
    adaptive.to(memory_format=torch.channels_last)
    assert (adaptive(x) - expected).abs().max() <= 1e-5
    with torch.enable_grad():
        assert (adaptive(x).detach() - expected).abs().max() <= 1e-5


def test_network_that_is_moved_in_inference_mode_still_runs_outside_of_it():
    network = network_of()
    _, adaptive = adapter_of(network)
    x = images(network).double()
    with torch.inference_mode():
        adaptive.double()
        inside = adaptive(x).clone()
    assert torch.equal(adaptive(x), inside)


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


# Routers.


def test_classifier_has_the_parameters_that_are_stated():
    with torch.device("meta"):
        assert sum(p.numel() for p in Classifier(3).parameters()) == 52_795


def test_classifier_sees_details_a_level_apart_and_none_where_an_image_is_flat():
    image = torch.full((1, 3, 20, 31), 60, dtype=torch.float64)
    assert not _details(image, 0, None).abs().gt(1e-9).any()
    image[..., 7, 11] += 9 / 8
    details = _details(image, 0, None)[0, 0]
    torch.testing.assert_close(details[7, 11].sinh(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(_details(image, 5, 12)[0, 0], details[5:12])


@pytest.mark.parametrize("widths", [(48, 64, 96, 96, 128), (8, 12, 16)])
@pytest.mark.parametrize("size", [(97, 130), (64, 64), (31, 200)])
def test_classifier_sees_a_large_image_strip_by_strip_to_the_same_result(size, widths, monkeypatch):
    torch.manual_seed(0)
    classifier = Classifier(3, widths).double().eval()
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    whole = classifier(x)
    monkeypatch.setattr("restorekit_adms.classifier._PIECE", 32 * size[1])
    torch.testing.assert_close(classifier(x), whole, rtol=1e-12, atol=1e-12)


def test_classifier_sees_an_image_of_more_bits_as_an_8_bit_file_has_it():
    torch.manual_seed(0)
    classifier = Classifier(3).eval()
    fine = torch.rand(1, 3, 40, 50) * 1.2 - 0.1
    assert torch.equal(classifier(fine), classifier((fine * 255).round().clamp(0, 255) / 255))


def test_classifier_looks_once_at_the_whole_image_and_never_at_tiles():
    network = network_of()
    _, adaptive = adapter_of(network, router="classifier")
    seen = []
    adaptive.adapter.classifier.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape)
    )
    x = pad_to_multiple(images(network, side=200), network.size_multiple, network.padding)
    act = adaptive.for_image(x, 128)
    tiled = Tiler(128, 64)(act, x, multiple=network.size_multiple)
    assert seen == [x.shape]
    adaptive.set_adapter(dict(act.verdict.shares))
    assert (tiled - adaptive(x)).abs().max() < 1e-3 * tiled.std()


def test_temperature_mixes_and_top1_decides():
    network = network_of()
    adapter, adaptive = adapter_of(network, router="classifier", none="clean")
    x = images(network, 3)
    sharp = adaptive.judge(x)[0]
    adapter.temperature = 100.0
    soft = adaptive.judge(x)[0]
    assert sharp.shape == (3, 3) and (soft.max(1).values < sharp.max(1).values).all()
    assert torch.allclose(soft.sum(1), torch.ones(3))
    adapter.top1 = True
    assert set(adaptive.weights(x).flatten().tolist()) <= {0.0, 1.0}
    assert adaptive.weights(x).shape == (3, 2), "the kind without filters has no weight"


def test_a_share_below_the_least_leaves_the_image_to_the_base():
    network = network_of()
    adapter, adaptive = adapter_of(network, router="classifier", none="clean", top1=True)
    x = images(network, 4)
    first = adaptive.weights(x)
    shares = adaptive.judge(x)[0].amax(1)
    adapter.least = float(shares.sort().values[1:3].mean())
    sure = (shares >= adapter.least).to(first.dtype)
    assert sure.sum() == 2 and torch.equal(adaptive.weights(x), first * sure[:, None])
    verdicts = [adaptive.for_image(x[row : row + 1], 0).verdict for row in range(4)]
    assert [verdict.sure for verdict in verdicts] == sure.bool().tolist()
    assert sorted("too little to act by" in str(verdict) for verdict in verdicts) == [
        False,
        False,
        True,
        True,
    ]
    with pytest.raises(ConfigError, match="without top1 every share acts"):
        adapter_of(network_of(), least=0.5)
    with pytest.raises(ConfigError, match="is no share"):
        adapter_of(network_of(), top1=True, least=1.5)


def test_routers_say_what_they_should():
    network = network_of()
    x = images(network, 2)
    _, adaptive = adapter_of(network, router="uniform", none="clean")
    assert torch.allclose(adaptive.judge(x)[0], torch.full((2, 3), 1 / 3))
    _, adaptive = adapter_of(network, router={"name": "oracle", "label": "blur"})
    assert adaptive.judge(x)[0].tolist() == [[0.0, 1.0]] * 2
    assert str(adaptive.for_image(x[:1], 0).verdict) == "blur 100 %"
    _, adaptive = adapter_of(network, router="auto", degradations=["rain"])
    assert adaptive.judge(x)[0].tolist() == [[1.0]] * 2
    _, adaptive = adapter_of(network, router=lambda batch: torch.ones(len(batch), 3))
    with pytest.raises(
        RestoreKitError, match=r"the router returned \(2, 3\) for 2 images, expected \(2, 2\)"
    ):
        adaptive(x)
    _, adaptive = adapter_of(network, router=lambda batch: torch.full((len(batch), 2), torch.nan))
    with pytest.raises(RestoreKitError, match="not finite"):
        adaptive(x)


@pytest.mark.parametrize("router", ["auto", "uniform"])
def test_merged_and_disabled_networks_ask_no_router(router):
    network = network_of()
    adapter, adaptive = adapter_of(network, router=router)
    x = images(network)
    expected = network(x)
    adapter.top1 = True
    with adaptive.disable_adapter():
        assert torch.equal(adaptive(x), expected)
        assert adaptive.for_image(x, 0).verdict == Verdict({"rain": 0.0, "blur": 0.0}, "disabled")
        assert adaptive.weights(x).tolist() == [[0.0, 0.0]]
    adaptive.merge_adapter({"rain": 0.5})
    assert torch.equal(adaptive(x), network(x)) and not torch.equal(network(x), expected)
    assert adaptive.for_image(x, 24).verdict == Verdict({"rain": 0.5, "blur": 0.0}, "merged")
    adaptive.unmerge_adapter()
    adaptive.set_adapter("blur")
    assert adaptive.for_image(x, 0).verdict.source == "user"


def test_router_by_overlap_needs_no_classifier_and_leaves_no_trace():
    network = network_of()
    _, adaptive = adapter_of(network, router={"name": "overlap", "steps": 2})
    before, x = bits(network), images(network, 2)
    with torch.inference_mode():
        shares, source = adaptive.judge(x)
    assert source == "overlap" and shares.shape == (2, 2) and torch.allclose(shares.sum(1), torch.ones(2))
    assert same(bits(network), before)


@pytest.mark.parametrize("router", ["clasifier", {"name": "oracle"}, {"name": "uniform", "label": "x"}, 3])
def test_router_that_makes_no_sense_is_refused(router):
    with pytest.raises(ConfigError, match=r"params\.router"):
        Adms(["rain"], router=router)


# What cannot be.


def test_network_without_filters_is_refused():
    with pytest.raises(RestoreKitError, match="Median has no filters"):
        Adms(["rain"], mask="random").attach(backbones["median"].load()())


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
