"""Where the runs and reports of a ``RefinedSpec`` lie, and what each is made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from restorekit import datasets
from restorekit.config import PipelineSpec, check
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ConfigError, ImageError
from restorekit.experiments.compute import Compute
from restorekit.experiments.refinedspec import BASE, LONGER, RefinedSpec
from restorekit.experiments.trainings import Later, Training
from restorekit.plan import NO_PRIOR
from restorekit.training.folder import part_files
from restorekit.training.spec import TrainSpec

PROTOCOL = "paired-rgb"
# What the weights of a row are measured with: all of it; the mean of its prior; its backbone alone.
Way = Literal["", "mean", "apart"]
WAYS: tuple[Way, ...] = ("", "mean", "apart")
TITLES = {BASE: "backbone alone", LONGER: "backbone, trained longer"}


@dataclass(frozen=True)
class Layout:
    """The runs of refiners under several priors, and where their results lie.

    Attributes:
        spec: what is to be made.
        folder: of all its runs.
        device: where it runs.
    """

    spec: RefinedSpec
    folder: Path
    device: str = "auto"

    def rows(self, task: str) -> tuple[str, ...]:
        """Return all rows of a table but the degraded images, from top to bottom."""
        return (BASE, *([LONGER] if self.spec.longer else []), *self.spec.rows_of(task))

    def seeds(self, row: str) -> tuple[int, ...]:
        """Return by which seeds a row is made."""
        if row == BASE:
            return (self.spec.seed,)
        if row == LONGER:
            return self.spec.longer.seeds if self.spec.longer else ()
        return self.spec.rows[row].seeds

    def ways(self, row: str) -> tuple[Way, ...]:
        """Return how the weights of a row are measured."""
        asked = self.spec.rows.get(row)
        if asked is None:
            return ("",)
        return ("", *(("mean",) if asked.mean else ()), *(("apart",) if asked.apart else ()))

    def title(self, row: str) -> str:
        """Return what tables and messages call a row."""
        return TITLES.get(row) or self.spec.rows[row].title or row

    def _folder(self, task: str, row: str, seed: int) -> Path:
        return self.folder / task / (BASE if row == BASE else f"{row}-{seed}")

    # What is trained.

    def base(self, task: str) -> Training:
        """Return the run of the backbone alone."""
        spec = self.spec.run("base", task, backbone=self.spec.backbone.model_dump())
        return Training(f"{task}: {TITLES[BASE]}", spec, self.folder / task / BASE, self.device)

    def _backbone(self, task: str) -> dict[str, Any]:
        """Return the backbone that everything else goes on from, or begins with as the one alone did."""
        return self.spec.backbone.model_dump() if self.spec.fresh else self._alone(task)

    def _alone(self, task: str) -> dict[str, Any]:
        """Return the backbone of the first row."""
        own = self.spec.backbone.model_dump()
        return own if self.spec.base is None else {**own, "weights": str(self.base(task).result)}

    def refined_spec(self, task: str, row: str, seed: int, **filled: Any) -> TrainSpec:
        """Return the config of a row's run, with ``filled`` in the place of its own keys."""
        own, asked = self.spec.refiner, self.spec.rows[row]
        refiner = {**own.model_dump(), "params": {**own.params, **asked.refiner}}
        given = {"refiner": refiner, "prior": asked.prior.model_dump(), "seed": seed}
        return self.spec.run("refined", task, **{"backbone": self._backbone(task), **given, **filled})

    def refined(self, task: str, row: str, seed: int, *, tried: bool = False) -> Training:
        """Return the run of a row; with ``tried``, its networks are built when it is checked."""
        parts = ["refiner", "backbone"]
        fresh = {"backbone": self.spec.backbone.model_dump(), "trained": parts}
        return Training(
            f"{task}: {self.title(row)}, seed {seed}",
            self.refined_spec(task, row, seed),
            self._folder(task, row, seed),
            self.device,
            self.refined_spec(task, row, seed, **fresh) if tried else None,
        )

    def compute(self, task: str, row: str) -> Compute:
        """Return the job that counts what a row's steps cost."""
        spec = self.refined_spec(task, row, self.spec.rows[row].seeds[0])
        file = self.folder / task / "compute" / f"{row}.json"
        return Compute(f"{task}: compute of {self.title(row)}", spec, file)

    def later(self, task: str, seed: int) -> Later:
        """Return the job of the backbone trained longer, which waits for its steps to be counted."""
        assert self.spec.longer is not None
        return Later(
            self._longer_name(task, seed),
            self._folder(task, LONGER, seed),
            self.compute(task, self.spec.longer.like).result,
            partial(self._longer, task, seed),
        )

    def _longer_name(self, task: str, seed: int) -> str:
        return f"{task}: {TITLES[LONGER]}, seed {seed}"

    def _longer(self, task: str, seed: int) -> Training:
        """Return the run that goes on as a refined one, without the refiner; once steps are counted."""
        assert self.spec.longer is not None
        like = self.refined_spec(task, self.spec.longer.like, seed)
        steps = self.counted(task, self.spec.longer.like)["steps"]
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
            self._longer_name(task, seed),
            check(TrainSpec, document, f"{LONGER} of {task}"),
            self._folder(task, LONGER, seed),
            self.device,
        )

    def counted(self, task: str, row: str) -> dict[str, Any]:
        """Return what a row's steps cost, once they are counted."""
        facts: dict[str, Any] = json.loads(self.compute(task, row).result.read_text(encoding="utf-8"))
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

    def report(self, task: str, row: str, seed: int, column: str, way: Way) -> Path:
        """Return the file of what was measured."""
        return self.folder / task / "reports" / way / f"{row}-{seed}-{column}.json"

    def pipeline(self, task: str, row: str, seed: int, way: Way) -> PipelineSpec:
        """Return what restores the test images, of weights that the runs end with."""
        if row in (BASE, LONGER):
            step = self._alone(task)
            if row == LONGER:
                step["weights"] = str(self.later(task, seed).result)
            return PipelineSpec.parse({"steps": [{"restore": step}]})
        run = self.refined(task, row, seed)
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
