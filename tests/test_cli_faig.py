"""``restorekit faig``: from two files of weights to scores, and what a file of scores tells."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from analysis_cases import toy
from faig_cases import RECIPES, write
from safetensors.torch import load_file, save_file

from restorekit.analysis import FAIGResult, attribute
from restorekit.analysis.images import FilePairs
from restorekit.datasets import find
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ImageError
from restorekit.filters import FilterTable
from restorekit.filterscores import FilterScores
from restorekit.registry import backbones


def test_an_attribution_is_that_of_the_library(run, site, nets, tmp_path):
    out_file = tmp_path / "noise.safetensors"
    words = ("--data", site / "clean", "--degrade", site / "noise.yaml", "--limit", 2, "--steps", 4)
    code, out, err = run("faig", "attribute", *nets, *words, "-o", out_file)
    assert code == 0, err
    assert "noise: 2 images, 4 steps each, completeness error" in out and "8 clean images" in err
    base, target = toy()
    pairs = FilePairs.of(
        find(site / "clean"), target, RecipeSpec.model_validate({"name": "gaussian", "sigma": 38})
    )
    expected = attribute(base, target, list(pairs)[:2], label="noise", steps=4)
    found = FAIGResult.load(out_file)
    torch.testing.assert_close(found.values, expected.values)
    assert found.label == "noise" and found.base == expected.base and found.steps == 4
    assert [path.name for path in tmp_path.iterdir()] == ["noise.safetensors"]


def test_parts_of_the_images_are_joined_to_what_all_of_them_give(run, site, nets, tmp_path):
    words = ("--data", site / "clean", "--degrade", site / "noise.yaml", "--limit", 5, "--steps", 2)
    files = [tmp_path / f"{name}.safetensors" for name in ("whole", "one", "two", "joined")]
    whole, one, two, together = files
    assert run("faig", "attribute", *nets, *words, "-o", whole)[0] == 0
    for part, file in (("1/2", one), ("2/2", two)):
        assert run("faig", "attribute", *nets, *words, "--part", part, "-o", file)[0] == 0
    assert [FAIGResult.load(file).images for file in (one, two)] == [3, 2]
    code, out, err = run("faig", "join", one, two, "-o", together)
    assert code == 0 and "noise: 5 images" in out, err
    torch.testing.assert_close(FAIGResult.load(together).values, FAIGResult.load(whole).values)
    code, _, err = run("faig", "join", one, site / "blur.safetensors", "-o", tmp_path / "no.safetensors")
    assert (
        code == 2 and "part 2 is contrasted with noise" in err and not (tmp_path / "no.safetensors").exists()
    )


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/2/3"])
def test_what_is_no_part_of_a_whole_is_refused(run, site, nets, tmp_path, part):
    words = ("--data", site / "clean", "--degrade", site / "noise.yaml", "--part", part)
    code, _, err = run("faig", "attribute", *nets, *words, "-o", tmp_path / "x.safetensors")
    assert code == 2 and f"--part: '{part}' is no part of a whole" in err and "--part 2/4" in err


def test_pairs_are_attributed_as_they_lie_and_json_tells_all(run, site, nets, tmp_path):
    out_file = tmp_path / "real.safetensors"
    words = ("--data", site / "pairs", "--label", "real", "--release", "--crop", 16, "--json")
    code, out, err = run("faig", "attribute", *nets, *words, "-o", out_file)
    facts = json.loads(out)
    assert code == 0 and facts["label"] == "real" and (facts["rule"], facts["steps"]) == ("left", 100), err
    assert facts["images"] == 2 and facts["filters"] == len(FilterScores.load(out_file).values)
    assert facts["completeness"]["error"] < 0.02 and "unattributed" in facts["completeness"]


@pytest.mark.parametrize(
    "method", [("attribute",), ("rank", "ig"), ("rank", "gradxdelta")], ids=lambda words: words[-1]
)
def test_an_interrupted_attribution_is_resumed_on_demand_only(run, site, nets, tmp_path, monkeypatch, method):
    out_file = tmp_path / "noise.safetensors"
    words = ("--data", site / "clean", "--degrade", site / "noise.yaml", "--limit", 3, "--steps", 2)
    whole = tmp_path / "whole.safetensors"
    assert run("faig", *method, *nets, *words, "-o", whole)[0] == 0
    read = FilePairs.pair

    def cut_off(self, sample):
        if sample.name == "2.png":
            raise ImageError("the cable was pulled")
        return read(self, sample)

    monkeypatch.setattr(FilePairs, "pair", cut_off)
    assert run("faig", *method, *nets, *words, "-o", out_file)[0] == 2
    monkeypatch.undo()
    code, _, err = run("faig", *method, *nets, *words, "-o", out_file)
    assert code == 2 and "noise.partial.safetensors is an attribution that was interrupted" in err
    code, _, err = run("faig", *method, *nets, *words, "--limit", 1, "-o", out_file, "--resume")
    assert code == 2 and "the checkpoint has 2 images, and 1 are given" in err
    code, _, err = run("faig", *method, *nets, *words, "-o", out_file, "--resume")
    assert code == 0, err
    assert torch.equal(FilterScores.load(whole).values, FilterScores.load(out_file).values)
    assert not list(tmp_path.glob("*.partial.*"))


@pytest.mark.parametrize("sample", ["0.png", "2.png"])
def test_ctrl_c_says_where_the_work_is_and_how_to_go_on(run, site, nets, tmp_path, monkeypatch, sample):
    read, out_file = FilePairs.pair, tmp_path / "noise.safetensors"
    words = ("--data", site / "clean", "--degrade", "gaussian", "--limit", 3, "--steps", 1, "-o", out_file)

    def stopped(self, asked):
        if asked.name == sample:
            raise KeyboardInterrupt
        return read(self, asked)

    monkeypatch.setattr(FilePairs, "pair", stopped)
    code, out, err = run("faig", "attribute", *nets, *words)
    assert code == 130 and not out
    (line,) = (line for line in err.splitlines() if "interrupted" in line)
    # Nothing is written before the first two images are read, on which steps may be looked for.
    if sample == "0.png":
        assert line == "interrupted; nothing was done that could be kept"
        return
    assert str(tmp_path / "noise.partial.safetensors") in line and "--resume" in line
    monkeypatch.undo()
    assert run("faig", "attribute", *nets, *words, "--resume")[0] == 0 and out_file.exists()


def test_a_folder_is_no_output_and_nothing_is_computed_for_it(run, site, nets, tmp_path):
    words = ("--data", site / "clean", "--degrade", "gaussian", "-o", tmp_path, "--overwrite")
    code, _, err = run("faig", "attribute", *nets, *words)
    assert code == 2 and f"{tmp_path} is a folder" in err and "clean images" not in err
    assert not list(tmp_path.iterdir())


def test_a_tag_without_a_backbone_asks_for_the_backbone(run, site, nets, tmp_path):
    words = ("--base", "denoise", *nets[2:], "--data", site / "clean", "--degrade", "gaussian")
    code, _, err = run("faig", "attribute", *words, "-o", tmp_path / "x.safetensors")
    assert code == 2 and "error: --base: denoise is no file" in err
    assert "name the backbone with -b, as -b nafnet" in err


def test_damaged_scores_are_told_by_inspect(run, site, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    save_file({"scores": torch.zeros(3)}, damaged, {"format": "restorekit.filter-scores/1"})
    code, out, err = run("faig", "inspect", damaged)
    assert code == 2 and not out and f"the metadata of {damaged} are damaged: KeyError: 'table'" in err
    whole = FilterScores.load(site / "noise.safetensors")
    replace(whole, details={"completeness": {"change": 1.0}}).save(damaged)
    code, out, err = run("faig", "inspect", damaged)
    assert code == 2 and not out and "the completeness of noise is damaged" in err


@pytest.mark.parametrize("method", ["ig", "delta", "gradxdelta", "random"])
def test_other_methods_rank_too(run, site, nets, tmp_path, method):
    out_file = tmp_path / "x.safetensors"
    data = ("--data", site / "clean", "--degrade", "gaussian", "--limit", 1, "--steps", 2)
    words = data if method in ("ig", "gradxdelta") else ("--label", "gaussian")
    code, _, err = run("faig", "rank", method, *nets, *words, "-o", out_file)
    assert code == 0, err
    found = FilterScores.load(out_file)
    assert (found.method, found.label) == (method, "gaussian") and found.values.std() > 0


def test_a_contrast_is_written_from_files(run, site, nets, tmp_path):
    for label in RECIPES:
        words = ("--data", site / "clean", "--degrade", site / f"{label}.yaml", "--limit", 1, "--steps", 2)
        assert run("faig", "attribute", *nets, *words, "-o", tmp_path / f"{label}.safetensors")[0] == 0
    one, other = (tmp_path / f"{label}.safetensors" for label in ("noise", "blur"))
    code, _, err = run("faig", "contrast", one, other, "-o", tmp_path / "c.safetensors")
    assert code == 0, err
    found = FilterScores.load(tmp_path / "c.safetensors")
    torch.testing.assert_close(found.values, FilterScores.load(one).values - FilterScores.load(other).values)
    assert found.details["minus"]["labels"] == ["blur"]
    words = ("--shares", "--weight", 2, "-o", tmp_path / "s.safetensors")
    assert run("faig", "contrast", one, other, *words)[0] == 0
    first, second = (FilterScores.load(path).values for path in (one, other))
    expected = first / first.sum() - 2 * second / second.sum()
    torch.testing.assert_close(FilterScores.load(tmp_path / "s.safetensors").values, expected)


def test_inspect_shows_layers_and_facts(run, site):
    code, out, _ = run("faig", "inspect", site / "noise.safetensors", "--layers", 3)
    assert code == 0 and "noise by faig: 792 filters, unit kernel" in out and "not in filters" in out
    assert sum("█" in line for line in out.splitlines()) == 3
    code, out, _ = run("faig", "inspect", site / "noise.safetensors", "--json", "--ratio", 0.05)
    facts = json.loads(out)
    assert sum(row["chosen"] for row in facts["layers"].values()) == 39 == int(792 * 0.05)
    assert sum(row["share"] for row in facts["layers"].values()) == pytest.approx(1)


def test_requests_that_cannot_be_carried_out_say_why(run, site, nets, tmp_path):
    out_file = tmp_path / "x.safetensors"
    clean, scores = ("--data", site / "clean"), site / "noise.safetensors"
    noise = ("--degrade", "gaussian")
    for words, message in (
        (("attribute", *nets, *clean, "--label", "x", "-o", out_file), "holds clean images and no degraded"),
        (("attribute", *nets, *clean, "-o", out_file), "--label: is missing"),
        (("attribute", *nets, *clean, *noise, "-o", scores), "exists"),
        (("attribute", *nets, *clean, *noise, "-o", out_file, "--steps", "many"), "neither auto nor"),
        (("attribute", *nets, *clean, *noise, "-o", out_file, "--crop", 99), "smaller than a crop of 99"),
        (("attribute", *nets, *clean, "--degrade", "gausian", "-o", out_file), "did you mean 'gaussian'"),
        (("rank", "ig", *nets, *noise, "-o", out_file), "ig looks at images"),
        (("mask-drop", scores, *nets, *clean, "-b", "srcnn"), "srcnn takes no 'width'"),
        (("modulate", scores, site / "clean" / "0.png", *nets, "--shares", "a", "-o", out_file), "no grid"),
        (("overlap", scores, *nets, *clean, "--degrade", "blur=gaussian_blur"), "labels are blur"),
        (("overlap", scores, *nets, *clean, "--degrade", "gaussian"), "has no label"),
        (("overlap", scores, *nets, *clean, "--degrade", "noise=gaussian"), "8 images leave none"),
        (("inspect", site / "base.safetensors"), "not 'restorekit.filter-scores/1'"),
    ):
        code, out, err = run("faig", *words)
        assert code == 2 and message in err and not out, (words, err)
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(site / "base.safetensors"), bare)
    code, _, err = run("faig", "rank", "delta", "--base", bare, *nets[2:], "--label", "x", "-o", out_file)
    assert code == 2 and "does not say which backbone" in err
    assert not out_file.exists()


def test_facts_of_a_network_of_few_filters_are_shown_by_a_single_one(run, tmp_path):
    table = FilterTable.of(torch.nn.Conv2d(3, 3, 3))
    scores = FilterScores(table, torch.arange(9.0), "faig", "rain", "b" * 64)
    code, out, err = run("faig", "inspect", scores.save(tmp_path / "few.safetensors"), "--json")
    assert code == 0 and json.loads(out)["layers"]["weight"]["chosen"] == 1, err


def test_enlarging_networks_get_reduced_images_and_clean_ones_of_the_right_size(site, tmp_path):
    write(torch.rand(1, 3, 21, 27), tmp_path / "odd")
    network = backbones["srcnn"].load()(widths=[4], scale=2)
    blur = RecipeSpec.model_validate("gaussian_blur")
    (pair,) = FilePairs.of(find(tmp_path / "odd"), network, blur)
    assert pair.degraded.shape == (1, 3, 10, 13) and pair.clean.shape == (1, 3, 20, 26)
    both = {"chain": ["gaussian_blur", {"name": "downscale", "factor": 2}]}
    (own,) = FilePairs.of(find(tmp_path / "odd"), network, RecipeSpec.model_validate(both))
    assert own.degraded.shape == (1, 3, 10, 13) and not torch.equal(own.degraded, pair.degraded)
    (cut,) = FilePairs.of(find(tmp_path / "odd"), network, blur, crop=4)
    assert torch.equal(cut.degraded, pair.degraded[..., 3:7, 4:8])
    assert torch.equal(cut.clean, pair.clean[..., 6:14, 8:16])
    gray = backbones["srcnn"].load()(channels=1, widths=[4], scale=1)
    (pair,) = FilePairs.of(find(tmp_path / "odd"), gray, blur)
    assert pair.clean.shape == (1, 1, 21, 27)
