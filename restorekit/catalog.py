"""What is known of checkpoints without torch: declarations, files, hashes, names and shapes inside.

Distributions declare checkpoints through the entry-point group ``restorekit.weights``. The declaring module
holds data only; it is imported to list what it declares, so it must not import torch. Downloading files is
download.py, putting tensors into networks is weights.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from restorekit import cache
from restorekit.errors import WeightsError, near
from restorekit.registry import priors, weights

# A safetensors header larger than this is not one: the format caps it.
HEADER_LIMIT = 100_000_000
# Names in the metadata of safetensors files that `weights convert` writes; "license" is the hub's spelling.
PARAMS_KEY, COMPONENT_KEY, LICENCE_KEY = "restorekit.params", "restorekit.component", "license"
# The prior that a refiner was trained with: name, params and, where it has one, fingerprint, as JSON.
PRIOR_KEY = "restorekit.prior"
# The mean of what that prior said of the images of the training, as JSON.
PRIOR_MEAN_KEY = "restorekit.prior_mean"
# How a reference to a file on the model hub begins.
HUB = "hf://"
# How the default weights of a prior are named.
_PRIOR = "prior:"


@dataclass(frozen=True)
class Figure:
    """One published figure of a checkpoint.

    Attributes:
        dataset: on which images.
        protocol: id of the evaluation protocol, which fixes colour space, rounding and crop; after a comma
            the metric that ``ssim`` is, where it is another than the protocol's ``ssim``.
        psnr: in dB.
        ssim: None where it was not published.
        source: where it was read; "recalled" means that it was not read from the publication itself.
    """

    dataset: str
    protocol: str
    psnr: float
    ssim: float | None = None
    source: str = ""


@dataclass(frozen=True)
class Need:
    """One file that a pretrained model of several files needs.

    Attributes:
        names: what it may be called, best first; one of them is enough. A name that ends in ``.index.json``
            stands for the shards that it lists.
        tensors: of shards, only those are needed that hold tensors whose names begin so; all when empty.
    """

    names: tuple[str, ...]
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """One published checkpoint.

    Attributes:
        component: name of the backbone (or adapter, refiner, prior) that it belongs to.
        tag: short name, unique for the component: ``weights: <tag>`` in a pipeline.
        licence: SPDX expression for the weights, which may differ from the code's.
        source: who trained it, and the page where it is published.
        task: what it restores.
        params: constructor arguments it was trained with.
        training: what it was trained on.
        file: of the distribution, for bundled weights; None for those that are downloaded.
        urls: where it is downloaded from, the first that works; ``hf://owner/repository/file@revision`` or
            http. Empty where the publisher offers a page for people only.
        filename: what the downloaded file is called; that of the first URL when not given.
        sha256: of the file, in hexadecimal; None where the publisher states none.
        size: of the file in bytes, as far as it is known; a guide, never a check.
        parameters: how many values it holds.
        memory_per_pixel: bytes of working memory for each pixel that is run at a time, in float32.
        figures: what its publisher measured.
        reference: of a model of several files, as a prior takes it (``hub:owner/repository``, references.py);
            it has no ``urls`` then, and the files are kept in the hub's cache.
        needs: which of these files are used; nothing else is downloaded.
        default: whether the prior uses it when it is told nothing.
    """

    component: str
    tag: str
    licence: str
    source: str
    task: str
    params: Mapping[str, object] = field(default_factory=dict)
    training: str = ""
    file: Path | None = None
    urls: tuple[str, ...] = ()
    filename: str = ""
    sha256: str | None = None
    size: int | None = None
    parameters: int | None = None
    memory_per_pixel: int | None = None
    figures: tuple[Figure, ...] = ()
    reference: str = ""
    needs: tuple[Need, ...] = ()
    default: bool = False

    @property
    def name(self) -> str:
        """``component/tag``."""
        return f"{self.component}/{self.tag}"

    @property
    def path(self) -> Path:
        """Where it is on this machine, or will be once it was downloaded."""
        if self.file is not None:
            return self.file
        guessed = urlsplit(self.urls[0]).path.rpartition("/")[2].partition("@")[0] if self.urls else ""
        return cache.place(self.name, self.filename or guessed or "weights.pth")


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights that a pipeline uses.

    Attributes:
        name: ``component/tag`` when it is declared, else the path or the hub reference as given.
        path: the file, which may still have to be downloaded; None for a hub reference before that.
        declared: what its distribution says of it, if any does.
    """

    name: str
    path: Path | None
    declared: Pretrained | None = None

    @property
    def is_here(self) -> bool:
        """Whether the file is on this machine."""
        return self.path is not None and self.path.is_file()

    @property
    def file(self) -> Path:
        """The file.

        Raises:
            WeightsError: it has to be downloaded first.
        """
        if self.path is None or not self.path.is_file():
            raise WeightsError(
                f"weights {self.name} are not on this machine",
                f"run `restorekit weights download {self.name}`",
            )
        return self.path

    @property
    def params(self) -> Mapping[str, object]:
        """Constructor arguments that fit the file: as declared, or as ``weights convert`` wrote them."""
        if self.declared:
            return self.declared.params
        stated = self.metadata().get(PARAMS_KEY, "{}")
        try:
            return dict(json.loads(stated))
        except (ValueError, TypeError) as error:
            raise WeightsError(
                f"{self.path} says {stated[:60]!r} of its constructor arguments: {error}",
                "give them as `params` in the pipeline, and convert the file again",
            ) from error

    @property
    def licence(self) -> str:
        """SPDX expression, or ``unknown``."""
        return self.declared.licence if self.declared else self.metadata().get(LICENCE_KEY, "unknown")

    @property
    def expected_sha256(self) -> str | None:
        """Hash that the file should have: as declared, or else as pinned by its first download."""
        if self.declared is None or self.declared.sha256:
            return self.declared.sha256 if self.declared else None
        pin = cache.Pins().get(self.name)
        return pin.sha256 if pin else None

    @cached_property
    def sha256(self) -> str:
        """Hash of the file, read once, and compared with the expected one.

        Raises:
            WeightsError: the file is missing, cannot be read, or is not the expected one.
        """
        try:
            with self.file.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(
                f"{self.path} cannot be read: {error}", "check the file's permissions"
            ) from error
        expected = self.expected_sha256
        if expected and found != expected:
            bundled = self.declared is not None and self.declared.file is not None
            raise WeightsError(
                f"weights {self.name}: {self.path} has sha256 {found[:16]}..., expected is "
                f"{expected[:16]}...",
                "install the distribution again; the file was changed or damaged"
                if bundled
                else f"run `restorekit weights remove {self.name}` and download it again",
            )
        return found

    def metadata(self) -> dict[str, str]:
        """Return what a safetensors file says of itself; nothing for other formats and files not yet here.

        Raises:
            WeightsError: the file is damaged.
        """
        if self.path is None or self.path.suffix != ".safetensors" or not self.path.is_file():
            return {}
        return dict(self._header().get("__metadata__", {}))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes inside a safetensors file, read from its header alone.

        Raises:
            WeightsError: the file is damaged or of another format.
        """
        header = self._header()
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}

    def parameter_count(self) -> int:
        """Return how many floating-point values the file holds: indices, counts and hashes are none."""
        entries = (entry for name, entry in self._header().items() if name != "__metadata__")
        numbers = [entry for entry in entries if str(entry.get("dtype")).startswith(("F", "BF"))]
        return sum(math.prod(entry["shape"]) for entry in numbers)

    def _header(self) -> dict[str, Any]:
        path = self.file
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 0 < length <= HEADER_LIMIT:
                    raise ValueError("it has no safetensors header")
                header = json.loads(file.read(length))
            for name, entry in header.items():
                _ = entry if name == "__metadata__" else tuple(entry["shape"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{path} is no safetensors file: {error}", "give a .safetensors file that is whole"
            ) from error
        return dict(header)


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
    """Return the weights of a component by tag, by the path of a file, or by a hub reference.

    The file of a tag or a reference may still have to be downloaded; see ``Checkpoint.is_here``.

    Args:
        component: name of the backbone, adapter, refiner or prior.
        reference: tag of declared weights, path of a file, or ``hf://owner/repository/file@revision``.

    Raises:
        WeightsError: nothing is declared or found there; with near tags.
    """
    known = {item.tag: item for item in declared() if item.component == component}
    if reference in known:
        item = known[reference]
        if item.reference:
            raise WeightsError(
                f"weights {item.name} are several files, which {component} reads by itself",
                f"write params: {{reference: {item.tag}}} instead of weights",
            )
        if item.file is not None and not item.file.is_file():
            raise WeightsError(
                f"weights {item.name}: {item.file} is missing", "install the distribution again"
            )
        return Checkpoint(item.name, item.path, item)
    if reference.startswith(HUB):
        return Checkpoint(reference, None)
    path = Path(reference)
    if path.is_file():
        return Checkpoint(reference, path)
    looks_like_a_path = len(path.parts) > 1 or path.suffix
    tags = ", ".join(known) or "none"
    raise WeightsError(
        f"no file {reference}"
        if looks_like_a_path
        else f"{component} has no weights called {reference!r}; has: {tags}",
        near(reference, known) or "give a tag that `restorekit weights list` prints, or the path of a file",
    )


def by_name(name: str) -> Pretrained:
    """Return declared weights by ``component/tag``; ``prior:NAME`` are those that a prior uses by default.

    Raises:
        WeightsError: nothing is declared under that name; with near names.
        UnknownComponentError: there is no such prior.
    """
    known = {item.name: item for item in declared()}
    if name.startswith(_PRIOR):
        component = name.removeprefix(_PRIOR)
        own = [item for item in known.values() if item.component == component]
        if default := next((item for item in own if item.default), None):
            return default
        _ = priors[component]
        raise WeightsError(
            f"prior {component!r} has no weights that it uses by default",
            f"name one of {', '.join(item.name for item in own)}"
            if own
            else f"name its weights where it is used; `restorekit info {component}` prints its arguments",
        )
    if name not in known:
        raise WeightsError(
            f"no weights are called {name!r}",
            near(name, known) or "`restorekit weights list` prints every name",
        )
    return known[name]
