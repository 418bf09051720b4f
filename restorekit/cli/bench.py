"""``restorekit bench``: our networks beside the published ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from restorekit.cli.output import AsJson, counting, say, say_json, table
from restorekit.files import Marks

app = typer.Typer(no_args_is_help=True, help="Measure our networks beside the published ones.")


@app.command()
def parity(
    fixtures: Annotated[
        Path, typer.Option(help="Folder with inputs and outputs of the published networks.")
    ] = Path("../shared/parity/dev"),
    write: Annotated[Path | None, typer.Option(help="Put the matrix into this Markdown file.")] = None,
    speed: Annotated[
        bool, typer.Option("--speed", help="Instead, time the networks beside the published code.")
    ] = False,
    side: Annotated[int, typer.Option(help="Of the square image that is timed.")] = 256,
    runs: Annotated[int, typer.Option(help="Timed runs of each.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads of each.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Compare outputs with those of the published networks; exit code 2 when one is out of tolerance."""
    if speed:
        _speed(side, runs, threads, as_json)
        return
    from restorekit.bench import parity as comparison

    # Looked for before the work, not after it.
    place = Marks(write, "parity") if write else None
    paths, rows = comparison.fixtures(fixtures), []
    with counting("fixtures", len(paths)) as done:
        for path in paths:
            rows += comparison.matches(path)
            done()
    keys = [comparison.key_match(path) for path in comparison.key_lists(fixtures)]
    if as_json:
        say_json({"outputs": [asdict(row) for row in rows], "keys": [asdict(key) for key in keys]})
    else:
        cells: list[tuple[str, ...]] = [
            (
                row.variant,
                row.published,
                row.dtype,
                f"{row.error:.1e}",
                f"{row.allowed:.1e}",
                "ok" if row.holds else "FAR",
            )
            for row in comparison.worst(rows)
        ]
        say(table(cells, ("VARIANT", "PUBLISHED CLASS", "DTYPE", "ERROR", "ALLOWED", "")))
        wrong = [key for key in keys if key.differences]
        say(f"\n{len(keys) - len(wrong)} of {len(keys)} published sizes have the same names and shapes")
        for key in wrong:
            say(f"  {key.variant}: {key.differences[0]} and {len(key.differences) - 1} more")
    if place:
        place.write(comparison.as_markdown(rows, keys))
    if not all(row.holds for row in rows) or any(key.differences for key in keys):
        raise typer.Exit(2)


def _speed(side: int, runs: int, threads: int, as_json: bool) -> None:
    import torch

    from restorekit.bench.speed import PUBLISHED, race

    torch.set_num_threads(threads)
    with counting("runs", len(PUBLISHED) * runs) as done:
        races = [race(published, side, runs, done) for published in PUBLISHED]
    if as_json:
        say_json([asdict(each) for each in races])
        return
    cells: list[tuple[str, ...]] = [
        (
            each.published,
            f"{each.theirs:.2f} s",
            f"{each.ours:.2f} s",
            f"{each.ratio:.2f}",
            f"{each.error:.1e}",
        )
        for each in races
    ]
    say(f"{side}x{side}, float32, {threads} threads, median of {runs} interleaved runs")
    say(table(cells, ("NETWORK", "PUBLISHED CODE", "OURS", "RATIO", "MAX ABS DIFFERENCE")))
