"""``restorekit eval``: figures of a pipeline by a named protocol."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

from restorekit.cli.output import AsJson, Device, Precision, say, say_json, table
from restorekit.config import PipelineSpec, split_setting


def evaluate(
    data: Annotated[Path, typer.Option("--data", help="Folder of clean images.", show_default=False)],
    pipeline: Annotated[
        str, typer.Option("-p", "--pipeline", help="Name of a preset, or a YAML file.")
    ] = "auto",
    protocol: Annotated[
        str, typer.Option(help="How to degrade and to measure.")
    ] = "restormer-gaussian-color",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Setting of the protocol, or STEP.PARAM=VALUE of the pipeline."),
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write a line an image to this file.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first images only.")] = None,
    device: Device = "auto",
    dtype: Precision = "auto",
    tile: Annotated[int, typer.Option("-t", "--tile", help="0 for whole images, or pixels.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Degrade clean images, restore them, and print the mean figures with the protocol's name."""
    from restorekit.evaluation.protocols import find_protocol

    chosen = find_protocol(protocol)
    given = settings or []
    numbers = chosen.with_settings(
        dict(split_setting(text) for text in given if "." not in text.partition("=")[0])
    )
    spec = PipelineSpec.load(pipeline, [text for text in given if "." in text.partition("=")[0]])

    from rich.console import Console
    from rich.progress import Progress

    from restorekit.api import load_pipeline, restore
    from restorekit.evaluation.run import clean_images, evaluate
    from restorekit.plan import parts
    from restorekit.runtime import tune_allocator

    tune_allocator()
    files = clean_images(data)[:limit]
    chain = load_pipeline(spec, device=device, dtype=dtype)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(protocol, total=len(files))
        report = evaluate(
            lambda degraded: restore(degraded, chain, tile=tile),
            files,
            chosen,
            numbers,
            lambda done: progress.update(task, completed=done),
        )
    checkpoints = [part.checkpoint for step in parts(spec) for part in step if part.checkpoint]
    facts: dict[str, Any] = {
        **report.facts(),
        "pipeline": pipeline,
        "weights_sha256": {checkpoint.name: checkpoint.sha256 for checkpoint in checkpoints},
        "tile": tile,
        "device": str(chain.device),
        "dtype": str(chain.dtype).removeprefix("torch."),
    }
    if csv_file:
        from restorekit.files import replacing

        rows = facts["per_image"]
        with replacing(csv_file) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if as_json:
        say_json(facts)
        return
    rows = [
        (metric, f"{facts['degraded'][metric] or 0:.2f}", f"{report.mean(metric):.2f}")
        for metric in report.figures
    ]
    say(table(rows, ("METRIC", "DEGRADED", "RESTORED")))
    spelled = " ".join(f"{name}={value:g}" for name, value in numbers.items())
    say(f"pipeline {pipeline}, protocol {protocol} {spelled}, {len(files)} images of {data}")
