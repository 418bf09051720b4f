"""Every distribution here is a real dist-info folder on sys.path."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from time import perf_counter

import pytest

from restorekit import registry
from restorekit.errors import DuplicateComponentError, PluginLoadError, UnknownComponentError
from restorekit.registry import Entry, Problem, adapters, backbones, priors, weights

GOOD = """
    from restorekit.contracts import Backbone

    class Good(Backbone):
        def __init__(self) -> None:
            super().__init__()

        def forward(self, degraded):
            return degraded
"""


class Site:
    """A folder on sys.path into which distributions are installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def install(self, name, entry_points=None, *, version="1.0", modules=None, metadata="", folder=None):
        info = self.folder / f"{folder or name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        headers = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{metadata}"
        (info / "METADATA").write_text(headers, "utf-8")
        if isinstance(entry_points, bytes):
            (info / "entry_points.txt").write_bytes(entry_points)
        elif entry_points is not None:
            (info / "entry_points.txt").write_text(textwrap.dedent(entry_points), "utf-8")
        for module, source in (modules or {}).items():
            (self.folder / f"{module}.py").write_text(textwrap.dedent(source), "utf-8")
        return info


@pytest.fixture
def site(tmp_path, monkeypatch):
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(site.folder)
    before = set(sys.modules)
    yield site
    for module in set(sys.modules) - before:
        if getattr(sys.modules[module], "__file__", None) and str(tmp_path) in sys.modules[module].__file__:
            del sys.modules[module]


def offering(*lines: str, group: str = "restorekit.backbones") -> str:
    return "\n".join([f"[{group}]", *lines]) + "\n"


def mine() -> list[Problem]:
    return [problem for problem in registry.problems() if not problem.dist.startswith("restorekit")]


def test_names_are_listed_without_importing_anything(site):
    site.install("acme-good", offering("acme = acme_good:Good"), modules={"acme_good": "raise SystemExit"})
    assert "acme" in backbones
    assert "acme" in list(backbones)
    assert len(backbones) == len(list(backbones))
    assert list(backbones) == sorted(backbones)
    assert "acme_good" not in sys.modules


def test_an_entry_tells_what_the_metadata_says(site):
    site.install(
        "Acme-Good",
        offering("acme = acme_good.inner:Good [fast]"),
        version="2.1",
        metadata="Summary: Does good\nLicense-Expression: MIT\n",
    )
    assert backbones["acme"] == Entry(
        kind="backbone",
        name="acme",
        dist="Acme-Good",
        version="2.1",
        summary="Does good",
        licence="MIT",
        value="acme_good.inner:Good",
    )


def test_an_old_licence_field_gives_its_first_line(site):
    site.install(
        "acme", offering("acme = a:b"), metadata="License: MIT License\n        and a page of text\n"
    )
    assert backbones["acme"].licence == "MIT License"


def test_loading_returns_the_class(site):
    site.install("acme-good", offering("acme = acme_good:Good"), modules={"acme_good": GOOD})
    loaded = backbones["acme"].load()
    assert loaded.__name__ == "Good"
    assert isinstance(loaded(), loaded)


def test_a_distribution_installed_later_is_seen_at_once(site):
    assert "acme" not in backbones
    site.install("acme-good", offering("acme = acme_good:Good"))
    assert "acme" in backbones


def test_each_kind_has_its_own_names(site):
    site.install("acme", offering("acme = a:B", group="restorekit.priors"))
    assert "acme" in priors
    assert "acme" not in adapters
    assert "acme" not in backbones


def test_weights_are_data_and_not_checked_for_a_class(site):
    text = offering("acme = acme_zoo:WEIGHTS", group="restorekit.weights")
    site.install("acme-zoo", text, modules={"acme_zoo": "WEIGHTS = (1, 2)"})
    assert weights["acme"].load() == (1, 2)


def test_get_returns_the_default_for_an_unknown_name():
    assert backbones.get("no-such-thing") is None


def test_items_pairs_names_with_entries(site):
    site.install("acme", offering("acme = a:B"))
    assert dict(backbones.items())["acme"].dist == "acme"


def test_a_misspelt_name_is_answered_with_the_near_one(site):
    site.install("acme", offering("deblurrer = a:B"))
    with pytest.raises(UnknownComponentError) as caught:
        backbones["deblurer"]
    assert caught.value.message.startswith("no backbone called 'deblurer'; installed: ")
    assert "deblurrer" in caught.value.message
    assert caught.value.hint == "did you mean 'deblurrer'?"


def test_an_unknown_name_is_a_key_error_whose_message_is_not_in_quotes():
    with pytest.raises(KeyError) as caught:
        backbones["no-such-thing"]
    assert str(caught.value).startswith("no backbone called 'no-such-thing'; installed: ")
    assert str(caught.value).endswith("hint: run `restorekit list backbone`")


def test_two_owners_of_a_name_are_both_named(site):
    site.install("acme-one", offering("acme = a:B"), version="1.0")
    site.install("acme-two", offering("acme = c:D"), version="2.0")
    with pytest.raises(DuplicateComponentError) as caught:
        backbones["acme"]
    expected = "backbone 'acme' is offered by acme-one 1.0 and acme-two 2.0"
    assert caught.value.message == expected
    assert "pip uninstall acme-two" in caught.value.hint
    assert "acme" in backbones
    assert list(backbones).count("acme") == 1
    assert [entry.dist for entry in backbones.entries() if entry.name == "acme"] == ["acme-one", "acme-two"]
    assert mine() == [Problem("acme-one, acme-two", expected)]


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def (", "SyntaxError: "),
        ("", "AttributeError: module 'acme_bad' has no attribute 'Bad'"),
    ],
)
def test_a_failing_import_names_kind_name_distribution_version_and_cause(site, source, cause):
    site.install("acme-bad", offering("bad = acme_bad:Bad"), version="3.0", modules={"acme_bad": source})
    with pytest.raises(PluginLoadError) as caught:
        backbones["bad"].load()
    assert caught.value.message.startswith(f"backbone 'bad' of acme-bad 3.0 cannot be imported: {cause}")
    assert caught.value.hint.endswith("uninstall acme-bad")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("Bad = 3", "an object of builtins.int"),
        ("class Bad: pass", "the class acme_bad.Bad"),
        ("from restorekit.contracts import Refiner as Bad", "the class restorekit.contracts.Refiner"),
    ],
)
def test_something_that_is_not_of_the_kind_is_refused(site, source, found):
    site.install("acme-bad", offering("bad = acme_bad:Bad"), modules={"acme_bad": source})
    with pytest.raises(PluginLoadError, match=f"'bad' of acme-bad 1.0 is not a Backbone: .* is {found}"):
        backbones["bad"].load()


def test_a_class_without_forward_is_refused(site):
    source = "from restorekit.contracts import Backbone\nclass Bad(Backbone): pass"
    site.install("acme-bad", offering("bad = acme_bad:Bad"), modules={"acme_bad": source})
    with pytest.raises(PluginLoadError, match="unfinished: acme_bad:Bad does not define forward"):
        backbones["bad"].load()


def test_only_loading_finds_a_failing_import(site):
    site.install("acme-bad", offering("bad = acme_bad:Bad"), modules={"acme_bad": "1 / 0"})
    assert mine() == []
    [problem] = [problem for problem in registry.load_problems() if problem.dist == "acme-bad"]
    assert "ZeroDivisionError" in problem.message


def test_a_percent_sign_disturbs_nobody(site):
    site.install("acme-good", offering("acme = a:B"))
    site.install("acme-odd", offering("odd%name = a:B", "odd = a:%(here)s"))
    assert {"acme", "odd%name"} <= set(backbones)
    assert mine() == [Problem("acme-odd", "backbone 'odd' points to 'a:%(here)s', not to module:attribute")]


def test_a_version_shadowed_by_one_without_entry_points_offers_nothing(site, tmp_path, monkeypatch):
    site.install("acme-old", offering("ghost = a:B"), version="1.0")
    assert "ghost" in backbones
    newer = Site(tmp_path / "newer")
    newer.install("acme-old", version="2.0")
    monkeypatch.syspath_prepend(newer.folder)
    assert "ghost" not in backbones
    assert mine() == []


def test_differently_spelt_names_are_one_distribution_and_the_first_on_the_path_counts(
    site, tmp_path, monkeypatch
):
    site.install("my.dist", offering("acme = old:B"), version="1.0", folder="my.dist")
    newer = Site(tmp_path / "newer")
    newer.install("My_Dist", offering("acme = new:B"), version="2.0", folder="My_Dist")
    monkeypatch.syspath_prepend(newer.folder)
    assert backbones["acme"].value == "new:B"
    assert backbones["acme"].dist == "My_Dist"
    assert mine() == []


def test_a_malformed_manifest_of_a_stranger_is_nobodys_business(site):
    site.install("acme-good", offering("acme = a:B"))
    site.install("stranger", offering("run = a:b", "run = c:d", group="console_scripts"))
    assert "acme" in backbones
    assert mine() == []


@pytest.mark.parametrize("lines", [("bad = a:B", "bad = c:D"), ("no equals sign",)])
def test_a_malformed_manifest_is_reported_and_harms_nobody_else(site, lines):
    site.install("acme-good", offering("acme = a:B"))
    site.install("acme-bad", offering(*lines))
    assert "acme" in backbones
    [problem] = mine()
    assert problem.dist == "acme-bad"
    assert problem.message.startswith("its entry_points.txt cannot be parsed: ")
    with pytest.raises(UnknownComponentError) as caught:
        backbones["zzz"]
    assert caught.value.message.endswith("partly unreadable: acme-bad")
    assert caught.value.hint == "run `restorekit doctor`"


def test_manifests_are_read_as_utf_8_whatever_the_locale(site):
    site.install("acme-good", offering("größe = a:B", "修复 = a:B"))
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(site.folder)}
    script = "from restorekit.registry import backbones; print(ascii([*backbones]))"
    command = [sys.executable, "-c", script]
    names = subprocess.run(command, env={**os.environ, **locale}, capture_output=True, text=True, check=True)
    assert ascii("größe") in names.stdout
    assert ascii("修复") in names.stdout


def test_a_manifest_that_is_not_utf_8_is_reported(site):
    site.install("acme-good", offering("acme = a:B"))
    site.install("acme-latin", offering("größe = a:B").encode("latin-1"))
    site.install("stranger", offering("größe = a:B", group="other").encode("latin-1"))
    assert "acme" in backbones
    [problem] = mine()
    assert problem.dist == "acme-latin"
    assert "not UTF-8" in problem.message


@pytest.mark.parametrize("value", ["foo:bar baz!", "foo", "foo:", ":bar", "1foo:bar", "foo bar", ""])
def test_an_invalid_value_is_reported_and_not_offered(site, value):
    site.install("acme-bad", offering(f"bad = {value}", "acme = a:B"))
    assert "bad" not in backbones
    assert "acme" in backbones
    assert mine() == [Problem("acme-bad", f"backbone 'bad' points to {value!r}, not to module:attribute")]


def test_a_misspelt_group_is_reported_with_the_near_one(site):
    site.install("acme-bad", offering("bad = a:B", group="restorekit.backbone"))
    [problem] = mine()
    assert problem.message.endswith("is no group; did you mean 'restorekit.backbones'?")


@pytest.mark.parametrize("metadata", [None, b"Name: gr\xf6sse\n"])
def test_a_distribution_without_readable_metadata_is_reported_by_its_folder(site, metadata):
    site.install("acme-good", offering("acme = a:B"))
    info = site.install("acme-half", offering("half = a:B"))
    (info / "METADATA").unlink()
    if metadata:
        (info / "METADATA").write_bytes(metadata)
    assert "acme" in backbones
    assert "half" not in backbones
    [problem] = mine()
    assert problem.dist == str(info)


def test_a_scan_is_quick(site):
    seconds = []
    for _ in range(5):
        start = perf_counter()
        registry.problems()
        seconds.append(perf_counter() - start)
    assert min(seconds) < 0.2
