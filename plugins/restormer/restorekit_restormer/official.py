"""Build Restormer from the arguments of the published constructor, as its option files give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from restorekit_restormer.network import Restormer

_NAMES = {
    "inp_channels": "channels",
    "out_channels": "out_channels",
    "dim": "dim",
    "num_blocks": "blocks",
    "num_refinement_blocks": "refinement_blocks",
    "heads": "heads",
    "ffn_expansion_factor": "expansion",
    "bias": "bias",
    "LayerNorm_type": "norm",
    "dual_pixel_task": "dual_pixel",
}
_NORMS = {"WithBias": "with-bias", "BiasFree": "bias-free"}


def restormer(arguments: Mapping[str, Any]) -> Restormer:
    """Return the network, without weights, that the published constructor builds of these arguments.

    Raises:
        ValueError: an argument is unknown, or its value is refused.
    """
    unknown = [name for name in arguments if name not in _NAMES]
    if unknown:
        raise ValueError(f"unknown to Restormer: {', '.join(unknown)}; it takes: {', '.join(_NAMES)}")
    params = {_NAMES[name]: value for name, value in arguments.items()}
    if "norm" in params:
        # What is misspelt is refused by the network.
        params["norm"] = _NORMS.get(params["norm"], params["norm"])
    return Restormer(**params)
