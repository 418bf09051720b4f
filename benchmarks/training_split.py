"""Where the time of a training run goes: waiting for data, forward and backward, optimizer, validation.

python benchmarks/training_split.py [CONFIG] [--set KEY=VALUE] [--steps 40] [--device auto]

The bundled denoiser by default; --set data.folder=PATH gives it other photographs. Waiting for data should
stay below a tenth of a step, at every patch size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

from restorekit.config import check, read_yaml, with_settings
from restorekit.runtime import tune_allocator
from restorekit.training.clock import Clock
from restorekit.training.loop import prepare
from restorekit.training.spec import TrainSpec

CONFIG = Path(__file__).parents[1] / "configs" / "train" / "nafnet-denoise.yaml"
# Steps that are not counted: the first allocate memory and choose algorithms.
WARM_UP = 5


def main() -> None:
    """Print a line for each stage of the config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG)
    parser.add_argument("--set", action="append", default=[], help="override, as data.workers=0")
    parser.add_argument("--steps", type=int, default=40, help="steps to measure of each stage")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    document = with_settings(read_yaml(given.config), given.set)
    whole = check(TrainSpec, document, given.config.name)
    tune_allocator()
    for stage in whole.stages:
        facts = f"stages=[{{steps: {given.steps + WARM_UP}, patch: {stage.patch}, batch: {stage.batch}}}]"
        spec = check(TrainSpec, with_settings(document, [facts]), given.config.name)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run = prepare(spec, Path(folder), given.device)
            prepared = time.perf_counter() - started
            run.train(partial(forget_warm_up, run.clock))
        seconds = dict(run.clock.seconds)
        validation = seconds.pop("validation")
        total = sum(seconds.values())
        shares = ", ".join(f"{name} {value / total:.1%}" for name, value in seconds.items())
        what = f"{stage.batch} patches of {stage.patch}x{stage.patch}"
        print(f"{what}: {1000 * total / given.steps:.0f} ms a step")
        print(f"  {shares}; a validation {validation:.1f} s; start {prepared:.1f} s")


def forget_warm_up(clock: Clock, step: int, row: dict[str, float]) -> None:
    """Count from the end of the warm-up."""
    if step == WARM_UP:
        clock.seconds.clear()


if __name__ == "__main__":
    main()
