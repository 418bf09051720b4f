"""Our network from the arguments of the published constructor, for checks against the published code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from restorekit_mprnet.network import MPRNet

_NAMES = {
    "in_c": "channels",
    "n_feat": "width",
    "scale_unetfeats": "width_step",
    "scale_orsnetfeats": "third_step",
    "num_cab": "blocks",
    "kernel_size": "kernel",
}


def mprnet(arguments: Mapping[str, Any]) -> MPRNet:
    """Build the published ``MPRNet``, of any of its three tasks."""
    return MPRNet(**{_NAMES.get(name, name): value for name, value in arguments.items() if name != "out_c"})
