"""Contract checks over everything that is installed, strangers' components included."""

from __future__ import annotations

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
