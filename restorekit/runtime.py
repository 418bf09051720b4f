"""Where and how a network runs: device, precision, memory, and what happens when memory runs out.

It decides and retries; it neither cuts images (tiling.py) nor knows what a network is for. Environment
variables are read when a function is called.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import logging
import math
import os
import platform
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from restorekit.errors import ConfigError, MemoryLimitError, near

log = logging.getLogger(__name__)

_DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
}

# Share of the free memory that a run may plan with: the images themselves and other programs need the rest.
_SHARE = 0.6
# Operators need more than the tensors that are counted, and an allocator has gaps: on a CPU the resident
# memory of NAFNet grew 1.0 to 1.9 times as fast as its tensors, the most with the tuned allocator.
_WORKSPACE = 2.0
# For networks that cannot be measured: with the workspace, above the 10.5 kB of Restormer, the hungriest.
_UNKNOWN_BYTES_PER_PIXEL = 6_000
# Below this side a tile is mostly overlap and operators no longer fill the machine.
_SMALLEST_TILE = 128
# Sides at which memory is measured: larger than any window of local pooling, so that its maps are counted.
_PROBES = (512, 1024)

# Parameters of mallopt in glibc's malloc.h and the values that keep freed memory.
_MALLOC_OPTIONS = (
    (-4, 0),  # M_MMAP_MAX: no block of its own mapping, which would be unmapped when freed
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: the top of the heap is kept
    (-2, 256 * 2**20),  # M_TOP_PAD: the heap grows in large steps
)


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of a name; ``auto`` is RESTOREKIT_DEVICE, else CUDA, else MPS, else the CPU.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.

    Raises:
        ConfigError: the name is unknown, or there is no such device here; the hint lists those there are.
    """
    name, where = _wish(name, "device", "RESTOREKIT_DEVICE")
    there = _devices()
    if name == "auto":
        return torch.device(next((found for found in ("cuda", "mps") if found in there), "cpu"))
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ConfigError(where, f"unknown device {name!r}", "use auto, cpu, cuda, cuda:N or mps")
    if name not in there:
        raise ConfigError(
            where, f"{name} is not available{_why_not(name)}", f"use one of: {', '.join(there)}"
        )
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the precision of a name; ``auto`` is RESTOREKIT_DTYPE, else float32.

    ``auto`` stays at float32 on every device: its numbers are those of the papers, and half precision is for
    the user to choose. On a CPU without AMX or AVX512-BF16, bfloat16 was slower and off by up to 0.1.

    Args:
        name: auto, fp32, bf16, fp16, or torch's names of them.
        device: where the network runs.

    Raises:
        ConfigError: the name is unknown, or is fp16 on the CPU.
    """
    name, where = _wish(name, "dtype", "RESTOREKIT_DTYPE")
    if name == "auto":
        return torch.float32
    if name not in _DTYPES:
        raise ConfigError(
            where, f"unknown precision {name!r}", near(name, _DTYPES) or "use auto, fp32, bf16 or fp16"
        )
    if _DTYPES[name] is torch.float16 and device.type == "cpu":
        raise ConfigError(where, "fp16 does not run on the CPU", "use fp32, or bf16")
    return _DTYPES[name]


def _wish(name: str, where: str, variable: str) -> tuple[str, str]:
    """Return what is asked for and where it was said: by argument, or else by environment variable."""
    if name.lower() != "auto":
        return name.lower(), where
    return (os.environ.get(variable) or "auto").lower(), variable


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        found += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _why_not(name: str) -> str:
    if name.startswith("cuda") and not (torch.version.cuda or torch.version.hip):
        return ": this build of torch has no CUDA"
    return ""


def tune_allocator() -> bool:
    """Let glibc keep freed memory for the next large tensor; return whether it does.

    By default blocks above 32 MiB go back to the kernel when freed, and the next one is faulted in page by
    page; without that, networks ran up to 1.7 times as fast on a CPU. The price is a process that stays as
    large as it ever was. It holds for the whole process, so only a program may ask for it, never an import.
    Does nothing but on Linux with glibc.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(option, value) == 1 for option, value in _MALLOC_OPTIONS]
    return all(done)


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
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
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


def smallest_tile(overlap: int, multiple: int = 1) -> int:
    """Return the smallest side worth running: at four overlaps each neighbour repeats a quarter of it."""
    return -(-max(4 * overlap, _SMALLEST_TILE) // multiple) * multiple


def choose_tile(
    height: int, width: int, bytes_per_pixel: int | None, device: torch.device, overlap: int, multiple: int
) -> int:
    """Return the side of the largest tiles that fit, 0 where the whole image fits.

    A run may take 60 % of the free memory and is taken to need twice the tensors of the network, for what
    operators need inside. The result is never below ``smallest_tile``, whether that fits or not.

    Args:
        height: H of the image, in pixels.
        width: W of the image, in pixels.
        bytes_per_pixel: from ``memory_per_pixel``; 6 kB for a network that could not be measured.
        device: where the network runs.
        overlap: pixels that neighbouring tiles share.
        multiple: the side is a multiple of this.
    """
    budget = _SHARE * available_memory(device)
    need = _WORKSPACE * (_UNKNOWN_BYTES_PER_PIXEL if bytes_per_pixel is None else bytes_per_pixel)
    height, width = (-(-side // multiple) * multiple for side in (height, width))
    if height * width * need <= budget:
        return 0
    side = math.isqrt(int(budget / need)) // multiple * multiple
    least = smallest_tile(overlap, multiple)
    if side < least:
        log.warning("a tile of %d pixels may not fit: %.0f MB are free on %s", least, budget / 1e6, device)
    return max(side, least)


def run_with_ladder(
    run: Callable[[int], Tensor],
    tile: int,
    smallest: int,
    *,
    sides: Sequence[int],
    events: list[str] | None = None,
) -> tuple[Tensor, int]:
    """Run with ever smaller tiles until one fits the memory; return the result and the tile that fitted.

    Sides are halved, from that of the whole image down to ``smallest``, which is tried once.

    Args:
        run: takes the side of a tile, 0 for the whole image.
        tile: what to begin with.
        smallest: not halved any further, at least 1.
        sides: H and W of the image; a tile that covers them counts as the whole image.
        events: a sentence is added to it for each retry.

    Raises:
        MemoryLimitError: memory ran out at every tile; the message names them.
    """
    longest = max(sides)
    tried: list[str] = []
    while True:
        whole = not 0 < tile < longest
        try:
            return run(tile), tile
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            tried.append("the whole image" if whole else f"tile {tile}")
            side = longest if whole else tile
            if side <= smallest:
                raise MemoryLimitError(
                    f"out of memory at {', '.join(tried)}",
                    "close other programs, or use another device: --device cpu has the memory of the machine",
                ) from error
        # Outside of the handler, where the error no longer holds the frames and the tensors of the run.
        _release_memory()
        tile = max(smallest, -(-side // 2))
        log.info("out of memory at %s, trying tile %d", tried[-1], tile)
        if events is not None:
            events.append(f"out of memory at {tried[-1]}, retried at {tile}")


def _is_out_of_memory(error: BaseException) -> bool:
    # Only CUDA has a class for it; the others are told by their text.
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or bool(
        re.search(r"out of memory|not enough memory|can't allocate memory|_ALLOC_FAILED", str(error))
    )


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def check_finite(output: Tensor) -> bool:
    """Tell whether all values are finite: neither NaN nor infinite."""
    return bool(torch.isfinite(output).all())
