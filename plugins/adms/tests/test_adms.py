"""Filters in networks of five kinds, in both precisions: bits that stay, modes that agree, files."""

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from adms_cases import KINDS, SMALL, adapter_of, bits, images, network_of, same
from safetensors.torch import load_file, save_file

from restorekit import Pipeline, PipelineSpec
from restorekit.catalog import PARAMS_KEY
from restorekit.errors import RestoreKitError, WeightsError
from restorekit.filters import fingerprint
from restorekit.testing import check_adapter
from restorekit_adms.adapter import Adms
from restorekit_adms.files import read


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=[(name, dtype) for name in SMALL for dtype in ("float32", "float64")], ids="-".join)
def network(request):
    name, dtype = request.param
    return network_of(name).to(getattr(torch, dtype))


@pytest.fixture(params=list(SMALL))
def single(request):
    return network_of(request.param)


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
    rainy = adaptive(x)
    adaptive.disable_adapters()
    assert torch.equal(adaptive(x), expected) and adaptive.active_adapters == ()
    with adaptive.disable_adapter():
        assert adaptive.active_adapters == ()
    assert torch.equal(adaptive(x), expected)
    adaptive.enable_adapters()
    assert torch.equal(adaptive(x), rainy) and adaptive.active_adapters == ("rain",)
    adaptive.merge_adapter("rain")
    with pytest.raises(RestoreKitError, match="merged"):
        adaptive.disable_adapters()
    adaptive.unmerge_adapter()


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
    for mode in ("auto", "merge", "group", "soft", "batched"):
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


def test_parts_are_put_together_in_a_pipeline(tmp_path):
    network = network_of()
    base = tmp_path / "base.safetensors"
    save_file(network.state_dict(), base)
    adapter, adaptive = adapter_of(network, none="clean", router="classifier")
    parts = [str(adapter.save_delta(kind, tmp_path / f"{kind}.safetensors")) for kind in KINDS]
    whole = str(adapter.save(tmp_path / "whole.safetensors"))
    x = images(network)

    def pipeline(**params):
        step = {"name": "nafnet", "params": SMALL["nafnet"], "weights": str(base)}
        step["adapter"] = {"name": "adms", "params": params}
        return Pipeline.build(PipelineSpec.parse({"steps": [{"restore": step}]})).steps[0].network

    assert torch.equal(pipeline(parts=[whole])(x), adaptive(x))
    adaptive.set_adapter({"rain": 0.5, "blur": 0.5})
    assert torch.equal(pipeline(parts=parts, router="uniform")(x), adaptive(x))
    for params in ({"router": "classifier"}, {"degradations": [*KINDS, "haze"], "mask": "random"}):
        with pytest.raises(RestoreKitError, match="no weights are given"):
            pipeline(parts=parts, **params)


def test_batch_of_no_image_is_a_batch_of_none():
    network = network_of()
    for router in ("classifier", "overlap", "uniform"):
        _, adaptive = adapter_of(network, router=router)
        x = images(network)[:0]
        assert adaptive(x).shape == network(x).shape


@pytest.mark.parametrize("pooling", ["mean", "statistics"])
@pytest.mark.parametrize("train", ["deltas", "classifier"])
def test_classifier_of_a_file_is_read_whatever_the_default_of_its_layers_is_by_now(train, pooling, tmp_path):
    network = network_of()
    adapter, _ = adapter_of(network, router="classifier", widths=(8, 12), pooling=pooling, train=train)
    if train == "classifier":
        adapter.deltas._modules.clear()
    file = adapter.save(tmp_path / "adms.safetensors")
    tensors, facts = read(file)
    stated = json.loads(facts[PARAMS_KEY])
    del stated["widths"]
    stated.pop("pooling", None)
    for widths in ({}, {"widths": [4, 4]}):
        again = Adms(**{**stated, **widths, "train": train})
        again.make_room(tensors)
        again.load_state_dict(tensors)
        assert torch.equal(again.classifier(images(network)), adapter.classifier(images(network)))
        assert again.widths == (8, 12) and again.pooling == pooling


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
def test_gradient_of_a_value_is_that_of_its_place(single):
    adapter, adaptive = adapter_of(single, degradations=["rain"], vectors="all")
    adapter.requires_grad_(True)
    adaptive.set_adapter("rain")
    x = images(single)
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


def test_contract_is_kept(single):
    check_adapter(Adms, single, degradations=KINDS, mask="random", ratio=0.1, router="classifier")


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
