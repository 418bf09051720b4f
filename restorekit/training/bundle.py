"""A finished run as something to give away: one weights file, and a card that says what it is and does.

Figures of the card are those of reports by `restorekit eval`, made with these very weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from restorekit.catalog import Checkpoint
from restorekit.conversion import Written, convert
from restorekit.errors import OutputError, TrainingError
from restorekit.files import write_text
from restorekit.training.folder import RunRecord, read_run

_CARD = """---
library_name: restorekit
pipeline_tag: image-to-image
license: {licence_tag}
---

# {title}

{description}

{parameters:,} parameters, {size:.1f} MB, sha256 of the weights it was made from `{sha256}`.

## Use

{use}

## Figures

{figures}

## Training

`restorekit train CONFIG` with the config below, on {trained} photographs; {held_out} more were held out.
Hash of their names and contents: `{data_sha256}`. {state}

| | |
|---|---|
{environment}

```text
{config}```

## Licence

{licence}
"""


@dataclass(frozen=True)
class Bundle:
    """What was written.

    Attributes:
        weights: the safetensors file.
        card: the model card beside it.
        written: facts of the weights.
    """

    weights: Path
    card: Path
    written: Written


def bundle(
    folder: Path,
    output: Path,
    *,
    licence: str,
    reports: Sequence[Mapping[str, Any]] = (),
    overwrite: bool = False,
) -> Bundle:
    """Write the weights of a run and its card, both or none.

    Args:
        folder: of the run.
        output: of the weights, ends in ``.safetensors``; the card has the same name and ends in ``.md``.
        licence: SPDX expression of the weights.
        reports: facts as `restorekit eval --json` prints them, measured with the run's weights file.
        overwrite: replace what exists.

    Raises:
        TrainingError: the folder holds no run with weights, or a report was made with other weights.
        WeightsError: the weights do not fit the network of the config.
        OutputError: an output exists or cannot be written.
    """
    run = read_run(folder)
    if not run.weights.exists():
        raise TrainingError(f"the run in {folder} has no weights yet", "train on with --resume")
    part = run.spec.trained_parts[0]
    component = getattr(run.spec, part)
    checkpoint = Checkpoint(run.weights.name, run.weights)
    for report in reports:
        if checkpoint.sha256 not in report["weights_sha256"].values():
            raise TrainingError(
                f"a report of {report['protocol']} was made with other weights than {run.weights}",
                f"evaluate with -m {component.name}/{run.weights}",
            )
    card = output.with_suffix(".md")
    if card.exists() and not overwrite:
        raise OutputError(f"{card} exists", "give another name, or --overwrite")
    written = convert(
        checkpoint,
        output,
        component=component.name if part == "backbone" else None,
        licence=licence,
        overwrite=overwrite,
    )
    write_text(card, _card(run, output, written, checkpoint.sha256, reports))
    return Bundle(output, card, written)


def _card(
    run: RunRecord, output: Path, written: Written, sha256: str, reports: Sequence[Mapping[str, Any]]
) -> str:
    part = run.spec.trained_parts[0]
    facts = {"python": run.environment["python"], "device": run.environment["device"]}
    facts |= {name: version for name, version in run.environment["versions"].items() if version}
    facts["commit"] = run.environment["git"] or "none"
    return _CARD.format(
        licence_tag=written.licence.lower(),
        title=output.stem,
        description=run.spec.description or f"{getattr(run.spec, part).name}, trained with restorekit.",
        parameters=Checkpoint(output.name, output).parameter_count(),
        size=written.size / 1e6,
        sha256=sha256,
        use=f"`restorekit restore PHOTO -o restored.png -m {run.spec.backbone.name}/{output.name}`"
        if part == "backbone"
        else f"As `weights` of the {part} `{getattr(run.spec, part).name}` in a pipeline.",
        figures=_figures(reports) if reports else "Not measured: `restorekit eval` was not run.",
        trained=len(run.data_names["trained"]),
        held_out=len(run.data_names["held_out"]),
        data_sha256=run.data_sha256,
        state="It came to its last step." if run.finished else "It is not finished: the best weights so far.",
        environment="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        config=yaml.safe_dump(run.spec.model_dump(mode="json", exclude_defaults=True), sort_keys=False),
        licence=f"{written.licence}.",
    )


def _figures(reports: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| dataset | images | protocol | metric | degraded | restored |", "|---|---|---|---|---|---|"]
    for report in reports:
        settings = "".join(f" {name}={value:g}" for name, value in report["settings"].items())
        metrics = [key for key in report["per_image"][0] if key in report and key not in ("image", "seconds")]
        for metric in metrics:
            before, after = report["degraded"].get(metric), report[metric]
            cells = (report["dataset"], report["images"], f"`{report['protocol']}`{settings}", metric)
            shown = ("-" if value is None else f"{value:.4g}" for value in (before, after))
            lines.append(f"| {' | '.join(map(str, (*cells, *shown)))} |")
    hashes = ", ".join(
        dict.fromkeys(f"{each['dataset']} `{each['dataset_sha256'][:16]}`" for each in reports)
    )
    return "\n".join([*lines, "", f"Measured by `restorekit eval`; hashes of the data: {hashes}."])
