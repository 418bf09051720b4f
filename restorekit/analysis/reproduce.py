"""The experiment of the FAIG paper from one file: train, discover, mask, retrain, map, classify, modulate.

What a seed works with is trial.py, what is measured with it findings.py, what stands on the page page.py, and
what is published published.py.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from restorekit.analysis.experiment import ExperimentSpec
from restorekit.analysis.findings import Findings
from restorekit.analysis.galleries import galleries_of
from restorekit.analysis.page import render
from restorekit.analysis.trial import Progress, Trial
from restorekit.building import construct
from restorekit.config import check, read_yaml
from restorekit.contracts import Backbone
from restorekit.errors import ConfigError, OutputError
from restorekit.files import ensure_writable, write_text
from restorekit.runtime import resolve_device
from restorekit.training.build import find_parts


def reproduce(
    spec: ExperimentSpec,
    folder: Path,
    device: str = "auto",
    *,
    resume: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Run the experiment and return its figures; ``results.json``, ``page.md`` and pictures tell the same.

    Args:
        spec: what to do, at what size.
        folder: where everything goes.
        device: auto, cpu, cuda, cuda:N or mps.
        resume: go on with an experiment that was begun there.
        progress: told what is going on.

    Raises:
        OutputError: the folder holds an experiment already.
        ConfigError: it was begun with another config.
        RestoreKitError: what training or a protocol refuses.
    """
    _begin(spec, folder, resume)
    where = resolve_device(device)
    scale = _scale(spec)
    # Before any training: a missing folder should not cost hours.
    galleries = galleries_of(spec, scale)
    seeds = []
    for seed in spec.seeds:
        trial = Trial(spec, folder / f"seed-{seed}", seed, scale, device, where, progress, galleries)
        baseline = folder / f"seed-{spec.seeds[0] if spec.shared_baseline else seed}" / "baseline"
        base, target = trial.networks(baseline)
        seeds.append(Findings(trial, base, target, trial.rankings(base, target)).figures())
    results = {
        "experiment": spec.model_dump(mode="json"),
        "seeds": dict(zip(map(str, spec.seeds), seeds, strict=True)),
        "summary": summary(seeds),
        "device": str(where),
    }
    write_text(folder / "results.json", json.dumps(results, indent=2) + "\n")
    write_text(folder / "page.md", render(spec, results, f"seed-{spec.seeds[0]}/"))
    return results


def summary(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and sample deviation over seeds of every figure, in the same tree as one seed's."""
    first = seeds[0]
    found: dict[str, Any] = {}
    for key, value in first.items():
        values = [seed[key] for seed in seeds]
        if isinstance(value, Mapping):
            found[key] = summary(values)
        elif isinstance(value, (int, float)):
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            found[key] = {"mean": statistics.fmean(values), "deviation": deviation}
    return found


def _begin(spec: ExperimentSpec, folder: Path, resume: bool) -> None:
    config = folder / "config.yaml"
    if config.exists():
        if not resume:
            raise OutputError(
                f"{folder} holds an experiment already",
                "add --resume to go on, or name another folder with -o",
            )
        begun = check(ExperimentSpec, read_yaml(config), str(config))
        changed = [key for key in type(spec).model_fields if getattr(begun, key) != getattr(spec, key)]
        # More seeds, or other words about it, change nothing that was found.
        if set(changed) - {"seeds", "description"} or (changed and spec.seeds[0] != begun.seeds[0]):
            raise ConfigError(
                str(config), f"was begun with other {', '.join(changed)}", "name another folder with -o"
            )
    ensure_writable(folder)
    text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(config, text)


def _scale(spec: ExperimentSpec) -> int:
    """Return the scale of the network; it is built without memory."""
    part = find_parts(spec.training("baseline", 0, 1, ""))["backbone"]
    with torch.device("meta"):
        return cast(Backbone, construct(part)).scale
