"""Which architecture the tensors of a checkpoint belong to; it reads no file.

spandrel brings torchvision and its networks, so that it is imported here only when something is recognised.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from restorekit.errors import WeightsError

if TYPE_CHECKING:
    from spandrel import ArchRegistry, ImageModelDescriptor

_EXTRA = "spandrel_extra_arches"


def recognise(tensors: Mapping[str, Tensor], path: Path) -> ImageModelDescriptor[torch.nn.Module]:
    """Return the model that tensors belong to, with their values in it, on the CPU.

    Args:
        tensors: names and values; left untouched.
        path: the file they came from, for messages.

    Raises:
        WeightsError: no architecture is recognised, the tensors do not fit the one that is, or it needs more
            than an image.
    """
    import spandrel

    registry, complete = _architectures()
    state = spandrel.canonicalize_state_dict(dict(tensors))
    # Recognition by a few names is meant to have false positives: any of them may fail in any way.
    try:
        found = next(
            (each.architecture for each in registry.architectures("detection") if each.detect(state)), None
        )
    except Exception as error:
        raise _unknown(state, path, complete) from error
    if found is None:
        raise _unknown(state, path, complete)
    try:
        # Networks read values while they are built, so that they cannot be built on the meta device.
        with torch.device("cpu"), warnings.catch_warnings():
            # Windows of attention are numbered in the old way (SwinIR, HAT, DAT and others; spandrel 0.4).
            warnings.filterwarnings("ignore", r"torch\.meshgrid: in an upcoming release", UserWarning)
            descriptor = found.load(dict(state))
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise WeightsError(
            f"{path} looks like {found.name} and does not fit it: {reason}",
            "give a checkpoint that spandrel loads, or the network's own plug-in",
        ) from error
    if not isinstance(descriptor, spandrel.ImageModelDescriptor):
        raise WeightsError(
            f"{path} holds {found.name}, an {descriptor.purpose.lower()} network that needs a mask",
            "give a network that turns an image into an image",
        )
    return descriptor


@cache
def _architectures() -> tuple[ArchRegistry, bool]:
    """Return every architecture there is, and whether the extra ones are among them.

    A copy of spandrel's registry: other users of the library in this process are left alone.
    """
    import spandrel

    registry = spandrel.MAIN_REGISTRY.copy()
    try:
        with warnings.catch_warnings():
            # CodeFormer compiles a function on import (spandrel_extra_arches 0.2, torch 2.9 and later).
            warnings.filterwarnings("ignore", r"`torch\.jit\.script", FutureWarning)
            warnings.filterwarnings("ignore", r"`torch\.jit\.script", DeprecationWarning)
            extra = import_module(_EXTRA)
    except ModuleNotFoundError as error:
        if error.name != _EXTRA:
            raise
        return registry, False
    registry.add(*extra.EXTRA_REGISTRY, ignore_duplicates=True)
    return registry, True


def _unknown(state: Mapping[str, Tensor], path: Path, complete: bool) -> WeightsError:
    some = ", ".join(repr(name) for name in list(state)[:3]) or "none"
    hint = "give a checkpoint that spandrel loads, or use the network's own plug-in"
    if not complete:
        hint += "; more are recognised with `pip install restorekit-spandrel[extra]`"
    return WeightsError(
        f"{path} is not recognised by spandrel: {len(state)} tensors, the first called {some}", hint
    )
