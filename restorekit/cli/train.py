"""``restorekit train``: a training run from one YAML file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from restorekit.cli.output import Device, Settings, note, say
from restorekit.config import check, read_yaml, with_settings
from restorekit.errors import TrainingError


def train(
    config: Annotated[
        Path, typer.Argument(help="YAML file of the run, or the folder of one to resume.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the run.", show_default="runs/NAME")
    ] = None,
    settings: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of the folder.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train a network; checkpoints, the curve and the weights go to the folder of the run.

    Several processes: torchrun --nproc-per-node 2 -m restorekit train CONFIG, or on GPUs accelerate launch.
    """
    from restorekit.training.spec import TrainSpec

    folder = output or (config if config.is_dir() else Path("runs") / config.stem)
    file = config / "config.yaml" if config.is_dir() else config
    spec = check(TrainSpec, with_settings(read_yaml(file), settings or []), file.name)

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from restorekit.runtime import tune_allocator
    from restorekit.training.folder import RunFolder
    from restorekit.training.loop import prepare

    if not resume and RunFolder(folder).in_use:
        raise TrainingError(
            f"{folder} holds a run already", "add --resume to go on, or name another folder with -o"
        )
    logging.basicConfig(format="%(levelname)s: %(message)s")
    tune_allocator()
    run = prepare(spec, folder, device, resume=resume)
    talks = run.processes.rank == 0
    if talks:
        for skipped in run.source.skipped:
            note(f"warning: {skipped.path} is left out: {skipped.reason}")
        if run.source.skipped:
            note(f"{len(run.source.skipped)} files are left out")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not talks) as progress:
        task = progress.add_task("training", total=spec.steps, completed=run.progress.step)

        def report(step: int, row: dict[str, float]) -> None:
            progress.update(task, completed=step, description=f"loss {row['loss']:.4g}")
            shown = [name for name in row if name.startswith("ema_" if spec.ema else "val_")]
            if shown:
                units = {name: "%" if name.endswith("_kinds") else "dB" for name in shown}
                figures = ", ".join(f"{name[4:]} {row[name]:.2f} {units[name]}" for name in shown)
                progress.console.print(f"step {step}: {figures}")

        weights = run.train(report)
    if talks:
        note(", ".join(f"{what} {share:.0%}" for what, share in run.clock.shares().items()))
        say(str(weights))
