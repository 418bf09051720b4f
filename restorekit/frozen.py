"""Frozen pretrained models as priors: what all of them share, whichever library computes them.

Preprocessing as tensor operations, precision at the border, no gradients unless they are wanted, no traces
in checkpoints, errors that name what is missing. Where the files of a model are is references.py.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cached_property
from importlib import import_module, metadata
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from torch.nn.modules.batchnorm import _BatchNorm

from restorekit.catalog import Need
from restorekit.contracts import Prior, PriorFeatures
from restorekit.errors import (
    ConfigError,
    ContractError,
    ImageError,
    MemoryLimitError,
    PluginLoadError,
    RestoreKitError,
    WeightsError,
    near,
)
from restorekit.references import Source
from restorekit.runtime import is_out_of_memory
from restorekit.weights import read_tensors

SizeMode = Literal["squash", "long", "dynamic"]

# Images that batch normalisation is told of after weights are shuffled.
_GENERATED = 16
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenPrior(Prior):
    """A frozen network that describes images.

    A subclass builds its network, hands it to ``adopt``, and says in ``describe`` what it sees. It is no part
    of its owner's checkpoints.

    Args:
        mode: ``squash`` to a square, aspect lost; ``long``: the longer side to ``size``; ``dynamic``: as
            large as the image is, up to a longer side of ``size``. Nothing is ever cropped off.
        size: in pixels; that of the network when None, for ``dynamic`` 1024.
        dtype: fp32, bf16 or fp16, of weights and computation.
        differentiable: let gradients through to the image.
        shuffled: seed by which the values of every tensor of weights are put in a random order: a control
            for experiments, with the size and the values of the model and nothing of what it knows. Batch
            normalisation gets the statistics of the shuffled network on generated images: with those of
            the old one its features would be nearly the same for every image.

    Raises:
        ConfigError: the mode, the size, the dtype or the seed is none.
    """

    # Longest side of what a network of any size is given, unless it is told otherwise.
    longest = 1024
    # What a library built: its attributes are its own.
    network: Any
    mean: Tensor
    std: Tensor

    def __init__(
        self, *, mode: str, size: int | None, dtype: str, differentiable: bool, shuffled: int | None = None
    ) -> None:
        super().__init__()
        for what, value, known in (("mode", mode, get_args(SizeMode)), ("dtype", dtype, tuple(_DTYPES))):
            if value not in known:
                hint = near(str(value), known) or f"use {', '.join(known)}"
                raise ConfigError(f"params.{what}", f"is {value!r}", hint)
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ConfigError("params.size", f"is {size!r}", "give a whole number of pixels")
        if not isinstance(shuffled, int | None):
            raise ConfigError("params.shuffled", f"is {shuffled!r}", "give a seed, a whole number")
        self.mode, self.size, self.precision, self.differentiable = mode, size, dtype, differentiable
        self.shuffled, self.multiple, self.least = shuffled, 1, 1
        self._facts: dict[str, Any] = {}
        self._source: Source | None = None
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_put_back)  # type: ignore[no-untyped-call]

    def adopt(
        self,
        network: nn.Module,
        *,
        features: int,
        native: int,
        multiple: int,
        least: int = 1,
        mean: Sequence[float],
        std: Sequence[float],
        facts: Mapping[str, Any],
        source: Source | None = None,
    ) -> None:
        """Take a network with its weights, frozen.

        Args:
            network: what ``describe`` calls; kept as ``network``.
            features: F.
            native: side of the square images it was trained on.
            multiple: its input's sides are a multiple of this.
            least: and are at least this; what is narrower is enlarged along that side alone.
            mean: of each colour, taken off.
            std: of each colour, divided by.
            facts: what features depend on beside the weights' files; plain values.
            source: whose files were read.
        """
        self.features, self.multiple, self.least = features, multiple, least
        if self.size is None:
            self.size = self.longest if self.mode == "dynamic" else native
        # Kept out of checkpoints, and in float32 whatever the network's precision is.
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)
        self.network = network.to(_DTYPES[self.precision]).requires_grad_(False)
        self.eval()
        preprocessing = {"mode": self.mode, "size": self.size, "mean": list(mean), "std": list(std)}
        self._facts = {**facts, **preprocessing, "dtype": self.precision}
        self._source = source
        if self.shuffled is not None:
            _shuffle(network, self.shuffled)
            self._facts["shuffled"] = self.shuffled
            self._renormalise(native)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What its features depend on, as plain values: arguments, and the sha256 of every file read."""
        files = self._source.hashes() if self._source else {}
        return {"prior": type(self).__name__, **self._facts, "files": files}

    @property
    def fingerprint(self) -> str:
        """Hash of ``facts``: equal for equal files and arguments, wherever the files are."""
        text = json.dumps(self.facts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @abstractmethod
    def describe(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H', W'), sized and normalised, in its precision -> (B, F), and (B, F', h, w) or None."""

    def forward(self, image: Tensor) -> PriorFeatures:
        """(B, 3, H, W) or gray (B, 1, H, W) in [0, 1] -> unit vectors (B, F), and (B, F', h, w), in float32.

        The grid of the dense features covers the whole image evenly; its stride is that of the coarser side,
        in pixels of the image, rounded.

        Raises:
            ImageError: it is no batch of gray or RGB images.
            ContractError: the network cannot take its size, or features are not finite.
        """
        with ExitStack() as stack:
            for context in self._contexts(image):
                stack.enter_context(context)
            # Bicubic resizing with antialiasing has no kernel for half precision on the CPU.
            sized = self.fit(_coloured(image).float())
            normed = (sized - self.mean) / self.std
            try:
                glob, dense = self.describe(normed.to(_DTYPES[self.precision]))
            # What a library says of a size that it cannot take names neither the prior nor the image.
            except (RuntimeError, MemoryError) as error:
                raise self._refused(error, image, sized) from error
            glob = normalize(glob.float(), dim=1)
            dense = None if dense is None else dense.float()
        if dense is None:
            features = PriorFeatures(glob)
        else:
            strides = (side / cells for side, cells in zip(image.shape[-2:], dense.shape[-2:], strict=True))
            features = PriorFeatures(glob, dense, max(1, round(max(strides))))
        precise = "check the image and the weights"
        hint = precise if self.precision == "fp32" else "use dtype: fp32 or bf16, and check the image"
        return features.checked(self, hint)

    def _refused(self, error: BaseException, image: Tensor, sized: Tensor) -> RestoreKitError:
        (height, width), (rows, columns) = image.shape[-2:], sized.shape[-2:]
        name = f"prior {type(self).__name__}"
        if is_out_of_memory(error):
            return MemoryLimitError(
                f"{name}: out of memory at {columns} x {rows} pixels, for an image of {width} x {height}",
                f"give it a params size below {max(rows, columns)}, or use another device",
            )
        return ContractError(
            f"{name} cannot describe an image of {width} x {height}: {' '.join(str(error).split())[:200]}",
            "give it another params size" + ("" if self.mode == "squash" else ", or mode: squash"),
        )

    def fit(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H', W'): resized as ``mode`` says, antialiased, in [0, 1]."""
        height, width = image.shape[-2:]
        assert self.size is not None
        if self.mode == "squash":
            target = (self.size, self.size)
        else:
            factor = self.size / max(height, width)
            factor = min(1.0, factor) if self.mode == "dynamic" else factor
            wanted = [max(self.least, side * factor) for side in (height, width)]
            target = (_rounded(wanted[0], self.multiple), _rounded(wanted[1], self.multiple))
        if target == (height, width):
            return image
        return interpolate(image, target, mode="bicubic", antialias=True).clamp(0, 1)

    def _renormalise(self, native: int) -> None:
        """Give batch normalisations the statistics of what they see now, on generated images."""
        norms = [each for each in self.network.modules() if isinstance(each, _BatchNorm)]
        norms = [each for each in norms if each.running_mean is not None]
        if not norms:
            return
        self._facts["renormalised"] = f"{_GENERATED} generated images of {native}"
        if any(each.is_meta for each in self.network.parameters()):
            return
        for each in norms:
            each.reset_running_stats()
            # Without a momentum what is kept is the mean over all batches.
            each.momentum, each.training = None, True
        with torch.no_grad():
            self(generated_images(_GENERATED, native).to(self.mean.device))
        for each in norms:
            each.training = False

    def _contexts(self, image: Tensor) -> Iterable[AbstractContextManager[object]]:
        # Not inference_mode: what it makes cannot be saved for the backward pass of a refiner.
        yield nullcontext() if self.differentiable else torch.no_grad()
        if image.device.type != "meta":
            yield torch.autocast(image.device.type, enabled=False)


def library(name: str, plugin: str) -> ModuleType:
    """Import a library when it is needed: some take half a minute on a busy machine.

    Args:
        name: of the module.
        plugin: distribution that asks for it.

    Raises:
        PluginLoadError: it is not installed, or does not work with the torch that is.
    """
    try:
        return import_module(name)
    # A torchvision that was built for another torch fails with a RuntimeError, deep inside.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise PluginLoadError(
            f"{plugin} cannot use {name}: {type(error).__name__}: {reason}",
            f"run `pip install {plugin}`; torch and torchvision must be of the same release",
        ) from error


def version(distribution: str) -> str:
    """Return name and version of an installed library."""
    return f"{distribution} {metadata.version(distribution)}"


def on_meta() -> bool:
    """Tell whether networks are being built without memory, to check arguments: weights stay unread then."""
    return torch.get_default_device().type == "meta"


def read_tensors_of(source: Source, need: Need, *, strip: str = "") -> dict[str, Tensor]:
    """Return the tensors of a model whose names begin as ``need.tensors`` says, all when it says nothing.

    Args:
        source: where the model is.
        need: which file.
        strip: taken off the beginning of names.

    Raises:
        WeightsError: a file is missing or damaged, or holds none of them.
    """
    paths = [source.file] if source.file is not None else source.take(need)
    found: dict[str, Tensor] = {}
    for path in paths:
        found |= _read(path, need.tensors)
    if not found:
        raise WeightsError(
            f"{source.reference} holds no tensors {' or '.join(f'{each}*' for each in need.tensors)}",
            "give weights of the model that this prior reads",
        )
    return {name.removeprefix(strip): value for name, value in found.items()}


def fill(network: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Give a network that was built on the meta device its values, without a copy.

    Tensors that it has no use for are ignored.

    Raises:
        WeightsError: some are missing, or of another shape.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in tensors]
    misshapen = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if missing or misshapen:
        first = (missing or misshapen)[0]
        raise WeightsError(
            f"{origin} does not fit {type(network).__name__}: {len(missing)} tensors are missing and "
            f"{len(misshapen)} of another shape, of {len(own)}; first {first!r}",
            "give a checkpoint of this architecture, whole",
        )
    network.load_state_dict({name: tensors[name] for name in own}, assign=True)
    left = [name for name, each in chain(network.named_parameters(), network.named_buffers()) if each.is_meta]
    if left:
        raise WeightsError(
            f"{type(network).__name__} has values that no file holds: {', '.join(left[:3])}",
            "report the version of the library",
        )


def generated_images(count: int, side: int) -> Tensor:
    """Return images (N, 3, S, S) in [0, 1] that have structure at every scale, as photographs have.

    Sums of smooth noise that is the weaker the finer it is, with half its colours shared, of a brightness
    and a contrast drawn for each image, and noise of its own in every pixel. Always the same ones.
    """
    drawn = torch.Generator(device="cpu").manual_seed(0)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=drawn, device="cpu")

    images = torch.zeros(count, 3, side, side, device="cpu")
    cells = 2
    while cells < side:
        gray = torch.randn(count, 1, cells, cells, generator=drawn, device="cpu")
        coloured = torch.randn(count, 3, cells, cells, generator=drawn, device="cpu")
        size = (side, side)
        images += interpolate((gray + coloured / 2) / cells**0.5, size, mode="bicubic", align_corners=False)
        cells *= 2
    images = (images - images.mean((1, 2, 3), keepdim=True)) / images.std((1, 2, 3), keepdim=True)
    grain = torch.randn(images.shape, generator=drawn, device="cpu") * uniform(0, 0.15)
    return (uniform(0.3, 0.7) + uniform(0.1, 0.3) * images + grain).clamp(0, 1)


def _shuffle(network: nn.Module, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed)
    for weights in network.parameters():
        # Without memory there is nothing to put in order.
        if weights.is_meta:
            continue
        order = torch.randperm(weights.numel(), generator=drawn).to(weights.device)
        weights.data = weights.flatten()[order].reshape(weights.shape)


def _read(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        whole = read_tensors(path)
        return {name: value for name, value in whole.items() if not prefixes or name.startswith(prefixes)}
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if not prefixes or name.startswith(prefixes)]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read as weights: {error}", "fetch it again") from error


def _coloured(image: Tensor) -> Tensor:
    if image.dim() != 4 or not image.is_floating_point():
        raise ImageError(
            f"a prior describes float images (B, 3, H, W), not {image.dtype} {tuple(image.shape)}",
            "scale levels to [0, 1] first",
        )
    channels = image.shape[1]
    if channels == 1:
        return image.expand(-1, 3, -1, -1)
    if channels != 3:
        raise ImageError(
            f"a prior describes gray or RGB images, this one has {channels} channels",
            "give the mean of the two views" if channels == 6 else "leave alpha out: it is no colour",
        )
    return image


def _rounded(side: float, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


def _put_back(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Give a strict load the values that are here: a checkpoint has none, and an old one's are not wanted."""
    _leave_out(module, state, prefix, None)
    for name, child in module.named_children():
        child.state_dict(destination=state, prefix=f"{prefix}{name}.")
