"""Our networks from the arguments of the published constructors, for checks against the published code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from restorekit_nafnet.network import Baseline, NAFNet

_NAMES = {
    "img_channel": "channels",
    "middle_blk_num": "middle_blocks",
    "enc_blk_nums": "encoder_blocks",
    "dec_blk_nums": "decoder_blocks",
}
# The published local networks pool over 1.5 times the side of the patches they were trained on.
_TRAIN_SIZE = (1, 3, 256, 256)


def nafnet(arguments: Mapping[str, Any]) -> NAFNet:
    """Build the published ``NAFNet``."""
    return NAFNet(**_ours(arguments))


def nafnet_local(arguments: Mapping[str, Any]) -> NAFNet:
    """Build the published ``NAFNetLocal``, which pools locally at test time."""
    return NAFNet(**_ours(arguments), local_window=_window(arguments))


def baseline(arguments: Mapping[str, Any]) -> Baseline:
    """Build the published ``Baseline``."""
    return Baseline(**_ours(arguments))


def baseline_local(arguments: Mapping[str, Any]) -> Baseline:
    """Build the published ``BaselineLocal``, which pools locally at test time."""
    return Baseline(**_ours(arguments), local_window=_window(arguments))


def _ours(arguments: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in arguments.items() if name not in ("train_size", "fast_imp")}
    return {_NAMES.get(name, name): value for name, value in kept.items()}


def _window(arguments: Mapping[str, Any]) -> tuple[int, int]:
    height, width = arguments.get("train_size", _TRAIN_SIZE)[2:]
    return int(height * 1.5), int(width * 1.5)
