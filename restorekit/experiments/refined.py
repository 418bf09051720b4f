"""From a ``RefinedSpec`` to its jobs: a backbone for each task, refiners behind it, controls, tables.

PTG-RM (Xu et al., CVPR 2024) is trained with its backbone, which therefore learns longer than the backbone
alone did. So its table compares with the backbone trained on by the same compute, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ConfigError, near
from restorekit.experiments.jobs import Job
from restorekit.experiments.measurement import Measurement
from restorekit.experiments.refinedlayout import PROTOCOL, Layout, Way
from restorekit.experiments.refinedspec import BASE, LONGER, RefinedSpec
from restorekit.experiments.refinedtable import RefinedTable

_SAID: Mapping[Way, str] = {"": "", "mean": ", prior's mean instead", "apart": ", its backbone alone"}


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
        self._layout = Layout(spec, folder, device)
        self.tasks = tuple(spec.tasks) if task is None else (task,)
        self._seed = seed

    def jobs(self) -> list[Job]:
        """Return everything to be done, in order.

        Raises:
            ConfigError: a key of a run is wrong, or a task has no test images.
        """
        return [job for task in self.tasks for job in self._of_task(task)]

    def _of_task(self, task: str) -> Iterator[Job]:
        layout, spec = self._layout, self._layout.spec
        columns = layout.columns(task)
        if spec.base is not None:
            yield layout.base(task)
        for row in spec.rows_of(task):
            yield layout.compute(task, row)
        if spec.longer:
            for seed in self._chosen(LONGER):
                yield layout.later(task, seed)
        for row in spec.rows_of(task):
            for seed in self._chosen(row):
                # Nobody should train for hours before a prior turns out not to be there.
                yield layout.refined(task, row, seed, tried=seed == self._chosen(row)[0])
        for row in layout.rows(task):
            for seed in self._chosen(row):
                for column, recipe in columns.items():
                    for way in layout.ways(row):
                        yield self._measurement(task, row, seed, column, recipe, way)

    def _chosen(self, row: str) -> tuple[int, ...]:
        """Return the seeds of a row that are to be made now; the base is what all of them go on from."""
        chosen = self._seed is None or row == BASE
        return tuple(seed for seed in self._layout.seeds(row) if chosen or seed == self._seed)

    def _measurement(
        self, task: str, row: str, seed: int, column: str, recipe: RecipeSpec | None, way: Way
    ) -> Measurement:
        layout, asked = self._layout, self._layout.spec.tasks[task]
        return Measurement(
            f"{task}: {layout.title(row)}{_SAID[way]}, seed {seed}, on {column}",
            partial(layout.pipeline, task, row, seed, way),
            Path(asked.data),
            PROTOCOL,
            layout.report(task, row, seed, column, way),
            recipe,
            seed=asked.seed,
            limit=asked.limit,
            device=layout.device,
            features=layout.folder / task / "features",
        )

    def made(self) -> Made:
        """Gather what is there so far, of the tasks that were asked for."""
        tables = {task: RefinedTable(self._layout, task) for task in self.tasks}
        return Made(
            {task: table.markdown for task, table in tables.items()},
            {"tasks": {task: table.facts for task, table in tables.items()}},
        )
