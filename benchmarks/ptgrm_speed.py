"""How fast PTG-RM refines an image, and how much memory it takes, beside a straightforward implementation.

    python benchmarks/ptgrm_speed.py                 # 1920 x 1080, one thread
    python benchmarks/ptgrm_speed.py --size 1280x720 --rounds 5 --threads 2

The straightforward one is the paper written down: the prior repeated at every pixel and joined to the
features, neighbourhoods unfolded, all maps whole. Both get the same weights and have to agree. Times are
taken in turns in one process, by the clock and by the processor, which other programs disturb less; memory is
that of a process of its own, above what it takes before.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import (
    conv2d,
    gelu,
    instance_norm,
    layer_norm,
    leaky_relu,
    linear,
    normalize,
    pad,
    pixel_shuffle,
    relu,
    unfold,
)

from restorekit.contracts import PriorFeatures
from restorekit.runtime import channels_last, tune_allocator
from restorekit_ptgrm.network import PTGRM

State = Mapping[str, Tensor]
NAMES = ("straightforward", "ptgrm")
Refine = Callable[[Tensor, Tensor, PriorFeatures], Tensor]


def straightforward(state: State, degraded: Tensor, restored: Tensor, prior: Tensor) -> Tensor:
    """Refine as sections 3.1 to 3.3 of the paper say, in the default configuration.

    Args:
        state: of a PTGRM with its default arguments.
        degraded: (B, 3, H, W), sides multiples of 4.
        restored: likewise.
        prior: (B, F).
    """

    def convolved(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return conv2d(x, weight, state.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)

    def embedded(name: str) -> Tensor:
        hidden = leaky_relu(linear(guide, state[f"{name}.prior.first.weight"]), 0.1)
        return linear(hidden, state[f"{name}.prior.second.weight"])

    def positions(name: str) -> Tensor:
        rows, columns = (torch.linspace(-1, 1, side, dtype=f.dtype) for side in (height, width))
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None].expand(len(f), -1, -1, -1)
        hidden = leaky_relu(convolved(grid, f"{name}.position.first"), 0.1)
        return convolved(hidden, f"{name}.position.second")

    def everywhere(vector: Tensor) -> Tensor:
        return vector[:, :, None, None].expand(-1, -1, height, width)

    guide = normalize(prior, dim=1)
    f = convolved(torch.cat([restored, degraded], 1), "encoder.first")
    f = instance_norm(f, weight=state["encoder.norm1.weight"], bias=state["encoder.norm1.bias"])
    f = convolved(leaky_relu(f, 0.1), "encoder.second", 2)
    f = instance_norm(f, weight=state["encoder.norm2.weight"], bias=state["encoder.norm2.bias"])
    f = convolved(f, "encoder.third", 2)
    height, width = f.shape[2:]

    seen = torch.cat([f, everywhere(embedded("enhancement.score")), positions("enhancement.score")], 1)
    hidden = leaky_relu(convolved(seen, "enhancement.score.first"), 0.1)
    score = torch.sigmoid(convolved(hidden, "enhancement.score.last"))
    near = f + convolved(relu(convolved(f, "enhancement.short.first")), "enhancement.short.second")
    far = f
    for block in range(4):
        far = _transformed(state, f"enhancement.long.{block}", far)
    f = score * near + (1 - score) * far

    t = embedded("attention")
    given = torch.cat([f.mean((2, 3)), t], 1)
    hidden = leaky_relu(linear(given, state["attention.channel.first.weight"]), 0.1)
    channels = torch.sigmoid(linear(hidden, state["attention.channel.last.weight"]))
    seen = torch.cat([f, everywhere(t), positions("attention.spatial")], 1)
    hidden = leaky_relu(convolved(seen, "attention.spatial.first"), 0.1)
    kernels = rearrange(convolved(hidden, "attention.spatial.kernels"), "b (d t) h w -> b d t h w", t=9)
    neighbours = unfold(pad(f, (1, 1, 1, 1), mode="replicate"), 3).view(kernels.shape)
    filtered = (neighbours * kernels).sum(2)
    pixels = torch.sigmoid(convolved(leaky_relu(filtered, 0.1), "attention.spatial.last"))
    attended = torch.cat([f * channels[:, :, None, None], f * pixels], 1)
    f = convolved(attended, "attention.fuse") + f

    x = leaky_relu(pixel_shuffle(convolved(f, "decoder.first"), 2), 0.1)
    x = leaky_relu(pixel_shuffle(convolved(x, "decoder.second"), 2), 0.1)
    x = leaky_relu(convolved(x, "decoder.third"), 0.1)
    mask, residual = convolved(x, "decoder.last").chunk(2, 1)
    return degraded + (restored - degraded) * torch.sigmoid(mask) + residual


def _transformed(state: State, name: str, x: Tensor) -> Tensor:
    def normed(x: Tensor, norm: str) -> Tensor:
        weight, bias = state[f"{name}.{norm}.weight"], state[f"{name}.{norm}.bias"]
        return layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias).permute(0, 3, 1, 2)

    def convolved(x: Tensor, layer: str) -> Tensor:
        weight = state[f"{name}.{layer}.weight"]
        return conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1] // weight.shape[1])

    wide = convolved(convolved(normed(x, "norm1"), "attention.expand"), "attention.depthwise")
    queries, keys, values = wide.flatten(2).chunk(3, 1)
    cosines = normalize(queries, dim=-1) @ normalize(keys, dim=-1).mT
    attention = torch.softmax(cosines * state[f"{name}.attention.temperature"], -1)
    x = x + convolved((attention @ values).view(x.shape), "attention.project")
    hidden = convolved(convolved(normed(x, "norm2"), "feed_forward.expand"), "feed_forward.depthwise")
    opened, gate = hidden.chunk(2, 1)
    return x + convolved(gelu(opened) * gate, "feed_forward.project")


def refiners() -> dict[str, Refine]:
    """Return both implementations, with the same weights."""
    torch.manual_seed(0)
    network = PTGRM(start="random").eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    channels_last(network)
    return {
        "straightforward": lambda before, after, prior: straightforward(state, before, after, prior.glob),
        "ptgrm": network,
    }


def images(height: int, width: int) -> tuple[Tensor, Tensor, PriorFeatures]:
    """Return a degraded and a restored image (1, 3, H, W) and a prior, from a seed."""
    torch.manual_seed(1)
    restored = torch.rand(1, 3, height, width)
    return restored + 0.1 * torch.randn_like(restored), restored, PriorFeatures(torch.randn(1, 512))


def laid_out(name: str, given: tuple[Tensor, Tensor, PriorFeatures]) -> tuple[Tensor, Tensor, PriorFeatures]:
    """Return the images as the pipeline hands them over."""
    before, after = (image.contiguous(memory_format=torch.channels_last) for image in given[:2])
    return given if name == "straightforward" else (before, after, given[2])


def peak(name: str, height: int, width: int) -> float:
    """Return the megabytes that this process grew by while it refined one image."""
    refine, given = refiners()[name], laid_out(name, images(height, width))
    small = laid_out(name, images(64, 64))
    with torch.inference_mode():
        refine(*small)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refine(*given)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Print seconds, megabytes and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", default="1920x1080", help="WIDTHxHEIGHT, multiples of 4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", help="print the peak memory of one implementation, and nothing else")
    asked = parser.parse_args()
    width, height = map(int, asked.size.split("x"))
    torch.set_num_threads(asked.threads)
    if asked.peak:
        print(peak(asked.peak, height, width))
        return
    # First: a process starts with the peak of the one that started it.
    command = [sys.executable, __file__, "--size", asked.size, "--threads", str(asked.threads), "--peak"]
    megabytes = {
        name: float(subprocess.run([*command, name], check=True, capture_output=True, text=True).stdout)
        for name in NAMES
    }
    # As the command line does.
    tune_allocator()
    both, given = refiners(), images(height, width)
    seconds: dict[str, list[float]] = {name: [] for name in both}
    busy: dict[str, list[float]] = {name: [] for name in both}
    outputs = {}
    with torch.inference_mode():
        for _ in range(asked.rounds):
            for name, refine in both.items():
                arguments = laid_out(name, given)
                started, used = time.perf_counter(), time.process_time()
                outputs[name] = refine(*arguments)
                seconds[name].append(time.perf_counter() - started)
                busy[name].append(time.process_time() - used)
    apart = (outputs["ptgrm"] - outputs["straightforward"]).abs().max().item()
    print(f"{width} x {height}, {asked.threads} threads; largest difference {apart:.1e}")
    for name, times in seconds.items():
        print(
            f"{name:16} median {statistics.median(times):.2f} s   least {min(times):.2f} s   "
            f"processor {statistics.median(busy[name]):.2f} s   "
            f"memory {megabytes[name]:,.0f} MB"
        )
    slow, fast = NAMES
    by_clock, by_processor = (
        statistics.median(one / other for one, other in zip(taken[slow], taken[fast], strict=True))
        for taken in (seconds, busy)
    )
    print(
        f"ratio            {by_clock:.2f} times as fast by the clock, {by_processor:.2f} by the processor, "
        f"memory 1/{megabytes[slow] / megabytes[fast]:.1f}"
    )


if __name__ == "__main__":
    main()
