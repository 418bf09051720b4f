"""The folder of a run: what lies where, and reading a run back.

``config.yaml`` is the whole config, ``environment.json`` what it ran on and the hash of its data,
``curve.csv`` and ``curve.png`` the figures, ``pictures/`` validation, ``last.safetensors`` what the run
resumes from, ``best.safetensors`` the best weights so far, ``weights.safetensors`` the result.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from restorekit.config import check, read_yaml
from restorekit.errors import TrainingError
from restorekit.files import ensure_writable
from restorekit.training.checkpoint import writing
from restorekit.training.curve import Row, draw_curve
from restorekit.training.sources import Source
from restorekit.training.spec import TrainSpec

# What may be changed when a run is resumed: it moves no weight.
_FREE = ("description", "validate_every", "save_every", "pictures", "export", "half", "tensorboard")


@dataclass(frozen=True)
class RunRecord:
    """What a run left behind.

    Attributes:
        spec: its config.
        weights: the result; the best so far where the run is not done.
        others: files of parts that were trained beside the first, by part.
        curve: a row for every validation.
        environment: versions, device, commit, files left out; the last session of a resumed run.
        data_sha256: hash of names and contents of the photographs.
        data_names: photographs trained on, and held out.
        finished: whether it came to its last step.
    """

    spec: TrainSpec
    weights: Path
    others: Mapping[str, Path]
    curve: tuple[Row, ...]
    environment: Mapping[str, Any]
    data_sha256: str
    data_names: Mapping[str, Sequence[str]]
    finished: bool


class RunFolder:
    """Paths and files of a run.

    Args:
        path: the folder; made when the first file is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.environment = path / "config.yaml", path / "environment.json"
        self.curve, self.last = path / "curve.csv", path / "last.safetensors"
        self.best, self.weights = path / "best.safetensors", path / "weights.safetensors"

    @property
    def in_use(self) -> bool:
        """Whether a run was begun here."""
        return self.last.exists()

    def begin(self, spec: TrainSpec, environment: Mapping[str, Any], source: Source) -> None:
        """Write config, environment and the hash of the data.

        Raises:
            OutputError: the folder cannot be written to.
            TrainingError: the disk is full.
        """
        text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        facts = {
            "environment": environment,
            "data": {
                "sha256": source.sha256,
                "trained": [photograph.name for photograph in source.trained],
                "held_out": [photograph.name for photograph in source.held_out],
                "skipped": [f"{skipped.path.name}: {skipped.reason}" for skipped in source.skipped],
            },
        }
        ensure_writable(self.path)
        # What a killed run had half written.
        for leftover in self.path.glob(".*.*.safetensors"):
            leftover.unlink()
        for path, content in ((self.config, text), (self.environment, json.dumps(facts, indent=2) + "\n")):
            with writing(path) as temporary:
                temporary.write_text(content, encoding="utf-8")

    def check_same(self, spec: TrainSpec, source: Source) -> None:
        """Compare config and data with those that the run was begun with.

        Raises:
            TrainingError: they would make it another run.
        """
        record = read_run(self.path)
        for key, ours, theirs in differences(spec, record.spec):
            raise TrainingError(
                f"{key} is {ours}, the run was begun with {theirs}",
                f"resume with its own config, {self.config}, or train into another folder with -o",
            )
        if record.data_sha256 != source.sha256:
            raise TrainingError(
                f"the photographs are not those that the run in {self.path} was begun with",
                "put them back, or train into another folder with -o",
            )

    def write_curve(self, rows: Sequence[Row]) -> None:
        """Write the figures as a table and as a picture."""
        with writing(self.curve) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows({name: round(value, 6) for name, value in row.items()} for row in rows)
        with writing(self.curve.with_suffix(".png")) as temporary:
            draw_curve(rows, temporary)


def differences(one: TrainSpec, other: TrainSpec) -> list[tuple[str, Any, Any]]:
    """Return where two configs would make different runs: the key, and the value of each."""
    ours, theirs = (_flat(spec.model_dump(mode="json", exclude=set(_FREE))) for spec in (one, other))
    # Where photographs lie does not matter: their hash is compared.
    moved = ("data.folder", "data.pairs", "data.cache", "data.workers")
    keys = sorted((ours.keys() | theirs.keys()) - set(moved))
    return [(key, ours.get(key), theirs.get(key)) for key in keys if ours.get(key) != theirs.get(key)]


def read_run(folder: Path) -> RunRecord:
    """Return what the folder of a run says.

    Raises:
        TrainingError: it is no folder of a run, or a file in it is missing or damaged.
        ConfigError: its config is of another version of restorekit.
    """
    run = RunFolder(folder)
    if not run.config.exists() or not run.environment.exists():
        raise TrainingError(
            f"{folder} is no folder of a run", "give the folder that `restorekit train` wrote, as runs/NAME"
        )
    spec = check(TrainSpec, read_yaml(run.config), str(run.config))
    weights = run.weights if run.weights.exists() else run.best
    files = part_files(weights, spec.trained_parts)
    try:
        facts = json.loads(run.environment.read_text(encoding="utf-8"))
        lines = run.curve.read_text(encoding="utf-8").splitlines() if run.curve.exists() else []
        rows = tuple({name: float(value) for name, value in row.items()} for row in csv.DictReader(lines))
        return RunRecord(
            spec=spec,
            weights=weights,
            others={part: path for part, path in files.items() if path != weights},
            curve=rows,
            environment=facts["environment"],
            data_sha256=facts["data"]["sha256"],
            data_names={name: facts["data"][name] for name in ("trained", "held_out", "skipped")},
            finished=run.weights.exists(),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"the run in {folder} is damaged: {error}", "train it again") from error


def part_files(path: Path, parts: Iterable[str]) -> dict[str, Path]:
    """Return the file of every part that is trained: ``path`` for the first, the others beside it."""
    return {
        part: path.with_stem(f"{path.stem}-{part}") if index else path for index, part in enumerate(parts)
    }


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with keys such as ``optimizer.lr``."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
