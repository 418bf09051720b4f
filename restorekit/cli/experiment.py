"""What the commands that run experiments share: their options, reading the file, making what is missing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from restorekit.cli.output import working
from restorekit.config import Spec, check, read_yaml, with_settings

if TYPE_CHECKING:
    from restorekit.experiments.jobs import Job

Config = Annotated[Path, typer.Argument(help="YAML file of the experiment.", show_default=False)]
Folder = Annotated[
    Path | None, typer.Option("-o", "--output", help="Folder of its runs.", show_default="runs/NAME")
]
Write = Annotated[
    Path | None, typer.Option(help="Put tables into this Markdown file, at the marks of their names.")
]

SpecT = TypeVar("SpecT", bound=Spec)


def read(kind: type[SpecT], config: Path, settings: Sequence[str] | None) -> SpecT:
    """Return the experiment of a file.

    Raises:
        ConfigError: the file or a setting is wrong.
    """
    return check(kind, with_settings(read_yaml(config), settings or []), config.name)


def make(jobs: Sequence[Job]) -> None:
    """Make what is not made, and show how far it is.

    Raises:
        RestoreKitError: a job cannot be done.
    """
    from restorekit.experiments.jobs import run_all
    from restorekit.runtime import tune_allocator

    logging.basicConfig(format="%(levelname)s: %(message)s")
    tune_allocator()
    with working() as begin:
        run_all(jobs, lambda job: begin(job.name))
