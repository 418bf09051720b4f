"""Refiners under several priors from one file, made small: trainings, controls, tables, once."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from training_cases import install, write_pairs, write_photographs
from typer.testing import CliRunner

from restorekit.cli import app
from restorekit.config import check, with_settings
from restorekit.errors import ConfigError, RestoreKitError, TrainingError
from restorekit.experiments.jobs import run_all
from restorekit.experiments.measurement import Measurement
from restorekit.experiments.refined import RefinedExperiment
from restorekit.experiments.refinedspec import RefinedSpec
from restorekit.experiments.trainings import Later, Training
from restorekit.registry import backbones
from restorekit.training.folder import read_run
from restorekit.weights import read_tensors

CONFIGS = Path(__file__).parents[1] / "configs" / "refine"
SMALL = {"width": 4, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]}
TITLES = ["degraded", "backbone alone", "backbone, trained longer", "with eyes", "blind", "shuffled"]


def silent(job):
    return lambda done, total: None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with photographs, and weights of a network that is the prior."""
    place = tmp_path_factory.mktemp("refined")
    (place / "photographs").mkdir()
    write_photographs(place / "photographs", 2)
    write_pairs(place / "pairs", 2)
    torch.manual_seed(0)
    network = backbones["nafnet"].load()(**SMALL)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    torch.save(network.state_dict(), place / "prior.pth")
    return place


@pytest.fixture(scope="module")
def prior(place):
    params = {"backbone": "nafnet", "weights": str(place / "prior.pth"), "params": SMALL}
    return {"name": "backbone", "params": params}


@pytest.fixture(scope="module")
def document(place, prior):
    return {
        "backbone": {"name": "nafnet", "params": SMALL},
        "data": {"folder": str(place / "photographs"), "hold_out": 1, "cache": str(place / "cache")},
        "refiner": {"name": "ptgrm", "params": {"width": 4, "long_blocks": 1, "prior_hidden": 8}},
        "common": {"validate_every": 1000, "pictures": 0, "half": False, "loss": "l1", "ema": 0},
        "base": {"stages": [{"steps": 4, "patch": 16, "batch": 2}]},
        "refined": {
            "stages": [{"steps": 2, "patch": 16, "batch": 2}],
            "optimizer": {"lr": 1e-3, "min_lr": 1e-4, "warmup": 0, "factors": {"backbone": 0.1}},
        },
        "rows": {
            "eyes": {"title": "with eyes", "prior": prior, "seeds": [0, 1], "apart": True},
            "blind": {"prior": prior, "refiner": {"prior_scale": 0}, "mean": False},
            "shuffled": {"prior": {**prior, "params": {**prior["params"], "shuffled": 3}}},
        },
        "silent": "blind",
        "longer": {"like": "eyes", "seeds": [0, 1]},
        "tasks": {
            "noise": {
                "degradation": {"name": "gaussian", "sigma": [10, 50]},
                "data": str(place / "photographs"),
                "columns": {
                    "sigma 10": {"name": "gaussian", "sigma": 10},
                    "sigma 50": {"name": "gaussian", "sigma": 50},
                },
                "limit": 1,
            },
            "dark": {
                "data": str(place / "pairs"),
                "common": {"data": {"pairs": str(place / "pairs"), "hold_out": 1}, "loss": "psnr"},
            },
        },
    }


@pytest.fixture(scope="module")
def made(place, document):
    """Run the command once; return the folder of its runs, its config and its page."""
    file = place / "small.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    page = place / "page.md"
    marks = [f"<!-- small-{task}: {end} -->" for task in document["tasks"] for end in ("begin", "end")]
    page.write_text("\n".join(["# Tables", *marks, ""]))
    return place / "runs", file, page


@pytest.fixture(scope="module")
def done(made):
    """The first, whole run."""
    folder, file, page = made
    words = ["refine", file, "-o", folder, "--write", page, "--json", "--device", "cpu"]
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads(result.stdout)["tasks"]


def experiment(document, folder, **changes):
    choice = {key: changes.pop(key) for key in ("task", "seed") if key in changes}
    return RefinedExperiment(check(RefinedSpec, {**document, **changes}, "x.yaml"), folder, "cpu", **choice)


def test_every_row_is_measured_on_every_column_of_every_task(made, done):
    text = made[2].read_text()
    for task, columns in {"noise": ["sigma 10", "sigma 50"], "dark": ["pairs"]}.items():
        rows = done[task]["rows"]
        assert {row: len(seeds) for row, seeds in rows.items()} == {
            "base": 1,
            "longer": 2,
            "eyes": 2,
            "blind": 1,
            "shuffled": 1,
        }
        reports = [reports for seeds in rows.values() for reports in seeds.values()]
        assert all(list(each) == columns and each[columns[0]]["psnr"] > 5 for each in reports)
        table = text.partition(f"small-{task}: begin")[2].partition("PSNR in dB")[0]
        lines = [line.split(" | ") for line in table.splitlines() if line.startswith("|")]
        assert [line[0].strip("| ") for line in lines[2:]] == TITLES
    assert "seed 0, trained once for all rows" in text and "2 steps of backbone and refiner" in text


def test_what_a_prior_says_is_measured_against_its_mean_and_against_silence(document, done, made):
    facts = done["noise"]
    assert {row: [*seeds] for row, seeds in facts["means"].items()} == {"eyes": ["0", "1"], "shuffled": ["0"]}
    jobs = [job for job in experiment(document, made[0]).jobs() if isinstance(job, Measurement)]
    measured = [job for job in jobs if job.file.name == "eyes-1-pairs.json"]
    pipelines = [job.pipeline() for job in measured]
    assert [pipeline.steps[1].refine.prior.name for pipeline in pipelines[:2]] == ["backbone", "none"]
    table = made[2].read_text().partition("small-noise: begin")[2]
    heading = (
        "| over silent | over its own backbone | prior's mean instead | parameters added | compute | seeds |"
    )
    assert heading in table
    line = next(line for line in table.splitlines() if line.startswith("| with eyes"))
    cells = line.split(" | ")
    # Of silence there is one seed, of the mean there are two.
    assert re.fullmatch(r"[+-]\d\.\d{3}", cells[-6])
    assert re.fullmatch(r"[+-]\d\.\d{3} ± \d\.\d{3}", cells[-4])


def test_what_a_refiner_brings_is_measured_against_its_own_backbone(document, done, made):
    facts = done["noise"]
    assert {row: [*seeds] for row, seeds in facts["apart"].items()} == {"eyes": ["0", "1"]}
    job = next(
        job for job in experiment(document, made[0]).jobs() if "alone, seed 1, on sigma 50" in job.name
    )
    (step,) = job.pipeline().steps
    assert step.restore.weights == str(made[0] / "noise" / "eyes-1" / "weights-backbone.safetensors")
    gains = []
    for seed in ("0", "1"):
        whole, alone = (facts[kind]["eyes"][seed] for kind in ("rows", "apart"))
        gains.append(sum(whole[column]["psnr"] - alone[column]["psnr"] for column in whole) / 2)
    line = next(line for line in made[2].read_text().splitlines() if line.startswith("| with eyes"))
    assert line.split(" | ")[-5].startswith(f"{sum(gains) / 2:+.3f} ± ")


def test_parameters_are_those_of_the_refiner_alone(done, made):
    rows = done["noise"]["rows"]
    refiner = read_tensors(made[0] / "noise" / "eyes-0" / "weights.safetensors")
    added = sum(value.numel() for value in refiner.values())
    report = rows["eyes"]["0"]["sigma 10"]
    assert report["refiner_parameters"] == added > 1000
    assert report["parameters"] - added == rows["base"]["0"]["sigma 10"]["parameters"]
    assert f" {added:,} | {done['noise']['compute']['eyes']['ratio']:.2f} x | 2 |" in made[2].read_text()


def test_rows_go_on_from_the_base_with_their_own_seed_and_measure_the_backbone_they_trained(made, done):
    base, first, second = (read_run(made[0] / "noise" / name) for name in ("base", "eyes-0", "eyes-1"))
    assert (base.spec.seed, first.spec.seed, second.spec.seed) == (0, 0, 1)
    assert first.spec.backbone.weights == str(base.weights)
    weights = done["noise"]["rows"]["eyes"]["1"]["sigma 10"]["weights_sha256"]
    assert {*weights} >= {str(second.weights), str(second.others["backbone"])}
    assert str(base.weights) not in weights
    assert read_run(made[0] / "dark" / "base").spec.loss == {"psnr": 1}


def test_longer_takes_the_compute_of_its_row_at_the_rate_of_its_backbone(made, done):
    assert [*done["noise"]["compute"]] == ["eyes", "blind", "shuffled"]
    counted = done["noise"]["compute"]["eyes"]
    refined, alone = counted["operations"][0]["refined"], counted["operations"][0]["alone"]
    assert counted["ratio"] == refined / alone and counted["steps"] == [round(2 * refined / alone)]
    longer = read_run(made[0] / "noise" / "longer-1").spec
    assert longer.steps == counted["steps"][0] > 2 and longer.stages[0].patch == 16
    assert (longer.optimizer.lr, longer.optimizer.min_lr) == (pytest.approx(1e-4), pytest.approx(1e-5))
    assert longer.refiner is None and longer.trained_parts == ("backbone",) and longer.seed == 1
    assert f"Trained longer: {longer.steps} steps" in made[2].read_text()


def test_a_second_run_makes_nothing_again(made, done, run):
    folder, file, _ = made
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    code, out, _ = run("refine", file, "-o", folder, "--task", "dark")
    assert code == 0 and "with eyes" in out and out.startswith("dark\n") and "noise" not in out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_a_killed_experiment_goes_on(document, made, done, tmp_path):
    started = []

    def stop(job):
        started.append(job.name)

        def report(finished, total):
            if "with eyes" in job.name:
                raise KeyboardInterrupt

        return report

    jobs = experiment(document, tmp_path, task="noise", seed=0).jobs()[:6]
    with pytest.raises(KeyboardInterrupt):
        run_all(jobs, stop)
    assert started[-1] == "noise: with eyes, seed 0"
    killed, started = started[:-1], []
    run_all(jobs, lambda job: started.append(job.name) or (lambda finished, total: None))
    assert started == ["noise: with eyes, seed 0"] and len(killed) == 5
    ours, theirs = (
        read_tensors(folder / "noise" / "eyes-0" / "weights.safetensors") for folder in (tmp_path, made[0])
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_task_and_a_seed_are_a_part_of_the_work(document, tmp_path):
    part = experiment(document, tmp_path, task="noise", seed=1)
    trained = [job.result.parent.name for job in part.jobs() if isinstance(job, (Training, Later))]
    assert trained == ["base", "longer-1", "eyes-1"]
    run_all(part.jobs(), silent)
    table = part.made().tables["noise"]
    assert [*part.made().tables] == ["noise"] and {path.name for path in tmp_path.iterdir()} == {"noise"}
    seeds = {line.split(" | ")[0].strip("| "): line.rsplit(" | ", 1)[1] for line in table.splitlines()[2:8]}
    assert [*seeds] == TITLES
    assert seeds["with eyes"] == seeds["backbone, trained longer"] == "1 |" and seeds["blind"] == "0 |"
    rest = experiment(document, tmp_path, task="noise")
    before = (tmp_path / "noise" / "eyes-1" / "weights.safetensors").stat().st_mtime_ns
    run_all([job for job in rest.jobs() if "backbone" in job.name or "eyes" in job.name], silent)
    assert (tmp_path / "noise" / "eyes-1" / "weights.safetensors").stat().st_mtime_ns == before
    assert "| 2 |" in rest.made().tables["noise"]


def test_a_row_of_one_task_is_made_for_it_alone(document, made, done, tmp_path):
    rows = {**document["rows"], "shuffled": {**document["rows"]["shuffled"], "tasks": ["noise"]}}
    jobs = [job.name for job in experiment(document, tmp_path, rows=rows).jobs() if "shuffled" in job.name]
    assert jobs and all(job.startswith("noise: ") for job in jobs)
    # Read from the run that made it for both.
    tables = experiment(document, made[0], rows=rows).made().tables
    assert "shuffled" in tables["noise"] and "shuffled" not in tables["dark"]


def test_a_task_without_the_row_that_says_nothing_compares_with_none(document, made, done):
    rows = {**document["rows"], "blind": {**document["rows"]["blind"], "tasks": ["noise"]}}
    tables = experiment(document, made[0], rows=rows).made().tables
    for said in ("over silent", "Over silent: the difference to the run of the same seed"):
        assert said in tables["noise"] and said not in tables["dark"]
    rows["eyes"] = {**rows["eyes"], "silent": "blind"}
    with pytest.raises(ConfigError, match="'dark' are compared with 'blind', which is not made for it"):
        experiment(document, made[0], rows=rows)


def test_a_row_names_the_one_that_says_nothing(document, made, done):
    rows = {**document["rows"], "eyes": {**document["rows"]["eyes"], "silent": "blind"}}
    named, alike = (
        experiment(document, made[0], rows=rows, silent=silent).made().tables for silent in (None, "blind")
    )
    assert "Over silent: the difference to the run of the same seed" in named["noise"]
    line = next(line for line in named["noise"].splitlines() if "with eyes" in line)
    assert line in alike["noise"]


def test_rows_begin_from_nothing_where_that_is_asked_for(document, tmp_path):
    kept, fresh = (
        {job.name: job for job in experiment(document, tmp_path, task="noise", fresh=wanted).jobs()}
        for wanted in (False, True)
    )
    name = "noise: with eyes, seed 0"
    assert kept[name].spec.backbone.weights.endswith("base/weights.safetensors")
    assert fresh[name].spec.backbone.weights is None
    assert fresh[name].spec.trained_parts == ("refiner", "backbone")
    longer = fresh["noise: backbone, trained longer, seed 1"]
    assert isinstance(longer, Later)
    with pytest.raises(ConfigError, match="nothing says how the backbone is trained"):
        experiment(document, tmp_path, fresh=True, base=None)
    with pytest.raises(ConfigError, match="knows nothing"):
        experiment(document, tmp_path, fresh=True, refined={**document["refined"], "trained": ["refiner"]})


def test_rows_that_began_from_nothing_are_made_and_say_so(document, tmp_path):
    one = {"eyes": {**document["rows"]["eyes"], "seeds": [0]}}
    changes = {"rows": one, "silent": None, "longer": {"like": "eyes"}, "task": "noise"}
    made = experiment(document, tmp_path, fresh=True, **changes)
    run_all(made.jobs(), silent)
    table = made.made().tables["noise"]
    assert "Rows, from nothing: 2 steps of backbone and refiner" in table and "From it on" not in table
    assert read_run(tmp_path / "noise" / "longer-0").spec.backbone.weights is None


def test_rows_go_on_from_weights_that_the_backbone_has(place, document, tmp_path):
    weights = str(place / "prior.pth")
    given = {**document, "backbone": {**document["backbone"], "weights": weights}}
    rows = {"eyes": document["rows"]["blind"]}
    changes = [f"rows={json.dumps(rows)}", "silent=null", "longer={like: eyes}", "refined.trained=[refiner]"]
    del given["base"]
    kept = experiment(with_settings(given, changes), tmp_path, task="noise")
    run_all(kept.jobs(), silent)
    assert not (tmp_path / "noise" / "base").exists()
    assert read_run(tmp_path / "noise" / "longer-0").spec.backbone.weights == weights
    measured = kept.made().facts["tasks"]["noise"]["rows"]
    first = {row: next(iter(reports[0]["sigma 10"]["weights_sha256"])) for row, reports in measured.items()}
    assert first == {
        "base": weights,
        "longer": str(tmp_path / "noise" / "longer-0" / "weights.safetensors"),
        "eyes": weights,
    }
    assert f"The backbone: nafnet, weights `{weights}`. From these on: 2 steps" in kept.made().tables["noise"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rows.eyes", {"title": "with eyes"}, r"rows\.eyes: a row needs a prior"),
        ("rows.base", "same", "cannot be called base"),
        ("rows.a/b", "same", "'a/b' is no name for a file"),
        ("silent", "blin", "silent is 'blin', which is no row; rows: eyes, blind, shuffled"),
        ("rows.eyes.silent", "blnd", "rows.eyes.silent is 'blnd', which is no row; rows: eyes, blind"),
        ("longer.like", "eye", "longer.like is 'eye', which is no row; rows: eyes, blind, shuffled"),
        ("tasks", {}, "tasks: .*at least 1"),
        ("rows.shuffled.tasks", ["drak"], "'drak', which is no task; tasks: noise, dark"),
        ("rows.eyes.tasks", ["dark"], "'noise' are compared with 'eyes', which is not made for it"),
        ("base", None, "nothing that rows could go on from"),
        ("refinde", {}, "unknown key 'refinde'"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(document, path, value, message):
    changed = json.loads(json.dumps(document))
    *outer, key = path.split(".")
    inner = changed
    for name in outer:
        inner = inner[name]
    inner[key] = changed["rows"]["eyes"] if value == "same" else value
    with pytest.raises(ConfigError, match=message):
        check(RefinedSpec, changed, "x.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["tasks.dark.data=nowhere"], r"tasks\.dark\.data: nowhere is no folder"),
        (["tasks.noise.columns={}", "tasks.noise.degradation=null"], "nothing says what they suffer"),
        (["rows.blind.prior=unheard"], "unheard"),
        (
            ["rows.blind.prior.params.weights=gone.safetensors"],
            r"noise: .*blind, seed 0: .*no file gone\.safetensors",
        ),
        (["rows.blind.refiner={prior_scal: 0}"], "ptgrm takes no 'prior_scal'"),
        (["backbone=double"], "the backbone enlarges 2 times"),
        (["refined.stages=[{steps: 1, patch: 33, batch: 1}]"], "33 is no multiple of"),
        (["refined.stage=[]"], "refined of noise: unknown key 'stage'"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_trained(
    document, settings, message, tmp_path, tmp_path_factory, monkeypatch
):
    monkeypatch.syspath_prepend(str(install(tmp_path_factory.mktemp("site"))))
    spec = check(RefinedSpec, with_settings(document, settings), "x.yaml")
    with pytest.raises(RestoreKitError, match=message):
        run_all(RefinedExperiment(spec, tmp_path, "cpu").jobs(), silent)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--task", "nois", "no task is called 'nois'; tasks: noise, dark"),
        ("--seed", "7", "no row has the seed 7; seeds: 0, 1"),
        ("--write", "page.md", "no place for small-noise"),
    ],
)
def test_options_are_looked_at_before_the_work(made, run, tmp_path, monkeypatch, option, value, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text("nothing")
    code, _, err = run("refine", made[1], "-o", tmp_path / "runs", option, value)
    assert code == 2 and message in err and not (tmp_path / "runs").exists()


def test_results_of_another_config_are_refused(document, made, done):
    other = with_settings(document, ["refined.stages=[{steps: 3, patch: 16, batch: 2}]"])
    jobs = experiment(other, made[0]).jobs()
    with pytest.raises(TrainingError, match=r"eyes.json was counted for another config"):
        run_all(jobs, silent)
    other = with_settings(document, ["tasks.noise.limit=2"])
    with pytest.raises(TrainingError, match="was measured with limit 1, the experiment says 2"):
        run_all(experiment(other, made[0]).jobs(), silent)


def test_a_frozen_backbone_is_that_of_the_base(document, tmp_path):
    rows = {"eyes": document["rows"]["blind"]}
    changes = ["refined.trained=[refiner]", f"rows={json.dumps(rows)}", "silent=null"]
    frozen = experiment(with_settings(document, changes), tmp_path, task="noise", seed=0)
    run_all(frozen.jobs(), silent)
    reports = frozen.made().facts["tasks"]["noise"]["rows"]["eyes"][0]
    assert str(tmp_path / "noise" / "base" / "weights.safetensors") in reports["sigma 10"]["weights_sha256"]
    assert "2 steps of the refiner alone" in frozen.made().tables["noise"]
