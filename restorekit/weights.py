"""Put checkpoints into networks: safetensors, or ``.pth`` read without running code; always strict.

Finding and verifying files needs no torch and is catalog.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from restorekit.errors import WeightsError

# Published checkpoints wrap the state dict; these are the names the field uses, EMA first.
WRAPPERS = ("params_ema", "params-ema", "params", "model_state_dict", "state_dict", "model", "net")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.ckpt`` file, on the CPU.

    Raises:
        WeightsError: the file is damaged, of another format, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        document = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged pickle fails in many ways: IndexError, KeyError, struct.error, its own errors.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as weights: {reason}",
            "give a whole .safetensors file, or a .pth of tensors alone",
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(document, Mapping) and isinstance(document.get(wrapper), Mapping):
            document = document[wrapper]
            break
    else:
        # A document of one entry can mean nothing else, whatever the entry is called.
        if isinstance(document, Mapping) and len(document) == 1:
            (only,) = document.values()
            document = only if isinstance(only, Mapping) else document
    if not isinstance(document, Mapping) or not all(isinstance(value, Tensor) for value in document.values()):
        raise WeightsError(f"{path} holds no state dict", f"known wrappers are {', '.join(WRAPPERS)}")
    # Networks trained on several GPUs carry the wrapper's name in front of every key.
    return {str(name).removeprefix("module."): value for name, value in document.items()}


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into a network that keeps its own precision: half precision is widened.

    Args:
        module: the network.
        tensors: as ``read_tensors`` gives them.
        path: the file they came from, for the message.

    Raises:
        WeightsError: names or shapes differ.
    """
    check_fit(module, tensors, path)
    module.load_state_dict(dict(tensors))


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Compare the names and shapes of a network, which may be on the meta device, with those of a file.

    Raises:
        WeightsError: they differ; the first of each side are given.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    shapes = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if missing or unexpected or shapes:
        kind = type(module).__name__
        parts = []
        if missing:
            parts.append(f"{len(missing)} of {kind}'s are missing in the file, first {missing[0]!r}")
        if unexpected:
            parts.append(f"{len(unexpected)} of the file's are unknown to {kind}, first {unexpected[0]!r}")
        if shapes:
            name = shapes[0]
            file_shape, own_shape = tuple(tensors[name].shape), tuple(own[name].shape)
            parts.append(
                f"{len(shapes)} differ in shape, first {name!r}: {file_shape} in the file, {own_shape} here"
            )
        raise WeightsError(
            f"{path} does not fit {kind}: " + "; ".join(parts),
            "give the `params` that the weights were trained with",
        )
