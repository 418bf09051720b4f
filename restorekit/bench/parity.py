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


@dataclass(frozen=True)
class Match:
    """One output of ours beside the published one.

    Attributes:
        variant: name of the fixture.
        published: class of the published network.
        case: name of the input.
        output: its number; networks of several stages have several outputs.
        shape: of the input.
        error: largest absolute difference.
        allowed: tolerance that the fixture states.
    """

    variant: str
    published: str
    case: str
    output: int
    shape: tuple[int, ...]
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


def matches(folder: Path) -> list[Match]:
    """Run every fixture of a folder; the weights have to fit strictly.

    Raises:
        ConfigError: there are no fixtures.
    """
    found = sorted(folder.glob("*/meta.json"))
    if not found:
        raise ConfigError(str(folder), "there are no fixtures", "name the folder that holds */meta.json")
    return [match for path in found for match in _fixture(path)]


@torch.no_grad()
def _fixture(path: Path) -> list[Match]:
    meta = json.loads(path.read_text(encoding="utf-8"))
    network = build_official(meta["official_class"], meta["args"]).eval()
    weights = path.with_name("weights.safetensors")
    load_into(network, load_file(weights), weights)
    tensors = load_file(path.with_name("cases.safetensors"))
    rows = []
    for case in meta["cases"]:
        degraded = tensors[f"{case['name']}.input"]
        height, width = (side * network.scale for side in degraded.shape[-2:])
        padded = pad_to_multiple(degraded, network.size_multiple, network.padding)
        outputs = network.training_outputs(padded)
        for index in range(case["n_outputs"]):
            ours, theirs = outputs[index][..., :height, :width], tensors[f"{case['name']}.output{index}"]
            if ours.shape != theirs.shape:
                raise WeightsError(
                    f"{path.parent.name}, {case['name']}: {tuple(ours.shape)}, not {tuple(theirs.shape)}"
                )
            error = float((ours - theirs).abs().max())
            facts = (meta["name"], meta["official_class"], case["name"], index, tuple(degraded.shape))
            rows.append(Match(*facts, error, case["suggested_atol"]))
    return rows


def key_matches(folder: Path) -> list[KeyMatch]:
    """Compare names and shapes of every published size in ``official_keys``; nothing is allocated."""
    rows = []
    for path in sorted((folder / "official_keys").glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            continue
        with torch.device("meta"):
            network = build_official(facts["official_class"], facts["args"])
        ours = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
        theirs = dict(facts["keys"])
        different = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
        parameters = sum(parameter.numel() for parameter in network.parameters())
        if parameters != facts["n_params"]:
            different.append(f"{parameters:,} parameters instead of {facts['n_params']:,}")
        rows.append(
            KeyMatch(facts["name"], facts["official_class"], len(theirs), parameters, tuple(different))
        )
    return rows


def worst(rows: list[Match]) -> list[Match]:
    """Return the row of each variant that is nearest to its tolerance, or furthest beyond."""
    nearest: dict[str, Match] = {}
    for row in rows:
        known = nearest.get(row.variant)
        if known is None or row.error / row.allowed > known.error / known.allowed:
            nearest[row.variant] = row
    return list(nearest.values())


def as_markdown(rows: list[Match], keys: list[KeyMatch]) -> str:
    """Return the matrix of the documentation."""
    lines = [
        "| variant | published class | inputs | nearest to its tolerance | max abs error | allowed | dtype |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in worst(rows):
        mine = [other for other in rows if other.variant == row.variant]
        inputs = len({other.case for other in mine})
        largest = max(other.error for other in mine)
        place = f"{row.case} {'x'.join(map(str, row.shape))}: {row.error:.1e}"
        lines.append(
            f"| {row.variant} | {row.published} | {inputs} | {place} | {largest:.1e} | {row.allowed:.1e} "
            f"| float32 |"
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
