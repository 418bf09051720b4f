"""Contract checks over everything that is installed, strangers' components included."""

from __future__ import annotations

import subprocess
import sys

import pytest

from restorekit import registry
from restorekit.contracts import DetectedBackbone
from restorekit.registry import backbones
from restorekit.testing import check_backbone

ENTRIES = backbones.entries()

if not ENTRIES:
    pytest.skip("no backbone is installed", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_installed_backbone_keeps_its_promises(entry):
    kind = entry.load()
    if issubclass(kind, DetectedBackbone):
        pytest.skip("it cannot be built without weights; its own tests have some")
    check_backbone(kind)


def test_the_metadata_of_installed_distributions_shows_no_problem():
    assert registry.problems() == ()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_installed_backbone_states_licence_and_summary(entry):
    assert entry.licence
    assert entry.summary


@pytest.mark.skipif(not registry.priors, reason="no prior is installed")
def test_priors_are_found_and_imported_without_the_libraries_that_compute_them():
    program = """
import sys
from restorekit import catalog, registry
catalog.declared()
for entry in registry.priors.entries():
    entry.load()
heavy = {"timm", "open_clip", "transformers", "diffusers", "torchvision"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)
