"""The experiments that are in the repository are sound; tables of those with refiners have a place."""

from dataclasses import replace
from pathlib import Path

import pytest
from training_cases import need_photographs, write_photographs

from restorekit.config import check, read_yaml, with_settings
from restorekit.experiments.adaptive import Experiment
from restorekit.experiments.measurement import Measurement
from restorekit.experiments.refined import RefinedExperiment
from restorekit.experiments.refinedspec import RefinedSpec
from restorekit.experiments.spec import AdaptiveSpec
from restorekit.experiments.trainings import Training

ROOT = Path(__file__).parents[1]


def shipped(folder):
    files = sorted((ROOT / "configs" / folder).glob("*.yaml"))
    return pytest.mark.parametrize("file", files, ids=[file.stem for file in files])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path / "cache"))


@shipped("adapt")
def test_adaptive_models_are_sound(file, tmp_path):
    spec = check(AdaptiveSpec, read_yaml(file), file.name)
    need_photographs(*spec.data.folder, spec.comparison.data)
    jobs = Experiment(spec, tmp_path / "runs").jobs()
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for job in jobs:
        if not isinstance(job, Measurement):
            job.check()


@shipped("refine")
def test_refined_models_are_sound(file, tmp_path):
    (tmp_path / "photographs").mkdir()
    write_photographs(tmp_path / "photographs", 2)
    spec = check(RefinedSpec, read_yaml(file), file.name)
    need_photographs(*spec.data.folder)
    settings = [f"tasks.{task}.data={tmp_path / 'photographs'}" for task in spec.tasks]
    spec = check(RefinedSpec, with_settings(read_yaml(file), settings), file.name)
    jobs = RefinedExperiment(spec, tmp_path / "runs").jobs()
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names) > len(spec.tasks)
    for title, row in spec.rows.items():
        # Patches and whole images are shown to it alike, but in the row that asks what else would do.
        alike = row.prior.name == "backbone" or row.prior.params["mode"] == "dynamic"
        assert alike != (title == "squashed")
    for task in spec.tasks.values():
        # Test images are clipped and rounded, so those of the training are.
        assert task.degradation.model_dump()["chain"][-1]["name"] == "quantisation"
    for job in jobs:
        if isinstance(job, Training):
            replace(job, trial=None).check()
    page = (ROOT / "docs" / "ptgrm.md").read_text()
    assert all(f"<!-- {file.stem}-{task}: begin -->" in page for task in spec.tasks)
