"""Where and how a network runs: device, precision, size of tiles, and what happens when memory runs out.

It decides and retries; it neither cuts images (tiling.py) nor measures memory (memory.py) nor knows what a
network is for. Environment variables are read when a function is called.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from restorekit.errors import ConfigError, MemoryLimitError, near
from restorekit.memory import available_memory

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


def channels_last(network: nn.Module) -> None:
    """Lay a network's weights out with channels innermost: faster on every device that was measured.

    A network with tensors of five dimensions stays as it is: the layout has four, and torch refuses others.
    """
    if any(tensor.dim() == 5 for tensor in chain(network.parameters(), network.buffers())):
        return
    # The signature that torch declares for this call differs between its releases.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]


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
            if not is_out_of_memory(error):
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
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
