import json

import pytest
import torch
from safetensors.torch import save_file

from restorekit.bench import parity, speed
from restorekit.errors import ConfigError, UnknownComponentError, WeightsError

pytestmark = pytest.mark.usefixtures("strangers")

BEGIN, END = "<!-- parity: begin -->", "<!-- parity: end -->"


@pytest.fixture
def fixture(tmp_path):
    """Write what the published AcmeNet returned; ``outputs`` and ``keys`` are what a test makes wrong."""

    def write(name="acme", published="AcmeNet:Small", shift=0.0, rename=None, crop=0, double=False):
        torch.manual_seed(0)
        theirs = torch.nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)
        folder = tmp_path / "fixtures" / name
        folder.mkdir(parents=True)
        state = {f"conv.{key}": value for key, value in theirs.state_dict().items()}
        if rename:
            state[rename] = state.pop("conv.bias")
        save_file(state, folder / "weights.safetensors")
        tensors, cases = {}, []
        for case, shape in {"even": (1, 3, 8, 8), "odd": (2, 3, 5, 7)}.items():
            degraded = torch.rand(shape)
            tensors[f"{case}.input"] = degraded
            tensors[f"{case}.output0"] = (theirs(degraded) + shift)[..., crop:].contiguous()
            cases.append({"name": case, "n_outputs": 1, "suggested_atol": 1e-5})
        if double:
            tensors["odd.output0_f64"] = theirs.double()(tensors["odd.input"].double())
        save_file(tensors, folder / "cases.safetensors")
        meta = {"name": name, "official_class": published, "args": {"n_feat": 3}, "cases": cases}
        (folder / "meta.json").write_text(json.dumps(meta))
        return folder / "meta.json"

    return write


@pytest.fixture
def keys(tmp_path):
    def write(keys, parameters=84):
        folder = tmp_path / "fixtures" / "official_keys"
        folder.mkdir(parents=True)
        facts = {"name": "big", "official_class": "AcmeNet", "args": {"n_feat": 3}, "keys": keys}
        (folder / "big.json").write_text(json.dumps({**facts, "n_params": parameters}))
        (folder / "index.json").write_text("[]")

    return write


KEYS = [["conv.weight", [3, 3, 3, 3]], ["conv.bias", [3]]]


def test_every_output_is_compared_in_each_precision_that_is_there(fixture):
    rows = parity.matches(fixture(double=True))
    assert [(row.case, row.dtype, row.shape) for row in rows] == [
        ("even", "float32", (1, 3, 8, 8)),
        ("odd", "float32", (2, 3, 5, 7)),
        ("odd", "float64", (2, 3, 5, 7)),
    ]
    assert all(row.holds for row in rows)
    assert rows[2].error < 1e-14 and rows[2].allowed == parity.ALLOWED_DOUBLE


def test_a_difference_is_measured(fixture):
    rows = parity.matches(fixture(shift=0.25))
    assert not any(row.holds for row in rows)
    assert rows[0].error == pytest.approx(0.25, abs=1e-5)


def test_weights_have_to_fit_strictly(fixture):
    with pytest.raises(WeightsError, match=r"conv\.bias.*conv\.offset"):
        parity.matches(fixture(rename="conv.offset"))


def test_an_output_of_another_shape_is_an_error(fixture):
    with pytest.raises(WeightsError, match=r"acme, even\.output0: \(1, 3, 8, 8\), not \(1, 3, 8, 7\)"):
        parity.matches(fixture(crop=1))


def test_a_class_that_nobody_offers_is_an_error(fixture):
    with pytest.raises(UnknownComponentError, match="AcmeNot"):
        parity.matches(fixture(published="AcmeNot:Small"))


def test_a_folder_without_fixtures_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no fixtures"):
        parity.fixtures(tmp_path)


def test_names_shapes_and_parameters_of_published_sizes_are_compared(keys, tmp_path):
    keys(KEYS)
    (row,) = [parity.key_match(path) for path in parity.key_lists(tmp_path / "fixtures")]
    assert (row.tensors, row.parameters, row.differences) == (2, 84, ())


def test_differences_of_published_sizes_are_named(keys, tmp_path):
    keys([["conv.weight", [3, 3, 1, 1]], ["conv.offset", [3]]], parameters=12)
    (row,) = [parity.key_match(path) for path in parity.key_lists(tmp_path / "fixtures")]
    assert row.differences[:3] == ("conv.weight", "conv.offset", "conv.bias")
    assert "84 parameters instead of 12" in row.differences[3]


def test_matrix_shows_the_row_nearest_to_its_tolerance():
    def row(case, dtype, error, allowed):
        return parity.Match("v", "Net", case, 0, (1, 3, 8, 8), dtype, error, allowed)

    near, far = row("b", "float32", 9e-7, 1e-6), row("a", "float32", 1e-6, 1e-3)
    rows = [far, near, row("a", "float64", 0.0, 1e-11)]
    assert parity.worst(rows) == rows[1:]
    assert "| v | Net | float32 | 2 | 1.0e-06 | b 1x3x8x8: 9.0e-07 | 1.0e-06 |" in parity.as_markdown(
        rows, []
    )


def test_command_prints_the_matrix_and_writes_it_between_the_marks(run, fixture, keys, tmp_path):
    fixture()
    keys(KEYS)
    page = tmp_path / "page.md"
    page.write_text(f"# Before\n{BEGIN}\nold\n{END}\nafter\n")
    code, out, err = run("bench", "parity", "--fixtures", tmp_path / "fixtures", "--write", page)
    assert code == 0, err
    assert "acme" in out and "ok" in out and "1 of 1 published sizes" in out
    text = page.read_text()
    assert text.startswith(f"# Before\n{BEGIN}\n| variant |") and text.endswith(f"|\n{END}\nafter\n")
    assert "| big | AcmeNet | 2 | 84 | equal |" in text and "old" not in text


def test_command_fails_when_an_output_is_out_of_tolerance(run, fixture, tmp_path):
    fixture(shift=1)
    code, out, _ = run("bench", "parity", "--fixtures", tmp_path / "fixtures")
    assert code == 2 and "FAR" in out


def test_command_fails_when_names_differ_and_says_so_in_json(run, fixture, keys, tmp_path):
    fixture()
    keys(KEYS[:1])
    code, out, _ = run("bench", "parity", "--fixtures", tmp_path / "fixtures", "--json")
    assert code == 2 and json.loads(out)["keys"][0]["differences"] == ["conv.bias"]


@pytest.mark.parametrize("text", ["no marks", f"only the first {BEGIN}\nkept"])
def test_a_document_without_both_marks_is_refused_before_the_work(run, fixture, tmp_path, text):
    fixture()
    page = tmp_path / "page.md"
    page.write_text(text)
    code, out, err = run("bench", "parity", "--fixtures", tmp_path / "fixtures", "--write", page)
    assert code == 2 and "no place for parity" in err and not out
    assert page.read_text() == text


def test_command_without_fixtures_says_where_it_looked(run, tmp_path):
    code, _, err = run("bench", "parity", "--fixtures", tmp_path / "none")
    assert code == 2 and "none: there are no fixtures" in err


def test_race_runs_both_with_the_same_weights(run, monkeypatch):
    pytest.importorskip("spandrel_extra_arches", reason="the published code is timed from there")
    small = {"width": 8, "enc_blk_nums": [1], "middle_blk_num": 1, "dec_blk_nums": [1]}
    monkeypatch.setattr(speed, "PUBLISHED", {"NAFNet": small})
    code, out, err = run("bench", "parity", "--speed", "--side", 32, "--runs", 2, "--threads", 1, "--json")
    assert code == 0, err
    (race,) = json.loads(out)
    assert race["published"] == "NAFNet" and race["error"] < 1e-5
    assert race["theirs"] > 0 and race["ours"] > 0 and race["ratio"] > 0
