"""``restorekit train``: a training run from one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restorekit.cli.output import Device, Settings, note, say
from restorekit.config import check, read_yaml, with_settings
from restorekit.errors import TrainingError


def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the run.", show_default="runs/NAME")
    ] = None,
    settings: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of the folder.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Train a network; checkpoints, the curve and the weights go to the folder of the run."""
    from restorekit.training.spec import TrainSpec

    spec = check(TrainSpec, with_settings(read_yaml(config), settings or []), config.name)
    folder = output or Path("runs") / config.stem
    if not resume and (folder / "last.pt").exists():
        raise TrainingError(
            f"{folder} holds a run already", "add --resume to go on, or name another folder with -o"
        )

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from restorekit import registry
    from restorekit.contracts import Backbone
    from restorekit.pipeline import construct
    from restorekit.plan import Part
    from restorekit.runtime import resolve_device, tune_allocator
    from restorekit.training.data import Photographs
    from restorekit.training.loop import Run

    tune_allocator()
    entry = registry.backbones[spec.backbone.name]
    photographs = Photographs.load(spec.data)
    for path in photographs.unreadable:
        note(f"warning: {path} is not readable as an image, left out")
    torch.manual_seed(spec.seed)
    network = construct(Part("backbone", "backbone", entry, spec.backbone, None))
    assert isinstance(network, Backbone)
    run = Run(spec, network, folder, resolve_device(device))
    if resume:
        run.resume()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=spec.steps, completed=run.step)

        def report(step: int, row: dict[str, float]) -> None:
            progress.update(task, completed=step, description=f"loss {row['loss']:.2f}")
            if "seconds" in row:
                figures = ", ".join(f"{name[4:]} {row[name]:.2f}" for name in row if name.startswith("ema_"))
                progress.console.print(f"step {step}: {figures} dB")

        weights = run.train(photographs, report)
    say(str(weights))
