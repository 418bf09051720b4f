"""The experiments with refiners that are in the repository: sound, and with a place for their tables."""

from dataclasses import replace
from pathlib import Path

import pytest
from training_cases import write_photographs

from restorekit.config import check, read_yaml, with_settings
from restorekit.experiments.jobs import Training
from restorekit.experiments.refined import RefinedExperiment
from restorekit.experiments.refinedspec import RefinedSpec

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs" / "refine").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_our_own_experiments_are_sound(file, tmp_path):
    (tmp_path / "photographs").mkdir()
    write_photographs(tmp_path / "photographs", 2)
    spec = check(RefinedSpec, read_yaml(file), file.name)
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
