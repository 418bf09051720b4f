"""What FAIG is held to, on every architecture: complete, exact, symmetric, in the release's order.

Masking and blending are in test_analysis_protocols.py, filters and their counts in test_filters.py, adapters
in the tests of ADMS.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from analysis_cases import SMALL, Layers, both, by_definition, images, loss_of, moved, small
from torch import nn

from restorekit.analysis import Completeness, attribute, contrasted, joined
from restorekit.errors import RestoreKitError
from restorekit.filters import FilterTable

# The last convolution, which nothing follows but sums.
LAST = {
    "nafnet": "ending",
    "restormer": "output",
    "mprnet": "tail",
    "srresnet": "conv_last",
    "srcnn": "features.11",
}
every_network = pytest.mark.parametrize("name", SMALL)


@every_network
def test_the_parts_add_up_to_the_change_of_the_loss(name):
    base, target = both(name)
    pairs = images(1, base.scale, side=13)
    few, enough = (attribute(base, target, pairs, label="x", steps=steps) for steps in (1, "auto"))
    assert few.completeness.change == pytest.approx(loss_of(base, pairs) - loss_of(target, pairs), rel=1e-9)
    assert enough.completeness.error < min(0.02, few.completeness.error) and enough.steps >= 8
    parts = enough.completeness
    assert abs(parts.attributed - parts.change) == pytest.approx(parts.error * abs(parts.change))
    # Filters alone do not add up: the rest is that of biases and norms, and is reported.
    assert parts.unattributed == pytest.approx(1 - parts.filters / parts.attributed) and parts.unattributed
    assert enough.others and not enough.others.keys() & {tensor.name for tensor in enough.table}


def test_two_linear_layers_are_exact_with_two_places_of_gauss():
    base = Layers(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1)).double()
    target = moved(base, 2.0)
    pairs = images(2)
    assert attribute(base, target, pairs, label="x", rule="gauss", steps=2).completeness.error < 1e-10
    assert attribute(base, target, pairs, label="x", rule="mid", steps=2).completeness.error > 1e-4


@every_network
def test_a_convolution_that_nothing_bends_afterwards_is_exact_with_one_step(name):
    base, target = small(name), small(name)
    with torch.no_grad():
        for key, parameter in target.named_parameters():
            if key.startswith(LAST[name]):
                parameter += 0.1 * torch.randn_like(parameter)
    pairs = images(2, base.scale)
    found = attribute(base, target, pairs, label="x", steps=1)
    assert found.completeness.error < 1e-6 and found.completeness.change
    assert attribute(base, target, pairs, label="x", rule="left", steps=1).completeness.error > 1e-3


@every_network
def test_the_release_is_met_to_the_order(name):
    base, target = both(name)
    # No padding: the definition runs the network as it is.
    pairs = images(2 if name == "srcnn" else 1, base.scale, 8, wider=0)
    ours = attribute(base, target, pairs, label="x", rule="left", steps=100)
    theirs = by_definition(base, target, pairs, 100)
    torch.testing.assert_close(ours.values, theirs, rtol=1e-9, atol=1e-15)
    # The order is one, but for filters whose scores differ by what doubles are rounded to.
    order = ours.values.argsort(descending=True, stable=True)
    ranked = theirs[order]
    assert (ranked[1:] <= ranked[:-1] * (1 + 1e-9) + 1e-15).all()
    best = int(0.01 * len(theirs))
    assert torch.equal(order[:best], theirs.argsort(descending=True, stable=True)[:best])


@pytest.mark.parametrize("unit", ["out", "weight"])
def test_the_release_is_met_to_the_order_by_larger_and_smaller_filters(unit):
    base, target = both("srcnn")
    pairs = images(2, 2, 8)
    ours = attribute(base, target, pairs, label="x", rule="left", steps=100, unit=unit)
    theirs = by_definition(base, target, pairs, 100, unit)
    torch.testing.assert_close(ours.values, theirs, rtol=1e-9, atol=1e-15)
    order = [values.argsort(descending=True, stable=True) for values in (ours.values, theirs)]
    assert torch.equal(*order)


@every_network
def test_swapping_base_and_target_turns_the_signs_and_keeps_the_scores(name):
    base, target = both(name)
    pairs = images(1, base.scale, side=8)
    there, back = (attribute(*way, pairs, label="x", steps=4) for way in ((base, target), (target, base)))
    torch.testing.assert_close(there.values, back.values, rtol=1e-9, atol=1e-15)
    for key in ("change", "attributed", "filters"):
        assert getattr(there.completeness, key) == pytest.approx(-getattr(back.completeness, key))


@every_network
def test_what_does_not_move_or_is_not_used_scores_nothing(name):
    base = small(name)
    base.idle = nn.Conv2d(3, 3, 3).double()
    target = moved(base, 0.3)
    first = FilterTable.of(base).tensors[0].name
    with torch.no_grad():
        target.get_parameter(first).copy_(base.get_parameter(first))
    scores = attribute(base, target, images(1, base.scale), label="x", steps=2).per_layer()
    assert scores["idle.weight"] == scores[first] == 0 < scores[f"{LAST[name]}.weight"]


@every_network
def test_with_two_degradations_one_contrast_is_the_others_negative(name):
    base, target = both(name)
    scale = base.scale
    noisy = attribute(base, target, images(2, scale, 8), label="noise", steps=4)
    blurry = attribute(base, target, images(2, scale, 8, seed=5), label="blur", steps=4)
    of = contrasted({"noise": noisy, "blur": blurry})
    assert not (of["noise"].values + of["blur"].values).any() and of["noise"].values.any()
    # The release subtracts for each pair of images and then averages.
    pairwise = []
    for one, other in zip(images(2, scale, 8), images(2, scale, 8, seed=5), strict=True):
        single = [attribute(base, target, [pair], label="x", steps=4).values for pair in (one, other)]
        pairwise.append(single[0] - single[1])
    torch.testing.assert_close(of["noise"].values, torch.stack(pairwise).mean(0))
    third = attribute(base, target, images(1, scale, 8, seed=9), label="rain", steps=4)
    largest = contrasted({"noise": noisy, "blur": blurry, "rain": third}, "max")["noise"]
    torch.testing.assert_close(largest.values, noisy.values - torch.maximum(blurry.values, third.values))
    assert largest.details["minus"] == {
        "against": "max",
        "labels": ["blur", "rain"],
        "shares": False,
        "weight": 1.0,
    }
    with pytest.raises(RestoreKitError, match="two degradations"):
        contrasted({"noise": noisy})


@every_network
def test_neither_the_order_of_images_nor_who_looks_at_which_matters(name):
    base, target = (network.float() for network in both(name))
    pairs = [(degraded.float(), clean.float()) for degraded, clean in images(5, base.scale, 8)]

    def of(some):
        return attribute(base, target, some, label="x", steps=4)

    whole, back = of(pairs), of(pairs[::-1])
    torch.testing.assert_close(back.values, whole.values, rtol=1e-6, atol=1e-6 * float(whole.values.max()))
    shared = joined([of(pairs[::2]), of(pairs[1::2])])
    torch.testing.assert_close(shared.values, whole.values, rtol=1e-6, atol=1e-6 * float(whole.values.max()))
    assert shared.images == 5 and shared.others == pytest.approx(whole.others, rel=1e-5)
    assert asdict(shared.completeness) == pytest.approx(asdict(whole.completeness), rel=1e-4)


def test_parts_that_differ_in_more_than_their_images_are_not_joined():
    base, target = both("srcnn")

    def of(**how):
        return attribute(base, target, images(1, 2, 8), **{"label": "noise", "steps": 2, **how})

    part, other = of(), both("srcnn")[0]
    for wrong, said in (
        (of(steps=4), "part 2 has another steps than part 1: 4, not 2"),
        (of(label="rain"), "another label than part 1: rain, not noise"),
        (of(rule="left"), "another rule"),
        (of(loss="mse"), "another loss"),
        (of(unit="out"), "part 2 is of other filters than part 1"),
        (attribute(base, moved(other, 0.1), images(1, 2, 8), label="noise", steps=2), "another target"),
        (part.minus(of(label="rain")), "part 2 is contrasted with rain"),
    ):
        with pytest.raises(RestoreKitError, match=said):
            joined([part, wrong])
    with pytest.raises(RestoreKitError, match="no parts"):
        joined([])


def test_completeness_of_a_file_that_says_less_goes_by_the_mean_change():
    assert Completeness(change=-4.0, attributed=-4.0, filters=-3.0, error=0.1).whole == 4.0
