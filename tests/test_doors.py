"""``import torch`` takes seconds: it must not come through any door that every command uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = [
    "restorekit",
    "restorekit.registry",
    "restorekit.config",
    "restorekit.errors",
    "restorekit.catalog",
    "restorekit.degradations.spec",
    "restorekit.training.spec",
    "restorekit.cli",
]
HEAVY = ("torch", "numpy", "PIL")


def imported_by(script: str) -> set[str]:
    script += "\nimport sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_importing_a_light_module_brings_neither_torch_nor_numpy(module):
    assert not imported_by(f"import {module}").intersection(HEAVY)


def test_listing_components_brings_neither_torch_nor_numpy():
    script = "from restorekit import registry\n"
    script += "for book in registry.REGISTRIES: print(book.entries())\n"
    script += "registry.problems()"
    assert not imported_by(script).intersection(HEAVY)


def test_declaring_weights_brings_neither_torch_nor_numpy():
    script = "from restorekit import registry\nfor entry in registry.weights.entries(): entry.load()"
    assert not imported_by(script).intersection(HEAVY)


@pytest.mark.parametrize("words", [["--help"], ["list"], ["plan", "denoise"], ["plan", "median"], ["schema"]])
def test_commands_that_plan_bring_no_torch(words):
    script = f"import sys; sys.argv = ['restorekit', *{words!r}]\nfrom restorekit.cli import main\n"
    script += "try: main()\nexcept SystemExit as end: assert not end.code\n"
    assert "torch" not in imported_by(script)
