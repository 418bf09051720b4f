"""``restorekit doctor``: is this installation sound, and what can it use?"""

from __future__ import annotations

import platform
import re
from importlib import metadata
from typing import Any

import typer

from restorekit.cli.output import AsJson, say, say_json

PACKAGES = (
    "restorekit",
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "safetensors",
    "entrypoints",
    "timm",
    "einops",
)


def doctor(as_json: AsJson = False) -> None:
    """Print versions, devices and every problem found; exit code 1 when there is one."""
    from restorekit import registry

    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    problems = [f"{problem.dist}: {problem.message}" for problem in registry.problems()]
    problems += [f"{problem.dist}: {problem.message}" for problem in registry.load_problems()]
    problems += torch_pair_problems(
        versions["torch"], _requirement("torchvision", "torch"), versions["torchvision"]
    )
    problems += _weights_problems()
    facts: dict[str, Any] = {"versions": versions, "devices": _devices(), "problems": problems}
    if as_json:
        say_json(facts)
    else:
        for name, version in versions.items():
            say(f"{name:12} {version or 'not installed'}")
        for device, about in facts["devices"].items():
            say(f"{device:12} {about}")
        for problem in problems:
            say(f"problem      {problem}")
        say(f"{len(problems)} problems" if problems else "all well")
    if problems:
        raise typer.Exit(1)


def torch_pair_problems(torch: str | None, wanted: str | None, torchvision: str | None) -> list[str]:
    """Say whether torch and torchvision fit together; a mismatch breaks deep inside other packages.

    Args:
        torch: installed version, with its local part, as ``2.13.0+cpu``.
        wanted: the version of torch that torchvision was built for, as its metadata says.
        torchvision: installed version; None when it is not installed, which is fine.
    """
    if torch is None:
        return ["torch is not installed: pip install torch torchvision"]
    if torchvision is None or wanted is None:
        return []
    public = torch.partition("+")[0]
    remedy = "install both together: pip install torch torchvision"
    if public != wanted:
        return [f"torchvision {torchvision} was built for torch {wanted}, installed is {torch}; {remedy}"]
    try:
        import torchvision as module  # type: ignore[import-not-found,import-untyped,unused-ignore] # noqa: F401
    except Exception as error:
        # A pair of different builds fails in many ways, none of them an ImportError alone.
        return [f"torchvision {torchvision} cannot be imported with torch {torch}: {error}; {remedy}"]
    return []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirement(package: str, dependency: str) -> str | None:
    """Return the exact version of a dependency that an installed package asks for."""
    try:
        wanted = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return None
    for line in wanted:
        match = re.match(rf"{dependency}\s*\(?==\s*([\w.]+)", line)
        if match:
            return match[1]
    return None


def _weights_problems() -> list[str]:
    """Return what is wrong with declarations, and with the files that are on this machine."""
    from restorekit import catalog
    from restorekit.errors import RestoreKitError

    found = []
    try:
        items = catalog.declared()
    except RestoreKitError as error:
        return [error.message]
    for item in items:
        if item.reference:
            # Several files in the hub's cache, which checks them itself.
            continue
        try:
            checkpoint = catalog.find(item.component, item.tag)
            if checkpoint.is_here:
                _ = checkpoint.sha256
        except RestoreKitError as error:
            found.append(error.message)
    return found


def _devices() -> dict[str, str]:
    import torch

    from restorekit.memory import available_memory

    gigabytes = available_memory(torch.device("cpu")) / 1e9
    found = {"cpu": f"{torch.get_num_threads()} threads, {gigabytes:.1f} GB free"}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found[f"cuda:{index}"] = (
            f"{torch.cuda.get_device_name(index)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        )
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU"
    return found
