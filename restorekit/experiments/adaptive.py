"""From an ``AdaptiveSpec`` to its jobs: unified model, specialists, filters, classifier, polish, table.

The stages are ADMS's (Park, Lee, Chun, CVPR 2023), whose schedules are not published: every one is a choice
of the file that is read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from restorekit.analysis.rankers import Method
from restorekit.config import PipelineSpec
from restorekit.errors import ConfigError
from restorekit.experiments.discovery import Discovery
from restorekit.experiments.jobs import Job
from restorekit.experiments.measurement import Measurement
from restorekit.experiments.spec import AdaptiveSpec, Row
from restorekit.experiments.table import Line, markdown, read_reports
from restorekit.experiments.trainings import Initial, Training

CLEAN = "clean"

NAMES: Mapping[Row, str] = {
    "unified": "unified model (UM)",
    "longer": "UM, trained longer",
    "larger": "UM, of the adaptive model's size",
    "adaptive": "ADMS, classifier",
    "decided": "ADMS, classifier's first choice alone",
    "cautious": "ADMS, first choice where it is sure",
    "oracle": "ADMS, told the degradation",
    "polished": "polished, classifier",
    "polished-decided": "polished, first choice alone",
    "polished-cautious": "polished, first choice where it is sure",
    "polished-oracle": "polished, told the degradation",
    "uniform": "ADMS, all filters alike",
    "random": "random filters, told",
    "delta": "most changed filters, told",
    "copied": "specialists' values at ADMS's filters, told",
    "specialists": "UM fine-tuned on each",
    "independent": "independent models (IM)",
}


@dataclass(frozen=True)
class Made:
    """What an experiment came to.

    Attributes:
        markdown: the table, and what it is of.
        facts: the same for programs: every report by row and column.
        backbone: weights of the unified model.
        adapter: weights of the adapter, with its classifier.
    """

    markdown: str
    facts: dict[str, Any]
    backbone: Path
    adapter: Path


class Experiment:
    """The jobs of an adaptive model, and where their results lie.

    Args:
        spec: what is to be made.
        folder: of all its runs.
        device: where it runs.
    """

    def __init__(self, spec: AdaptiveSpec, folder: Path, device: str = "auto") -> None:
        self.spec, self.folder, self.device = spec, folder, device

    def jobs(self) -> list[Job]:
        """Return everything to be done, in order.

        Raises:
            ConfigError: a key of a stage is wrong, or the test images are not there.
        """
        stages: list[Job] = [self.unified, *self.specialists.values()]
        stages += [self._discovery(name, "faig") for name in self.names]
        stages += [
            *self.deltas.values(),
            self.classifier,
            *([self.last] if self.spec.polish is not None else []),
        ]
        comparison = self.spec.comparison
        if comparison is None:
            return stages
        if not Path(comparison.data).is_dir():
            raise ConfigError(
                "comparison.data",
                f"{comparison.data} is no folder",
                "name yours, by --set comparison.data=PATH",
            )
        for row in comparison.rows:
            stages += self._controls(row)
        return [*stages, *self._measurements()]

    @property
    def names(self) -> tuple[str, ...]:
        """The degradations, in order."""
        return tuple(self.spec.degradations)

    # What is trained.

    @cached_property
    def unified(self) -> Training:
        """On all degradations, and on clean images."""
        return self._training("unified", "unified", degradation=self._all)

    @cached_property
    def specialists(self) -> dict[str, Training]:
        """From the unified model to one degradation each."""
        return {name: self._from_unified("specialists", f"{name}-specialist", name) for name in self.names}

    @cached_property
    def deltas(self) -> dict[str, Training]:
        """The filters of one degradation each, over the unified model."""
        return {name: self._delta(name, f"{name}-filters") for name in self.names}

    @cached_property
    def classifier(self) -> Training:
        """What tells degradations and clean images apart; its file holds the filters too."""
        parts = [str(self.deltas[name].result) for name in self.names]
        told = {"none": CLEAN if self.spec.clean else "", "train": "classifier"}
        return self._training(
            "classifier",
            "classifier",
            self._fresh(degradations=list(self.names), **told),
            backbone=self._unified_ref(),
            adapter=self._adapter(parts=parts, **told),
            degradation=self._all,
            loss="kind",
            balanced=True,
        )

    @cached_property
    def last(self) -> Training:
        """Filters and classifier as they come out: trained on together where the file says so."""
        if self.spec.polish is None:
            return self.classifier
        told = {"none": CLEAN if self.spec.clean else "", "train": "all"}
        adapter = {
            "name": self.spec.adapter.name,
            "weights": str(self.classifier.result),
            "params": {"train": "all"},
        }
        return self._training(
            "polish",
            "polished",
            self._fresh(degradations=list(self.names), **told),
            backbone=self._unified_ref(),
            adapter=adapter,
            degradation=self._all,
        )

    @property
    def _all(self) -> dict[str, Any]:
        share = (1 - self.spec.clean) / len(self.names)
        options = [self._recipe(name) | {"weight": share} for name in self.names]
        clean = [{"name": "clean", "weight": self.spec.clean}] if self.spec.clean else []
        return {"one_of": [*options, *clean]}

    def _recipe(self, name: str) -> dict[str, Any]:
        """Return the recipe of a degradation, which training calls by the name it has here."""
        return {**self.spec.degradations[name].model_dump(mode="json"), "label": name}

    def _unified_ref(self) -> dict[str, Any]:
        return {**self.spec.backbone.model_dump(), "weights": str(self.unified.result)}

    def _adapter(self, **params: Any) -> dict[str, Any]:
        own = self.spec.adapter
        return {"name": own.name, "params": {**own.params, **params}}

    def _training(
        self, stage: str, name: str, sketch: Mapping[str, Any] | None = None, **filled: Any
    ) -> Training:
        """Return a run; with ``sketch``, keys over its own, it is sketched before anything is run."""
        filled = {"backbone": self.spec.backbone.model_dump(), **filled}
        tried = self.spec.run(stage, **{**filled, **sketch}) if sketch else None
        spec = self.spec.run(stage, **filled)
        return Training(name, spec, self.folder / name, self.device, sketch=tried)

    def _fresh(self, **params: Any) -> dict[str, Any]:
        """Return what a run with an adapter is sketched with: no weights, filters by chance."""
        adapter = self._adapter(mask="random", **params)
        return {"backbone": self.spec.backbone.model_dump() | {"weights": None}, "adapter": adapter}

    def _from_unified(
        self, stage: str, name: str, degradation: str, sketch: Mapping[str, Any] | None = None, **filled: Any
    ) -> Training:
        filled |= {"backbone": self._unified_ref(), "degradation": self._recipe(degradation)}
        return self._training(stage, name, sketch, **filled)

    def _delta(self, degradation: str, name: str, method: Method = "faig", **params: Any) -> Training:
        scores = {degradation: str(self._scores(degradation, method))}
        adapter = self._adapter(degradations=[degradation], scores=scores, **params)
        sketch = self._fresh(degradations=[degradation])
        return self._from_unified("deltas", name, degradation, sketch, adapter=adapter)

    # What filters are found.

    def _scores(self, degradation: str, method: Method) -> Path:
        return self.folder / "scores" / f"{degradation}-{method}.safetensors"

    def _discovery(self, degradation: str, method: Method) -> Discovery:
        specialist = self.spec.backbone.model_dump() | {"weights": str(self.specialists[degradation].result)}
        unified = self.spec.run("unified", backbone=self._unified_ref(), degradation=self._all)
        return Discovery(
            f"{degradation}: {method}",
            degradation,
            unified,
            self.spec.run("specialists", backbone=specialist, degradation=self._recipe(degradation)),
            self.spec.degradations[degradation],
            self.spec.discovery,
            method,
            self._scores(degradation, method),
            self.device,
            self.spec.adapter.params.get("unit") or "kernel",
        )

    # What it is compared with.

    def _controls(self, row: Row) -> list[Job]:
        """Return what has to be made for one row of the table beside the stages."""
        if row in ("independent", "random", "delta", "copied"):
            found = [self._discovery(name, "delta") for name in self.names] if row == "delta" else []
            return [*found, *(self._one_each(row, name) for name in self.names)]
        if row == "larger":
            return [self._larger]
        return [self._longer] if row == "longer" else []

    def _one_each(self, row: Row, name: str) -> Job:
        if row == "independent":
            own = {**self.spec.independent, "degradation": self._recipe(name)}
            return self._training("unified", f"{name}-independent", **own)
        if row == "specialists":
            return self.specialists[name]
        if row == "copied":
            files = {name: str(self.specialists[name].result)}
            copied = self._delta(name, f"{name}-copied", init="copy", specialists=files)
            return Initial(copied.name, copied.spec, copied.folder / "weights.safetensors")
        if row == "delta":
            return self._delta(name, f"{name}-delta", "delta")
        return self._delta(name, f"{name}-random", mask="random")

    @cached_property
    def _larger(self) -> Training:
        assert self.spec.comparison is not None
        backbone = {"name": self.spec.backbone.name, "params": dict(self.spec.comparison.larger)}
        return self._training("unified", "larger", backbone=backbone, degradation=self._all)

    @cached_property
    def _longer(self) -> Training:
        """The unified model goes on for as many steps as all filters together."""
        steps = self.spec.run("deltas", backbone=self.spec.backbone.model_dump()).stages
        longer = [stage.model_dump() | {"steps": stage.steps * len(self.names)} for stage in steps]
        return self._training(
            "specialists", "longer", backbone=self._unified_ref(), degradation=self._all, stages=longer
        )

    # What is measured.

    def _measurements(self) -> Iterator[Measurement]:
        comparison = self.spec.comparison
        assert comparison is not None
        for row in comparison.rows:
            for column in self._columns(row):
                recipe = comparison.degradations.get(column) or self.spec.degradations.get(column)
                yield Measurement(
                    f"{NAMES[row]} on {column}",
                    partial(self._pipeline, row, column),
                    Path(comparison.data),
                    "paired-rgb" if recipe else "clean-identity-rgb",
                    self._report(row, column),
                    recipe,
                    seed=comparison.seed,
                    limit=comparison.limit,
                    device=self.device,
                )

    def _columns(self, row: Row) -> tuple[str, ...]:
        """A network of one degradation says nothing of clean images."""
        one_each = row in ("independent", "specialists", "random", "delta", "copied")
        # Nobody can be told that an image is clean who knows no such kind.
        untold = row in ("oracle", "polished-oracle") and not self.spec.clean
        return self.names if one_each or untold else (*self.names, CLEAN)

    def _report(self, row: Row, column: str) -> Path:
        return self.folder / "reports" / f"{row}-{column}.json"

    def _pipeline(self, row: Row, column: str) -> PipelineSpec:
        unified, adapter = self._unified_ref(), None
        polished, way = row.startswith("polished"), row.removeprefix("polished").removeprefix("-")
        if polished or way in ("adaptive", "decided", "cautious", "oracle", "uniform"):
            assert self.spec.comparison is not None
            own: dict[str, dict[str, Any]] = {
                "decided": {"top1": True},
                "cautious": {"top1": True, "least": self.spec.comparison.least},
                "oracle": {"router": {"name": "oracle", "label": column}},
                "uniform": {"router": "uniform"},
            }
            adapter = {
                "name": self.spec.adapter.name,
                "weights": str((self.last if polished else self.classifier).result),
                "params": own.get(way, {}),
            }
        elif row in ("random", "delta", "copied"):
            adapter = {"name": self.spec.adapter.name, "weights": str(self._one_each(row, column).result)}
        elif row != "unified":
            run = {"larger": lambda: self._larger, "longer": lambda: self._longer}.get(row)
            job = run() if run else self._one_each(row, column)
            assert isinstance(job, Training)
            unified = {**job.spec.backbone.model_dump(), "weights": str(job.result)}
        step = {**unified, **({"adapter": adapter} if adapter else {})}
        return PipelineSpec.parse({"steps": [{"restore": step}]})

    def made(self) -> Made:
        """Gather what was made: after all jobs."""
        comparison = self.spec.comparison
        if comparison is None:
            return Made("", {}, self.unified.result, self.last.result)
        columns = {row: self._columns(row) for row in comparison.rows}
        reports = {
            row: read_reports({column: self._report(row, column) for column in columns[row]})
            for row in comparison.rows
        }
        first = reports[comparison.rows[0]]
        before = {name: {"psnr": facts["degraded"].get("psnr")} for name, facts in first.items()}
        lines = [Line("degraded", before, restored=False)]
        lines += [Line(NAMES[row], reports[row], _parameters(row, reports[row])) for row in comparison.rows]
        gap = (NAMES["unified"], NAMES["independent"])
        share = ":".join(gap) if {"unified", "independent"} <= {*comparison.rows} else ""
        table = markdown(lines, self.names, [CLEAN], share)
        some = next(iter(first.values()))
        about = (
            f"PSNR in dB, mean over {some['images']} images of {Path(comparison.data).name} (whole images, "
            f"RGB, 8-bit, protocol `paired-rgb`, seed {comparison.seed}; clean: `clean-identity-rgb`). "
            f"Data sha256 `{some['dataset_sha256'][:16]}`."
        )
        facts = {"rows": reports, "degradations": list(self.names)}
        return Made(f"{table}\n\n{about}", facts, self.unified.result, self.last.result)


def _parameters(row: Row, reports: Mapping[str, Mapping[str, Any]]) -> int | None:
    """One network for each degradation counts each time; the filters of one degradation are no whole."""
    counts = [int(report["parameters"]) for report in reports.values()]
    if row in ("random", "delta", "copied"):
        return None
    return sum(counts) if row in ("independent", "specialists") else max(counts, default=0)
