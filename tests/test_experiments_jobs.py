"""Jobs of one experiment that several processes make together."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import pytest
from filelock import FileLock

from restorekit.errors import TrainingError
from restorekit.experiments import jobs as experiment_jobs
from restorekit.experiments.jobs import Job, run_all


@dataclass(frozen=True)
class Copy(Job):
    """Writes what it is told of into a file."""

    name: str
    folder: Path
    told: object = ()
    seconds: float = 0.0
    made: list[str] = field(default_factory=list)

    @property
    def result(self):
        return self.folder / f"{self.name}.txt"

    def check(self):
        pass

    def run(self, report):
        time.sleep(self.seconds)
        assert all(file.is_file() for file in map(Path, self.told)), "begun before what it needs was made"
        self.made.append(self.name)
        self.result.write_text(self.name)


def silent(job):
    return lambda done, total: None


def lock_of(job):
    return FileLock(job.result.with_name(f".{job.result.name}.lock"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(experiment_jobs, "_PATIENCE", 0.01)


def chain(folder, made):
    """Return a base, a job that needs it, one that needs this, and one that needs nothing."""
    base = Copy("base", folder, made=made)
    row = Copy("row", folder, [str(base.result)], made=made)
    report = Copy("report", folder, [str(row.result)], made=made)
    return base, row, report, Copy("other", folder, made=made)


def test_what_another_process_makes_is_left_to_it_and_what_needs_it_for_later(tmp_path, caplog):
    made = []
    base, row, report, other = chain(tmp_path, made)
    with lock_of(base):
        thread = Thread(target=run_all, args=([base, row, report, other], silent))
        thread.start()
        while "waited for: base" not in caplog.text:
            assert thread.is_alive()
        assert made == ["other"]
        base.result.write_text("made by another process")
    thread.join()
    assert made == ["other", "row", "report"]
    assert base.result.read_text() == "made by another process"


def test_what_another_process_gave_up_is_made(tmp_path, caplog):
    made = []
    base, row, *_ = chain(tmp_path, made)
    with lock_of(base):
        thread = Thread(target=run_all, args=([base, row], silent))
        thread.start()
        while "waited for: base" not in caplog.text:
            assert thread.is_alive()
        assert made == []
    thread.join()
    assert made == ["base", "row"]


def test_a_folder_that_is_named_by_a_file_in_it_is_waited_for(tmp_path):
    made = []

    @dataclass(frozen=True)
    class Run(Copy):
        @property
        def result(self):
            return self.folder / self.name / "weights.txt"

        @property
        def place(self):
            return self.folder / self.name

    base = Run("base", tmp_path, made=made)
    base.place.mkdir()
    best = Copy("best", tmp_path, [str(base.place / "best.txt")], made=made)
    (base.place / "best.txt").write_text("so far")
    with lock_of(base):
        thread = Thread(target=run_all, args=([base, best, Copy("other", tmp_path, made=made)], silent))
        thread.start()
        while "other" not in made:
            assert thread.is_alive()
        assert "best" not in made
    thread.join()
    assert made == ["other", "base", "best"]


def test_a_result_of_something_else_is_refused_when_its_turn_comes(tmp_path):
    base, row, *_ = chain(tmp_path, [])
    run_all([base, row], silent)
    base.result.write_text("made again")
    with pytest.raises(TrainingError, match=r"row\.txt was made with"):
        run_all([base, row], silent)


PROCESS = """
import json, os, sys, time
from pathlib import Path
from restorekit.experiments.jobs import run_all
from test_experiments_jobs import Copy, silent
made, folder = [], Path(sys.argv[1])
base = Copy("base", folder, seconds=0.3, made=made)
rows = [Copy(f"row-{index}", folder, [str(base.result)], seconds=0.3, made=made) for index in range(6)]
(folder / f"{os.getpid()}.ready").touch()
while len(list(folder.glob("*.ready"))) < 2:
    time.sleep(0.01)
run_all([base, *rows], silent)
print(json.dumps(made))
"""


def test_two_processes_make_every_job_once_and_share_them(tmp_path):
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    here = Path(__file__).parent
    runs = [subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = [json.loads(run.communicate(timeout=60)[0]) for run in runs]
    assert sorted(made[0] + made[1]) == ["base", *(f"row-{index}" for index in range(6))]
    assert all(made)
