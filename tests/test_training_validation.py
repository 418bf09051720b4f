"""What a run is validated on: patches that stay the same, by protocols."""

import numpy as np
import pytest
import torch
from training_cases import FIXTURES, pairs_of, photograph, source_of

from restorekit.config import check
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ConfigError, TrainingError
from restorekit.evaluation.protocols import find_protocol
from restorekit.training.data import Batches
from restorekit.training.spec import DenoiseSpec, TrainSpec
from restorekit.training.validation import validation_cuts, validation_set

folder, pairs, cache_folder = FIXTURES


def test_validation_patches_stay_the_same(folder):
    batches = Batches(source_of(folder), DenoiseSpec())
    first, second = (validation_set(batches) for _ in range(2))
    assert first.clean.shape == (4, 3, 128, 128) and torch.equal(first.clean, second.clean)
    assert torch.equal(first.inputs["sigma25"], second.inputs["sigma25"])
    figures = first.measure(lambda degraded, kinds: degraded)
    # Clipping takes a little of the noise away.
    assert figures["sigma25"] == pytest.approx(20.17, abs=0.6) and figures["clean"] == pytest.approx(100)


def test_validation_patches_fit_small_photographs_and_the_network(tmp_path):
    for index in range(2):
        photograph(index, 90, 60).save(tmp_path / f"{index}.png")
    cuts = validation_cuts(source_of(tmp_path), multiple=16)
    assert {cut.clean.shape for cut in cuts} == {(48, 48, 3)}
    with pytest.raises(TrainingError, match="a side of 60 pixels"):
        validation_cuts(source_of(tmp_path), multiple=64)


def test_validation_on_pairs_compares_what_belongs_together(pairs):
    batches = Batches(pairs_of(pairs), None)
    chosen = validation_set(batches)
    assert chosen.measure(lambda degraded, kinds: degraded * 2)["pairs"] > 45


def laws(*wanted, **facts):
    document = {
        "backbone": "nafnet",
        "data": {"folder": "x"},
        "stages": [{"steps": 1, "patch": 8, "batch": 1}],
    }
    return check(TrainSpec, {**document, "validation": list(wanted), **facts}, "test").validation


def test_validation_goes_by_protocols(folder):
    batches = Batches(source_of(folder), DenoiseSpec())
    wanted = laws({"protocol": "restormer-gaussian-color", "settings": {"sigma": 50}}, "clean-identity-rgb")
    chosen = validation_set(batches, wanted=wanted)
    noisy = chosen.measure(lambda degraded, kinds: degraded)
    assert list(noisy) == ["restormer-gaussian-color sigma=50", "clean-identity-rgb"] == list(chosen.decisive)
    assert noisy["clean-identity-rgb"] == 100 and 13 < noisy["restormer-gaussian-color sigma=50"] < 16
    law = find_protocol("restormer-gaussian-color")
    patch = chosen.clean[0].permute(1, 2, 0).numpy()
    _, degraded = law.pair(patch, None, {"sigma": 50})
    np.testing.assert_array_equal(chosen.inputs[law.name + " sigma=50"][0].permute(1, 2, 0), degraded)


def test_validation_by_a_protocol_of_pairs_degrades_clean_patches_in_one_way(folder):
    batches = Batches(source_of(folder), RecipeSpec(name="rain"))
    one, other = (validation_set(batches, wanted=laws("paired-rgb")) for _ in range(2))
    assert torch.equal(one.inputs["paired-rgb"], other.inputs["paired-rgb"])
    assert one.measure(lambda degraded, kinds: degraded)["paired-rgb"] < 45


def test_validation_by_a_protocol_takes_pairs(pairs):
    chosen = validation_set(Batches(pairs_of(str(pairs)), None), wanted=laws("gopro-rgb"))
    figure = chosen.measure(lambda degraded, kinds: degraded)["gopro-rgb"]
    assert chosen.measure(lambda degraded, kinds: degraded * 2)["gopro-rgb"] > figure + 20


def test_protocols_that_do_not_fit_are_refused(folder):
    batches = Batches(source_of(folder), DenoiseSpec())
    with pytest.raises(TrainingError, match="gives patches of"):
        validation_set(batches, wanted=laws({"protocol": "sr-y-crop", "settings": {"scale": 2}}))
    with pytest.raises(TrainingError, match=r"compares \(128, 128, 1\)"):
        validation_set(batches, wanted=laws("restormer-gaussian-gray"))
    with pytest.raises(ConfigError, match="no protocol called 'gpro'"):
        validation_set(batches, wanted=laws("gpro"))
