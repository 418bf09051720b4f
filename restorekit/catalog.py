"""What is known of checkpoints without torch: declarations, files, hashes, names and shapes inside.

Distributions declare checkpoints through the entry-point group ``restorekit.weights``. The declaring module
holds data only; it is imported to list what it declares, so it must not import torch. Putting tensors into
networks is weights.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from restorekit.errors import WeightsError, near
from restorekit.registry import weights

# A safetensors header larger than this is not one: the format caps it.
HEADER_LIMIT = 100_000_000


@dataclass(frozen=True)
class Pretrained:
    """One published checkpoint.

    Attributes:
        component: name of the backbone (or adapter, refiner, prior) that it belongs to.
        tag: short name, unique for the component: ``weights: <tag>`` in a pipeline.
        file: where it is on this machine; for bundled weights, a file of the distribution.
        sha256: of that file, in hexadecimal.
        licence: SPDX expression for the weights, which may differ from the code's.
        source: who trained it, where, on what.
        task: what it restores.
        memory_per_pixel: bytes of working memory for each pixel that is run at a time, in float32.
        params: constructor arguments it was trained with.
    """

    component: str
    tag: str
    file: Path
    sha256: str
    licence: str
    source: str
    task: str
    memory_per_pixel: int
    params: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``component/tag``."""
        return f"{self.component}/{self.tag}"


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights that a pipeline uses.

    Attributes:
        name: ``component/tag`` when it is declared, else the path as given.
        path: the file; it exists.
        declared: what its distribution says of it, if any does.
    """

    name: str
    path: Path
    declared: Pretrained | None = None

    @property
    def params(self) -> Mapping[str, object]:
        """Constructor arguments that fit the file; empty when nobody declared them."""
        return self.declared.params if self.declared else {}

    @property
    def licence(self) -> str:
        """SPDX expression, or ``unknown``."""
        return self.declared.licence if self.declared else "unknown"

    @cached_property
    def sha256(self) -> str:
        """Hash of the file, read once, and compared with the declared one.

        Raises:
            WeightsError: the file cannot be read or is not the one that was declared.
        """
        try:
            with self.path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(
                f"{self.path} cannot be read: {error}", "check the file's permissions"
            ) from error
        if self.declared and found != self.declared.sha256:
            raise WeightsError(
                f"weights {self.name}: {self.path} has sha256 {found[:16]}..., declared is "
                f"{self.declared.sha256[:16]}...",
                "install the distribution again; the file was changed or damaged",
            )
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes inside a safetensors file, read from its header alone.

        Raises:
            WeightsError: the file is damaged or of another format.
        """
        try:
            with self.path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 0 < length <= HEADER_LIMIT:
                    raise ValueError("it has no safetensors header")
                header = json.loads(file.read(length))
            return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{self.path} is no safetensors file: {error}", "give a .safetensors file that is whole"
            ) from error

    def parameter_count(self) -> int:
        """Return how many values the file holds."""
        return sum(math.prod(shape) for shape in self.shapes().values())


def declared() -> tuple[Pretrained, ...]:
    """Return every declared checkpoint of the installed distributions, by name.

    Raises:
        PluginLoadError: a declaring module cannot be imported.
        WeightsError: two distributions declare one name.
    """
    found: dict[str, Pretrained] = {}
    for entry in weights.entries():
        for item in entry.load():
            if item.name in found:
                raise WeightsError(
                    f"weights {item.name} are declared twice", f"uninstall {entry.dist} or the other"
                )
            found[item.name] = item
    return tuple(found[name] for name in sorted(found))


def find(component: str, reference: str) -> Checkpoint:
    """Return the weights of a component by tag, or by the path of a file.

    Args:
        component: name of the backbone, adapter, refiner or prior.
        reference: tag of declared weights, or the path of a file.

    Raises:
        WeightsError: neither is found; with near tags.
    """
    known = {item.tag: item for item in declared() if item.component == component}
    if reference in known:
        item = known[reference]
        if not item.file.is_file():
            raise WeightsError(
                f"weights {item.name}: {item.file} is missing", "install the distribution again"
            )
        return Checkpoint(item.name, item.file, item)
    path = Path(reference)
    if path.is_file():
        return Checkpoint(reference, path)
    looks_like_a_path = len(path.parts) > 1 or path.suffix
    tags = ", ".join(known) or "none"
    raise WeightsError(
        f"no file {reference}"
        if looks_like_a_path
        else f"{component} has no weights called {reference!r}; has: {tags}",
        near(reference, known) or "give a tag that `restorekit list weights` prints, or the path of a file",
    )
