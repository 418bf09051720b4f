"""How much memory there is, and how much a network needs.

It measures; what to do about it is runtime.py.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from restorekit.errors import RestoreKitError

log = logging.getLogger(__name__)

# Sides at which memory is measured: larger than any window of local pooling, so that its maps are counted.
_PROBES = (512, 1024)


def available_memory(device: torch.device) -> int:
    """Return the bytes that can still be taken on a device without swapping.

    On the CPU the limit of the container (cgroup version 1 or 2) counts where it is lower than the machine's.
    """
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        # What torch holds in its cache is free to us, though not to other programs.
        cached = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
        return int(torch.cuda.mem_get_info(index)[0]) + cached
    machine = int(psutil.virtual_memory().available)
    if device.type == "mps":
        # Memory is shared with the CPU, so both limits hold.
        return max(0, min(machine, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()))
    return min([machine, *_cgroup_room()])


def _cgroup_room(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """Yield the bytes left in each control group around this process that has a limit."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = (
                root / "memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
        else:
            continue
        # In a container the path can be that of the host; the groups that can be seen are then above it.
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield from _room_of(folder, *names)


def _room_of(folder: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    try:
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        cached = re.search(rf"^{reclaimable} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        # No such group, or its limit reads "max".
        return
    # Pages of files that were read count as used, but are given up when memory is needed.
    yield max(0, most - used + (int(cached[1]) if cached else 0))


def memory_per_pixel(
    network: nn.Module, example: Callable[[int], Sequence[object]] | None = None
) -> int | None:
    """Return the bytes of tensors that a forward holds at its peak, per pixel of the input.

    A copy of the network runs on the meta device, where tensors have shapes but no memory, at two sizes; the
    slope between their peaks leaves out what does not grow with the image. The input and the output count,
    weights and what operators need inside do not, see ``choose_tile``. It holds for the dtype of the weights.

    Args:
        network: a backbone, or any module when ``example`` is given; left untouched, may be on meta.
        example: given a side, returns the arguments of a forward on images (1, C, side, side) on the meta
            device. By default one image with the network's ``channels``.

    Returns:
        None when the network cannot run without values, for example because it branches on them.
    """
    multiple = getattr(network, "size_multiple", 1)
    try:
        twin = _meta_twin(network)
        dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)

        def image(side: int) -> tuple[Tensor]:
            return (torch.empty(1, getattr(network, "channels", 3), side, side, dtype=dtype, device="meta"),)

        small, large = (-(-side // multiple) * multiple for side in _PROBES)
        peaks = [_peak_bytes(twin, example or image, side) for side in (small, large)]
    except (RuntimeError, TypeError, ValueError, AttributeError, RestoreKitError) as error:
        log.debug("%s does not run on the meta device: %s", type(network).__name__, error)
        return None
    return max(1, math.ceil((peaks[1] - peaks[0]) / (large**2 - small**2)))


def _meta_twin(network: nn.Module) -> nn.Module:
    # deepcopy takes what it finds in its memo instead of copying, so that no weight is ever allocated twice.
    memo: dict[int, object] = {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    memo |= {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in network.parameters()}
    return copy.deepcopy(network, memo).eval()


def _peak_bytes(network: nn.Module, example: Callable[[int], Sequence[object]], side: int) -> int:
    weights = [*network.parameters(), *network.buffers()]
    # Not inference mode: it hides from the count what composite operators make inside.
    with torch.no_grad(), torch.device("meta"), _LiveBytes(weights) as live:
        network(*example(side))
    return int(live.peak)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the bytes of tensors alive: each storage once, until its last tensor dies."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._weights = {weight.untyped_storage()._cdata for weight in weights}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._weights or address in self._alive:
            return

        def freed(_: object) -> None:
            del self._alive[address]
            self.live -= size

        self._alive[address] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)
