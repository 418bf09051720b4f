"""From a ``RefinedSpec`` to its jobs: a backbone for each task, refiners behind it, controls, tables.

PTG-RM (Xu et al., CVPR 2024) is trained with its backbone, which therefore learns longer than the backbone
alone did. So its table compares with the backbone trained on by the same compute, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from restorekit import datasets
from restorekit.config import PipelineSpec, check
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ConfigError, ImageError, near
from restorekit.experiments.compute import Compute
from restorekit.experiments.jobs import Job, Later, Measurement, Training
from restorekit.experiments.refinedspec import BASE, LONGER, RefinedSpec
from restorekit.experiments.table import Repeated, compared, read_reports
from restorekit.plan import NO_PRIOR
from restorekit.training.folder import part_files
from restorekit.training.spec import TrainSpec

_PROTOCOL = "paired-rgb"
# What the weights of a row are measured with: all of it; the mean of its prior; its backbone alone.
_Way = Literal["", "mean", "apart"]
_SAID: Mapping[_Way, str] = {"": "", "mean": ", prior's mean instead", "apart": ", its backbone alone"}
# By seed and column.
_Reports = Mapping[int, Mapping[str, Mapping[str, Any]]]
# Rows whose compute differs by more are not compared with the backbone trained longer.
_AS_MUCH = 0.1
_TITLES = {BASE: "backbone alone", LONGER: "backbone, trained longer"}


@dataclass(frozen=True)
class Made:
    """What an experiment came to so far.

    Attributes:
        tables: of each task by its name, Markdown, and what it is of.
        facts: the same for programs: every report by task, row, seed and column.
    """

    tables: dict[str, str]
    facts: dict[str, Any]


class RefinedExperiment:
    """The jobs of refiners under several priors, and where their results lie.

    Args:
        spec: what is to be made.
        folder: of all its runs.
        device: where it runs.
        task: make this one alone; all when None.
        seed: of the rows' runs, make these alone; all when None.

    Raises:
        ConfigError: there is no such task or seed.
    """

    def __init__(
        self,
        spec: RefinedSpec,
        folder: Path,
        device: str = "auto",
        *,
        task: str | None = None,
        seed: int | None = None,
    ) -> None:
        if task is not None and task not in spec.tasks:
            known = ", ".join(spec.tasks)
            raise ConfigError(
                "task", f"no task is called {task!r}; tasks: {known}", near(task, spec.tasks) or "give one"
            )
        if seed is not None and seed not in spec.seeds:
            known = ", ".join(map(str, spec.seeds))
            raise ConfigError("seed", f"no row has the seed {seed}; seeds: {known}", "give one of them")
        self.spec, self.folder, self.device = spec, folder, device
        self.tasks = tuple(spec.tasks) if task is None else (task,)
        self._seed = seed

    def jobs(self) -> list[Job]:
        """Return everything to be done, in order.

        Raises:
            ConfigError: a key of a run is wrong, or a task has no test images.
        """
        return [job for task in self.tasks for job in self._of_task(task)]

    def _of_task(self, task: str) -> Iterator[Job]:
        columns = self.columns(task)
        if self.spec.base is not None:
            yield self._base(task)
        for row in self.spec.rows_of(task):
            yield self._compute(task, row)
        if self.spec.longer:
            for seed in self._chosen(LONGER):
                folder = self._folder(task, LONGER, seed)
                yield Later(
                    f"{task}: {_TITLES[LONGER]}, seed {seed}",
                    folder,
                    self._compute(task, self.spec.longer.like).result,
                    partial(self._longer, task, seed),
                )
        for row in self.spec.rows_of(task):
            for seed in self._chosen(row):
                # Nobody should train for hours before a prior turns out not to be there.
                yield self._refined(task, row, seed, tried=seed == self._chosen(row)[0])
        for row in self._rows(task):
            for seed in self._chosen(row):
                for column, recipe in columns.items():
                    for way in self._ways(row):
                        yield self._measurement(task, row, seed, column, recipe, way)

    def _rows(self, task: str) -> tuple[str, ...]:
        """All rows of a table but the degraded images, from top to bottom."""
        return (BASE, *([LONGER] if self.spec.longer else []), *self.spec.rows_of(task))

    def _seeds(self, row: str) -> tuple[int, ...]:
        if row == BASE:
            return (self.spec.seed,)
        if row == LONGER:
            return self.spec.longer.seeds if self.spec.longer else ()
        return self.spec.rows[row].seeds

    def _chosen(self, row: str) -> tuple[int, ...]:
        """Return the seeds of a row that are to be made now; the base is what all of them go on from."""
        chosen = self._seed is None or row == BASE
        return tuple(seed for seed in self._seeds(row) if chosen or seed == self._seed)

    def _ways(self, row: str) -> tuple[_Way, ...]:
        """Return how the weights of a row are measured."""
        asked = self.spec.rows.get(row)
        if asked is None:
            return ("",)
        return ("", *(("mean",) if asked.mean else ()), *(("apart",) if asked.apart else ()))

    def _title(self, row: str) -> str:
        return _TITLES.get(row) or self.spec.rows[row].title or row

    def _folder(self, task: str, row: str, seed: int) -> Path:
        return self.folder / task / (BASE if row == BASE else f"{row}-{seed}")

    # What is trained.

    def _base(self, task: str) -> Training:
        spec = self.spec.run("base", task, backbone=self.spec.backbone.model_dump())
        return Training(f"{task}: {_TITLES[BASE]}", spec, self.folder / task / BASE, self.device)

    def _backbone(self, task: str) -> dict[str, Any]:
        """Return the backbone that everything else goes on from, or begins with as the one alone did."""
        return self.spec.backbone.model_dump() if self.spec.fresh else self._alone(task)

    def _alone(self, task: str) -> dict[str, Any]:
        """Return the backbone of the first row."""
        own = self.spec.backbone.model_dump()
        return own if self.spec.base is None else {**own, "weights": str(self._base(task).result)}

    def _refined_spec(self, task: str, row: str, seed: int, **filled: Any) -> TrainSpec:
        own, asked = self.spec.refiner, self.spec.rows[row]
        refiner = {**own.model_dump(), "params": {**own.params, **asked.refiner}}
        given = {"refiner": refiner, "prior": asked.prior.model_dump(), "seed": seed}
        return self.spec.run("refined", task, **{"backbone": self._backbone(task), **given, **filled})

    def _refined(self, task: str, row: str, seed: int, *, tried: bool = False) -> Training:
        parts = ["refiner", "backbone"]
        fresh = {"backbone": self.spec.backbone.model_dump(), "trained": parts}
        return Training(
            f"{task}: {self._title(row)}, seed {seed}",
            self._refined_spec(task, row, seed),
            self._folder(task, row, seed),
            self.device,
            self._refined_spec(task, row, seed, **fresh) if tried else None,
        )

    def _compute(self, task: str, row: str) -> Compute:
        spec = self._refined_spec(task, row, self.spec.rows[row].seeds[0])
        file = self.folder / task / "compute" / f"{row}.json"
        return Compute(f"{task}: compute of {self._title(row)}", spec, file)

    def _longer(self, task: str, seed: int) -> Training:
        """Return the run that goes on as a refined one, without the refiner; once steps are counted."""
        assert self.spec.longer is not None
        like = self._refined_spec(task, self.spec.longer.like, seed)
        steps = self._counted(task, self.spec.longer.like)["steps"]
        factor = like.optimizer.factors.get("backbone", 1.0)
        rates = {"lr": like.optimizer.lr * factor, "min_lr": like.optimizer.min_lr * factor, "factors": {}}
        document = {
            **like.model_dump(mode="json", exclude={"refiner", "prior", "trained"}),
            "stages": [
                {**stage.model_dump(), "steps": count}
                for stage, count in zip(like.stages, steps, strict=True)
            ],
            "optimizer": {**like.optimizer.model_dump(mode="json"), **rates},
        }
        return Training(
            f"{task}: {_TITLES[LONGER]}, seed {seed}",
            check(TrainSpec, document, f"{LONGER} of {task}"),
            self._folder(task, LONGER, seed),
            self.device,
        )

    def _counted(self, task: str, row: str) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self._compute(task, row).result.read_text(encoding="utf-8"))
        return facts

    # What is measured.

    def columns(self, task: str) -> dict[str, RecipeSpec | None]:
        """Return what test images suffer, by column; None for pairs.

        Raises:
            ConfigError: there are no test images, or nothing is said of what they suffer.
        """
        asked = self.spec.tasks[task]
        try:
            found = datasets.find(Path(asked.data), "clean" if asked.columns else None)
        except ImageError as error:
            raise ConfigError(f"tasks.{task}.data", error.message, "give a folder of test images") from error
        if asked.columns or found.paired:
            return {**asked.columns} or {found.folder.name: None}
        if asked.degradation is None:
            raise ConfigError(
                f"tasks.{task}",
                "its test images are clean, and nothing says what they suffer",
                "write degradation or columns, or give pairs",
            )
        return {found.folder.name: asked.degradation}

    def _measurement(
        self, task: str, row: str, seed: int, column: str, recipe: RecipeSpec | None, way: _Way
    ) -> Measurement:
        asked = self.spec.tasks[task]
        return Measurement(
            f"{task}: {self._title(row)}{_SAID[way]}, seed {seed}, on {column}",
            partial(self._pipeline, task, row, seed, way),
            Path(asked.data),
            _PROTOCOL,
            self._report(task, row, seed, column, way),
            recipe,
            seed=asked.seed,
            limit=asked.limit,
            device=self.device,
            features=self.folder / task / "features",
        )

    def _report(self, task: str, row: str, seed: int, column: str, way: _Way) -> Path:
        return self.folder / task / "reports" / way / f"{row}-{seed}-{column}.json"

    def _pipeline(self, task: str, row: str, seed: int, way: _Way) -> PipelineSpec:
        if row in (BASE, LONGER):
            step = self._alone(task)
            if row == LONGER:
                step["weights"] = str(self._longer(task, seed).result)
            return PipelineSpec.parse({"steps": [{"restore": step}]})
        run = self._refined(task, row, seed)
        files = part_files(run.result, run.spec.trained_parts)
        backbone = {
            **self._backbone(task),
            **({"weights": str(files["backbone"])} if "backbone" in files else {}),
        }
        if way == "apart":
            return PipelineSpec.parse({"steps": [{"restore": backbone}]})
        prior: Any = NO_PRIOR if way == "mean" else self.spec.rows[row].prior.model_dump()
        refine = {"name": self.spec.refiner.name, "weights": str(files["refiner"]), "prior": prior}
        return PipelineSpec.parse({"steps": [{"restore": backbone}, {"refine": refine}]})

    def made(self) -> Made:
        """Gather what is there so far, of the tasks that were asked for."""
        tables, facts = {}, {}
        for task in self.tasks:
            columns = tuple(self.columns(task))
            found = {way: self._measured(task, columns, way) for way in _SAID}
            rows = found[""]
            counted = {row: self._counted(task, row) for row in self.spec.rows_of(task)}
            table = compared([*self._lines(found, counted)], columns, self._over)
            tables[task] = f"{table}\n\n{self._about(task, rows, counted)}"
            facts[task] = {
                "columns": columns,
                "rows": rows,
                "means": found["mean"],
                "apart": found["apart"],
                "compute": counted,
            }
        return Made(tables, {"tasks": facts})

    @property
    def _over(self) -> dict[str, str]:
        over = {"over alone": _TITLES[BASE]}
        return {**over, "over longer": _TITLES[LONGER]} if self.spec.longer else over

    def _measured(self, task: str, columns: tuple[str, ...], way: _Way) -> dict[str, _Reports]:
        """Return the reports of every row that is measured in this way."""
        rows = [row for row in self._rows(task) if way in self._ways(row)]
        return {row: self._reports(task, row, columns, way) for row in rows}

    def _reports(self, task: str, row: str, columns: tuple[str, ...], way: _Way) -> _Reports:
        """Return the reports that are there, by seed and column."""
        found = {
            seed: read_reports({column: self._report(task, row, seed, column, way) for column in columns})
            for seed in self._seeds(row)
        }
        return {seed: reports for seed, reports in found.items() if reports}

    def _lines(
        self, found: Mapping[_Way, Mapping[str, _Reports]], counted: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[Repeated]:
        rows = found[""]
        base = rows[BASE][self.spec.seed]
        before = {column: report["degraded"] for column, report in base.items()}
        yield Repeated("degraded", {0: before}, seeded=False)
        sizes = {row: _refiner_size(runs) for row, runs in rows.items() if row in self.spec.rows}
        for row, runs in rows.items():
            added = sizes.get(row)
            yield Repeated(
                self._title(row),
                runs,
                added,
                seeded=row != BASE,
                instead=found["mean"].get(row, {}),
                apart=found["apart"].get(row, {}),
                compute=counted[row]["ratio"] if row in counted else None,
                unlike=() if self._computes_as_much(row, counted) else (_TITLES[LONGER],),
                silent=self._silent(row, sizes),
            )

    def _silent(self, row: str, sizes: Mapping[str, int | None]) -> str | None:
        """Return the title of the row that a row is compared with, to see what its prior is worth."""
        if row not in self.spec.rows:
            return None
        # The experiment's may be of another task.
        default = self.spec.silent if self.spec.silent in sizes else None
        alike = default if default and sizes[row] == sizes[default] else None
        silent = self.spec.rows[row].silent or alike
        return self._title(silent) if silent and silent != row else None

    def _computes_as_much(self, row: str, counted: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether a row's steps cost what those cost whose compute the backbone alone was given."""
        if self.spec.longer is None or row not in counted:
            return True
        return bool(abs(counted[row]["ratio"] / counted[self.spec.longer.like]["ratio"] - 1) <= _AS_MUCH)

    def _about(
        self,
        task: str,
        rows: Mapping[str, _Reports],
        counted: Mapping[str, Mapping[str, Any]],
    ) -> str:
        asked, some = self.spec.tasks[task], next(iter(rows[BASE][self.spec.seed].values()))
        first = next(iter(self.spec.rows_of(task)))
        refined = self._refined_spec(task, first, self._seeds(first)[0])
        both = "backbone and refiner" if "backbone" in refined.trained_parts else "the refiner alone"
        text = (
            f"PSNR in dB and SSIM, mean over {some['images']} images of {Path(asked.data).name} (whole "
            f"images, RGB, 8-bit, protocol `{_PROTOCOL}`, seed {asked.seed}). Data sha256 "
            f"`{some['dataset_sha256'][:16]}`. The backbone: "
        )
        if self.spec.base is None:
            text += f"{self.spec.backbone.name}, weights `{self.spec.backbone.weights}`. From these on:"
        else:
            base = self._base(task).spec
            text += f"{base.steps:,} steps, seed {base.seed}"
            text += ". Rows, from nothing:" if self.spec.fresh else ", trained once for all rows. From it on:"
        drawn = "backbone, refiner and patches" if self.spec.fresh else "the refiner and the patches"
        text += f" {refined.steps:,} steps of {both}, by the seed that draws {drawn}"
        text += "; ± is the sample deviation over seeds."
        if self.spec.silent:
            text += (
                " Over silent: the difference to the run of the same seed and the same network whose prior "
                "says nothing; a prior of another width makes another network."
            )
        if any("apart" in self._ways(row) for row in rows):
            text += (
                " Over its own backbone: the difference to the backbone of the same run without its refiner; "
                "the rest of what is gained over alone is what that backbone learned meanwhile."
            )
        if any("mean" in self._ways(row) for row in rows):
            text += (
                " Prior's mean instead: what the same weights gain when every image gets the mean that the "
                "prior had in training; a loss is what the prior's word on each image is worth."
            )
        text += (
            " Compute: of a step, against one of the backbone alone (convolutions and matrix products for a "
            "patch; what is trained counts three times its forward pass)."
        )
        if self.spec.longer is None:
            return text
        like = self.spec.longer.like
        return (
            f"{text} Trained longer: {sum(counted[like]['steps']):,} steps of the backbone alone, which "
            f"compute as much as those with {self._title(like)}. Over longer: of rows whose steps compute as "
            f"much, to a tenth."
        )


def _refiner_size(runs: _Reports) -> int | None:
    """Return the parameters of the refiner in reports; None while there are none."""
    sizes = (report["refiner_parameters"] for run in runs.values() for report in run.values())
    size: int | None = next(sizes, None)
    return size
