"""``restorekit new-plugin``: a project to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restorekit.cli.output import note, say


def new_plugin(
    name: Annotated[str, typer.Argument(help="What pipelines will call it, as acme-net.")],
    kind: Annotated[
        str, typer.Option("--kind", help="backbone, adapter, refiner, prior or weights.")
    ] = "backbone",
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder in which the project's folder is made.")
    ] = Path(),
) -> None:
    """Write the project of a new plug-in: it installs, its tests pass, and it does something small."""
    from restorekit.scaffold import write_project

    files = write_project(name, kind, output)
    for path in files:
        say(str(path))
    project = next(path.parent for path in files if path.name == "pyproject.toml")
    note(f"next: cd {project} && pip install -e '.[test]' && python -m pytest")
