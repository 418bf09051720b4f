"""A pipeline measured on test images, as a job of an experiment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from restorekit import datasets
from restorekit.api import restore
from restorekit.config import PipelineSpec
from restorekit.contracts import Refiner
from restorekit.datasets import Sample
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ConfigError, TrainingError
from restorekit.evaluation.protocols import find_protocol
from restorekit.evaluation.run import by_recipe, evaluate, fingerprint
from restorekit.experiments.jobs import Job, Report
from restorekit.files import write_text
from restorekit.pipeline import Pipeline


@dataclass(frozen=True)
class Measurement(Job):
    """A pipeline on one set of test images: a report as `restorekit eval --json` prints it.

    Attributes:
        name: what is measured.
        pipeline: gives the pipeline; the files that it names are there when this runs.
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
    def told(self) -> object:
        """The pipeline; it names weights."""
        return self.pipeline().model_dump(mode="json")

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
