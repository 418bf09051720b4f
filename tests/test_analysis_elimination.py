"""How often the other degradation is subtracted is chosen by masking."""

from __future__ import annotations

import math

import pytest
import torch
from analysis_cases import noisy, scenes, striped, toy

from restorekit.analysis import attribute, contrasted
from restorekit.analysis.protocols import eliminated, mask_drop
from restorekit.errors import RestoreKitError

DEGRADE = {"stripes": striped, "noise": noisy}
WEIGHTS = (1.0, 2.0, 4.0, 8.0)
RATIOS = (0.02, 0.1)


@pytest.fixture(scope="module")
def discovered():
    """Base, target, scores that are not contrasted, and degraded images of the discovery."""
    base, target = toy()
    clean = scenes(4, 32, 555)
    shown = {label: degrade(clean) for label, degrade in DEGRADE.items()}
    found = {
        label: attribute(base, target, list(zip(images, clean, strict=True)), label=label, steps=8)
        for label, images in shown.items()
    }
    return base, target, found, shown


def costs(discovered, scores, shown, ratio):
    base, target, _, images = discovered
    filters = scores.top(ratio, budget="filters")
    return mask_drop(target, base, scores.table, filters, images[shown]).mean


def weight_of(scores):
    record = scores.details["minus"]
    return record["weight"] if record["shares"] else 0


def candidates(found):
    return {0: contrasted(found)} | {w: contrasted(found, shares=True, weight=w) for w in WEIGHTS}


@pytest.mark.parametrize("limit", (0.02, 0.2, 0.6, 50.0))
def test_the_weight_is_that_of_the_rule(discovered, limit):
    base, target, found, images = discovered
    own = eliminated(target, base, found, images, ratios=RATIOS, weights=WEIGHTS, limit=limit)
    choices = candidates(found)
    for label, other in (("stripes", "noise"), ("noise", "stripes")):
        harm = {
            weight: max(
                costs(discovered, scores[label], other, ratio)
                / costs(discovered, choices[0][other], other, ratio)
                for ratio in RATIOS
            )
            for weight, scores in choices.items()
        }
        worth = {
            weight: math.prod(costs(discovered, scores[label], label, ratio) for ratio in RATIOS)
            for weight, scores in choices.items()
        }
        chosen = weight_of(own[label])
        gentle = [weight for weight in choices if harm[weight] <= limit]
        if gentle:
            assert harm[chosen] <= limit and worth[chosen] == max(worth[weight] for weight in gentle)
        else:
            assert harm[chosen] == min(harm.values())
        assert torch.equal(own[label].values, choices[chosen][label].values)


def test_what_must_leave_the_others_alone_costs_them_less(discovered):
    base, target, found, images = discovered

    def chosen(limit):
        return eliminated(target, base, found, images, ratios=RATIOS, weights=WEIGHTS, limit=limit)

    strict, loose = chosen(1e-6), chosen(50.0)

    def all_ratios(scores, shown):
        return sum(costs(discovered, scores, shown, ratio) for ratio in RATIOS)

    for label, other in (("stripes", "noise"), ("noise", "stripes")):
        assert all_ratios(strict[label], other) < all_ratios(loose[label], other)
        assert all_ratios(strict[label], label) <= all_ratios(loose[label], label)


def test_images_are_restored_once(discovered):
    base, target, found, images = discovered
    done = []
    once = {label: iter(pictures) for label, pictures in images.items()}
    eliminated(target, base, found, once, ratios=(0.05,), weights=(2.0,), progress=lambda: done.append(1))
    assert len(done) == sum(len(pictures) for pictures in images.values())


def test_bad_input_is_named(discovered):
    base, target, found, images = discovered
    with pytest.raises(RestoreKitError, match="scores of stripes, noise and images of stripes"):
        eliminated(target, base, found, {"stripes": images["stripes"]})
    for wrong in ({"ratios": ()}, {"weights": ()}, {"limit": 0}):
        with pytest.raises(RestoreKitError, match="nothing to choose from"):
            eliminated(target, base, found, images, **wrong)
    with pytest.raises(RestoreKitError, match="weight of -1 is not positive"):
        eliminated(target, base, found, images, weights=(-1.0,))
    with pytest.raises(RestoreKitError, match="budget"):
        eliminated(target, base, found, images, budget="grams")
    with pytest.raises(RestoreKitError, match="two degradations"):
        eliminated(target, base, {"noise": found["noise"]}, {"noise": images["noise"]})
