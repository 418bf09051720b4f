"""An adaptive model from one file, made small: all stages, all rows of the table, once."""

import json
import shutil

import pytest
import torch
import yaml
from training_cases import write_photographs

from restorekit.cli.experiment import read
from restorekit.config import PipelineSpec
from restorekit.experiments.adaptive import Experiment
from restorekit.experiments.spec import AdaptiveSpec
from restorekit.filterscores import FilterScores
from restorekit.image import Image
from restorekit.pipeline import Pipeline
from restorekit.weights import read_tensors

ROWS = (
    "unified",
    "adaptive",
    "decided",
    "cautious",
    "oracle",
    "polished",
    "polished-decided",
    "polished-cautious",
    "polished-oracle",
    "uniform",
    "random",
    "delta",
    "copied",
    "specialists",
    "independent",
    "larger",
    "longer",
)
SMALL = {"width": 4, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Run the command once; return the folder of its runs, its config and what it printed."""
    place = tmp_path_factory.mktemp("adaptive")
    photographs = place / "photographs"
    photographs.mkdir()
    write_photographs(photographs, 2)
    config = {
        "backbone": {"name": "nafnet", "params": SMALL},
        "adapter": {"name": "adms", "params": {"ratio": 0.1}},
        "data": {"folder": str(photographs), "hold_out": 1, "cache": str(place / "cache")},
        "degradations": {"noise": {"name": "gaussian", "sigma": 30}, "blur": "gaussian_blur"},
        "clean": 0.2,
        "common": {
            "stages": [{"steps": 3, "patch": 16, "batch": 3}],
            "validate_every": 3,
            "pictures": 0,
            "half": False,
            "optimizer": {"warmup": 0},
        },
        "unified": {},
        "specialists": {},
        "independent": {"stages": [{"steps": 2, "patch": 16, "batch": 3}]},
        "deltas": {},
        "classifier": {"stages": [{"steps": 3, "patch": 32, "batch": 3}]},
        "polish": {},
        "discovery": {"images": 2, "patch": 16, "steps": 8},
        "comparison": {
            "data": str(photographs),
            "limit": 1,
            "least": 1,
            "rows": list(ROWS),
            "larger": {**SMALL, "width": 6},
        },
    }
    file = place / "small.yaml"
    file.write_text(yaml.safe_dump(config))
    page = place / "page.md"
    page.write_text("# Table\n<!-- small: begin -->\n<!-- small: end -->\n")
    return place / "runs", file, page


@pytest.fixture(scope="module")
def done(made):
    """The first, whole run."""
    from typer.testing import CliRunner

    from restorekit.cli import app

    folder, file, page = made
    result = CliRunner().invoke(app, ["adapt", str(file), "-o", str(folder), "--write", str(page), "--json"])
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads(result.stdout)


def test_every_row_is_measured_on_every_degradation(made, done):
    table = made[2].read_text()
    assert list(done["rows"]) == list(ROWS)
    for row in ROWS:
        assert {"noise", "blur"} <= done["rows"][row].keys(), row
        assert all(report["psnr"] > 5 for report in done["rows"][row].values()), row
    assert table.count("\n| ") == len(ROWS) + 3 and "of the gap" in table
    assert [line[-4:] for line in table.splitlines() if line.startswith("| degraded")] == ["|  |"]


def test_clean_images_are_a_column_where_one_network_sees_all(done):
    with_clean = {row for row in ROWS if "clean" in done["rows"][row]}
    one_each = {"random", "delta", "copied", "specialists", "independent"}
    assert with_clean == {*ROWS} - one_each
    # Told that an image is clean, the adaptive model is the unified one.
    for row in ("oracle", "polished-oracle"):
        assert done["rows"][row]["clean"]["psnr"] == done["rows"]["unified"]["clean"]["psnr"], row


def test_a_cautious_row_leaves_to_the_base_what_nothing_is_sure_of(done):
    figures = {row: [report["psnr"] for report in done["rows"][row].values()] for row in ROWS}
    assert figures["cautious"] == figures["polished-cautious"] == figures["unified"]


def test_polish_trains_filters_and_classifier_on_and_is_what_comes_out(made, done):
    folder = made[0]
    assert done["adapter"] == str(folder / "polished" / "weights.safetensors")
    before, after = (
        read_tensors(folder / name / "weights.safetensors") for name in ("classifier", "polished")
    )
    assert before.keys() == after.keys()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"classifier", "deltas"}


def test_every_run_is_as_long_as_its_stage_says(made, done):
    steps = {
        name: sum(stage["steps"] for stage in yaml.safe_load(path.read_text())["stages"])
        for name in ("unified", "larger", "longer", "noise-independent")
        for path in [made[0] / name / "config.yaml"]
    }
    # The unified model trained longer goes on for the filters of both degradations.
    assert steps == {"unified": 3, "larger": 3, "longer": 6, "noise-independent": 2}


class KilledError(Exception):
    """What ends a job in the middle."""


def test_killed_discovery_goes_on_where_it_was_and_ends_the_same(made, done, tmp_path):
    spec = read(AdaptiveSpec, made[1], None)
    scores = "scores/noise-faig.safetensors"
    shutil.copytree(made[0], tmp_path / "runs")
    whole = FilterScores.load(tmp_path / "runs" / scores)
    (tmp_path / "runs" / scores).unlink()
    job = next(job for job in Experiment(spec, tmp_path / "runs", "cpu").jobs() if job.result.match(scores))
    seen = []

    def report(step, total):
        seen.append((step, total))
        if len(seen) == 13:
            raise KilledError

    assert not job.is_begun
    with pytest.raises(KilledError):
        job.run(report)
    assert job.is_begun and not job.result.exists()
    job.run(report)
    # Two windows of eight gradients each: the first is not done again.
    assert [step for step, _ in seen] == [*range(1, 14), *range(9, 17)]
    assert torch.equal(FilterScores.load(job.result).values, whole.values)
    assert [path.name for path in job.result.parent.glob("noise-faig*")] == [job.result.name]


def test_a_second_run_makes_nothing_again(made, done, run):
    folder, file, _ = made
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    code, out, _ = run("adapt", file, "-o", folder)
    assert code == 0 and "ADMS, classifier" in out and str(done["adapter"]) in out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_results_of_other_settings_or_weights_are_refused_with_all_that_came_of_them(
    made, done, run, tmp_path
):
    folder, file, _ = made
    again = tmp_path / "runs"
    shutil.copytree(folder, again)
    for path in again.rglob("config.yaml"):
        path.write_text(path.read_text().replace(str(folder), str(again)))
    code, _, err = run("adapt", file, "-o", again, "--set", "discovery.steps=4")
    assert code == 2 and "'steps': 8" in err and str(again / "noise-filters") in err
    for name in ("unified", "larger"):
        shutil.rmtree(again / name)
    stages = "unified={stages: [{steps: 2, patch: 16, batch: 3}]}"
    code, _, err = run("adapt", file, "-o", again, "--set", stages)
    assert code == 2 and "another ../unified/weights.safetensors" in err
    stale = err.partition("remove ")[2]
    assert all(str(again / name) in stale for name in ("blur-specialist", "scores", "classifier", "reports"))
    assert str(again / "blur-independent") not in stale and str(again / "unified") not in stale


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter.params.ratio": 3}, "not in"),
        ({"adapter.params.rato": 0.1}, "rato"),
        ({"degradations.train": "gaussian"}, "train"),
        ({"adapter.params.exclusive": True}, "the chain says exclusive itself"),
        ({"discovery.patch": 512}, "no photograph is at least 512 pixels"),
        ({"classifier.stages": "[{steps: 3, patch: 512, batch: 3}]"}, "no photograph is at least 512 pixels"),
        ({"comparison.data": "nowhere"}, "comparison.data: nowhere is no folder"),
        ({"data.folder": "nowhere"}, "nowhere"),
        ({"comparison.larger": "{wdth: 6}"}, "nafnet takes no 'wdth'"),
        ({"independent.stages": "[{steps: 3, patch: 512, batch: 3}]"}, "no photograph is at least 512"),
    ],
)
def test_what_the_adapter_refuses_is_refused_before_anything_is_trained(
    made, run, tmp_path, changes, message
):
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    code, _, err = run("adapt", made[1], "-o", tmp_path / "runs", *settings)
    assert code == 2 and message in err and not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("unit", ["out", "weight"])
def test_filters_of_other_units_are_found_and_trained(made, run, tmp_path, unit):
    document = yaml.safe_load(made[1].read_text())
    document["adapter"]["params"]["unit"] = unit
    document["comparison"]["rows"] = ["oracle", "random"]
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump(document))
    code, out, err = run("adapt", file, "-o", tmp_path / "runs")
    assert code == 0, out + err
    scores = FilterScores.load(tmp_path / "runs" / "scores" / "noise-faig.safetensors")
    assert scores.table.unit == unit


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "nafnet", "params": {**SMALL, "channels": 1}},
        {"name": "srresnet", "params": {"width": 4, "blocks": 1, "scale": 2}},
    ],
    ids=["gray", "enlarging"],
)
def test_gray_and_enlarging_backbones_become_adaptive(made, run, tmp_path, backbone):
    document = yaml.safe_load(made[1].read_text()) | {"backbone": backbone, "clean": 0}
    del document["comparison"]
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump(document))
    code, out, err = run("adapt", file, "-o", tmp_path / "runs")
    assert code == 0 and (tmp_path / "runs" / "classifier" / "weights.safetensors").exists(), out + err


def test_the_model_judges_images_in_a_pipeline(made, done):
    step = {"name": "nafnet", "params": SMALL, "weights": done["backbone"]}
    step["adapter"] = {"name": "adms", "weights": done["adapter"]}
    chain = Pipeline.build(PipelineSpec.load({"steps": [{"restore": step}]}), "cpu")
    verdict = chain(Image.of(made[0].parent / "photographs" / "0.png")).verdict
    assert set(verdict.shares) == {"noise", "blur", "clean"}


def test_a_document_without_the_mark_is_refused_before_the_work(made, run, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    code, _, err = run("adapt", made[1], "-o", tmp_path / "runs", "--write", page)
    assert code == 2 and "no place for small" in err and not (tmp_path / "runs").exists()


def test_a_polished_row_needs_the_stage(made, run):
    folder, file, _ = made
    code, _, err = run("adapt", file, "-o", folder, "--set", "polish=null")
    assert code == 2 and "row polished needs the stage polish" in err and "polish: {}" in err
