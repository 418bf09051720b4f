"""Rewrite weights as safetensors, so that no pickle has to be read again and the file says what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from restorekit.building import construct
from restorekit.catalog import COMPONENT_KEY, LICENCE_KEY, PARAMS_KEY, Checkpoint
from restorekit.config import ComponentRef
from restorekit.errors import OutputError, WeightsError
from restorekit.files import replacing
from restorekit.plan import Part
from restorekit.registry import backbones
from restorekit.weights import check_fit, read_tensors

# How notes in the metadata begin that restorekit writes.
_OURS = "restorekit."


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        tensors: how many.
        size: of the file in bytes.
        licence: SPDX expression that stands in the file.
    """

    tensors: int
    size: int
    licence: str


def convert(
    checkpoint: Checkpoint,
    output: Path,
    *,
    component: str | None = None,
    params: Mapping[str, object] | None = None,
    licence: str | None = None,
    half: bool = False,
    overwrite: bool = False,
) -> Written:
    """Write the tensors of a checkpoint to a safetensors file, whole or not at all.

    The metadata name the source, its hash, the licence and, where the network is known, its constructor
    arguments, so that a pipeline can use the file without being told them again. Notes of a source that
    restorekit wrote stay, such as the prior that a refiner was trained with.

    Args:
        checkpoint: its file is on this machine.
        output: ends in ``.safetensors``.
        component: backbone whose names and shapes the tensors must have.
        params: its constructor arguments, on top of those that the checkpoint states.
        licence: SPDX expression; that of the checkpoint when not given.
        half: store floats in 16 bits.
        overwrite: replace an output that exists.

    Raises:
        WeightsError: the checkpoint cannot be read, does not fit, or does not fit into 16 bits.
        OutputError: the output cannot be written.
    """
    if output.suffix != ".safetensors":
        raise OutputError(f"{output} does not end in .safetensors", "name the output so")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists", "give another name, or --overwrite")
    source, digest = checkpoint.file, checkpoint.sha256
    tensors = read_tensors(source)
    arguments = {**checkpoint.params, **(params or {})}
    if component is not None:
        part = Part(
            "convert", "backbone", backbones[component], ComponentRef(name=component, params=arguments), None
        )
        with torch.device("meta"):
            network = construct(part)
        check_fit(network, tensors, source)
    if half:
        tensors = {name: _halved(name, tensor, source) for name, tensor in tensors.items()}
    terms = licence or checkpoint.licence
    stated = {
        **_notes(checkpoint, component),
        LICENCE_KEY: terms,
        "source": checkpoint.declared.source if checkpoint.declared else source.name,
        "source_url": checkpoint.declared.urls[0] if checkpoint.declared and checkpoint.declared.urls else "",
        "source_sha256": digest,
        PARAMS_KEY: json.dumps(arguments) if arguments else "",
    }
    if component is not None:
        stated[COMPONENT_KEY] = component
    # Tensors of a pickle can share memory, which safetensors refuses.
    separate = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as temporary:
            save_file(separate, temporary, {key: value for key, value in stated.items() if value})
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: {error}", "name a folder that can be written to"
        ) from error
    return Written(len(separate), output.stat().st_size, terms)


def _notes(checkpoint: Checkpoint, component: str | None) -> dict[str, str]:
    """Return what the source says of itself and still holds.

    That is all, where restorekit wrote it, and nothing once it is taken for another component.
    """
    said = checkpoint.metadata()
    ours = any(key.startswith(_OURS) for key in said)
    return said if ours and component in (None, said.get(COMPONENT_KEY)) else {}


def _halved(name: str, tensor: torch.Tensor, source: Path) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    small = tensor.half()
    if not bool(small.isfinite().all()):
        raise WeightsError(f"{source}: {name!r} holds values beyond 16 bits", "convert it without --half")
    return small
