import math
import platform
import subprocess
import sys
import weakref

import pytest
import torch

from restorekit import runtime
from restorekit.errors import ConfigError, MemoryLimitError
from restorekit.runtime import (
    check_finite,
    choose_tile,
    resolve_device,
    resolve_dtype,
    run_with_ladder,
    smallest_tile,
    tune_allocator,
)
from restorekit.tiling import Tiler

CPU = torch.device("cpu")
MB = 10**6


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch):
    monkeypatch.delenv("RESTOREKIT_DEVICE", raising=False)
    monkeypatch.delenv("RESTOREKIT_DTYPE", raising=False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def free(monkeypatch, amount):
    monkeypatch.setattr(runtime, "available_memory", lambda device: amount)


def test_auto_is_the_cpu_where_there_is_nothing_else(no_gpu):
    assert resolve_device() == resolve_device("CPU") == CPU


def test_auto_prefers_cuda(two_gpus):
    assert resolve_device() == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")


def test_the_environment_decides_only_where_nothing_is_asked(two_gpus, monkeypatch):
    monkeypatch.setenv("RESTOREKIT_DEVICE", "cuda:1")
    assert resolve_device("auto") == torch.device("cuda:1")
    assert resolve_device("cpu") == CPU
    monkeypatch.setenv("RESTOREKIT_DEVICE", "")
    assert resolve_device("auto") == torch.device("cuda")


def test_a_missing_device_lists_those_there_are(two_gpus, no_gpu, monkeypatch):
    with pytest.raises(ConfigError, match=r"device: cuda is not available(.|\n)*use one of: cpu$"):
        resolve_device("cuda")
    with pytest.raises(ConfigError, match=r"device: mps is not available"):
        resolve_device("mps")
    monkeypatch.setenv("RESTOREKIT_DEVICE", "cuda:0")
    with pytest.raises(ConfigError, match=r"RESTOREKIT_DEVICE: cuda:0 is not available"):
        resolve_device()


def test_a_missing_index_lists_those_there_are(two_gpus):
    with pytest.raises(ConfigError, match=r"use one of: cpu, cuda, cuda:0, cuda:1"):
        resolve_device("cuda:2")


def test_an_unknown_device_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown device 'gpu'(.|\n)*use auto, cpu, cuda, cuda:N or mps"):
        resolve_device("gpu")


def test_auto_precision_is_single_everywhere():
    assert resolve_dtype("auto", CPU) == resolve_dtype("auto", torch.device("cuda")) == torch.float32


def test_precisions_have_short_and_long_names(monkeypatch):
    assert resolve_dtype("float32", CPU) == torch.float32
    assert resolve_dtype("BF16", CPU) == resolve_dtype("bfloat16", CPU) == torch.bfloat16
    assert resolve_dtype("fp16", torch.device("cuda")) == torch.float16
    monkeypatch.setenv("RESTOREKIT_DTYPE", "bf16")
    assert resolve_dtype("auto", CPU) == torch.bfloat16
    assert resolve_dtype("fp32", CPU) == torch.float32


def test_half_precision_is_refused_on_the_cpu(monkeypatch):
    with pytest.raises(ConfigError, match=r"dtype: fp16 does not run on the CPU"):
        resolve_dtype("float16", CPU)
    monkeypatch.setenv("RESTOREKIT_DTYPE", "fp16")
    with pytest.raises(ConfigError, match=r"RESTOREKIT_DTYPE: fp16"):
        resolve_dtype("auto", CPU)


def test_an_unknown_precision_names_a_near_one():
    with pytest.raises(ConfigError, match=r"unknown precision 'float23'(.|\n)*did you mean 'float32'"):
        resolve_dtype("float23", CPU)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be tuned")
def test_a_tuned_allocator_gives_freed_memory_again():
    script = """
import resource, sys, torch
from restorekit.runtime import tune_allocator
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if sys.argv[1:]:
    assert tune_allocator()
print(sum(faults() for _ in range(40)))
"""

    def total(*tuned: str) -> int:
        # A process of its own, as the command line is: what other tests keep would cut the freed memory up.
        command = [sys.executable, "-c", script, *tuned]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    # Untuned, every block is faulted in. Tuned, only the first few: small blocks come to lie between them.
    assert total("tuned") < total() / 2


def test_other_systems_have_no_allocator_to_tune(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not tune_allocator()


def test_an_image_that_fits_is_not_cut(monkeypatch):
    free(monkeypatch, 1000 * MB)
    # 600 MB may be used and 1 kB a pixel is taken twice: 300,000 pixels.
    assert choose_tile(500, 600, 1000, CPU, 32, 1) == 0
    assert choose_tile(500, 601, 1000, CPU, 32, 1) == math.isqrt(300_000)


def test_tiles_are_the_largest_multiple_that_fits(monkeypatch):
    free(monkeypatch, 1000 * MB)
    assert choose_tile(4000, 3000, 1000, CPU, 32, 16) == 544
    assert choose_tile(4000, 3000, 2000, CPU, 32, 16) == 384
    assert choose_tile(4000, 3000, None, CPU, 32, 8) == 216


def test_tiles_are_never_smaller_than_is_sensible(monkeypatch, caplog):
    free(monkeypatch, 10 * MB)
    assert choose_tile(4000, 3000, 1000, CPU, 32, 24) == smallest_tile(32, 24) == 144
    assert choose_tile(4000, 3000, 1000, CPU, 64, 1) == 256
    assert "may not fit" in caplog.text


def test_every_choice_can_be_tiled(monkeypatch):
    for amount in (1, 30, 300):
        free(monkeypatch, amount * MB)
        for overlap in (0, 17, 32, 200):
            for multiple in (1, 8, 48):
                tile = choose_tile(2000, 3000, 500, CPU, overlap, multiple)
                assert tile % multiple == 0
                Tiler(tile, overlap)


def ladder(limit, tile, smallest=100, sides=(800, 600), error=torch.cuda.OutOfMemoryError):
    """Run a ladder where tiles above ``limit`` do not fit; return what came of it and the tiles tried."""
    tried, events = [], []

    def run(size):
        tried.append(size)
        if (size or max(sides)) > limit:
            raise error("out of memory")
        return torch.full((1,), float(size))

    output, fitted = run_with_ladder(run, tile, smallest, sides=sides, events=events)
    assert output.item() == fitted == tried[-1]
    return tried, events


def test_what_fits_is_run_once():
    assert ladder(limit=1000, tile=0) == ([0], [])
    assert ladder(limit=512, tile=512) == ([512], [])


def test_tiles_are_halved_until_they_fit():
    tried, events = ladder(limit=200, tile=512)
    assert tried == [512, 256, 128]
    assert events == [
        "out of memory at tile 512, retried at 256",
        "out of memory at tile 256, retried at 128",
    ]


def test_a_whole_image_is_halved_by_its_longer_side():
    for whole in (0, 800, 5000):
        tried, events = ladder(limit=200, tile=whole)
        assert tried == [whole, 400, 200]
        assert events[0] == "out of memory at the whole image, retried at 400"


def test_the_smallest_tile_is_tried_before_giving_up():
    assert ladder(limit=100, tile=150)[0] == [150, 100]


def test_giving_up_names_the_tiles_that_were_tried():
    with pytest.raises(MemoryLimitError, match=r"out of memory at the whole image, tile 400, tile 300\n"):
        ladder(limit=10, tile=0, smallest=300)
    with pytest.raises(MemoryLimitError, match=r"out of memory at the whole image\n"):
        ladder(limit=10, tile=0, smallest=900)


def test_an_allocation_that_the_cpu_refuses_is_out_of_memory():
    def run(size):
        return torch.empty(1 if size else 2**50, dtype=torch.uint8)

    assert run_with_ladder(run, 0, 10, sides=(40, 60))[1] == 30


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_devices_say_out_of_memory_in_their_own_words(error):
    def run(size):
        if size != 30:
            raise error
        return torch.zeros(1)

    assert run_with_ladder(run, 60, 10, sides=(100, 100))[1] == 30


def test_other_errors_are_not_retried():
    tried = []

    def run(size):
        tried.append(size)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run_with_ladder(run, 64, 10, sides=(100, 100))
    assert tried == [64]


def test_tensors_of_a_failed_try_are_gone_before_the_next():
    held = []

    def run(size):
        if size == 30:
            assert held[0]() is None
            return torch.zeros(1)
        large = torch.zeros(10)
        held.append(weakref.ref(large))
        raise torch.cuda.OutOfMemoryError("out of memory")

    run_with_ladder(run, 60, 10, sides=(100, 100))


def test_finite_means_neither_nan_nor_infinite():
    assert check_finite(torch.tensor([0.0, -1e30]))
    assert not check_finite(torch.tensor([0.0, math.nan]))
    assert not check_finite(torch.tensor([0.0, -math.inf]).bfloat16())


def test_channels_innermost_leaves_a_network_with_five_dimensions_alone():
    flat, deep = torch.nn.Conv2d(3, 4, 3), torch.nn.ModuleList([torch.nn.Conv2d(3, 4, 3)])
    deep.append(torch.nn.Conv3d(1, 1, 3))
    runtime.channels_last(flat)
    runtime.channels_last(deep)
    assert flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert not deep[0].weight.is_contiguous(memory_format=torch.channels_last)
