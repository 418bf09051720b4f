"""What a restoration gives back: the image, and a record of how it was made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from restorekit.config import PipelineSpec
from restorekit.contracts import Verdict
from restorekit.image import Image


@dataclass(frozen=True)
class PriorRecord:
    """Which prior guided a step.

    Attributes:
        name: of the prior; ``none`` where a mean of the training stood in.
        fingerprint: hash of its files and of all that its features depend on; empty where it cannot tell.
        library: what computed them, with its version; empty where it does not say.
    """

    name: str
    fingerprint: str
    library: str


@dataclass(frozen=True)
class StepRecord:
    """How one step was run.

    Attributes:
        verb: restore or refine.
        component: name of the backbone or refiner; an adapter or prior follows after a plus sign.
        version: of the distribution that it comes from.
        weights: name or path of the weights, None without any.
        weights_sha256: hash of that file.
        parameters: arguments of the constructor.
        tile: side of the tiles in pixels, 0 for the whole image.
        overlap: pixels shared by neighbouring tiles.
        dtype: precision the network ran in.
        device: where it ran.
        seconds: wall time.
        licences: SPDX expressions of the code and weights used.
        events: what did not go as planned, such as a retry with smaller tiles.
        verdict: what the network found the image to suffer from, where it judges.
        prior: what guided a refiner; None for a backbone.
    """

    verb: str
    component: str
    version: str
    weights: str | None
    weights_sha256: str | None
    parameters: dict[str, Any]
    tile: int
    overlap: int
    dtype: str
    device: str
    seconds: float
    licences: tuple[str, ...]
    events: tuple[str, ...] = ()
    verdict: Verdict | None = None
    prior: PriorRecord | None = None


@dataclass(frozen=True)
class RestoreResult:
    """A restored image with its history.

    Attributes:
        image: the restored image.
        steps: one record for each step of the pipeline.
        spec: the pipeline that was run.
        warnings: what the user should know, gathered from reading the image and from the steps.
    """

    image: Image
    steps: tuple[StepRecord, ...]
    spec: PipelineSpec
    warnings: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> float:
        """Wall time of all steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def licences(self) -> tuple[str, ...]:
        """SPDX expressions of all code and weights that were used, each once."""
        return tuple(dict.fromkeys(licence for step in self.steps for licence in step.licences))

    @property
    def verdict(self) -> Verdict | None:
        """What the first network that judges found the image to suffer from; None where none does."""
        return next((step.verdict for step in self.steps if step.verdict), None)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the image; its suffix names the format, depth and metadata are kept where that can hold them.

        Raises:
            OutputError: the file exists and ``overwrite`` is not set, or it cannot be written.
        """
        return self.image.save(path, overwrite=overwrite)

    def to_pil(self) -> PIL.Image.Image:
        """Return an 8-bit PIL image."""
        return self.image.to_pil()

    def to_numpy(self) -> NDArray[Any]:
        """Return an array (H, W, C), or (H, W), in the sample type of the input (8-bit for files)."""
        return self.image.to_array()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.to_numpy(), dtype=dtype)

    def to_json(self) -> str:
        """Return everything but the pixels, as JSON."""
        facts = {
            "width": self.image.pixels.shape[-1],
            "height": self.image.pixels.shape[-2],
            "seconds": round(self.seconds, 3),
            "steps": [asdict(step) for step in self.steps],
            "licences": list(self.licences),
            "warnings": list(self.warnings),
            "pipeline": self.spec.model_dump(mode="json"),
        }
        return json.dumps(facts, indent=2)
