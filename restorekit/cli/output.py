"""What commands print: errors in two lines on stderr, results on stdout, progress on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any

import typer

from restorekit.errors import RestoreKitError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override, as KEY=VALUE; may be repeated.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option("--dtype", help="auto, fp32, bf16 or fp16.")]
Offline = Annotated[
    bool | None,
    typer.Option(
        "--offline/--online", help="Download nothing. Also by RESTOREKIT_OFFLINE.", show_default=False
    ),
]
LicensePolicy = Annotated[
    str | None,
    typer.Option(
        "--license-policy",
        help="permissive, noncommercial or any: refuse components and weights outside it.",
        show_default="any",
    ),
]


def say(text: str) -> None:
    """Print a line of result."""
    typer.echo(text)


def download_of(size: int | None) -> str:
    """Return ``, 2.5 MB``, to be put after what has to be downloaded; nothing where the size is not known."""
    return "" if size is None else f", {size / 1e6:,.1f} MB"


def note(text: str) -> None:
    """Print a line for people, beside the results."""
    typer.echo(text, err=True)


def say_json(facts: Any) -> None:
    """Print facts as JSON."""
    typer.echo(json.dumps(facts, indent=2, default=str))


def complain(error: RestoreKitError, where: str = "") -> None:
    """Print an error: what is wrong, then what to do."""
    typer.echo(f"error: {where}{': ' if where else ''}{error.message}", err=True)
    if error.hint:
        typer.echo(f"  hint: {error.hint}", err=True)


@contextmanager
def download_progress(show: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Yield what shows bytes coming in, as a bar for each file on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with ExitStack() as shown:
        bars: dict[str, Any] = {}
        progress = Progress(*columns, console=Console(stderr=True), disable=not show, transient=True)

        def report(name: str, done: int, total: int) -> None:
            if not bars:
                # Even an empty display writes a line when it ends.
                shown.enter_context(progress)
            if name not in bars:
                bars[name] = progress.add_task(name, total=None)
            progress.update(bars[name], completed=done, total=total or None)

        yield report


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Yield what is called when one of ``total`` pieces of work is done, shown as a bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def working() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Yield what begins a named piece of work and returns what its steps are reported to, as a bar each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def begin(name: str) -> Callable[[int, int], None]:
            task = progress.add_task(name, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield begin


def table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Return rows as plain text columns; the last column is as long as it is."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in [header, *rows]
    )
    return "\n".join(line.rstrip() for line in lines)
