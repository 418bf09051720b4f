"""The published experiment as a whole, at toy size: it runs, resumes, and its page says what it found."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import yaml
from training_cases import write_photographs

from restorekit.analysis.experiment import LABELS, ExperimentSpec
from restorekit.analysis.page import render
from restorekit.analysis.published import MASKING, METHODS, RETRAINING, SHARES_METHOD
from restorekit.analysis.reproduce import reproduce, summary
from restorekit.config import check, configs_folder, read_yaml
from restorekit.errors import ConfigError, ImageError, OutputError, WeightsError
from restorekit.filterscores import FilterScores
from restorekit.training.folder import read_run

BEGIN, END = "<!-- faig results: begin -->", "<!-- faig results: end -->"
CONFIGS = sorted((configs_folder() / "faig").glob("*.yaml"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    return write_photographs(folder, 7)


def document(photographs, cache, **changes):
    facts = {
        "published": "srcnn",
        "backbone": {"name": "srcnn", "params": {"widths": [6, 6], "scale": 2}},
        "data": {"folder": str(photographs), "hold_out": 3, "cache": str(cache), "workers": 0},
        "seeds": [0, 1],
        "baseline": {"steps": 4, "patch": 8, "batch": 2},
        "target": {"steps": 4, "patch": 8, "batch": 2, "lr": 1e-3},
        "discovery": {"count": 2, "crop": 8},
        "steps": 3,
        "rule": "mid",
        "evaluation": {"folder": str(photographs), "first": 1, "count": 2, "reduce": 2, "crop": 16},
        "ratios": [0.05, 0.2],
        "retrain": {"steps": 2, "patch": 8, "batch": 2},
        "retrain_ratio": 0.1,
        "overlap": {
            "images": {"folder": str(photographs), "count": 4, "crop": 8},
            "fit": 3,
            "steps": 2,
        },
        "drawn": {"folder": str(photographs), "count": 1, "crop": 10},
    }
    return {**facts, **changes}


@pytest.fixture(scope="module")
def experiment(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    spec = ExperimentSpec.model_validate(document(photographs, folder / "cache"))
    told = []
    results = reproduce(spec, folder / "run", "cpu", progress=lambda *row: told.append(row))
    return spec, folder / "run", results, told


def test_everything_is_measured_for_every_seed(experiment):
    _spec, folder, results, told = experiment
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    for seed in ("0", "1"):
        own = results["seeds"][seed]
        assert set(own["quality"]["target"]) == {"clean", "blur", "noise"}
        for metric in ("luma", "release"):
            for ratio in ("0.05", "0.2"):
                for shown in ("blur", "noise"):
                    for label in ("blur", "noise"):
                        row = own["masking"][metric][ratio][shown][label]
                        assert list(row) == list(METHODS) and all(value >= 0 for value in row.values())
        assert all(
            0 < own["retraining"][label][method]["noise"] < 60
            for label in ("blur", "noise")
            for method in METHODS
        )
        assert (
            all(
                0 <= value <= 1
                for among in ("degraded", "all")
                for ratio in ("0.05", "0.2")
                for value in own["overlap"][among][ratio]["accuracy"].values()
            )
            and own["overlap"]["tested"] == 1
        )
        assert all(0 <= own["distribution"][label]["depth"] <= 1 for label in ("blur", "noise"))
        for name in ("map.png", "modulation-blur.png", "modulation-noise.png"):
            assert (folder / f"seed-{seed}" / name).stat().st_size > 500
    assert results["seeds"]["0"]["quality"] != results["seeds"]["1"]["quality"]
    assert 20 < results["summary"]["blur_order"]["psnr"]["mean"] < 80
    assert ("seed 0: baseline", 4, 4) in told and ("seed 1: noise by ig retrained", 2, 2) in told


def test_masking_the_same_filters_changes_the_same(experiment):
    # |change| and chance have one list for both degradations; FAIG's are each other's opposite.
    own = experiment[2]["seeds"]["0"]["masking"]["luma"]["0.2"]["noise"]
    assert own["blur"]["delta"] == own["noise"]["delta"] and own["blur"]["random"] == own["noise"]["random"]
    assert own["blur"]["faig"] != own["noise"]["faig"]


def test_faig_in_shares_is_a_column_of_its_own(photographs, tmp_path):
    changes = {"seeds": [0], "shares_weight": 2}
    spec = ExperimentSpec.model_validate(document(photographs, tmp_path / "cache", **changes))
    results = reproduce(spec, tmp_path / "run", "cpu")
    own = results["seeds"]["0"]
    assert list(own["masking"]["release"]["0.2"]["blur"]["noise"]) == [*METHODS, SHARES_METHOD]
    assert 0 < own["retraining"]["blur"][SHARES_METHOD]["noise"] < 60
    page = render(spec, results)
    tables = [line for line in page.splitlines() if "FAIG" in line and line.startswith("|")]
    assert len(tables) == 3 and all(line.endswith("| random | FAIG, in shares |") for line in tables)
    cells = {line.count("|") for line in page.splitlines() if line.startswith("| ") and "ry, " in line}
    assert cells == {7}
    assert "less 2 times that of the other degradation" in page


def test_masking_says_the_weight_of_shares(photographs, tmp_path):
    changes = {"seeds": [0, 1], "shares_weight": "masking", "shared_baseline": True}
    spec = ExperimentSpec.model_validate(document(photographs, tmp_path / "cache", **changes))
    results = reproduce(spec, tmp_path / "run", "cpu")
    weights = [own["weights"] for own in results["seeds"].values()]
    assert all(1 <= weight <= 8 for own in weights for weight in own.values())
    said = "; ".join(f"{label} {', '.join(f'{own[label]:g}' for own in weights)}" for label in LABELS)
    assert f"as masking the images of discovery says (by seed, times: {said}) that of" in render(
        spec, results
    )
    kept = tmp_path / "run" / "seed-1" / "scores" / f"{SHARES_METHOD}-noise.safetensors"
    before = kept.stat().st_mtime_ns
    assert reproduce(spec, tmp_path / "run", "cpu", resume=True) == results
    assert kept.stat().st_mtime_ns == before


def test_networks_are_trained_as_the_file_says(experiment):
    _spec, folder, _, _ = experiment
    base, target = (read_run(folder / "seed-1" / what) for what in ("baseline", "target"))
    assert base.finished and target.finished and base.spec.seed == target.spec.seed == 1
    assert base.spec.degradation.names() == {"quantisation"} and not base.spec.half
    assert target.spec.degradation.names() == {"gaussian_blur", "gaussian", "quantisation"}
    assert [step.probability for step in target.spec.degradation.chain] == [0.5, 0.5, 1.0]
    assert target.spec.degradation.chain[0].params == {"std": 1.0}
    assert target.spec.backbone.weights == str(base.weights) and target.spec.loss == {"l1": 1.0}
    scores = FilterScores.load(folder / "seed-1" / "scores" / "faig-noise.safetensors")
    assert scores.details["images"] == 2 and scores.details["steps"] == 3
    # Discovery looks at what training held out.
    assert len(base.data_names["held_out"]) == 3


def test_an_experiment_goes_on_where_it_was(experiment, photographs, tmp_path):
    spec, folder, results, _ = experiment
    with pytest.raises(OutputError, match="holds an experiment already"):
        reproduce(spec, folder, "cpu")
    other = spec.model_copy(update={"steps": 4})
    with pytest.raises(ConfigError, match="was begun with other steps"):
        reproduce(other, folder, "cpu", resume=True)
    told = []
    again = reproduce(spec, folder, "cpu", resume=True, progress=lambda *row: told.append(row))
    assert not told and again["summary"] == results["summary"]


def test_scores_of_a_baseline_that_was_trained_again_are_refused(experiment):
    spec, folder, _, _ = experiment
    file = folder / "seed-0" / "scores" / "ig-noise.safetensors"
    found, before = FilterScores.load(file), file.read_bytes()
    replace(found, base="0" * 64).save(file)
    try:
        with pytest.raises(WeightsError, match=rf"base 0{{16}}, the baseline of .* is {found.base[:16]}"):
            reproduce(spec, folder, "cpu", resume=True)
    finally:
        file.write_bytes(before)


class StoppedError(Exception):
    pass


def test_an_interrupted_experiment_ends_with_the_same_figures(experiment, photographs, tmp_path):
    spec, _, results, _ = experiment
    single = spec.model_copy(update={"seeds": (0,)})
    stops = ["seed 0: target", "seed 0: faig noise", "seed 0: masking", "seed 0: noise by delta retrained"]
    for stop in stops:

        def progress(what, done, total, stop=stop):
            if what == stop:
                raise StoppedError

        with pytest.raises(StoppedError):
            reproduce(single, tmp_path / "run", "cpu", resume=True, progress=progress)
    resumed = reproduce(single, tmp_path / "run", "cpu", resume=True)
    # The weights' folder stands in the spec of the target; figures do not know it.
    assert resumed["seeds"]["0"] == results["seeds"]["0"]


def test_one_baseline_can_serve_all_seeds(experiment, tmp_path):
    spec = experiment[0].model_copy(update={"shared_baseline": True})
    run = tmp_path / "run"

    def progress(what, done, total):
        if what == "seed 1: quality":
            raise StoppedError

    # What the first seed finds is of no interest here.
    (run / "seed-0").mkdir(parents=True)
    for name in ("scores", "quality.json", "masking.json", "overlap.json", "blur-order.json"):
        source = experiment[1] / "seed-0" / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, run / "seed-0" / name)
    for path in (experiment[1] / "seed-0").glob("retraining-*"):
        shutil.copy(path, run / "seed-0")
    with pytest.raises(StoppedError):
        reproduce(spec, run, "cpu", progress=progress)
    assert not (run / "seed-1" / "baseline").exists()
    target = read_run(run / "seed-1" / "target").spec
    assert target.backbone.weights == str(run / "seed-0" / "baseline" / "weights.safetensors")
    assert target.seed == 1


def test_the_page_has_our_figures_beside_the_published(experiment):
    _spec, folder, results, _ = experiment
    page = (folder / "page.md").read_text()
    ours = results["summary"]["masking"]["release"]["0.05"]["noise"]["noise"]["faig"]
    assert f"{ours['mean']:.3g} ± {ours['deviation']:.2g}" in page
    assert "4.86 ± 0.9" in page and "1.4 ± 0.37" not in page, "only ratios that were run are compared"
    assert "28.047 ± 0.023" in page and "27.889 ± 0.207" in page and "98%" in page
    assert "What differs from the paper" in page and "(seed-0/map.png)" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.count("|") >= 5 for line in table)


def test_the_command_writes_between_the_markers_of_a_page(run, experiment, tmp_path):
    _spec, folder, _, _ = experiment
    page = tmp_path / "faig.md"
    page.write_text(f"before\n{BEGIN}\nfigures of yesterday\n{END}\nafter\n")
    code, out, err = run("faig", "reproduce", folder, "--resume", "--write", page, "--device", "cpu")
    assert code == 0 and out.strip() == str(folder / "page.md"), err
    text = page.read_text()
    assert (
        text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "yesterday" not in text
    )
    assert "4.86 ± 0.9" in text
    drawn = re.findall(r"\((images/[^)]+)\)", text)
    assert len(drawn) == 3 and all((tmp_path / name).stat().st_size > 100 for name in drawn), drawn
    (tmp_path / "bare.md").write_text("nothing")
    words = ("faig", "reproduce", folder, "--resume", "--write", tmp_path / "bare.md", "--device", "cpu")
    code, _, err = run(*words)
    assert code == 2 and "has no place for faig results" in err


def test_the_deviation_is_that_of_a_sample():
    found = summary([{"a": {"b": 1.0}}, {"a": {"b": 3.0}}])
    assert found["a"]["b"] == {"mean": 2.0, "deviation": pytest.approx(2**0.5)}
    assert summary([{"a": 1.0}])["a"]["deviation"] == 0


def test_experiments_that_make_no_sense_are_refused(photographs, tmp_path):
    for changes, message in (
        ({"seeds": [1, 1]}, "a seed stands twice"),
        ({"overlap": {"images": {"count": 3}, "fit": 3}}, "leave none to test on"),
        ({"data": {"pairs": str(photographs)}}, "degrades clean photographs itself"),
        ({"published": "edsr"}, "published"),
        ({"stepps": 3}, "unknown key 'stepps'"),
    ):
        with pytest.raises(ConfigError, match=message):
            check(ExperimentSpec, document(photographs, tmp_path, **changes), "x.yaml")
    for changes, message in (
        ({"evaluation": {"folder": str(tmp_path / "no")}}, "is no folder"),
        ({"evaluation": {"folder": str(photographs), "first": 50}}, "holds no images"),
        ({"discovery": {"crop": 500}}, "is smaller than 1000 pixels"),
    ):
        spec = ExperimentSpec.model_validate(document(photographs, tmp_path / "cache", **changes))
        with pytest.raises(ImageError, match=message):
            reproduce(spec, tmp_path / "run", "cpu")
        assert not list((tmp_path / "run").glob("seed-*"))
        (tmp_path / "run" / "config.yaml").unlink()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_experiments_with_published_figures(config):
    spec = check(ExperimentSpec, read_yaml(config), config.name)
    assert len(spec.seeds) >= 3 and spec.ratios == (0.01, 0.05)
    assert set(spec.ratios) == set(MASKING[spec.published]["blur"])
    assert yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json")))
    assert all(
        len(figures) == len(METHODS) for deck in RETRAINING.values() for figures in deck["blur"].values()
    )


def test_there_is_a_config_for_each_of_the_papers_networks():
    assert {check(ExperimentSpec, read_yaml(path), path.name).published for path in CONFIGS} == {
        "srcnn",
        "srresnet",
    }
