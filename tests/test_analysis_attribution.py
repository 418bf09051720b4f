"""FAIG: exact where it can be known, complete where it cannot, on every architecture, within its memory."""

from __future__ import annotations

import copy
import logging
from itertools import pairwise

import pytest
import torch
from analysis_cases import SMALL, Layers, StoppedError, both, by_definition, images, loss_of, moved, small
from torch import nn

from restorekit.analysis import FAIGResult, attribute, pseudo_pairs, rank, restored
from restorekit.analysis.pairs import Pair
from restorekit.analysis.protocols import ImageScorer, mask_drop, modulate, retrain
from restorekit.analysis.rules import points, spans
from restorekit.analysis.walk import Walk, sse
from restorekit.contracts import Backbone
from restorekit.errors import ImageError, RestoreKitError, WeightsError
from restorekit.filters import FilterTable
from restorekit.filterscores import FilterScores
from restorekit.memory import _LiveBytes

every_network = pytest.mark.parametrize("name", SMALL)


def test_of_automatic_steps_there_are_as_many_as_completeness_needs(caplog, monkeypatch):
    base, target = both("nafnet")
    pairs = images(3, side=8)
    loose = attribute(base, target, pairs, label="x", tolerance=0.5)
    strict = attribute(base, target, pairs, label="x", tolerance=2e-4)
    assert loose.steps == 8 < strict.steps and strict.steps & (strict.steps - 1) == 0
    errors = [
        attribute(base, target, pairs[:2], label="x", steps=steps).completeness.error
        for steps in (strict.steps, strict.steps // 2)
    ]
    assert errors[0] <= 2e-4 < errors[1]
    monkeypatch.setattr("restorekit.analysis.attribution._MOST", 16)
    with caplog.at_level(logging.WARNING):
        assert attribute(base, target, pairs[:1], label="x", tolerance=1e-12).steps == 16
    assert "16 steps still miss" in caplog.text


def test_the_absolute_value_is_taken_after_the_path_and_before_the_filter():
    # One 1 x 3 filter per pixel of a row; two weights move apart, and their parts cancel in a plain sum.
    base = Layers(nn.Conv2d(3, 3, (1, 3), padding=(0, 1), bias=False)).double()
    nn.init.zeros_(base.layers[0].weight)
    target = copy.deepcopy(base)
    with torch.no_grad():
        target.layers[0].weight[0, 0, 0] = torch.tensor([1.0, 0.0, -1.0])
    degraded = torch.zeros(1, 3, 1, 3, dtype=torch.float64)
    degraded[0, 0, 0, 1] = 1.0
    # The pixel's neighbours become -+1 where 0 is right: the gradient of either weight is 2 w, its part -1.
    found = attribute(base, target, [(degraded, torch.zeros_like(degraded))], label="x", steps=7)
    assert found.values[0] == pytest.approx(2.0) and not found.values[1:].any()
    # Against a clean image that one neighbour meets, its part changes its sign and not its size.
    clean = degraded.clone()
    clean[0, 0, 0, 1], clean[0, 0, 0, 2] = 0.0, 1.0
    other = attribute(base, target, [(degraded, clean)], label="x", steps=7)
    assert other.completeness.attributed == pytest.approx(0.0) and other.values[0] == pytest.approx(2.0)


@every_network
def test_a_wider_network_pads_and_crops_as_pipelines_do(name):
    network = small(name)
    degraded = torch.rand(1, 3, 13, 11, dtype=torch.float64)
    assert restored(network, degraded).shape[-2:] == (13 * network.scale, 11 * network.scale)


class Dimensions(Backbone):
    """Looks at an image as a volume, its rows as signals, and its columns as vectors: layers of each kind."""

    def __init__(self):
        super().__init__()
        self.volume = nn.Conv3d(1, 2, 3, padding=1)
        self.signal = nn.Conv1d(6, 3, 3, padding=1)
        self.vector = nn.Linear(7, 7)

    def forward(self, degraded):
        volume = nn.functional.gelu(self.volume(degraded[:, None])).flatten(1, 2)
        rows = self.signal(volume.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(degraded), -1))
        return self.vector(nn.functional.gelu(rows.transpose(1, 2)))


@pytest.mark.parametrize("unit", ["kernel", "out", "weight"])
def test_layers_of_one_and_three_dimensions_and_linear_ones_add_up(unit):
    torch.manual_seed(0)
    base = Dimensions().double()
    target = moved(base, 2.0)
    pairs = [(degraded[..., :7], clean[..., :7]) for degraded, clean in images(2, side=6)]
    few, enough = (
        attribute(base, target, pairs, label="x", rule="gauss", steps=steps, unit=unit) for steps in (1, 16)
    )
    assert enough.completeness.error < 1e-6 < few.completeness.error
    counts = {"kernel": (2, 18, 49), "out": (2, 3, 7), "weight": (54, 54, 49)}[unit]
    names = [f"{name}.weight" for name in ("volume", "signal", "vector")]
    assert [(tensor.name, tensor.count) for tensor in enough.table] == list(zip(names, counts, strict=True))
    release = attribute(base, target, pairs, label="x", rule="left", steps=10, unit=unit)
    torch.testing.assert_close(
        release.values, by_definition(base, target, pairs, 10, unit), rtol=1e-9, atol=1e-15
    )


def test_a_batch_is_the_mean_of_its_images_not_one_large_image():
    base, target = both("srcnn")
    pairs = images(2, 2, 8)
    together = attribute(base, target, pairs, label="x", steps=4)
    apart = [attribute(base, target, [pair], label="x", steps=4).values for pair in pairs]
    torch.testing.assert_close(together.values, (apart[0] + apart[1]) / 2)


def test_networks_and_states_give_the_same_scores_and_marks():
    base, target = both("srcnn")
    pairs = images(1, 2, 8)
    found = [
        attribute(one, other, pairs, label="x", steps=2)
        for one, other in (
            (base, target),
            (base.state_dict(), target),
            (base, target.state_dict()),
        )
    ]
    for other in found[1:]:
        assert torch.equal(found[0].values, other.values)
        assert (found[0].base, found[0].target) == (other.base, other.target)
    found[0].check_base(base.state_dict())
    with pytest.raises(RestoreKitError, match="both states"):
        attribute(base.state_dict(), target.state_dict(), pairs, label="x")


def test_any_module_that_keeps_the_shape_of_its_images_is_a_network():
    torch.manual_seed(0)
    # A convolution has a padding and channels of its own, which are no promises of a backbone.
    base = nn.Conv2d(3, 3, 3, padding=1).double()
    target, wrapped = moved(base, 2.0), Layers(base)
    found = attribute(base, target, images(2), label="x", steps=1)
    assert found.table.tensors[0].name == "weight" and found.completeness.error < 1e-12
    same = attribute(wrapped, Layers(target), images(2), label="x", steps=1)
    assert torch.equal(found.values, same.values)
    for method in ("ig", "delta"):
        assert rank(method, base, target, images(1), label="x", steps=2).values.any()
    best, degraded = found.top(0.3), images(1)[0][0]
    assert mask_drop(target, base, found.table, best, [degraded]).mean > 0
    outputs = modulate(target, base, found.table, best, degraded, (1.0,))
    assert torch.equal(outputs[0], target(degraded))
    trained = retrain(base, found.table, best, lambda step: images(1)[0], steps=1)
    assert not torch.equal(trained.weight, base.weight) and torch.equal(trained.bias, base.bias)
    assert ImageScorer(base, target, found.table, steps=2)(degraded).any()


@pytest.mark.parametrize("network", [nn.Conv2d(3, 3, 3), nn.Conv2d(3, 1, 1), nn.Identity()])
def test_a_module_that_changes_the_shape_of_its_images_is_told_what_is_wanted(network):
    base = nn.Sequential(nn.Conv2d(3, 3, 1), network).double()
    if isinstance(network, nn.Identity):
        base.register_forward_hook(lambda module, given, output: (output,))
    with pytest.raises(RestoreKitError, match=r"Sequential makes .* of \(1, 3, 16, 19\)") as refused:
        attribute(base, moved(base), images(1), label="x", steps=1)
    assert "keeps the shape" in refused.value.hint
    ((degraded, clean),) = images(1)
    with pytest.raises(ImageError, match="has 3 channels and the clean one 1, Sequential is taken to keep"):
        attribute(base, moved(base), [(degraded, clean[:, :1])], label="x", steps=1)


def test_what_is_neither_a_network_nor_a_state_is_named():
    _, target = both("srcnn")
    with pytest.raises(RestoreKitError, match="str is given instead of a network or its state"):
        attribute("base.safetensors", target, images(1, 2, 8), label="x")


def test_the_networks_that_are_given_stay_as_they_are():
    base, target = both("nafnet")
    target.train()
    before = [{key: value.clone() for key, value in net.state_dict().items()} for net in (base, target)]
    state = torch.get_rng_state()
    attribute(base, target, images(1, side=8), label="x", steps=2)
    for net, kept in zip((base, target), before, strict=True):
        assert all(torch.equal(value, kept[key]) for key, value in net.state_dict().items())
        assert all(parameter.grad is None for parameter in net.parameters())
    assert target.training and torch.equal(torch.get_rng_state(), state)


class Drawing(Layers):
    """Adds what it draws to what it computes."""

    def forward(self, degraded):
        return self.layers(degraded) + torch.randn_like(degraded)


def test_a_network_that_draws_draws_alike_all_along_the_way():
    base = Drawing(nn.Conv2d(3, 3, 3, padding=1)).double()
    found = attribute(base, moved(base, 2.0), images(1), label="x", steps=1)
    assert found.completeness.error < 1e-12


def test_running_statistics_move_too_and_are_accounted_for():
    torch.manual_seed(0)
    base = Layers(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1)).double()
    target = moved(base, 0.5)
    target.layers[1].running_mean += 0.3
    target.layers[1].running_var *= 1.5
    found = attribute(base, target, images(2), label="x", steps=32)
    assert found.completeness.error < 0.005
    assert found.completeness.change == pytest.approx(
        loss_of(base.eval(), images(2)) - loss_of(target.eval(), images(2))
    )
    assert {"layers.1.weight", "layers.0.bias"} <= found.others.keys()


@pytest.mark.parametrize("rule", ["mid", "left", "gauss"])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_running_statistics_alone_account_for_all_by_any_rule(rule, steps):
    base = Layers(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)).double()
    target = copy.deepcopy(base)
    # So much smaller than the baseline's that a step beyond the target would make it negative.
    target.layers[0].running_var *= 0.01
    target.layers[0].running_mean += 0.3
    parts = attribute(base, target, images(1), label="x", rule=rule, steps=steps).completeness
    assert parts.change and parts.attributed == pytest.approx(parts.change, rel=1e-12)


@pytest.mark.parametrize("rule", ["mid", "left", "gauss"])
def test_the_parts_of_a_path_join_and_hold_their_places(rule):
    places = points(rule, 7)
    parts = spans(places)
    assert parts[0][0] == 0 and parts[-1][1] == 1
    assert all(one[1] == other[0] for one, other in pairwise(parts))
    for (place, weight), (first, last) in zip(places, parts, strict=True):
        assert first - 1e-12 <= place <= last and last - first == pytest.approx(weight)


def test_an_image_that_failed_leaves_nothing_for_the_next():
    base, target = both("srcnn")
    first, second = (Pair(*pair, "x") for pair in images(2, 2, 8))
    walk = Walk(base, target, FilterTable.of(target))
    places, fresh, after = points("mid", 3), walk.scores(), walk.scores()
    parts = walk.score(second, places, sse, fresh)

    def stopped():
        raise StoppedError

    with pytest.raises(StoppedError):
        walk.score(first, places, sse, step=stopped)
    assert walk.score(second, places, sse, after) == parts
    assert torch.equal(after, fresh)


def test_half_precision_is_widened():
    base, target = both("srcnn")
    pairs = images(1, 2, 8)
    exact = attribute(base.half().float(), target.half().float(), pairs, label="x", steps=4)
    half = attribute(copy.deepcopy(base).half(), copy.deepcopy(target).half(), pairs, label="x", steps=4)
    assert torch.equal(exact.values, half.values) and half.values.dtype == torch.float32


def test_any_loss_and_any_choice_of_layers():
    base, target = both("srcnn")
    pairs = images(1, 2, 8)
    whole = attribute(base, target, pairs, label="x", steps=2)
    mean = attribute(base, target, pairs, label="x", steps=2, loss="mse")
    torch.testing.assert_close(mean.values, whole.values / pairs[0][1].numel())

    def halved(restored, clean):
        return (restored - clean).square().sum() / 2

    own = attribute(base, target, pairs, label="x", steps=2, loss=halved)
    torch.testing.assert_close(own.values, whole.values / 2)
    assert (whole.loss, mean.loss) == ("sse", "mse") and own.loss.endswith("halved")
    some = attribute(base, target, pairs, label="x", steps=2, include="features.0", exclude="bias")
    assert [tensor.name for tensor in some.table] == ["features.0.weight"]
    assert torch.equal(some.values, whole.table.split(whole.values)["features.0.weight"])
    # What is left out still moves: the whole is the same, and less of it is attributed.
    assert some.completeness.attributed == pytest.approx(whole.completeness.attributed)
    with pytest.raises(RestoreKitError, match="no loss called 'l2'"):
        attribute(base, target, pairs, label="x", loss="l2")


def test_a_path_to_its_own_output_is_the_distance_of_the_two_networks():
    base, target = both("srcnn")
    degraded = [pair[0] for pair in images(2, 2, 8)]
    found = attribute(base, target, pseudo_pairs(target, degraded), label="x", steps=16)
    with torch.no_grad():
        expected = sum(float(sse(base(image), target(image))) for image in degraded) / 2
    assert found.completeness.change == pytest.approx(expected, rel=1e-9) and found.completeness.error < 0.02


def test_results_survive_their_files_and_are_scores_of_filters(tmp_path):
    base, target = both("srcnn")
    made = attribute(
        base.float(), target.float(), images(1, 2, 8, dtype=torch.float32), label="noise", steps=2
    )
    path = made.save(tmp_path / "noise.safetensors")
    read = FAIGResult.load(path)
    assert torch.equal(read.values, made.values) and read.table == made.table
    assert read.completeness == made.completeness and read.others == made.others
    assert (read.images, read.rule, read.steps, read.loss) == (1, "mid", 2, "sse")
    plain = FilterScores.load(path)
    assert type(plain) is FilterScores and plain.label == "noise" and plain.details["steps"] == 2


def test_scores_of_another_ranker_are_no_result_of_an_attribution(tmp_path):
    base, target = both("srcnn")
    for method in ("delta", "random", "ig"):
        made = rank(method, base, target, images(1, 2, 8), label="x", steps=1)
        path = made.save(tmp_path / f"{method}.safetensors")
        with pytest.raises(WeightsError, match=f"are by {method} .*completeness") as refused:
            FAIGResult.load(path)
        assert "FilterScores.load" in refused.value.hint and FilterScores.load(path).method == method
    single = rank("gradxdelta", base, target, images(1, 2, 8), label="x").save(tmp_path / "one.safetensors")
    assert FAIGResult.load(single).steps == 1


@pytest.mark.parametrize("unit", ["kernel", "weight"])
def test_memory_is_at_most_six_and_a_half_times_the_parameters(unit, tmp_path):
    # Many parameters and a tiny image: activations are below 2 % of the parameters.
    base = small("srcnn").__class__(widths=[96] * 6, scale=2)
    target = moved(base)
    parameters = sum(value.numel() * value.element_size() for value in base.parameters())
    pairs = images(2, 2, 4, dtype=torch.float32)
    with _LiveBytes([*base.parameters(), *target.parameters()]) as live:
        found = attribute(
            base, target, pairs, label="x", steps=3, unit=unit, checkpoint=tmp_path / "state.safetensors"
        )
    peak = (2 * parameters + live.peak) / parameters
    # The two that are given, the one on the way and its gradients cannot be done without.
    assert 4 <= peak <= 6.5
    assert found.images == 2


@pytest.mark.parametrize("method", ["faig", "ig", "delta", "gradxdelta", "random"])
def test_every_method_ranks_every_filter(method):
    base, target = both("srresnet")
    pairs = images(2, 2, 8)
    found = rank(method, base, target, pairs, label="noise", steps=4, seed=3)
    assert found.method == method and found.label == "noise" and len(found.values) == len(found.table)
    assert found.values.isfinite().all() and (found.values >= 0).all() and found.values.std() > 0
    assert (found.base, found.target) == tuple(
        attribute(base, target, pairs[:1], label="x", steps=1).__dict__[key] for key in ("base", "target")
    )
    assert torch.equal(found.values, rank(method, base, target, pairs, label="noise", steps=4, seed=3).values)


def test_rankers_are_what_their_definition_says():
    base, target = both("srcnn")
    pairs = images(2, 2, 8)
    table = FilterTable.of(target)
    first = table.tensors[0]
    one, other = (net.state_dict()[first.name].flatten(2) for net in (target, base))
    expected = ((one - other).abs().sum(2) / other.abs().sum(2)).flatten()
    delta = rank("delta", base, target, label="x").values[: first.count]
    torch.testing.assert_close(delta, expected.float())
    single = rank("gradxdelta", base, target, pairs, label="x").values
    torch.testing.assert_close(single, by_definition(base, target, pairs, 1))
    assert not torch.equal(*(rank("random", base, target, label="x", seed=seed).values for seed in (0, 1)))
    with pytest.raises(RestoreKitError, match="no method called 'shap'"):
        rank("shap", base, target, label="x")


def test_gradients_along_the_image_run_from_the_reduced_clean_image_to_the_degraded_one():
    base, target = both("srcnn")
    degraded, clean = images(1, 2, 8)[0]
    ours = rank("ig", base, target, [(degraded, clean)], label="x", steps=5)
    start = nn.functional.interpolate(clean, degraded.shape[-2:], mode="bicubic", antialias=True)
    name = ours.table.tensors[1].name
    weight = dict(target.named_parameters())[name]
    summed = 0
    for step in range(5):
        output = target(start + step / 4 * (degraded - start)).sum()
        summed = summed + torch.autograd.grad(output, weight)[0] / 5
    expected = summed.flatten(2).abs().sum(2).flatten()
    torch.testing.assert_close(ours.table.split(ours.values)[name], expected)


class Merging(Layers):
    """Makes one image of two views."""

    channels, out_channels = 6, 3


def test_an_image_that_is_none_of_its_inputs_has_no_line_to_it():
    base = Merging(nn.Conv2d(6, 3, 3, padding=1)).double()
    pairs = [(torch.cat([degraded, degraded], 1), clean) for degraded, clean in images(1)]
    with pytest.raises(RestoreKitError, match="Merging takes 6 channels and gives 3") as refused:
        rank("ig", base, moved(base), pairs, label="x", steps=2)
    assert "use faig" in str(refused.value.hint)
    assert rank("faig", base, moved(base), pairs, label="x", steps=2).values.any()
