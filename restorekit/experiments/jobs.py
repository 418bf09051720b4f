"""The pieces of an experiment, and running them in order: what is made already is left alone."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import nn

from restorekit import datasets
from restorekit.api import restore
from restorekit.config import PipelineSpec
from restorekit.contracts import Refiner
from restorekit.datasets import Sample
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ConfigError, RestoreKitError, TrainingError
from restorekit.evaluation.protocols import find_protocol
from restorekit.evaluation.run import by_recipe, evaluate, fingerprint
from restorekit.experiments.notes import Note, named_files
from restorekit.files import ensure_writable, write_text
from restorekit.pipeline import Pipeline
from restorekit.training.build import build_networks, find_parts, sketch
from restorekit.training.data import Batches, load_source
from restorekit.training.export import export
from restorekit.training.folder import RunFolder, differences, read_run
from restorekit.training.loop import prepare
from restorekit.training.sources import Source
from restorekit.training.spec import DataSpec, StageSpec, TrainSpec

# Called with steps done and steps in all of one job.
Report = Callable[[int, int], None]


class Job(ABC):
    """One piece of an experiment. It is made when the file it ends with is there.

    Attributes:
        name: what messages call it.
    """

    name: str

    @property
    @abstractmethod
    def result(self) -> Path:
        """The file it ends with, written as a whole."""

    @abstractmethod
    def check(self) -> None:
        """Refuse what can be seen to be wrong before anything runs.

        Raises:
            RestoreKitError: a name or an argument is wrong, or the folder holds another experiment's result.
        """

    @abstractmethod
    def run(self, report: Report) -> None:
        """Make the result; go on where a killed run was."""

    @property
    def asked(self) -> Mapping[str, Any]:
        """Settings that the result hangs on, where no file of its own states them."""
        return {}

    @property
    def reads(self) -> Iterable[Path]:
        """Files that the result hangs on, once the jobs before it are done."""
        return ()

    @property
    def place(self) -> Path:
        """What to remove to have it made again."""
        return self.result

    @property
    def is_begun(self) -> bool:
        """Whether there is something to go on from, or the result."""
        return self.result.exists()

    @property
    def note(self) -> Note:
        """What the result would be made of now."""
        return Note.of(self.result, self.asked, self.reads)

    @property
    def difference(self) -> str:
        """What was not so when the result was made, in words; empty where it still holds."""
        then = Note.beside(self.result) if self.is_begun else None
        return self.note.difference(then) if then else ""


def run_all(jobs: Sequence[Job], begin: Callable[[Job], Report]) -> None:
    """Check every job, then make those that are not made, in order.

    Args:
        jobs: in an order in which each finds what it needs.
        begin: called before a job runs; returns what its progress is reported to.

    Raises:
        TrainingError: a result that is there was made of other weights or settings; so are named all those
            that were made of it.
        RestoreKitError: a job cannot be done; those before it are kept.
    """
    for job in jobs:
        try:
            job.check()
        except RestoreKitError as error:
            # Jobs are alike, and what is wrong with one is no secret of the others.
            error.message = f"{job.name}: {error.message}"
            raise
    for index, job in enumerate(jobs):
        _refuse_stale(jobs[index:])
        if job.result.exists():
            continue
        ensure_writable(job.result.parent)
        # Two processes may share the work of one experiment, and what both need is made by one of them.
        with FileLock(job.result.with_name(f".{job.result.name}.lock")):
            if not job.result.exists():
                if not job.is_begun:
                    job.note.write(job.result)
                job.run(begin(job))


def _refuse_stale(jobs: Sequence[Job]) -> None:
    """Refuse the first job's result where it was made of something else, and what was made of that result."""
    first, *later = jobs
    difference = first.difference
    if not difference:
        return
    stale = [first]
    for job in (job for job in later if job.is_begun):
        made = {each.result.resolve() for each in stale}
        if job.difference or made & {file.resolve() for file in job.reads}:
            stale.append(job)
    places = " ".join(dict.fromkeys(str(job.place) for job in stale))
    raise TrainingError(
        f"{first.place} was made with {difference}",
        f"name another folder with -o, or have it made again: remove {places}",
    )


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
    def reads(self) -> Iterable[Path]:
        """Weights and scores that the config names."""
        return named_files(self.spec.model_dump(mode="json"))

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
    def reads(self) -> Iterable[Path]:
        """What the run reads, and what its config hangs on."""
        return (self.found, *self.training().reads) if self.found.exists() else ()

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
    def reads(self) -> Iterable[Path]:
        """Weights and scores that the config names."""
        return named_files(self.asked)

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


@dataclass(frozen=True)
class Measurement(Job):
    """A pipeline on one set of test images: a report as `restorekit eval --json` prints it.

    Attributes:
        name: what is measured.
        pipeline: gives the pipeline, when the files it needs are made.
        data: folder of clean images, or of pairs where there is no degradation.
        protocol: by which it is measured.
        file: of the report.
        degradation: what is done to clean images; None for pairs and for protocols that degrade themselves.
        settings: of the protocol.
        seed: of the degradation.
        limit: how many images, the first ones; None for all.
        device: where it runs.
        features: folder where what priors say of the images is kept for other measurements of them.
    """

    name: str
    pipeline: Callable[[], PipelineSpec]
    data: Path
    protocol: str
    file: Path
    degradation: RecipeSpec | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    limit: int | None = None
    device: str = "auto"
    features: Path | None = None

    @property
    def result(self) -> Path:
        """The report."""
        return self.file

    @property
    def reads(self) -> Iterable[Path]:
        """Weights that the pipeline names."""
        return named_files(self.pipeline().model_dump(mode="json"))

    def check(self) -> None:
        """Look for the images and the protocol, and compare a report that is there with what is asked."""
        if find_protocol(self.protocol).ignores_pairs and self.degradation:
            raise ConfigError(self.name, f"protocol {self.protocol} degrades by itself", "leave one out")
        if not self._samples:
            raise ConfigError(self.name, f"{self.data} holds no images", "give a folder with images")
        if not self.file.exists():
            return
        stated = json.loads(self.file.read_text(encoding="utf-8"))
        for key, ours in self._asked.items():
            theirs = stated.get("asked", self._asked).get(key)
            if ours != theirs:
                raise TrainingError(
                    f"{self.file} was measured with {key} {theirs}, the experiment says {ours}",
                    "name another folder with -o, or remove that file",
                )
        if stated["dataset_sha256"] != fingerprint(self._samples):
            raise TrainingError(
                f"{self.file} was measured on other images than those in {self.data}",
                "name another folder with -o, or remove that file",
            )

    @property
    def _samples(self) -> tuple[Sample, ...]:
        layout = "clean" if self.degradation else None
        return tuple(datasets.find(self.data, layout).samples[: self.limit])

    @property
    def _asked(self) -> dict[str, Any]:
        """What figures depend on beside the pipeline and the images, as a file would hold it."""
        recipe = self.degradation.model_dump(mode="json") if self.degradation else None
        asked = {"degradation": recipe, "settings": dict(self.settings), "seed": self.seed}
        return {**json.loads(json.dumps(asked)), "protocol": self.protocol, "limit": self.limit}

    def run(self, report: Report) -> None:
        """Restore and score every image."""
        law = find_protocol(self.protocol)
        samples = self._samples
        chain = Pipeline.build(self.pipeline(), self.device, features=self.features)
        done = iter(range(1, len(samples) + 1))
        measured = evaluate(
            lambda degraded: restore(degraded, chain, tile=0),
            samples,
            law,
            law.with_settings(self.settings),
            lambda outcome: report(next(done), len(samples)),
            degrader=by_recipe(self.degradation, self.seed) if self.degradation else None,
        )
        checkpoints = [part.checkpoint for step in chain.steps for part in step.parts if part.checkpoint]
        networks = [step.network for step in chain.steps]
        refiners = [network for network in networks if isinstance(network, Refiner)]
        facts = {
            **measured.facts(),
            "asked": self._asked,
            "parameters": _count(networks),
            "refiner_parameters": _count(refiners),
            "weights_sha256": {checkpoint.name: checkpoint.sha256 for checkpoint in checkpoints},
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps(facts, indent=1) + "\n")


def _count(networks: Iterable[nn.Module]) -> int:
    return sum(value.numel() for network in networks for value in network.parameters())
