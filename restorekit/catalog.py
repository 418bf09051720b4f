"""What is known of checkpoints without torch: declarations, files, hashes, and the names and shapes inside.

Distributions declare checkpoints through the entry-point group ``restorekit.weights``; the declaring module holds data
only and is imported to list them, so it must not import torch. Loading tensors into networks is weights.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Pretrained:
    """One published checkpoint.

    Attributes:
        component: name of the backbone (or adapter, refiner, prior) that it belongs to.
        tag: short name, unique for the component: ``weights: <tag>`` in a pipeline.
        file: where it is on this machine; for bundled weights, a file of the distribution.
        sha256: of that file.
        licence: SPDX expression for the weights, which may differ from the code's.
        source: who trained it, where, on what.
        params: constructor arguments it was trained with.
        parameters: number of values, for planning.
        memory_per_pixel: bytes of working memory for each pixel run at a time, for planning.
        task: what it restores.
    """

    component: str
    tag: str
    file: Path
    sha256: str
    licence: str
    source: str
    task: str
    params: Mapping[str, object] = field(default_factory=dict)
    parameters: int = 0
    memory_per_pixel: int = 0

    @property
    def name(self) -> str:
        """``component/tag``."""
        return f"{self.component}/{self.tag}"
