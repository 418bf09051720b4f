"""``restorekit faig reproduce``: the published experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from restorekit.cli.output import AsJson, Device, say, say_json
from restorekit.config import check, read_yaml, with_settings
from restorekit.files import Marks


def reproduce(
    config: Annotated[Path, typer.Argument(help="YAML file of the experiment, or its folder to resume.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder of the experiment.", show_default="runs/faig-NAME"),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override, as KEY=VALUE; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was begun.")] = False,
    write: Annotated[
        Path | None,
        typer.Option("--write", help="Also put figures and pictures into this Markdown file, at its marks."),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train, discover, mask, retrain, map and classify: the published experiment, tables beside its own."""
    from restorekit.analysis.experiment import ExperimentSpec

    folder = output or (config if config.is_dir() else Path("runs") / f"faig-{config.stem}")
    file = config / "config.yaml" if config.is_dir() else config
    spec = check(ExperimentSpec, with_settings(read_yaml(file), settings or []), file.name)
    # Looked for before the work, not after it.
    place = Marks(write, "faig results") if write else None

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from restorekit.analysis.page import publish
    from restorekit.analysis.reproduce import reproduce as run
    from restorekit.runtime import tune_allocator

    tune_allocator()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task, doing = progress.add_task("begin", total=None), ""

        def report(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing:
                progress.reset(task, description=what)
                doing = what
            progress.update(task, completed=done, total=total or None)

        results = run(spec, folder, device, resume=resume, progress=report)
    if place:
        publish(place, folder.name, spec, results, folder)
    if as_json:
        say_json(results)
        return
    say(str(folder / "page.md"))
