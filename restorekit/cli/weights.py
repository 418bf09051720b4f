"""``restorekit weights``: list, download, verify, convert and remove checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restorekit.cli.output import (
    AsJson,
    Offline,
    Settings,
    complain,
    download_progress,
    note,
    say,
    say_json,
    table,
)
from restorekit.errors import ConfigError, RestoreKitError, WeightsError

if TYPE_CHECKING:
    from restorekit.catalog import Pretrained

app = typer.Typer(no_args_is_help=True, help="List, download, verify, convert and remove weights.")

Names = Annotated[
    list[str], typer.Argument(help="COMPONENT/TAG, as `weights list` prints.", show_default=False)
]


@app.command("list")
def list_weights(
    component: Annotated[str | None, typer.Argument(help="Only those of one component.")] = None,
    as_json: AsJson = False,
) -> None:
    """List declared weights: what they are for, licence, size, whether they are on this machine."""
    from restorekit import catalog

    items = [item for item in catalog.declared() if component in (None, item.component)]
    if not items and component:
        raise ConfigError(
            "weights list",
            f"no weights are declared for {component!r}",
            "`restorekit list` prints every component",
        )
    if as_json:
        say_json([{**_facts(item), "state": _state(item)} for item in items])
        return
    rows: list[tuple[str, ...]] = [
        (item.name, _state(item), _size(item), item.licence, item.task) for item in items
    ]
    say(table(rows, ("NAME", "STATE", "SIZE", "LICENCE", "TASK")))


@app.command()
def download(
    names: Annotated[
        list[str],
        typer.Argument(
            help="COMPONENT/TAG, as `weights list` prints; or prior:NAME, what a prior uses by default.",
            show_default=False,
        ),
    ],
    source: Annotated[
        Path | None, typer.Option("--from", help="A file that was downloaded by hand, instead.")
    ] = None,
    offline: Offline = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Bring weights to this machine, whole and checked. Interrupted downloads go on where they stopped."""
    from restorekit import catalog
    from restorekit.download import adopt, ensure

    items = [catalog.by_name(name) for name in names]
    if source is not None:
        if any(item.reference for item in items):
            raise ConfigError(
                "--from", "a model of several files is no file", "give its folder as reference: dir:FOLDER"
            )
        if len(items) != 1:
            raise ConfigError("--from", f"one file cannot be {len(items)} weights", "name one")
        if not source.is_file():
            raise WeightsError(f"no file {source}", "give the file that was downloaded")
        say(f"{items[0].name}   {adopt(items[0], source)}")
        return
    failed = 0
    with download_progress(show=not quiet) as report:
        for item in items:
            try:
                if item.reference:
                    _fetch(item, offline)
                    continue
                checkpoint = ensure(
                    catalog.Checkpoint(item.name, item.path, item), offline=offline, progress=report
                )
                say(f"{item.name}   {checkpoint.path}   sha256 {checkpoint.sha256[:16]}")
            except RestoreKitError as error:
                failed += 1
                complain(error)
    _finish(failed, len(items))


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="By default all that are here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check weights: the hash is the expected one, and names and shapes fit the network they are for."""
    from restorekit import catalog
    from restorekit.building import fits

    declared = catalog.declared()
    items = [catalog.by_name(name) for name in names] if names else [i for i in declared if i.path.is_file()]
    results: list[dict[str, Any]] = []
    for item in items:
        if item.reference:
            raise WeightsError(
                f"weights {item.name} are files of {item.reference}, which whoever keeps them checks",
                "build the prior: it refuses files that do not fit",
            )
        checkpoint = catalog.Checkpoint(item.name, item.path, item)
        try:
            facts = {"name": item.name, "sha256": checkpoint.sha256, "fits": fits(checkpoint, item.component)}
            results.append(facts | {"hash": _hash_origin(item)})
        except RestoreKitError as error:
            results.append({"name": item.name, "error": error.message, "hint": error.hint})
            if not as_json:
                complain(error)
    if as_json:
        say_json(results)
    else:
        for result in (result for result in results if "error" not in result):
            say(f"{result['name']}   ok: {result['hash']}, fits {result['fits']}")
    _finish(sum("error" in result for result in results), len(results))


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A .pth, .pt, .ckpt or .safetensors file, COMPONENT/TAG, or the folder of a run."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to write.")],
    component: Annotated[
        str | None, typer.Option(help="The network it is for; names and shapes are checked against it.")
    ] = None,
    settings: Settings = None,
    licence: Annotated[str | None, typer.Option("--license", help="SPDX expression of the weights.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Store in 16 bits: half the size.")] = False,
    reports: Annotated[
        list[Path] | None,
        typer.Option("--report", help="Of a run: JSON of `restorekit eval`, for the figures of the card."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
) -> None:
    """Write weights as safetensors, with source hash, licence and constructor arguments inside.

    The folder of a training run becomes such a file with a model card beside it.
    """
    if Path(source).is_dir():
        _bundle(Path(source), output, licence, reports or [], overwrite=overwrite)
        return
    if reports:
        raise ConfigError("--report", "figures go into the card of a run", "give the folder of the run")
    from restorekit import catalog
    from restorekit.config import split_setting
    from restorekit.conversion import convert as write

    params = dict(split_setting(setting) for setting in settings or [])
    if component is None and not Path(source).is_file():
        item = catalog.by_name(source)
        component, checkpoint = item.component, catalog.Checkpoint(item.name, item.path, item)
    else:
        checkpoint = catalog.find(component or "", source)
    written = write(
        checkpoint,
        output,
        component=component,
        params=params,
        licence=licence,
        half=half,
        overwrite=overwrite,
    )
    say(f"{output}   {written.tensors} tensors, {written.size / 1e6:.1f} MB, licence {written.licence}")
    if component is None:
        note("names and shapes were not checked: give --component to check them against a network")


def _bundle(folder: Path, output: Path, licence: str | None, reports: list[Path], *, overwrite: bool) -> None:
    from restorekit.evaluation.run import read_report
    from restorekit.training.bundle import bundle

    if licence is None:
        raise ConfigError(
            "--license", "the weights of a run have the licence that you give them", "add --license MIT"
        )
    facts = [read_report(path) for path in reports]
    made = bundle(folder, output, licence=licence, reports=facts, overwrite=overwrite)
    size = made.written.size / 1e6
    say(f"{made.weights}   {made.written.tensors} tensors, {size:.1f} MB, licence {made.written.licence}")
    say(str(made.card))
    if not reports:
        note("the card has no figures: give reports of `restorekit eval --json` with --report")


@app.command()
def remove(
    names: Names,
    forget: Annotated[
        bool, typer.Option("--forget", help="Also drop the pinned hash: trust what is downloaded next.")
    ] = False,
) -> None:
    """Delete downloaded weights from this machine; their pinned hash stays."""
    from restorekit import cache, catalog
    from restorekit.download import forget_parts

    for item in [catalog.by_name(name) for name in names]:
        if item.file is not None:
            raise WeightsError(
                f"weights {item.name} are part of an installed distribution", "uninstall that instead"
            )
        if item.reference:
            raise WeightsError(
                f"weights {item.name} are kept elsewhere: {item.reference}",
                "delete them in the hub's own cache, with `hf cache rm`",
            )
        size = item.path.stat().st_size if item.path.is_file() else 0
        item.path.unlink(missing_ok=True)
        forget_parts(item.path)
        unpinned = forget and cache.Pins().forget(item.name)
        what = [
            f"{size / 1e6:.1f} MB freed" if size else "not on this machine",
            "pin dropped" if unpinned else "",
        ]
        say(f"{item.name}   {', '.join(filter(None, what))}")


def _facts(item: Pretrained) -> dict[str, Any]:
    return {"name": item.name, **asdict(item), "path": str(item.path)}


def _fetch(item: Pretrained, offline: bool | None) -> None:
    from restorekit.references import fetch

    files = fetch(item, offline=offline)
    total = sum(file.stat().st_size for file in files)
    say(f"{item.name}   {files[0].parent}   {len(files)} files, {total / 1e6:,.1f} MB")


def _state(item: Pretrained) -> str:
    if item.reference:
        from restorekit.references import state

        return state(item)
    if item.file is not None:
        return "bundled"
    return "here" if item.path.is_file() else "remote" if item.urls else "by hand"


def _size(item: Pretrained) -> str:
    size = item.path.stat().st_size if item.path.is_file() else item.size
    return f"{size / 1e6:.1f} MB" if size else "?"


def _hash_origin(item: Pretrained) -> str:
    return "published hash" if item.sha256 else "hash of the first download"


def _finish(failed: int, total: int) -> None:
    if failed:
        note(f"{failed} of {total} failed")
        raise typer.Exit(2 if total == 1 else 3)
