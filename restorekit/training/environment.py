"""What a run was made with: versions, device, commit. Names no machine, user or path."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from typing import Any

import torch

from restorekit.plan import Part

_LIBRARIES = ("restorekit", "numpy", "pillow", "safetensors", "accelerate")


def environment(device: torch.device, parts: Iterable[Part], processes: int) -> dict[str, Any]:
    """Return versions of what computes, the device, and the commit of the current folder if there is one."""
    components = {part.entry.dist: part.entry.version for part in parts}
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        # The version that torch itself states names its build, such as +cu128.
        "versions": {
            **{name: _version(name) for name in _LIBRARIES},
            "torch": torch.__version__,
            **components,
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "git": _commit(),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the current folder, marked where files were changed since."""
    try:
        commit, changes = (
            subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip() + (" (changed)" if changes.strip() else "")
