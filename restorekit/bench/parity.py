"""Do our networks compute what the published ones compute? Fixtures in, a matrix out.

A fixture is a folder with the published network's constructor arguments and tolerances (``meta.json``), its
weights and its inputs and outputs (safetensors). The network of ours that it belongs to is found by the name
of the published class, among the entry points ``restorekit.officials``; this room knows no network by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from restorekit.contracts import Backbone
from restorekit.errors import ConfigError, WeightsError
from restorekit.registry import officials
from restorekit.tiling import pad_to_multiple
from restorekit.weights import load_into

# Both compute the same in another order, which leaves about 1e-14 in float64.
ALLOWED_DOUBLE = 1e-11


@dataclass(frozen=True)
class Match:
    """One output of ours beside the published one.

    Attributes:
        variant: name of the fixture.
        published: class of the published network.
        case: name of the input.
        output: its number; networks of several stages have several outputs.
        shape: of the input.
        dtype: in which both were computed, as ``float32``.
        error: largest absolute difference.
        allowed: tolerance that the fixture states; in float64, where it states none, ``ALLOWED_DOUBLE``.
    """

    variant: str
    published: str
    case: str
    output: int
    shape: tuple[int, ...]
    dtype: str
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class KeyMatch:
    """Names and shapes of a published size, beside those of our network built with the same arguments."""

    variant: str
    published: str
    tensors: int
    parameters: int
    differences: tuple[str, ...]


def build_official(published: str, arguments: Mapping[str, Any]) -> Backbone:
    """Build our network from the arguments of a published constructor.

    Args:
        published: name of the published class; what follows a colon tells variants of the class apart.
        arguments: of its constructor, by its names.

    Raises:
        UnknownComponentError: no installed distribution offers that class.
    """
    return officials[published.partition(":")[0]].load()(arguments)


def fixtures(folder: Path) -> list[Path]:
    """Return the ``meta.json`` of every fixture of a folder.

    Raises:
        ConfigError: there are none.
    """
    found = sorted(folder.glob("*/meta.json"))
    if not found:
        raise ConfigError(str(folder), "there are no fixtures", "name the folder that holds */meta.json")
    return found


@torch.no_grad()
def matches(path: Path) -> list[Match]:
    """Run every input of a fixture, in float32 and, where its outputs are there, in float64.

    Args:
        path: its ``meta.json``.

    Raises:
        WeightsError: its weights do not fit our network strictly, or an output has another shape.
    """
    meta = json.loads(path.read_text(encoding="utf-8"))
    network = build_official(meta["official_class"], meta["args"]).eval()
    weights = path.with_name("weights.safetensors")
    load_into(network, load_file(weights), weights)
    tensors = load_file(path.with_name("cases.safetensors"))
    rows = []
    for dtype, suffix in ((torch.float32, ""), (torch.float64, "_f64")):
        network.to(dtype)
        for case in meta["cases"]:
            degraded = tensors[f"{case['name']}.input"].to(dtype)
            height, width = (side * network.scale for side in degraded.shape[-2:])
            names = [f"{case['name']}.output{index}{suffix}" for index in range(case["n_outputs"])]
            if names[0] not in tensors:
                continue
            padded = pad_to_multiple(degraded, network.size_multiple, network.padding)
            outputs = network.training_outputs(padded)
            allowed = case["suggested_atol"] if dtype == torch.float32 else ALLOWED_DOUBLE
            for index, name in enumerate(names):
                if name not in tensors:
                    continue
                ours, theirs = outputs[index][..., :height, :width], tensors[name]
                if ours.shape != theirs.shape:
                    raise WeightsError(
                        f"{path.parent.name}, {name}: {tuple(ours.shape)}, not {tuple(theirs.shape)}"
                    )
                facts = (meta["name"], meta["official_class"], case["name"], index, tuple(degraded.shape))
                error = float((ours - theirs).abs().max())
                rows.append(Match(*facts, str(dtype).removeprefix("torch."), error, allowed))
    return rows


def key_lists(folder: Path) -> list[Path]:
    """Return the lists of names and shapes of published sizes that lie beside the fixtures."""
    return [path for path in sorted((folder / "official_keys").glob("*.json")) if path.stem != "index"]


def key_match(path: Path) -> KeyMatch:
    """Compare the names and shapes of a published size with ours; nothing is allocated."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    with torch.device("meta"):
        network = build_official(facts["official_class"], facts["args"])
    ours = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    theirs = dict(facts["keys"])
    different = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if parameters != facts["n_params"]:
        different.append(f"{parameters:,} parameters instead of {facts['n_params']:,}")
    return KeyMatch(facts["name"], facts["official_class"], len(theirs), parameters, tuple(different))


def worst(rows: list[Match]) -> list[Match]:
    """Return the row of each variant and dtype that is nearest to its tolerance, or furthest beyond."""
    nearest: dict[tuple[str, str], Match] = {}
    for row in rows:
        known = nearest.setdefault((row.variant, row.dtype), row)
        if row.error / row.allowed > known.error / known.allowed:
            nearest[row.variant, row.dtype] = row
    return list(nearest.values())


def as_markdown(rows: list[Match], keys: list[KeyMatch]) -> str:
    """Return the matrix of the documentation."""
    lines = [
        "| variant | published class | dtype | inputs | max abs error | nearest to its tolerance | allowed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in worst(rows):
        mine = [other for other in rows if (other.variant, other.dtype) == (row.variant, row.dtype)]
        inputs = len({other.case for other in mine})
        largest = max(other.error for other in mine)
        place = f"{row.case} {'x'.join(map(str, row.shape))}: {row.error:.1e}"
        lines.append(
            f"| {row.variant} | {row.published} | {row.dtype} | {inputs} | {largest:.1e} | {place} "
            f"| {row.allowed:.1e} |"
        )
    lines += [
        "",
        "| published size | class | tensors | parameters | names and shapes |",
        "|---|---|---|---|---|",
    ]
    for key in keys:
        verdict = f"differ: {key.differences[0]}" if key.differences else "equal"
        lines.append(f"| {key.variant} | {key.published} | {key.tensors} | {key.parameters:,} | {verdict} |")
    return "\n".join(lines)
