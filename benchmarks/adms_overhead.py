"""What filters for each image cost: an adaptive network beside its base, for a batch of one.

Both are run in turns and their times divided run by run, so that what else the machine does falls on both
alike; the median of the ratios counts. The split says where the difference goes: to the classifier, and to
writing the mixture. On a machine that is shared take `--threads 1 --cpu-time`, which counts the time of this
process alone. With `--batch 8` a batch whose images all have mixtures of their own is run in each mode.
Run: `python benchmarks/adms_overhead.py [--side 512] [--runs 15] [--ratio 0.03] [--batch 1]`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from restorekit.contracts import Backbone
from restorekit.registry import adapters, backbones
from restorekit.runtime import channels_last, tune_allocator
from restorekit_adms.dedicated import Mode
from restorekit_adms.network import Adaptive
from restorekit_adms.routing import RouterChoice

# Arguments of a NAFNet, and of its adapter.
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "width 16": ({"width": 16}, {}),
    "width 32": ({"width": 32}, {}),
    "of all-in-one": (
        {"width": 16, "encoder_blocks": (1, 1, 2), "middle_blocks": 4, "decoder_blocks": (1, 1, 1)},
        {"widths": (16, 24, 32, 48, 64)},
    ),
    "of the tables": (
        {"width": 12, "encoder_blocks": (1, 1, 2), "middle_blocks": 2, "decoder_blocks": (1, 1, 1)},
        {},
    ),
    "width 32, 1-1-1-28": (
        {"width": 32, "encoder_blocks": (1, 1, 1, 28), "middle_blocks": 1, "decoder_blocks": (1, 1, 1, 1)},
        {},
    ),
}
KINDS = ("rain", "blur", "noise")


def seconds(act: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """Return how long a call takes, its work on the device included."""
    started = clock()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - started


def ratios(
    adaptive: Adaptive, base: Backbone, image: Tensor, runs: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Return medians: seconds of the base, and shares of it that the whole and its parts take beyond."""
    classifier, device = adaptive.adapter.classifier, image.device
    assert classifier is not None
    weights = adaptive.weights(image)[0]
    other = torch.ones_like(weights)

    def mix(weights: Tensor) -> None:
        with adaptive.mixer.lent(weights):
            pass

    def timed(act: Callable[[], object]) -> float:
        # As after another image: a mixture that is there already would not be written again.
        mix(other)
        return seconds(act, device, clock)

    acts: dict[str, Callable[[], object]] = {
        "base": lambda: base(image),
        "adaptive": lambda: adaptive(image),
        "classifier": lambda: classifier(image),
        "mixing": lambda: mix(weights),
    }
    for act in acts.values():
        act()
    rows = [{name: timed(act) for name, act in acts.items()} for _ in range(runs)]
    found = {"base": statistics.median(row["base"] for row in rows)}
    found["overhead"] = statistics.median(row["adaptive"] / row["base"] - 1 for row in rows)
    for part in ("classifier", "mixing"):
        found[part] = statistics.median(row[part] / row["base"] for row in rows)
    return found


def modes(adaptive: Adaptive, base: Backbone, images: Tensor, runs: int, clock: Callable[[], float]) -> str:
    """Return what each mode takes, as a multiple of the base alone, for images of different mixtures."""
    shares = torch.rand(len(images), len(KINDS), generator=torch.Generator().manual_seed(0)).softmax(1)
    adaptive.adapter.router = RouterChoice.of(lambda batch: shares.to(batch.device))

    def run(mode: Mode) -> Tensor:
        adaptive.adapter.mode = mode
        restored: Tensor = adaptive(images)
        return restored

    names: tuple[Mode, ...] = ("group", "soft", "batched")
    rows = []
    for number in range(runs + 1):
        alone = seconds(lambda: base(images), images.device, clock)
        row = [seconds(partial(run, mode), images.device, clock) / alone for mode in names]
        # The first one warms up.
        rows += [row] if number else []
    medians = (statistics.median(column) for column in zip(*rows, strict=True))
    return "   ".join(f"{name} {median:.2f} x" for name, median in zip(names, medians, strict=True))


def main() -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ratio", type=float, default=0.03)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true")
    given = parser.parse_args()
    clock = time.process_time if given.cpu_time else time.perf_counter
    torch.set_num_threads(given.threads)
    tune_allocator()
    device = torch.device(given.device)
    share = f"{len(KINDS)} degradations of {100 * given.ratio:g} %"
    print(f"{given.side} x {given.side}, batch {given.batch}, {share}, {device}")
    for name, (params, own) in NETWORKS.items():
        torch.manual_seed(0)
        base = backbones["nafnet"].load()(**params).eval().requires_grad_(False)
        adapter = adapters["adms"].load()(
            degradations=KINDS, mask="random", ratio=given.ratio, router="classifier", **own
        )
        adaptive = adapter.attach(base).eval().requires_grad_(False).to(device)
        assert isinstance(adaptive, Adaptive)
        channels_last(adaptive)
        image = torch.rand(given.batch, 3, given.side, given.side, device=device)
        image = image.to(memory_format=torch.channels_last)
        if given.batch > 1:
            with torch.no_grad():
                print(f"nafnet {name:18} {modes(adaptive, base, image, given.runs, clock)}")
            continue
        with torch.inference_mode():
            found = ratios(adaptive, base, image, given.runs, clock)
        parts = f"classifier {100 * found['classifier']:.2f} %, mixing {100 * found['mixing']:.2f} %"
        print(
            f"nafnet {name:18} base {1000 * found['base']:7.1f} ms   "
            f"adaptive {100 * found['overhead']:+5.2f} %   of it {parts}"
        )


if __name__ == "__main__":
    main()
