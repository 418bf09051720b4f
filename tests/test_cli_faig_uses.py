"""``restorekit faig`` with scores at hand: filters masked, retrained, modulated, drawn and overlapped."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from analysis_cases import toy
from faig_cases import RECIPES, size, to_tensor
from safetensors.torch import load_file, save_file

from restorekit.analysis.images import FilePairs
from restorekit.analysis.protocols import ImageScorer, eliminated, mask_drop, modulate, strip
from restorekit.catalog import COMPONENT_KEY, PARAMS_KEY
from restorekit.datasets import find
from restorekit.degradations.spec import RecipeSpec
from restorekit.filterscores import FilterScores, select
from restorekit.registry import backbones


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
def eliminating(site, nets):
    """What ``eliminate`` needs beside scores, at its least."""
    recipes = ("--degrade", f"noise={site / 'noise.yaml'}", "--degrade", f"blur={site / 'blur.yaml'}")
    return (*nets, "--data", site / "clean", *recipes, "--limit", 2)


def test_eliminate_subtracts_as_often_as_masking_says(run, site, eliminating, tmp_path):
    raw = {label: site / f"raw-{label}.safetensors" for label in RECIPES}
    numbers = ("--ratio", 0.05, "--weight", 2, "--weight", 4, "--allowed", 0.5, "--json")
    code, out, err = run("faig", "eliminate", *raw.values(), *eliminating, *numbers, "-o", tmp_path / "own")
    assert code == 0, err
    facts = json.loads(out)
    scores = {label: FilterScores.load(path) for label, path in raw.items()}
    networks = toy()
    shown = {}
    for label in RECIPES:
        recipe = RecipeSpec.model_validate(
            {"name": "gaussian", "sigma": 38} if label == "noise" else {"name": "gaussian_blur", "std": 1}
        )
        pairs = FilePairs.of(find(site / "clean"), networks[1], recipe, limit=2)
        shown[label] = [pair.degraded for pair in pairs]
    rule = {"ratios": (0.05,), "weights": (2.0, 4.0), "limit": 0.5}
    expected = eliminated(networks[1], networks[0], scores, shown, **rule)
    for label in RECIPES:
        written = FilterScores.load(tmp_path / "own" / f"{label}.safetensors")
        assert torch.equal(written.values, expected[label].values) and written.label == label
        assert facts[label]["weight"] == expected[label].details["minus"]["weight"]
    code, out, err = run("faig", "eliminate", *raw.values(), *eliminating, *numbers, "-o", tmp_path / "own")
    assert code == 2 and not out and "exists" in err and "--overwrite" in err
    again = (*numbers[:-1], "--overwrite", "-o", tmp_path / "own")
    code, out, err = run("faig", "eliminate", *raw.values(), *eliminating, *again)
    assert code == 0 and "TIMES" in out and str(tmp_path / "own" / "noise.safetensors") in out


def test_eliminate_refuses_what_it_cannot_contrast(run, site, eliminating, tmp_path):
    own, noise, blur = ("-o", tmp_path / "own"), site / "raw-noise.safetensors", site / "raw-blur.safetensors"
    contrasted = site / "blur.safetensors"
    for words, said in (
        ((noise, contrasted, *eliminating), f"{contrasted}: its scores are contrasted already"),
        ((noise, *eliminating), "labels are noise, blur, the scores are of noise"),
        ((noise, noise, *eliminating), "are both scores of noise"),
        ((noise, blur, *eliminating, "--ratio", 0.0001), "is less than one filter"),
        ((noise, blur, *eliminating, "--allowed", 0), "nothing to choose from"),
    ):
        code, out, err = run("faig", "eliminate", *words, *own)
        assert code == 2 and not out and said in err, err
        assert not list(tmp_path.rglob("*.safetensors"))


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
