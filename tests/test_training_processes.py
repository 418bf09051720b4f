"""Training in processes of its own: killed for good, and several together."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_cases import document, install, write_photographs

from restorekit.config import check, read_yaml
from restorekit.training.loop import prepare
from restorekit.training.spec import TrainSpec

# A run that kills itself, as a machine would be killed: no handler runs, nothing is flushed.
KILLED = """
import os, signal, sys
from pathlib import Path
from restorekit.config import check, read_yaml
from restorekit.training import checkpoint
from restorekit.training.loop import prepare
from restorekit.training.spec import TrainSpec

config, folder = Path(sys.argv[1]), Path(sys.argv[2])
step, half_way = int(sys.argv[3]), sys.argv[4] == "saving"
real = checkpoint.save_file

def save_file(tensors, path, facts):
    real(tensors, path, facts)
    if half_way and ".last." in path.name and run.progress.step == step:
        path.write_bytes(path.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)

def report(done, row):
    if not half_way and done == step:
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save_file = save_file
run = prepare(check(TrainSpec, read_yaml(config), "config"), folder, "cpu", resume=folder.exists())
run.train(report)
"""

TOGETHER = """
import json, sys
from pathlib import Path
from restorekit.config import check, read_yaml
from restorekit.training.loop import prepare
from restorekit.training.spec import TrainSpec

config, folder = map(Path, sys.argv[1:])
run = prepare(check(TrainSpec, read_yaml(config), "config"), folder, "cpu")
losses = []
run.train(lambda step, row: losses.append(row["loss"]))
(folder / f"losses-{run.processes.rank}.json").write_text(json.dumps(losses))
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Return a folder with a config, and have every process find the components of training_cases."""
    for name in ("site", "photographs"):
        (tmp_path / name).mkdir()
    path = os.pathsep.join((str(install(tmp_path / "site")), str(Path(__file__).parent)))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_photographs(tmp_path / "photographs")
    return tmp_path


def configure(workplace, **changes):
    config = workplace / "run.yaml"
    config.write_text(yaml.safe_dump(document(workplace / "photographs", **changes)))
    return config


def python(*words):
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_run_that_is_killed_twice_ends_with_the_same_weights(workplace):
    backbone = {"name": "learner", "params": {"dropout": 0.3}}
    config = configure(workplace, backbone=backbone, save_every=2, validate_every=5)
    parts = workplace / "parts"
    # Once between two checkpoints, once in the middle of writing one.
    for step, moment in ((5, "stepping"), (8, "saving")):
        done = python("-c", KILLED, config, parts, step, moment)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(path.name.startswith(".last.") for path in parts.iterdir())
    spec = check(TrainSpec, read_yaml(config), "config")
    resumed = prepare(spec, parts, "cpu", resume=True)
    assert resumed.progress.step == 6
    resumed.train()
    whole = prepare(spec, workplace / "whole", "cpu")
    whole.train()
    for name, value in whole.learner.trainee.state().items():
        assert torch.equal(value, resumed.learner.trainee.state()[name])
    for name in ("weights", "best"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (workplace / "whole", parts))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not [path for path in parts.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_two_processes_train_as_one_does_on_the_whole_batch(workplace):
    pytest.importorskip("accelerate")
    stages = [{"steps": 10, "patch": 16, "batch": 8}]
    config = configure(workplace, stages=stages, validate_every=10, accumulate=2)
    script = workplace / "together.py"
    script.write_text(TOGETHER)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    done = python(*torchrun, script, config, workplace / "two")
    assert done.returncode == 0, done.stderr
    run = prepare(check(TrainSpec, read_yaml(config), "config"), workplace / "one", "cpu")
    losses = []
    run.train(lambda step, row: losses.append(row["loss"]))
    for rank in (0, 1):
        found = json.loads((workplace / "two" / f"losses-{rank}.json").read_text())
        assert found[:9] == pytest.approx(losses[:9], rel=1e-5)
    assert json.loads((workplace / "two" / "environment.json").read_text())["environment"]["processes"] == 2
    one, two = (load_file(workplace / name / "last.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)
