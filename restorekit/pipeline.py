"""The workshop: builds a chain from a spec and runs it on images.

It finds components through the registry and knows none by name. Building networks is building.py, running one
of them steps.py.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from restorekit import plan
from restorekit.building import Priors
from restorekit.cache import downloads
from restorekit.config import PipelineSpec, TileSpec, check
from restorekit.contracts import Backbone, Prior, PriorFeatures, Refiner
from restorekit.download import Progress as Downloading
from restorekit.download import ensure
from restorekit.errors import ConfigError
from restorekit.image import Image
from restorekit.licences import check_licences, resolve_policy
from restorekit.plan import Part
from restorekit.result import RestoreResult, StepRecord
from restorekit.runtime import resolve_device, resolve_dtype
from restorekit.steps import Conditions, Step

log = logging.getLogger(__name__)

# Called with the step's component, tiles done and tiles in all.
Progress = Callable[[str, int, int], None]


class Pipeline:
    """A chain of networks, built and ready to restore any number of images.

    Args:
        steps: the built steps in order.
        spec: what they were built from.
        device: where they run.
        dtype: precision they run in.
    """

    def __init__(
        self, steps: Sequence[Step], spec: PipelineSpec, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.steps, self.spec, self.device, self.dtype = tuple(steps), spec, device, dtype

    @classmethod
    def build(
        cls,
        spec: PipelineSpec,
        device: str = "auto",
        dtype: str = "auto",
        *,
        license_policy: str | None = None,
        offline: bool | None = None,
        downloading: Downloading | None = None,
        features: Path | None = None,
    ) -> Self:
        """Build every network of a spec and load its weights; those that are not here are downloaded.

        Args:
            spec: the pipeline.
            device: auto, cpu, cuda, cuda:N or mps.
            dtype: auto, fp32, bf16 or fp16.
            license_policy: permissive, noncommercial or any; RESTOREKIT_LICENSE_POLICY when None. What it
                does not allow is refused before anything is downloaded.
            offline: download nothing; as RESTOREKIT_OFFLINE or HF_HUB_OFFLINE say when None.
            downloading: called with a name, bytes done and bytes in all while weights come in.
            features: folder where what priors say of images is kept for another run; see ``featurecache``.

        Raises:
            LicenceError: the policy does not allow a component or its weights.
            OutputError: the folder of features cannot be written to.
            RestoreKitError: a name, an argument, a file of weights, the device or the precision is wrong, or
                a refiner stands behind a network that enlarges.
        """
        where = resolve_device(device)
        precision = resolve_dtype(dtype, where)
        planned = plan.parts(spec)
        every_part = [part for step in planned for part in step]
        for notice in check_licences(every_part, resolve_policy(license_policy)):
            _say_once(notice)
        # Priors and bridges find their files by themselves.
        with downloads(offline=offline):
            priors = Priors(features)
            steps = [Step([_present(part, downloading) for part in parts], priors) for parts in planned]
        for before, step in zip([None, *steps[:-1]], steps, strict=True):
            if isinstance(step.network, Refiner) and step.network.inside:
                step.put_inside(before)
        _check_sizes(steps)
        return cls(steps, spec, where, precision)

    def __call__(
        self,
        image: Image,
        *,
        tile: int | str | TileSpec = "auto",
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> RestoreResult:
        """Restore one image.

        Args:
            image: degraded; values outside [0, 1] reach the first network as they are.
            tile: ``auto`` for what the pipeline says, 0 for the whole image, or a side in pixels.
            seed: of torch's generators during the run; they are put back afterwards.
            progress: called after every tile.

        Raises:
            RestoreKitError: the image cannot be restored by this pipeline; the message says why.
        """
        settings = self.spec.tile
        if isinstance(tile, TileSpec):
            settings = tile
        elif tile != "auto":
            settings = check(TileSpec, {"size": tile, "overlap": settings.overlap}, "tile")
        degraded = current = image.pixels[None]
        described: dict[Prior, PriorFeatures] = {}
        records: list[StepRecord] = []
        with torch.inference_mode(), torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for step in self.steps:
                name = step.parts[0].entry.name
                report = _reporter(progress, name)
                conditions = Conditions(self.device, self.dtype, settings, report, [], described=described)
                current, record = step.run(degraded, current, conditions)
                records.append(record)
        warnings = [
            *image.notes,
            *(f"{record.component}: {event}" for record in records for event in record.events),
        ]
        return RestoreResult(image.replace_pixels(current[0]), tuple(records), self.spec, tuple(warnings))

    def look(self, image: Image) -> tuple[Image, dict[str, dict[str, Tensor]]]:
        """Return the restored image, and what its components offer to look at on the way.

        Args:
            image: degraded; networks are run on the whole of it to be looked at.

        Returns:
            the restored image, and for each step, as ``1 ptgrm``, maps (1, D, h, w) or (1, D) by name.
        """
        degraded = current = image.pixels[None]
        looks: dict[str, dict[str, Tensor]] = {}
        described: dict[Prior, PriorFeatures] = {}
        with torch.inference_mode():
            for number, step in enumerate(self.steps, 1):
                conditions = Conditions(
                    self.device,
                    self.dtype,
                    self.spec.tile,
                    lambda done, total: None,
                    [],
                    described=described,
                )
                name = "+".join(part.entry.name for part in step.parts)
                looks[f"{number} {name}"] = step.maps(degraded, current, conditions)
                current, _ = step.run(degraded, current, conditions)
        return image.replace_pixels(current[0]), looks


@functools.cache
def _say_once(notice: str) -> None:
    """Warn, once in a process: experiments build pipelines of the same weights again and again."""
    log.warning("%s", notice)


def _check_sizes(steps: Sequence[Step]) -> None:
    """Refuse a refiner whose two images would differ in size: the degraded one is the pipeline's input."""
    enlarging: Step | None = None
    for step in steps:
        main = step.parts[0]
        if isinstance(step.network, Backbone):
            enlarging = step if step.network.scale > 1 else enlarging
        elif enlarging and not step.network.inside:
            before = enlarging.parts[0]
            raise ConfigError(
                main.where,
                f"{main.entry.name} compares the restored image with the degraded one, and {before.where}, "
                f"{before.entry.name}, enlarges it",
                "put the refine step before it",
            )


def _reporter(progress: Progress | None, name: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if progress:
            progress(name, done, total)

    return report


def _present(part: Part, downloading: Downloading | None) -> Part:
    """Return a part whose weights are on this machine."""
    if part.checkpoint is None:
        return part
    return replace(part, checkpoint=ensure(part.checkpoint, progress=downloading))
