"""``restorekit adapt``: an adaptive model for any set of degradations, from one YAML file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from restorekit.cli.output import AsJson, Device, Settings, say, say_json, working
from restorekit.config import check, read_yaml, with_settings
from restorekit.files import Marks


def adapt(
    config: Annotated[Path, typer.Argument(help="YAML file of the experiment.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of its runs.", show_default="runs/NAME")
    ] = None,
    settings: Settings = None,
    write: Annotated[
        Path | None,
        typer.Option(help="Put the table into this Markdown file, at the mark of its name."),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a unified model, find the filters of each degradation, train them and their classifier, compare.

    What is made already is kept: a killed run goes on where it was.
    """
    from restorekit.experiments.spec import AdaptiveSpec

    folder = output or Path("runs") / config.stem
    spec = check(AdaptiveSpec, with_settings(read_yaml(config), settings or []), config.name)
    # Looked for before the work, not after it.
    place = Marks(write, config.stem) if write else None

    from restorekit.experiments.adaptive import Experiment
    from restorekit.experiments.jobs import run_all
    from restorekit.runtime import tune_allocator

    logging.basicConfig(format="%(levelname)s: %(message)s")
    tune_allocator()
    experiment = Experiment(spec, folder, device)
    with working() as begin:
        run_all(experiment.jobs(), lambda job: begin(job.name))
    made = experiment.made()
    if place:
        place.write(made.markdown)
    if as_json:
        say_json({**made.facts, "backbone": str(made.backbone), "adapter": str(made.adapter)})
        return
    if made.markdown:
        say(made.markdown)
    say(f"backbone {made.backbone}\nadapter {made.adapter}")
