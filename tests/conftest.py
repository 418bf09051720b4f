import pytest

ENTRY_POINTS = """
[restorekit.backbones]
gain = strangers:Gain
gray = strangers:Gray
double = strangers:Double
fragile = strangers:Fragile
misshapen = strangers:Misshapen
random = strangers:Random
level = strangers:Level
trained = strangers:Trained
detected = strangers:Detected
careful = strangers:Careful
volume = strangers:Volume
[restorekit.adapters]
louder = strangers:Louder
[restorekit.priors]
brightness = strangers:Brightness
[restorekit.refiners]
blend = strangers:Blend
"""


@pytest.fixture
def strangers(tmp_path_factory, monkeypatch):
    """Install the components of strangers.py as pip would: a dist-info folder on sys.path."""
    site = tmp_path_factory.mktemp("site")
    info = site / "acme_strangers-1.2.dist-info"
    info.mkdir()
    lines = ("Metadata-Version: 2.4", "Name: acme-strangers", "Version: 1.2", "License-Expression: MIT", "")
    (info / "METADATA").write_text("\n".join(lines))
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(site))
