"""Runs of `restorekit train` as jobs of an experiment, and the weights that such a run would begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from restorekit.errors import TrainingError
from restorekit.experiments.jobs import Job, Report
from restorekit.training.build import build_networks, find_parts, sketch
from restorekit.training.data import Batches, load_source
from restorekit.training.export import export
from restorekit.training.folder import RunFolder, differences, read_run
from restorekit.training.loop import prepare
from restorekit.training.sources import Source
from restorekit.training.spec import DataSpec, StageSpec, TrainSpec


class _Run(Job):
    """A run of `restorekit train` in a folder of its own."""

    folder: Path

    @property
    def result(self) -> Path:
        """Weights of the run."""
        return RunFolder(self.folder).weights

    @property
    def place(self) -> Path:
        """The folder of the run."""
        return self.folder

    @property
    def is_begun(self) -> bool:
        """Whether the run has a checkpoint."""
        return RunFolder(self.folder).in_use or self.result.exists()


@dataclass(frozen=True)
class Training(_Run):
    """A run of `restorekit train`.

    Attributes:
        name: of the run, also its folder's.
        spec: its config.
        folder: of the run.
        device: where it runs.
        trial: a config whose networks are built when this is checked, the weights of their priors read; of a
            run whose own config names weights that are not there yet.
        sketch: likewise, of which an adapter is put on a backbone, both without values.
    """

    name: str
    spec: TrainSpec
    folder: Path
    device: str = "auto"
    trial: TrainSpec | None = None
    sketch: TrainSpec | None = None

    @property
    def told(self) -> object:
        """The config; it names weights and scores."""
        return self.spec.model_dump(mode="json")

    def check(self) -> None:
        """Look the components up, cut a patch, and compare a begun run with this config."""
        find_parts(_unloaded(self.spec))
        if RunFolder(self.folder).in_use:
            for key, ours, theirs in differences(self.spec, read_run(self.folder).spec):
                raise TrainingError(
                    f"{self.folder} was trained with {key} {theirs}, the experiment says {ours}",
                    "name another folder with -o, or remove that one",
                )
        if self.result.exists():
            return
        can_cut(self.spec, self.spec.stages)
        if self.trial:
            build_networks(self.trial)
        elif self.sketch or not (self.spec.adapter or self.spec.refiner):
            sketch(self.sketch or _unloaded(self.spec))

    def run(self, report: Report) -> None:
        """Train to the last step."""
        run = prepare(self.spec, self.folder, self.device, resume=RunFolder(self.folder).in_use)
        run.train(lambda step, row: report(step, self.spec.steps))


@dataclass(frozen=True)
class Later(_Run):
    """A run whose config hangs on what a job before it finds.

    Attributes:
        name: of the run.
        folder: of the run.
        found: the file that has to be there first.
        training: gives the run when that file is there.
    """

    name: str
    folder: Path
    found: Path
    training: Callable[[], Training]

    @property
    def told(self) -> object:
        """What the run is told, and what its config hangs on."""
        return [str(self.found), self.training().told if self.found.exists() else None]

    def check(self) -> None:
        """Check the run where its config is known."""
        if self.found.exists():
            self.training().check()

    def run(self, report: Report) -> None:
        """Train to the last step."""
        self.training().run(report)


@dataclass(frozen=True)
class Initial(Job):
    """The weights that a run would begin with.

    Attributes:
        name: of the run.
        spec: its config; of a part that has values before it is trained.
        file: of the weights.
    """

    name: str
    spec: TrainSpec
    file: Path

    @property
    def result(self) -> Path:
        """The weights."""
        return self.file

    @property
    def asked(self) -> Mapping[str, Any]:
        """The config."""
        return self.spec.model_dump(mode="json", include={"backbone", "adapter", "refiner", "prior"})

    @property
    def told(self) -> object:
        """The config; it names weights and scores."""
        return self.asked

    def check(self) -> None:
        """Look the components up."""
        find_parts(_unloaded(self.spec))

    def run(self, report: Report) -> None:
        """Build the networks, and write what would be trained."""
        networks = build_networks(self.spec)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        export(networks.trainee, networks.parts, self.file, step=0, half=self.spec.half)


def can_cut(spec: TrainSpec, stages: Iterable[StageSpec]) -> None:
    """Look whether the photographs of a run are large enough for patches, before others take their hours.

    Raises:
        TrainingError: they are not, or there are none.
    """
    source = _source(spec.data.model_dump_json())
    # Of a network that enlarges they have to be larger still, which its own run finds.
    batches = Batches(source, spec.noise, spec.seed, spec.augment, 3, 1, spec.kinds, spec.balanced)
    batches.check(stages)


@lru_cache(maxsize=1)
def _source(data: str) -> Source:
    return load_source(DataSpec.model_validate_json(data))


def _unloaded(spec: TrainSpec) -> TrainSpec:
    """Weights of a job before this one are not there yet when jobs are checked."""
    parts = {"backbone": spec.backbone, "adapter": spec.adapter}
    update = {name: part.model_copy(update={"weights": None}) for name, part in parts.items() if part}
    return spec.model_copy(update=update)
