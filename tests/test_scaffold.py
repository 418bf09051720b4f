import os
import subprocess
import sys
import venv
from itertools import chain
from pathlib import Path
from typing import get_args

import numpy as np
import PIL.Image
import pytest

from restorekit.scaffold import Kind

ROOT = Path(__file__).parents[1]
KINDS = get_args(Kind)


def run_python(python, *words, cwd, **environment):
    """Run another interpreter; return what it printed."""
    environment = {"PYTHONPATH": "", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [str(python), *map(str, words)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wheel(source, folder):
    """Build the wheel of a project with the tools that are installed here."""
    words = (
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        source,
    )
    run_python(sys.executable, *words, cwd=folder, PIP_DISABLE_PIP_VERSION_CHECK="1")


def test_every_kind_gives_a_small_project(run, tmp_path):
    for kind in KINDS:
        code, out, err = run("new-plugin", f"acme-{kind}", "--kind", kind, "-o", tmp_path)
        project = tmp_path / f"restorekit-acme-{kind}"
        assert code == 0 and "pip install" in err
        assert out.splitlines() == sorted(map(str, (path for path in project.rglob("*") if path.is_file())))
        assert (
            not [path for path in project.rglob("*") if "$" in path.read_text()]
            if project.is_file()
            else True
        )
        for path in project.rglob("*.py"):
            compile(path.read_text(), path, "exec")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"restorekit-acme-{kind}" for kind in KINDS
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["Acme"], "'Acme' is no name"),
        (["acme_net"], "'acme_net' is no name"),
        (["../acme"], "'../acme' is no name"),
        (["class"], "'class' is no name"),
        (["acme", "--kind", "backbones"], "did you mean 'backbone'?"),
        (["taken"], "restorekit-taken exists"),
    ],
)
def test_wrong_requests_write_nothing(words, says, run, tmp_path):
    (tmp_path / "restorekit-taken").mkdir()
    code, _, err = run("new-plugin", *words, "-o", tmp_path)
    assert code == 2 and says in err
    assert [path.name for path in tmp_path.iterdir()] == ["restorekit-taken"]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Make an environment with wheels of the core and of new plug-ins; the rest is borrowed from this one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for kind in KINDS:
        words = ("-m", "restorekit", "new-plugin", f"acme-{kind}", "--kind", kind, "-o", folder)
        run_python(sys.executable, *words, cwd=folder)
    environment = folder / "env"
    venv.create(environment, with_pip=False, symlinks=True)
    (site,) = (environment / "lib").glob("python*/site-packages")
    wheels = folder / "wheels"
    wheels.mkdir()
    for source in (ROOT, ROOT / "plugins" / "nafnet", *folder.glob("restorekit-acme-*")):
        wheel(source, wheels)
    target = ("--target", site, "--no-deps", "--quiet", "--no-index")
    run_python(sys.executable, "-m", "pip", "install", *target, *wheels.glob("*.whl"), cwd=folder)
    # Every other package is borrowed, one by one: nothing of restorekit is to be found but by its wheel.
    for path in chain.from_iterable(
        Path(each).iterdir() for each in sys.path if each.endswith("site-packages")
    ):
        ours = path.name.lower().startswith(("restorekit", "_editable", "__editable"))
        if not ours and path.suffix != ".pth" and not (site / path.name).exists():
            (site / path.name).symlink_to(path)
    return folder, environment / "bin" / "python"


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not in a checkout: nothing to build")
def test_a_new_plugin_restores_from_a_wheel_beside_the_core(elsewhere, tmp_path):
    folder, python = elsewhere
    where = run_python(python, "-c", "import restorekit; print(restorekit.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(folder)
    listed = run_python(python, "-m", "restorekit", "list", cwd=tmp_path)
    for kind in KINDS:
        assert f"acme-{kind}" in listed
    assert "denoise.yaml" in listed
    levels = np.zeros((9, 9, 3), np.uint8)
    levels[4, 4] = 180
    PIL.Image.fromarray(levels).save(tmp_path / "spot.png")
    words = (
        "restore",
        "spot.png",
        "-o",
        "restored.png",
        "-m",
        "acme-backbone",
        "--set",
        "acme-backbone.strength=1",
    )
    run_python(python, "-m", "restorekit", *words, cwd=tmp_path)
    restored = np.asarray(PIL.Image.open(tmp_path / "restored.png"))
    assert (restored[3:6, 3:6] == 20).all() and restored.sum() == 9 * 3 * 20


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not in a checkout: nothing to build")
def test_the_tests_of_new_plugins_pass(elsewhere):
    folder, python = elsewhere
    tests = sorted(folder.glob("restorekit-acme-*/tests"))
    assert len(tests) == len(KINDS)
    printed = run_python(
        python, "-m", "pytest", "-q", "-W", "error", "--import-mode=importlib", *tests, cwd=folder
    )
    assert " passed" in printed
