"""Jobs that are made once, tables of their reports, and the config of an adaptive model."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from training_cases import install, spec_for, write_photographs

from restorekit.config import PipelineSpec, check
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ConfigError, ImageError, TrainingError, UnknownComponentError
from restorekit.experiments.jobs import run_all
from restorekit.experiments.measurement import Measurement
from restorekit.experiments.spec import AdaptiveSpec
from restorekit.experiments.table import Line, markdown, read_reports
from restorekit.experiments.trainings import Training
from restorekit.weights import read_tensors


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(autouse=True)
def components(tmp_path_factory, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path_factory.mktemp("site"))))
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def silent(job):
    return lambda done, total: None


def noise(sigma):
    return check(RecipeSpec, {"name": "gaussian", "sigma": sigma}, "noise")


def test_jobs_run_in_order_and_only_once(photographs, tmp_path):
    started = []

    def begin(job):
        started.append(job.name)
        return lambda done, total: None

    training = Training("first", spec_for(photographs), tmp_path / "first", "cpu")
    pipeline = {"steps": [{"restore": {"name": "learner", "weights": str(training.result)}}]}
    measurement = Measurement(
        "figures",
        lambda: PipelineSpec.parse(pipeline),
        photographs,
        "paired-rgb",
        tmp_path / "reports" / "figures.json",
        noise(10),
        device="cpu",
    )
    run_all([training, measurement], begin)
    before = measurement.result.stat().st_mtime_ns
    run_all([training, measurement], begin)
    assert started == ["first", "figures"] and measurement.result.stat().st_mtime_ns == before
    report = json.loads(measurement.result.read_text())
    assert report["parameters"] == 84 and report["images"] == 4
    assert report["degraded"]["psnr"] == pytest.approx(28.1, abs=0.2)
    assert list(report["weights_sha256"]) == [str(training.result)]
    others = tmp_path / "others"
    others.mkdir()
    shutil.copy(next(photographs.glob("*.png")), others / "other.png")
    with pytest.raises(TrainingError, match="was measured on other images"):
        run_all([training, replace(measurement, data=others)], begin)


def test_a_killed_training_goes_on(photographs, tmp_path):
    whole = Training("whole", spec_for(photographs), tmp_path / "whole", "cpu")
    run_all([whole], silent)
    cut = Training("cut", spec_for(photographs), tmp_path / "cut", "cpu")

    def stop(job):
        def report(done, total):
            if done == 7:
                raise KeyboardInterrupt

        return report

    with pytest.raises(KeyboardInterrupt):
        run_all([cut], stop)
    assert not cut.result.exists()
    seen = []
    run_all([cut], lambda job: lambda done, total: seen.append((done, total)))
    ours, theirs = read_tensors(cut.result), read_tensors(whole.result)
    assert seen[0] == (8, 10) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_everything_is_checked_before_anything_runs(photographs, tmp_path):
    good = Training("good", spec_for(photographs), tmp_path / "good", "cpu")
    unknown = Training("bad", spec_for(photographs, backbone="learnerr"), tmp_path / "bad", "cpu")
    with pytest.raises(UnknownComponentError, match="learnerr"):
        run_all([good, unknown], silent)
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = Measurement("none", PipelineSpec, empty, "paired-rgb", tmp_path / "x.json", noise(1))
    double = Measurement(
        "two", PipelineSpec, photographs, "clean-identity-rgb", tmp_path / "x.json", noise(1)
    )
    for job in (nothing, double):
        with pytest.raises((ConfigError, ImageError), match=r"images|degrades by itself"):
            run_all([good, job], silent)
    assert not good.result.exists()


def test_a_folder_with_another_config_is_refused(photographs, tmp_path):
    run_all([Training("one", spec_for(photographs), tmp_path, "cpu")], silent)
    other = Training("one", spec_for(photographs, seed=5), tmp_path, "cpu")
    with pytest.raises(TrainingError, match="was trained with seed 0, the experiment says 5"):
        run_all([other], silent)


def test_a_table_holds_averages_and_the_share_of_the_gap(tmp_path):
    def line(name, rain, snow, parameters=None):
        return Line(name, {"rain": {"psnr": rain}, "snow": {"psnr": snow}}, parameters)

    lines = [line("unified", 30.0, 28.0, 1000), line("independent", 32.0, 30.0), line("ours", 31.5, 29.0)]
    assert markdown(lines, ["rain", "snow"], share="unified:independent").splitlines() == [
        "|  | rain | snow | average | parameters | of the gap |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| unified | 30.00 | 28.00 | 29.00 | 1,000 | 0% |",
        "| independent | 32.00 | 30.00 | 31.00 |  | 100% |",
        "| ours | 31.50 | 29.00 | 30.25 |  | 62% |",
    ]


def test_what_was_not_measured_stays_empty(tmp_path):
    (tmp_path / "rain.json").write_text('{"psnr": 20.0}')
    reports = read_reports({"rain": tmp_path / "rain.json", "snow": tmp_path / "snow.json"})
    table = markdown([Line("one", reports)], ["rain", "snow"], ["clean"])
    assert table.splitlines()[2] == "| one | 20.00 |  |  |  |  |"


def adaptive(photographs, **changes):
    config = {
        "backbone": "learner",
        "data": {"folder": str(photographs)},
        "degradations": {"noise": "gaussian", "rain": {"name": "rain", "strength": "mild"}},
        "common": {"validate_every": 7, "stages": [{"steps": 5, "patch": 16, "batch": 2}]},
        "unified": {"stages": [{"steps": 9, "patch": 16, "batch": 2}]},
        "specialists": {},
        "deltas": {},
        "classifier": {},
    }
    return check(AdaptiveSpec, {**config, **changes}, "x.yaml")


def test_the_keys_of_a_stage_stand_over_the_common_ones(photographs):
    spec = adaptive(photographs, seed=3)
    unified = spec.run("unified", backbone={"name": "learner"})
    assert (unified.steps, unified.validate_every, unified.seed) == (9, 7, 3)
    assert spec.run("specialists", backbone="learner", seed=4).seed == 4


def test_a_wrong_key_of_a_stage_is_named_with_its_stage(photographs):
    spec = adaptive(photographs, deltas={"stagse": []})
    with pytest.raises(ConfigError, match="deltas: unknown key 'stagse'"):
        spec.run("deltas", backbone="learner")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"degradations": {"noise": "gaussian"}}, "at least 2"),
        ({"degradations": {"noise": "gaussian", "clean": "clean"}}, "a class of their own"),
        ({"comparison": {"data": "x", "degradations": {"snow": "snow"}}}, "'snow', which is not trained"),
        ({"comparison": {"data": "x", "rows": ["larger"]}}, "row larger needs params"),
    ],
)
def test_an_adaptive_model_that_makes_no_sense_is_refused(photographs, changes, message):
    with pytest.raises(ConfigError, match=message):
        adaptive(photographs, **changes)
