import sys
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch
from servers import open_shop
from strangers import WEIGHTS, Trained

from restorekit.catalog import Pretrained
from restorekit.cli import main

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
judge = strangers:Judge
[restorekit.adapters]
louder = strangers:Louder
entries = strangers:Entries
[restorekit.priors]
brightness = strangers:Brightness
referred = strangers:Referred
[restorekit.refiners]
blend = strangers:Blend
[restorekit.weights]
acme = strangers:WEIGHTS
[restorekit.officials]
AcmeNet = strangers:acme_net
[restorekit.metrics]
brightness = strangers:brightness
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


@pytest.fixture
def shop():
    """Open a server on loopback; its ``files`` and ``faults`` are for the test to fill."""
    with open_shop() as server:
        yield server


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Point the cache of downloads, ours and the hub's, to an empty folder; nothing waits between tries."""
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path / "cache"))
    for variable in ("RESTOREKIT_OFFLINE", "HF_HUB_OFFLINE", "RESTOREKIT_LICENSE_POLICY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("restorekit.download._PAUSE", 0)
    return tmp_path / "cache"


@pytest.fixture
def published(strangers, shop, cache):
    """Return what publishes weights of the backbone ``trained`` at the shop and declares them."""

    def publish(tag="plain", *, served="file.pth", licence="MIT", mirrors=(), contents=None, **facts):
        if contents is None:
            torch.manual_seed(0)
            buffer = BytesIO()
            torch.save({"params": Trained().state_dict()}, buffer)
            contents = buffer.getvalue()
        shop.files[served] = contents
        stated = {"urls": (*mirrors, shop.url(served)), "sha256": None, **facts}
        item = Pretrained(
            component="trained", tag=tag, licence=licence, source="a page", task="none", **stated
        )
        WEIGHTS.append(item)
        return item

    yield publish
    WEIGHTS.clear()


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; return exit code, stdout and stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["restorekit", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def photo(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    PIL.Image.fromarray(levels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Return a folder with all that the commands of ``faig`` ask for; nobody writes into it."""
    from faig_cases import furnish

    return furnish(tmp_path_factory.mktemp("faig"))


@pytest.fixture
def nets(site):
    """Return the options that name both networks there."""
    return "--base", site / "base.safetensors", "--target", site / "target.safetensors"
