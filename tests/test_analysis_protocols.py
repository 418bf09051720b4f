"""What discovered filters do: taken out, trained alone, turned up and down, mapped, compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analysis_cases import SMALL, Layers, both, noisy, scenes, striped, toy
from torch import nn

from restorekit.analysis import attribute, contrasted, rank, restored
from restorekit.analysis.protocols import (
    SHARES,
    ImageScorer,
    blended,
    distribution_map,
    distributions,
    fit_overlap,
    gradient_map,
    mask_drop,
    modulate,
    retrain,
    strip,
)
from restorekit.contracts import Backbone
from restorekit.errors import ImageError, RestoreKitError, TrainingError, WeightsError
from restorekit.filters import FilterTable
from restorekit.filterscores import FilterScores

DEGRADE = {"stripes": striped, "noise": noisy}


@pytest.fixture(scope="module")
def trained():
    """Base, target and contrasted scores of the toy, discovered on images that no test restores."""
    base, target = toy()
    clean = scenes(5, 32, 555)
    found = {
        label: attribute(base, target, list(zip(degrade(clean), clean, strict=True)), label=label, steps=16)
        for label, degrade in DEGRADE.items()
    }
    assert all(one.completeness.error < 0.02 for one in found.values())
    return base, target, contrasted(found)


def some(table, count=20, seed=0):
    return torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:count]


@pytest.mark.parametrize("name", SMALL)
def test_all_filters_of_the_baseline_leave_the_target_its_biases_and_norms(name):
    base, target = both(name)
    table = FilterTable.of(target)
    masked = blended(target, base, table, torch.arange(len(table))).state_dict()
    scored = {tensor.name for tensor in table}
    for key, value in masked.items():
        expected = base.state_dict()[key] if key in scored else target.state_dict()[key]
        assert torch.equal(value, expected), key


@pytest.mark.parametrize("name", SMALL)
def test_the_chosen_filters_change_and_no_other_number(name):
    base, target = both(name)
    for unit in ("kernel", "out"):
        table = FilterTable.of(target, unit)
        filters = some(table, 5)
        masked, masks = blended(target, base, table, filters, 0.25).state_dict(), table.masks(filters)
        for key, value in masked.items():
            one, other = base.state_dict()[key], target.state_dict()[key]
            mask = masks.get(key, torch.zeros_like(value, dtype=torch.bool))
            torch.testing.assert_close(value[mask], torch.lerp(one, other, 0.25)[mask], rtol=0, atol=0)
            assert torch.equal(value[~mask], other[~mask])


@pytest.mark.parametrize("name", SMALL)
def test_a_share_of_one_is_the_target_and_of_none_the_masked_network(name):
    base, target = both(name)
    table = FilterTable.of(target)
    filters, degraded = some(table), torch.rand(1, 3, 9, 9, dtype=torch.float64)
    outputs = modulate(target, base, table, filters, degraded, (1.0, 0.0, 0.5, 1.5))
    whole = blended(target, base, table, filters, 1.0).state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in target.state_dict().items())
    with torch.no_grad():
        assert torch.equal(outputs[0], restored(target, degraded))
        assert torch.equal(outputs[1], restored(blended(target, base, table, filters), degraded))
    assert not torch.equal(outputs[0], outputs[3]) and not torch.equal(outputs[1], outputs[2])
    assert len(SHARES) == 16 and SHARES[-1] == 1.5
    with pytest.raises(RestoreKitError, match="no shares"):
        modulate(target, base, table, filters, degraded, ())


@pytest.mark.parametrize("share", [float("nan"), float("inf")])
def test_shares_that_are_not_finite_are_refused(share):
    base, target = both("srcnn")
    table = FilterTable.of(target)
    with pytest.raises(RestoreKitError, match=f"cannot be blended by shares of {share}, 1"):
        modulate(target, base, table, some(table), torch.rand(3, 9, 9), (share, 1.0))


def test_more_of_the_discovered_filters_removes_more(trained):
    base, target, scores = trained
    clean = scenes(1, 32, 77)
    filters = scores["noise"].top(0.05, budget="filters")
    outputs = modulate(target, base, scores["noise"].table, filters, noisy(clean), (0.0, 0.5, 1.0))
    errors = [float((output - clean).square().mean()) for output in outputs]
    assert errors[0] > errors[1] > errors[2]


def test_the_strip_shows_every_image_at_its_own_pixels():
    images = [torch.full((1, 3, 10, 12), level / 10) for level in range(10)]
    picture = np.asarray(strip(images, [f"{level}" for level in range(10)]))
    assert picture.shape == (2 * (10 + 22 + 4) - 4, 8 * (12 + 4) - 4, 3)
    assert (picture[22:32, 16 + 4 : 16 + 8] == round(25.5)).all()
    gray = strip([torch.zeros(1, 1, 5, 5)], ["0"])
    assert gray.size == (5, 27)


def test_taking_out_discovered_filters_undoes_their_degradation_and_no_other(trained):
    base, target, scores = trained
    clean = scenes(6, 32, 999)
    table = scores["noise"].table
    chances = [rank("random", base, target, label="x", seed=seed) for seed in range(3)]
    for label, other in (("noise", "stripes"), ("stripes", "noise")):
        inputs = DEGRADE[label](clean)

        def drop(found, images):
            return mask_drop(target, base, table, found.top(0.02, budget="filters"), images).mean

        ours, by_chance = drop(scores[label], inputs), [drop(chance, inputs) for chance in chances]
        assert ours > 3 * np.mean(by_chance), (label, ours, by_chance)
        assert ours > 4 * drop(scores[other], inputs)
        # What matters for the other degradation hardly moves; relative to the whole ability.
        whole = mask_drop(target, base, table, torch.arange(len(table)), inputs).mean
        assert drop(scores[other], inputs) < 0.1 * whole < ours


def test_a_drop_is_the_mean_squared_difference_of_gradient_maps_in_thousandths():
    base, target = both("srcnn")
    table = FilterTable.of(target)
    filters, degraded = some(table), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    found = mask_drop(target, base, table, filters, degraded)
    with torch.no_grad():
        outputs = [net(degraded[1:]) for net in (target, blended(target, base, table, filters))]
    one, other = (gradient_map(output) for output in outputs)
    assert found.per_image[1] == pytest.approx(1000 * float((one - other).square().mean()))
    assert found.mean == pytest.approx(sum(found.per_image) / 2) and found.per_image[0] != found.per_image[1]
    assert mask_drop(target, base, table, filters[:0], degraded).mean == 0
    with pytest.raises(ImageError, match="no images"):
        mask_drop(target, base, table, filters, [])
    with pytest.raises(ImageError, match="an image of 8 x 0 is empty"):
        mask_drop(target, base, table, filters, degraded[:, :, :0])
    with pytest.raises(RestoreKitError, match="no metric called 'lpips'"):
        mask_drop(target, base, table, filters, degraded, "lpips")


def test_gradient_maps_have_central_differences_and_zeros_outside():
    image = torch.zeros(1, 3, 3, 3, dtype=torch.float64)
    image[:, :, 1, 2] = 1.0
    expected = torch.tensor([[0.0, 0, 1], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(gradient_map(image)[0, 0], (expected + 1e-6).sqrt())


def test_the_released_metric_reads_eight_bits_of_blue():
    image = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    image[:, :2] = torch.rand(1, 2, 4, 4)
    flat = torch.full((1, 1, 4, 4), 1e-6, dtype=torch.float64).sqrt()
    torch.testing.assert_close(gradient_map(image, "release"), flat)
    assert not torch.allclose(gradient_map(image), flat)
    image[:, 2] = torch.tensor(0.4 / 255) + 0 * image[:, 2]
    torch.testing.assert_close(gradient_map(image, "release"), flat)
    image[:, 2, :, 2:] = 1.7
    assert gradient_map(image, "release")[0, 0, 1, 1] == pytest.approx((1 + 1e-6) ** 0.5)


def test_only_the_chosen_values_are_trained(trained):
    base, _, scores = trained
    table, filters = scores["noise"].table, scores["noise"].top(0.05, budget="filters")

    def batch(step):
        clean = scenes(2, 16, step)
        return noisy(clean, step), clean

    before = {key: value.clone() for key, value in base.state_dict().items()}
    losses = []
    network = retrain(base, table, filters, batch, steps=3, lr=1e-2, progress=lambda *row: losses.append(row))
    masks = table.masks(filters)
    changed = 0
    for key, value in network.state_dict().items():
        mask = masks.get(key, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[~mask], before[key][~mask]), key
        changed += int((value != before[key]).sum())
        assert torch.equal(base.state_dict()[key], before[key])
    assert changed == int(table.sizes[filters].sum()) and [step for step, _ in losses] == [1, 2, 3]
    again = retrain(base, table, filters, batch, steps=3, lr=1e-2)
    assert all(
        torch.equal(one, other) for one, other in zip(network.parameters(), again.parameters(), strict=True)
    )
    with pytest.raises(TrainingError, match="nan at step 0"):
        retrain(base, table, filters, lambda step: (torch.full((1, 3, 8, 8), torch.nan),) * 2, steps=1)


def test_retraining_pads_enlarges_and_keeps_parametrized_layers():
    base, _ = both("srcnn")
    nn.utils.parametrizations.weight_norm(base.features[0])
    table = FilterTable.of(base)
    clean = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    network = retrain(base, table, torch.arange(4), lambda step: (clean[..., ::2, ::2], clean), steps=2)
    (name,) = (key for key, value in network.state_dict().items() if not torch.equal(value, before[key]))
    assert name == "features.0.parametrizations.weight.original1"


def test_retraining_trains_what_is_used_twice_in_both_places():
    class Twice(Backbone):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, padding=1)
            self.again = self.first
            self.tied = nn.Conv2d(3, 3, 3, padding=1)
            self.tied.weight = self.first.weight

        def forward(self, degraded):
            return self.tied(self.again(self.first(degraded)))

    base, clean = Twice(), torch.rand(2, 3, 8, 8)
    table = FilterTable.of(base)
    network = retrain(base, table, torch.arange(len(table)), lambda step: (clean, clean), steps=3)
    assert network.again is network.first and network.tied.weight is network.first.weight
    assert isinstance(network.first.weight, nn.Parameter)
    assert not torch.equal(network.first.weight, base.first.weight)
    assert torch.equal(network.first.bias, base.first.bias)


class Root(Layers):
    """Ends in a root, whose gradient at zero is infinite and whose value is not."""

    def forward(self, degraded):
        return self.layers(degraded).abs().sqrt()


def test_a_gradient_that_is_no_number_ends_retraining_and_leaves_the_base():
    base = Root(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 3, padding=1, bias=False))
    before = {name: value.clone() for name, value in base.state_dict().items()}
    table, clean = FilterTable.of(base), torch.rand(2, 3, 8, 8)
    # Black from the second step on.
    batches = [(clean, clean), (torch.zeros_like(clean), clean)]
    losses = []
    with pytest.raises(TrainingError, match=r"gradient of layers\.0\.weight is not finite at step 1"):
        retrain(
            *(base, table, torch.arange(len(table)), batches.__getitem__),
            steps=2,
            progress=lambda step, loss: losses.append(loss),
        )
    assert len(losses) == 1 and all(
        torch.equal(value, before[name]) for name, value in base.state_dict().items()
    )


def test_discovered_places_learn_more_than_random_ones(trained):
    base, _, scores = trained
    clean = scenes(6, 32, 4242)
    inputs = striped(clean)

    def gained(filters, seed):
        patches = scenes(120 * 3, 16, 11 + seed).split(3)
        batches = [(striped(own), own) for own in patches]
        network = retrain(base, table, filters, batches.__getitem__, steps=len(batches), lr=3e-3)
        with torch.no_grad():
            return -10 * float((network(inputs) - clean).square().mean().log10())

    table = scores["stripes"].table
    best = scores["stripes"].top(0.05, budget="filters")
    ours = [gained(best, seed) for seed in range(3)]
    by_chance = [gained(some(table, len(best), seed), seed) for seed in range(3)]
    assert min(ours) > max(by_chance) + 0.3, (ours, by_chance)


def test_distributions_count_filters_and_their_depth():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), nn.Conv2d(2, 1, 3))
    table = FilterTable.of(network)
    found = distributions(table, {"a": torch.tensor([0, 5, 20]), "b": torch.arange(len(table))})
    assert dict(found["a"].counts) == {"0.weight": 2, "1.weight": 0, "2.weight": 1}
    assert found["a"].shares["0.weight"] == pytest.approx(2 / 12) and found["b"].shares["2.weight"] == 1
    assert found["a"].depth == pytest.approx(1 / 3)


def test_the_map_marks_chosen_filters_in_the_column_of_their_layer():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 500, 3), nn.Conv2d(500, 1, 3))
    table = FilterTable.of(network)
    # The first filter of the first layer, and a single one of two thousand.
    filters = {"noise": torch.tensor([0]), "blur": torch.tensor([12 + 999])}
    picture = np.asarray(distribution_map(table, filters)).astype(int)
    panels = [picture[24 : 24 + 320, left : left + 480] for left in (10, 10 + 480 + 10)]
    marked = [(panel.sum(2) < 650).reshape(320, 3, 160).all(2) for panel in panels]
    assert marked[0][:, 0].nonzero()[0].tolist() == list(range(27)) and not marked[0][:, 1:].any()
    assert marked[1].sum() == 1 and marked[1][159, 1]


def test_images_are_told_apart_by_their_filters_alone(trained):
    base, target, scores = trained
    score = ImageScorer(base, target, scores["noise"].table)

    def labelled(seed, count):
        clean = scenes(count, 32, seed)
        kinds = {"": clean, "stripes": striped(clean), "noise": noisy(clean, seed)}
        return [(score(image), {label} - {""}) for label, images in kinds.items() for image in images]

    fitted = fit_overlap(scores, labelled(2, 4), 0.05)
    accuracy = fitted.accuracy(labelled(3, 4))
    assert min(accuracy.values()) >= 0.85, accuracy
    assert fitted.degradations(score(noisy(scenes(1, 32, 8), 3))) == {"noise"}
    assert all(0 < threshold < 1 for threshold in fitted.thresholds.values())


def test_overlaps_are_shares_of_an_images_own_filters():
    table = FilterTable.of(nn.Conv2d(10, 10, 3))
    values = {"a": torch.zeros(100), "b": torch.zeros(100)}
    values["a"][:10], values["b"][5:15] = 1.0, 1.0
    discovered = {label: FilterScores(table, own, "faig", label, "b") for label, own in values.items()}
    one, other = torch.zeros(100), torch.zeros(100)
    one[:10], other[50:60] = 2.0, 2.0
    fitted = fit_overlap(discovered, [(one, {"a"}), (other, {"b"} - {"b"}), (values["b"], {"b"})], 0.1)
    assert fitted.overlaps(one) == {"a": 1.0, "b": 0.5}
    # Without it 0.5 at most, with it 1: the threshold lies halfway.
    assert fitted.thresholds == {"a": pytest.approx(0.75), "b": pytest.approx(0.75)}
    assert fitted.degradations(one) == {"a"} and fitted.degradations(other) == set()
    with pytest.raises(RestoreKitError, match="some with and some without a"):
        fit_overlap(discovered, [(one, {"a"})], 0.1)
    with pytest.raises(RestoreKitError, match="less than one filter"):
        fit_overlap(discovered, [(one, {"a"}), (other, set())], 0.001)
    with pytest.raises(RestoreKitError, match="needs discovered filters"):
        fit_overlap({}, [(one, {"a"})], 0.1)


def test_protocols_refuse_networks_of_another_architecture():
    base, target = both("srcnn")
    other = type(base)(widths=[5, 8, 8], scale=2)
    with pytest.raises(WeightsError, match="not of one architecture"):
        mask_drop(target, other, FilterTable.of(target), torch.arange(3), [torch.rand(3, 8, 8)])
    with pytest.raises(RestoreKitError, match="the target is a state"):
        ImageScorer(base, target.state_dict(), FilterTable.of(base))
