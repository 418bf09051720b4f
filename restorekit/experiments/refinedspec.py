"""What an experiment with refiners is: one YAML file, typed. Holds no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from restorekit.config import Component, ComponentRef, Spec
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import near
from restorekit.experiments.spec import run_spec, wrong
from restorekit.training.spec import DataSpec, TrainSpec

Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]

# Rows of every table, beside those of the config; their folders have these names.
BASE, LONGER = "base", "longer"


class RefinedRowSpec(Spec):
    """A refiner under one prior: a run for each seed."""

    title: str = Field(default="", description="what tables call it; by default its name")
    prior: Component
    refiner: Mapping[str, Any] = Field(default={}, description="params over those of the refiner")
    seeds: Seeds = (0,)
    mean: bool = Field(
        default=True,
        description="measure it once more with the mean that its prior had in training, for every image;"
        " senseless where the prior is not used",
    )
    apart: bool = Field(
        default=False,
        description="measure its backbone without the refiner, too: what it learned meanwhile",
    )
    silent: str | None = Field(
        default=None,
        description="name of the row of the same network whose prior says nothing, with which it is compared"
        " seed by seed; by default that of the experiment, for rows as large as it",
    )
    tasks: tuple[str, ...] = Field(
        default=(),
        description="names of the tasks that it is made for, as where its prior was trained for one;"
        " by default all",
    )

    @model_validator(mode="before")
    @classmethod
    def _has_a_prior(cls, value: object) -> object:
        if isinstance(value, Mapping) and not value.get("prior"):
            raise wrong(
                "a row needs a prior, which guides its refiner",
                "name one; params prior_scale: 0 of PTG-RM is a prior that says nothing",
            )
        return value


class LongerSpec(Spec):
    """The backbone alone, for as many more steps as cost what a row costs."""

    like: str = Field(description="name of the row")
    seeds: Seeds = (0,)


class RefinedTaskSpec(Spec):
    """What is to be undone, and the test images that say how well it was."""

    title: str = Field(default="", description="what people call it; by default its name")
    degradation: RecipeSpec | None = Field(
        default=None, description="of training; none where the training data are pairs"
    )
    data: str = Field(description="folder of clean test images or of pairs, which nothing was trained on")
    columns: Mapping[str, RecipeSpec] = Field(
        default={},
        description="what clean test images suffer, by name; by default what those of training do",
    )
    seed: int = Field(default=0, ge=0, description="of the degradation of test images")
    limit: int | None = Field(default=None, gt=0, description="use the first test images only")
    common: Mapping[str, Any] = Field(default={}, description="keys of every run of this task, as loss")


class RefinedSpec(Spec):
    """Refiners behind one backbone under several priors, beside what the same compute makes of it alone.

    For each task the backbone is trained once, or has weights already; every row goes on from these, unless
    ``fresh``. Runs are those of `restorekit train`: what stands under ``base`` and ``refined``, over what
    stands under ``common``, under what the task says, are keys of their configs. The rest is filled in.
    """

    description: str = ""
    seed: int = Field(default=0, ge=0, description="of the backbones that rows go on from")
    backbone: Component
    refiner: Component = ComponentRef(name="ptgrm")
    data: DataSpec
    common: Mapping[str, Any] = Field(default={}, description="keys of every run")
    base: Mapping[str, Any] | None = Field(
        default=None,
        description="keys of the backbone's own run; without, rows go on from the weights that it names",
    )
    fresh: bool = Field(
        default=False,
        description="rows, and the backbone trained longer, begin from nothing as the backbone alone does:"
        " joint training from the start",
    )
    refined: Mapping[str, Any] = Field(
        description="keys of the runs with a refiner; unless it says trained, the backbone is trained too"
    )
    rows: Mapping[str, RefinedRowSpec] = Field(min_length=1, description="by name, from top to bottom")
    silent: str | None = Field(
        default=None,
        description="name of the row whose prior says nothing, with which others as large as it are compared"
        " seed by seed",
    )
    longer: LongerSpec | None = Field(default=None, description="the same compute without a refiner")
    tasks: Mapping[str, RefinedTaskSpec] = Field(min_length=1, description="by name")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _check_names("rows", self.rows)
        _check_names("tasks", self.tasks)
        for name, task in self.tasks.items():
            _check_names(f"tasks.{name}.columns", task.columns)
        if self.base is None and (self.fresh or not self.backbone.weights):
            raise wrong(
                "nothing says how the backbone is trained"
                if self.fresh
                else "there is nothing that rows could go on from",
                "write base, the keys of the backbone's own run, or backbone.weights without fresh",
            )
        if self.fresh and "backbone" not in (self.refined.get("trained") or ["backbone"]):
            raise wrong(
                "fresh begins with a backbone that knows nothing, and refined.trained leaves it so",
                "leave out refined.trained, or fresh",
            )
        for name in (BASE, LONGER):
            if name in self.rows:
                raise wrong(f"a row cannot be called {name}, there is one already", "rename it")
        named = {"silent": self.silent} | {f"rows.{key}.silent": row.silent for key, row in self.rows.items()}
        for where, silent in named.items():
            if silent is not None and silent not in self.rows:
                known = ", ".join(self.rows)
                raise wrong(
                    f"{where} is {silent!r}, which is no row; rows: {known}",
                    near(silent, self.rows) or "name the row whose prior says nothing",
                )
        if self.longer and self.longer.like not in self.rows:
            known = ", ".join(self.rows)
            raise wrong(
                f"longer.like is {self.longer.like!r}, which is no row; rows: {known}",
                near(self.longer.like, self.rows) or "name the row whose compute the backbone gets",
            )
        self._has_rows_for_its_tasks()
        return self

    def _has_rows_for_its_tasks(self) -> None:
        for name, row in self.rows.items():
            for task in row.tasks:
                if task not in self.tasks:
                    known = ", ".join(self.tasks)
                    raise wrong(
                        f"rows.{name}.tasks has {task!r}, which is no task; tasks: {known}",
                        near(task, self.tasks) or "name one of them",
                    )
        for task in self.tasks:
            rows = self.rows_of(task)
            if not rows:
                raise wrong(f"no row is made for the task {task!r}", "write a row, or leave the task out")
            # What rows name to be compared with, and what the backbone's compute is counted by.
            named = [row.silent for row in rows.values()] + [self.longer.like if self.longer else None]
            for other in named:
                if other is not None and other not in rows:
                    raise wrong(
                        f"rows of the task {task!r} are compared with {other!r}, which is not made for it",
                        f"add {task!r} to rows.{other}.tasks",
                    )

    def rows_of(self, task: str) -> dict[str, RefinedRowSpec]:
        """Return the rows of a task by name, from top to bottom."""
        return {name: row for name, row in self.rows.items() if not row.tasks or task in row.tasks}

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed of any row, in order."""
        every = {seed for row in self.rows.values() for seed in row.seeds}
        return tuple(sorted(every.union(self.longer.seeds if self.longer else ())))

    def run(self, stage: str, task: str, **filled: Any) -> TrainSpec:
        """Return the config of one run.

        Args:
            stage: ``base`` or ``refined``, the field that holds its keys.
            task: what it is trained for.
            filled: over all these keys.

        Raises:
            ConfigError: a key is unknown or wrong; the path names stage and task.
        """
        own = {"seed": self.seed, "data": self.data.model_dump(mode="json")}
        asked = self.tasks[task]
        if asked.degradation:
            own["degradation"] = asked.degradation.model_dump(mode="json")
        if stage == "refined":
            own["trained"] = ["refiner", "backbone"]
        layers = (own, self.common, getattr(self, stage), asked.common, filled)
        return run_spec(f"{stage} of {task}", *layers)


def _check_names(where: str, names: Iterable[str]) -> None:
    """Names become files."""
    for name in names:
        if not re.fullmatch(r"\w[\w .-]*", name):
            raise wrong(f"{where}: {name!r} is no name for a file", "use letters, digits, blanks and hyphens")
