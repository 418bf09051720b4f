"""``restorekit refine``: refiners behind a backbone under several priors, from one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restorekit.cli.experiment import Config, Folder, Write, make, read
from restorekit.cli.output import AsJson, Device, Settings, say, say_json
from restorekit.files import Marks


def refine(
    config: Config,
    output: Folder = None,
    settings: Settings = None,
    write: Write = None,
    task: Annotated[str | None, typer.Option(help="Make this task alone.", show_default="all")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Make rows of this seed alone.", show_default="all")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a backbone, refiners behind it under several priors, and controls; compare them task by task.

    What is made already is kept: a killed run goes on where it was. Several processes may share the work.
    """
    from restorekit.experiments.refinedspec import RefinedSpec

    spec = read(RefinedSpec, config, settings)

    from restorekit.experiments.refined import RefinedExperiment

    folder = output or Path("runs") / config.stem
    experiment = RefinedExperiment(spec, folder, device, task=task, seed=seed)
    if write:
        # Looked for before the work, not after it.
        for name in experiment.tasks:
            Marks(write, f"{config.stem}-{name}")
    make(experiment.jobs())
    made = experiment.made()
    if write:
        for name, table in made.tables.items():
            # The document is read again: another process, or the table before, may have changed it.
            Marks(write, f"{config.stem}-{name}").write(table)
    if as_json:
        say_json(made.facts)
        return
    for name, table in made.tables.items():
        say(f"{spec.tasks[name].title or name}\n\n{table}\n")
