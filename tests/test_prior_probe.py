"""benchmarks/prior_probe.py: what it calls explained can be read from features, of photographs not seen."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parent.parent / "benchmarks" / "prior_probe.py"
PHOTOGRAPHS, WINDOWS = 20, 6


@pytest.fixture(scope="module")
def explained():
    spec = importlib.util.spec_from_file_location("prior_probe", FILE)
    probe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(probe)
    return probe.explained


@pytest.fixture
def drawn():
    """Return features (N, 8) and of which photograph each row is."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(PHOTOGRAPHS), WINDOWS)
    return random, random.normal(size=(len(groups), 8)), groups


def test_what_features_hold_is_explained(explained, drawn):
    random, features, groups = drawn
    wanted = features @ random.normal(size=(8, 3)) + 5
    assert explained(features, wanted, groups) > 0.999
    # As much noise as there is to be read: half of the variance.
    noisy = wanted + wanted.std(0) * random.normal(size=wanted.shape)
    assert 0.3 < explained(features, noisy, groups) < 0.6


def test_what_they_do_not_hold_is_not(explained, drawn):
    random, features, groups = drawn
    assert explained(features, random.normal(size=(len(groups), 3)), groups) < 0.1


def test_knowing_the_photograph_is_no_help(explained, drawn):
    random, _, groups = drawn
    which = np.eye(PHOTOGRAPHS)[groups]
    wanted = random.normal(size=(PHOTOGRAPHS, 2))[groups]
    # Of rows seen while fitting it would explain everything.
    assert explained(which, wanted, groups) < 0.1


def test_a_scale_makes_no_difference(explained, drawn):
    random, features, groups = drawn
    wanted = features[:, :2] + random.normal(size=(len(groups), 2))
    scaled = features * np.logspace(-2, 4, 8)
    assert explained(scaled, wanted, groups) == pytest.approx(explained(features, wanted, groups), abs=1e-4)
