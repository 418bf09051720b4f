"""``restorekit faig``: from two files of weights to scores, figures and pictures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from analysis_cases import noisy, scenes, toy
from safetensors.torch import load_file, save_file

from restorekit.analysis import FAIGResult, attribute, contrasted
from restorekit.analysis.images import FilePairs
from restorekit.analysis.protocols import ImageScorer, mask_drop, modulate, strip
from restorekit.catalog import COMPONENT_KEY, PARAMS_KEY
from restorekit.datasets import find
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ImageError
from restorekit.filters import FilterTable
from restorekit.filterscores import FilterScores, select
from restorekit.registry import backbones

RECIPES = {"noise": "name: gaussian\nsigma: 38\n", "blur": "name: gaussian_blur\nstd: 1\n"}


def write(images, folder):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        levels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        PIL.Image.fromarray(levels).save(folder / f"{number}.png")
    return folder


def to_tensor(picture):
    with PIL.Image.open(picture) as opened:
        return torch.from_numpy(np.array(opened)).permute(2, 0, 1)[None] / 255


def size(picture):
    with PIL.Image.open(picture) as opened:
        return opened.size


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Weights as training exports them, photographs, recipes, and contrasted scores for them."""
    folder = tmp_path_factory.mktemp("faig")
    base, target = toy()
    facts = {COMPONENT_KEY: "srresnet", PARAMS_KEY: json.dumps({"width": 12, "blocks": 2, "scale": 1})}
    for name, network in (("base", base), ("target", target)):
        save_file(network.state_dict(), folder / f"{name}.safetensors", facts)
    clean = scenes(8, 28, 31)
    write(clean, folder / "clean")
    write(noisy(clean[:2]), folder / "pairs" / "input")
    write(clean[:2], folder / "pairs" / "target")
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    found = {}
    for label in RECIPES:
        recipe = RecipeSpec.model_validate(
            {"name": "gaussian", "sigma": 38} if label == "noise" else "gaussian_blur"
        )
        pairs = FilePairs.of(find(folder / "clean"), target, recipe, limit=3)
        found[label] = attribute(base, target, pairs, label=label, steps=8)
        found[label].save(folder / f"raw-{label}.safetensors")
    for label, scores in contrasted(found).items():
        scores.save(folder / f"{label}.safetensors")
    return folder


@pytest.fixture
def nets(site):
    return "--base", site / "base.safetensors", "--target", site / "target.safetensors"


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


def test_mask_drop_tells_discovered_filters_from_random_ones(run, site, nets):
    words = ("--data", site / "clean", "--degrade", site / "noise.yaml", "--ratio", 0.02, "--limit", 4)
    scores = site / "noise.safetensors"
    code, out, err = run("faig", "mask-drop", scores, *nets, *words, "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    ours = next(row for row in rows if row["method"] == "faig")
    chances = [row["drop"] for row in rows if row["method"] == "random"]
    assert len(chances) == 3 and ours["drop"] > 3 * max(chances) and ours["filters"] == 15
    assert len(ours["per_image"]) == 4 and ours["drop"] == pytest.approx(np.mean(ours["per_image"]))
    code, out, _ = run("faig", "mask-drop", scores, *nets, *words, "--metric", "release", "--random", 0)
    assert code == 0 and "release gradient maps of 4 images" in out and "random" not in out


def test_retrained_weights_load_as_any_others(run, site, tmp_path):
    out_file = tmp_path / "weights.safetensors"
    words = ("--base", site / "base.safetensors", "--data", site / "clean", "--degrade", "gaussian/severe")
    numbers = ("--ratio", 0.05, "--steps", 2, "--batch", 2, "--patch", 8, "--json")
    code, out, err = run("faig", "retrain", site / "noise.safetensors", *words, *numbers, "-o", out_file)
    assert code == 0, err
    facts = json.loads(out)
    before, after = load_file(site / "base.safetensors"), load_file(out_file)
    changed = sum(int((after[name] != value).sum()) for name, value in before.items())
    assert changed == facts["parameters"] == 39 * 9
    network = backbones["srresnet"].load()(width=12, blocks=2, scale=1)
    network.load_state_dict(after)
    words = ("--base", out_file, "--target", site / "target.safetensors", "--label", "x")
    assert run("faig", "rank", "delta", *words, "-o", tmp_path / "delta.safetensors")[0] == 0


def test_retraining_tells_what_it_gained_on_a_photograph_held_out(run, site, tmp_path):
    words = ("--base", site / "base.safetensors", "--data", site / "clean", "--degrade", site / "noise.yaml")
    numbers = ("--ratio", 1, "--steps", 80, "--lr", 5e-3, "--batch", 4, "--patch", 16)
    command = ("faig", "retrain", site / "noise.safetensors", *words, *numbers)
    code, out, err = run(*command, "-o", tmp_path / "a.safetensors", "--json")
    assert code == 0, err
    facts = json.loads(out)
    # The baseline keeps images as they are: noise of 38 levels is 16.5 dB, and clipping takes some of it.
    assert facts["psnr_before"] == pytest.approx(17, abs=1)
    assert facts["psnr_after"] > facts["psnr_before"] + 1, facts
    (name,) = facts["held_out"]
    assert (site / "clean" / name).exists()
    code, out, err = run(*command, "-o", tmp_path / "b.safetensors")
    assert code == 0 and f"PSNR of 4 windows of {name}, held out" in out, err
    lines = [line.split() for line in out.splitlines()]
    assert ["PSNR,", "dB", "LOSS"] in lines
    for word in ("before", "after"):
        assert [word, f"{facts[f'psnr_{word}']:.2f}"] in [line[:2] for line in lines]


def test_a_strip_and_a_map_are_drawn(run, site, nets, tmp_path):
    picture = tmp_path / "strip.png"
    words = (site / "noise.safetensors", site / "pairs" / "input" / "0.png", *nets, "--shares", "0,1,1.5")
    code, _, err = run("faig", "modulate", *words, "--crop", 20, "-o", picture)
    assert code == 0, err
    assert size(picture) == (3 * 24 - 4, 42)
    files = (site / "noise.safetensors", site / "blur.safetensors")
    code, out, err = run("faig", "map", *files, "-o", tmp_path / "map.png")
    assert code == 0 and "noise (faig)" in out and "blur (faig)" in out, err
    assert size(tmp_path / "map.png")[0] > 900
    code, out, _ = run("faig", "map", *files, "-o", tmp_path / "map.png", "--json", "--overwrite")
    assert code == 0 and 0 <= json.loads(out)["noise (faig)"]["depth"] <= 1


@pytest.mark.parametrize("shares", ["nan,1", "0,inf", "0:inf:3", "nan:1:2", "0:1:0", "0:1:-2", "", "1e400"])
def test_shares_that_are_no_finite_numbers_draw_no_strip(run, site, nets, tmp_path, shares):
    picture = tmp_path / "strip.png"
    words = (site / "noise.safetensors", site / "clean" / "0.png", *nets, f"--shares={shares}", "-o", picture)
    code, out, err = run("faig", "modulate", *words)
    assert code == 2 and f"--shares: {shares!r} is no grid" in err and not out and not picture.exists()


def test_overlap_names_degradations(run, site, nets):
    files = (site / "noise.safetensors", site / "blur.safetensors")
    recipes = ("--degrade", f"noise={site / 'noise.yaml'}", "--degrade", f"blur={site / 'blur.yaml'}")
    counts = ("--fit", 3, "--ratio", 0.05, "--steps", 4)
    image = ("--image", site / "pairs" / "input" / "1.png")
    code, out, err = run(
        "faig", "overlap", *files, *nets, "--data", site / "clean", *recipes, *counts, *image, "--json"
    )
    assert code == 0, err
    facts = json.loads(out)
    # The toy was never trained on blur: only noise can be told.
    assert facts["accuracy"]["noise"] >= 0.8 and facts["tested"] == 5
    (named,) = facts["images"].values()
    assert "noise" in named["degradations"] and named["overlaps"]["noise"] > facts["thresholds"]["noise"]


@pytest.fixture
def telling(site, nets):
    """What ``overlap`` needs beside scores, at its least."""
    recipes = ("--degrade", f"noise={site / 'noise.yaml'}", "--degrade", f"blur={site / 'blur.yaml'}")
    counts = ("--fit", 2, "--limit", 3, "--ratio", 0.05, "--steps", 1, "--json")
    return (*nets, "--data", site / "clean", *recipes, *counts)


def test_overlap_contrasts_raw_scores_and_leaves_contrasted_ones_alone(run, site, telling):
    raw, done = ([site / f"{kind}{label}.safetensors" for label in RECIPES] for kind in ("raw-", ""))
    code, out, err = run("faig", "overlap", *raw, *telling)
    assert code == 0 and "contrasted with each other: noise, blur" in err
    code, same, err = run("faig", "overlap", *done, *telling)
    assert code == 0 and "contrasted" not in err and json.loads(out) == json.loads(same)
    assert json.loads(out)["tested"] == 1


def test_overlap_refuses_scores_that_are_contrasted_with_nothing(run, site, telling, tmp_path):
    noise, raw = site / "noise.safetensors", site / "raw-blur.safetensors"
    code, out, err = run("faig", "overlap", noise, raw, *telling)
    assert code == 2 and not out and f"{raw}: its scores are not contrasted" in err and f"{noise} are" in err
    assert f"restorekit faig contrast {raw} OTHERS" in err
    code, out, err = run("faig", "overlap", raw, *telling)
    assert code == 2 and not out and f"restorekit faig contrast {raw} OTHERS" in err
    same = replace(FilterScores.load(raw), label="noise").save(tmp_path / "same.safetensors")
    code, out, err = run("faig", "overlap", same, raw, *telling)
    assert code == 2 and not out and "no filter is special to noise" in err


def test_overlap_refuses_two_files_or_two_recipes_of_one_label(run, site, telling, tmp_path):
    noise = site / "noise.safetensors"
    again = FilterScores.load(noise).save(tmp_path / "again.safetensors")
    code, out, err = run("faig", "overlap", noise, site / "blur.safetensors", again, *telling)
    assert code == 2 and not out and f"{noise} and {again} are both scores of noise" in err
    code, out, err = run("faig", "overlap", noise, *telling, "--degrade", "noise=gaussian")
    assert code == 2 and not out and "--degrade: noise stands there twice" in err


def test_a_missing_image_is_told_before_any_is_scored(run, site, telling, monkeypatch):
    scored = []
    monkeypatch.setattr("restorekit.analysis.protocols.overlap.ImageScorer.__call__", scored.append)
    files = [site / f"{label}.safetensors" for label in RECIPES]
    for image, message in (("nowhere.png", "nowhere.png"), (site / "noise.yaml", "noise.yaml")):
        code, out, err = run("faig", "overlap", *files, *telling, "--image", image)
        assert code == 2 and message in err and not out and not scored


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


CHOICES = pytest.mark.parametrize(
    ("words", "kept"),
    [(("--scope", "layer"), {"scope": "layer"}), (("--share", 0.1), {"share": 0.1})],
    ids=["scope", "share"],
)


@CHOICES
def test_filters_are_chosen_by_layer_or_up_to_a_share_of_it(run, site, nets, tmp_path, words, kept):
    file = site / "noise.safetensors"
    scores = FilterScores.load(file)
    best = scores.top(0.08, budget="filters", **kept)
    assert not torch.equal(best, scores.top(0.08, budget="filters"))
    counts = {name: len(own) for name, own in scores.table.chosen(best).items()}
    choice = ("--ratio", 0.08, *words, "--json")

    code, out, err = run("faig", "inspect", file, *choice)
    rows = json.loads(out)["layers"]
    assert code == 0 and counts == {name: row["chosen"] for name, row in rows.items() if row["chosen"]}, err
    code, out, err = run("faig", "map", file, *choice, "-o", tmp_path / "map.png")
    found = json.loads(out)["noise (faig)"]["counts"]
    assert code == 0 and counts == {name: count for name, count in found.items() if count}, err

    data = ("--data", site / "clean", "--degrade", site / "noise.yaml")
    code, out, err = run("faig", "mask-drop", file, *nets, *data, "--limit", 1, "--random", 1, *choice)
    assert code == 0, err
    ours, chance = json.loads(out)["rows"]
    base, target = toy()
    recipe = RecipeSpec.model_validate({"name": "gaussian", "sigma": 38})
    (pair,) = FilePairs.of(find(site / "clean"), target, recipe, limit=1)
    expected = mask_drop(target, base, scores.table, best, [pair.degraded])
    assert ours["drop"] == pytest.approx(expected.mean) and ours["filters"] == len(best)
    by_chance = torch.rand(len(scores.table), generator=torch.Generator().manual_seed(0))
    control = select(scores.table, by_chance, 0.08, budget="filters", **kept)
    expected = mask_drop(target, base, scores.table, control, [pair.degraded])
    assert chance["drop"] == pytest.approx(expected.mean)

    weights = tmp_path / "weights.safetensors"
    numbers = ("--steps", 2, "--batch", 2, "--patch", 8, "-o", weights)
    code, out, err = run("faig", "retrain", file, *nets[:2], *data, *numbers, *choice)
    assert code == 0 and json.loads(out)["filters"] == len(best), err
    before, after, masks = base.state_dict(), load_file(weights), scores.table.masks(best)
    moved = {name: value != before[name] for name, value in after.items()}
    # Some layers of this baseline are dead: no gradient reaches what is chosen there.
    assert len({name for name, places in moved.items() if places.any()} & counts.keys()) > 1
    for name, places in moved.items():
        assert not (places & ~masks.get(name, torch.zeros_like(places))).any(), name


@CHOICES
def test_a_strip_and_overlaps_follow_the_choice(run, site, nets, telling, tmp_path, words, kept):
    file, picture = site / "noise.safetensors", tmp_path / "strip.png"
    scores = FilterScores.load(file)
    best = scores.top(0.08, budget="filters", **kept)
    image = site / "pairs" / "input" / "0.png"
    code, _, err = run(
        *("faig", "modulate", file, image, *nets, "--ratio", 0.08, *words, "--shares", "0", "-o", picture)
    )
    assert code == 0, err
    base, target = toy()
    degraded = to_tensor(image)
    (output,) = modulate(target, base, scores.table, best, degraded, (0.0,))
    expected = np.asarray(strip([output], ["0"]))
    assert np.array_equal(np.asarray(PIL.Image.open(picture)), expected)

    files = [site / f"{label}.safetensors" for label in RECIPES]
    code, out, err = run("faig", "overlap", *files, *telling, "--image", image, *words)
    assert code == 0, err
    (named,) = json.loads(out)["images"].values()
    own = ImageScorer(base, target, scores.table, steps=1)(degraded)
    for label, path in zip(RECIPES, files, strict=True):
        one, other = (
            set(select(scores.table, values, 0.05, budget="filters", **kept).tolist())
            for values in (own, FilterScores.load(path).values)
        )
        assert named["overlaps"][label] == pytest.approx(len(one & other) / len(one))


@pytest.mark.parametrize("command", ["retrain", "mask-drop", "modulate", "map", "overlap", "inspect"])
def test_a_ratio_below_one_filter_is_refused_before_anything_is_computed_or_written(
    run, site, nets, tmp_path, command
):
    out_file, scores = tmp_path / "out.safetensors", site / "noise.safetensors"
    data, noise = ("--data", site / "clean"), ("--degrade", "gaussian")
    words = {
        "retrain": (scores, *nets[:2], *data, *noise, "--steps", 2, "-o", out_file),
        "mask-drop": (scores, *nets, *data, *noise),
        "modulate": (scores, site / "clean" / "0.png", *nets, "-o", out_file),
        "map": (scores, "-o", out_file),
        "overlap": (scores, *nets, *data, "--degrade", "noise=gaussian", "--fit", 2),
        "inspect": (scores,),
    }[command]
    code, out, err = run("faig", command, *words, "--ratio", 0.0001)
    assert code == 2 and not out and not out_file.exists(), err
    assert "a ratio of 0.0001 of 792 filters is less than one filter" in err
    assert "use a ratio of 0.00127 or more" in err


def test_facts_of_a_network_of_few_filters_are_shown_by_a_single_one(run, tmp_path):
    table = FilterTable.of(torch.nn.Conv2d(3, 3, 3))
    scores = FilterScores(table, torch.arange(9.0), "faig", "rain", "b" * 64)
    code, out, err = run("faig", "inspect", scores.save(tmp_path / "few.safetensors"), "--json")
    assert code == 0 and json.loads(out)["layers"]["weight"]["chosen"] == 1, err


def test_scores_of_another_network_are_refused(run, site, tmp_path):
    other = backbones["srresnet"].load()(width=8, blocks=2, scale=1)
    facts = {COMPONENT_KEY: "srresnet", PARAMS_KEY: json.dumps({"width": 8, "blocks": 2, "scale": 1})}
    save_file(other.state_dict(), tmp_path / "other.safetensors", facts)
    words = ("--base", tmp_path / "other.safetensors", "--target", tmp_path / "other.safetensors")
    data = ("--data", site / "clean", "--degrade", "gaussian")
    code, _, err = run("faig", "mask-drop", site / "noise.safetensors", *words, *data)
    assert code == 2 and "its filters are of another network: conv_first.weight" in err


@pytest.mark.parametrize("command", ["contrast", "retrain", "mask-drop", "modulate", "map", "overlap"])
def test_scores_of_another_base_are_refused_unless_they_are_meant(run, site, nets, tmp_path, command):
    noise, blur = (FilterScores.load(site / f"{label}.safetensors") for label in ("noise", "blur"))
    other = replace(blur, base="0123456789abcdef" * 4).save(tmp_path / "blur.safetensors")
    out_file = tmp_path / ("out.safetensors" if command in ("contrast", "retrain") else "out.png")
    data = ("--data", site / "clean", "--ratio", 0.05)
    words = {
        "contrast": (site / "noise.safetensors", other, "-o", out_file),
        "retrain": (
            *(other, *nets[:2], *data, "--degrade", "gaussian", "-o", out_file),
            *("--steps", 1, "--batch", 1, "--patch", 8),
        ),
        "mask-drop": (other, *nets, *data, "--degrade", "gaussian", "--limit", 1, "--random", 0),
        "modulate": (other, site / "clean" / "0.png", *nets, "--shares", "0,1", "-o", out_file),
        "map": (site / "noise.safetensors", other, "-o", out_file),
        "overlap": (
            *(site / "noise.safetensors", other, *nets, *data, "--steps", 1, "--fit", 1, "--limit", 2),
            *("--degrade", "noise=gaussian", "--degrade", "blur=gaussian_blur"),
        ),
    }[command]
    code, out, err = run("faig", command, *words)
    assert code == 2 and not out and not out_file.exists(), err
    assert noise.base[:16] in err and "0123456789abcdef" in err and "--other-base" in err
    code, out, err = run("faig", command, *words, "--other-base")
    assert code == 0 and out, err


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
