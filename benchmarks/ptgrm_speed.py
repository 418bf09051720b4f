"""How fast PTG-RM refines an image, and how much memory it takes, beside straightforward implementations.

    python benchmarks/ptgrm_speed.py                 # 1920 x 1080, one thread
    python benchmarks/ptgrm_speed.py --size 1280x720 --rounds 5 --threads 2

The straightforward one is the paper written down: the prior repeated at every pixel and joined to the
features, neighbourhoods unfolded by ``torch.nn.functional.unfold``, all maps whole. A second one filters by
the kernels as the published code does: neighbourhoods as a view of more dimensions, permuted, as the kernels
are, so that the taps of a pixel lie together. All get the same weights, and have to agree.

Every implementation runs in a process of its own, twice: with the allocator as a process has it by default,
and tuned as the command line of restorekit does (``restorekit.runtime.tune_allocator``). They take turns,
image by image. Times are by the clock and by the processor, which other programs disturb less; memory is that
of yet another process with the default allocator, above what it takes before.
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
NAMES = ("as the release", "straightforward", "ptgrm")
ALLOCATORS = ("default", "tuned")
Refine = Callable[[Tensor, Tensor, PriorFeatures], Tensor]


def by_unfolding(padded: Tensor, kernels: Tensor) -> Tensor:
    """Filter (B, D, h + 2, w + 2) by kernels (B, 9 D, h, w): neighbourhoods by channel and tap."""
    kernels = rearrange(kernels, "b (d t) h w -> b d t h w", t=9)
    return (unfold(padded, 3).view(kernels.shape) * kernels).sum(2)


def by_permuting(padded: Tensor, kernels: Tensor) -> Tensor:
    """Filter likewise, as the published code does: neighbourhoods pixel by pixel."""
    neighbours = rearrange(padded.unfold(2, 3, 1).unfold(3, 3, 1), "b d h w i j -> b h w d (i j)")
    kernels = rearrange(kernels, "b (d t) h w -> b h w d t", t=9).contiguous()
    return rearrange((neighbours * kernels).sum(-1), "b h w d -> b d h w").contiguous()


def straightforward(
    state: State,
    degraded: Tensor,
    restored: Tensor,
    prior: Tensor,
    filtered_by: Callable[[Tensor, Tensor], Tensor] = by_unfolding,
) -> Tensor:
    """Refine as sections 3.1 to 3.3 of the paper say, in the default configuration.

    Args:
        state: of a PTGRM with its default arguments.
        degraded: (B, 3, H, W), sides multiples of 4.
        restored: likewise.
        prior: (B, F).
        filtered_by: how each pixel is filtered by its own kernel.
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
    kernels = convolved(hidden, "attention.spatial.kernels")
    filtered = filtered_by(pad(f, (1, 1, 1, 1), mode="replicate"), kernels)
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


def refiner(name: str) -> Refine:
    """Return an implementation, always with the same weights."""
    torch.manual_seed(0)
    network = PTGRM(start="random").eval()
    if name == "ptgrm":
        channels_last(network)
        return network
    filtered_by = by_permuting if name == "as the release" else by_unfolding
    state = network.state_dict()
    return lambda before, after, prior: straightforward(state, before, after, prior.glob, filtered_by)


def images(height: int, width: int) -> tuple[Tensor, Tensor, PriorFeatures]:
    """Return a degraded and a restored image (1, 3, H, W) and a prior, from a seed."""
    torch.manual_seed(1)
    restored = torch.rand(1, 3, height, width)
    return restored + 0.1 * torch.randn_like(restored), restored, PriorFeatures(torch.randn(1, 512))


def laid_out(name: str, given: tuple[Tensor, Tensor, PriorFeatures]) -> tuple[Tensor, Tensor, PriorFeatures]:
    """Return the images as the pipeline hands them over."""
    before, after = (image.contiguous(memory_format=torch.channels_last) for image in given[:2])
    return (before, after, given[2]) if name == "ptgrm" else given


def peak(name: str, height: int, width: int) -> float:
    """Return the megabytes that this process grew by while it refined one image."""
    refine, given = refiner(name), laid_out(name, images(height, width))
    small = laid_out(name, images(64, 64))
    with torch.inference_mode():
        refine(*small)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refine(*given)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def serve(name: str, height: int, width: int) -> None:
    """Refine the image once for every line that is read; print seconds by the clock and by the processor."""
    refine, given = refiner(name), laid_out(name, images(height, width))
    with torch.inference_mode():
        refine(*given)
        print("ready", flush=True)
        for _ in sys.stdin:
            started, used = time.perf_counter(), time.process_time()
            refine(*given)
            print(time.perf_counter() - started, time.process_time() - used, flush=True)


class Server:
    """An implementation in a process of its own.

    Args:
        command: that starts this program.
        name: of the implementation.
        allocator: how the process keeps memory.
    """

    def __init__(self, command: list[str], name: str, allocator: str) -> None:
        self.process = subprocess.Popen(
            [*command, "--serve", name, "--allocator", allocator],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.clock: list[float] = []
        self.processor: list[float] = []
        self._line()

    def ask(self) -> None:
        """Have one image refined."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        clock, processor = map(float, self._line().split())
        self.clock.append(clock)
        self.processor.append(processor)

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("an implementation stopped; its own message is above")
        return line


def apart(height: int, width: int) -> float:
    """Return by how much the implementations differ at most."""
    outputs = []
    with torch.inference_mode():
        for name in NAMES:
            outputs.append(refiner(name)(*laid_out(name, images(height, width))))
    return max((output - outputs[-1]).abs().max().item() for output in outputs)


def compared(slow: Server, fast: Server) -> str:
    """Return how many times as fast one is, by the clock and by the processor: medians over the rounds."""
    clock, processor = (
        statistics.median(one / other for one, other in zip(*times, strict=True))
        for times in ((slow.clock, fast.clock), (slow.processor, fast.processor))
    )
    return f"{clock:5.2f} {processor:9.2f}"


def main() -> None:
    """Print seconds, megabytes and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", default="1920x1080", help="WIDTHxHEIGHT, multiples of 4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", help="print the peak memory of one implementation, and nothing else")
    parser.add_argument("--serve", help="refine with one implementation for every line that is read")
    parser.add_argument("--allocator", choices=ALLOCATORS, default="default", help="of --serve")
    asked = parser.parse_args()
    width, height = map(int, asked.size.split("x"))
    torch.set_num_threads(asked.threads)
    if asked.allocator == "tuned":
        tune_allocator()
    if asked.peak:
        print(peak(asked.peak, height, width))
        return
    if asked.serve:
        serve(asked.serve, height, width)
        return
    command = [sys.executable, __file__, "--size", asked.size, "--threads", str(asked.threads)]
    # First: a process starts with the peak of the one that started it.
    megabytes = {
        name: float(
            subprocess.run([*command, "--peak", name], check=True, capture_output=True, text=True).stdout
        )
        for name in NAMES
    }
    servers = {
        (name, allocator): Server(command, name, allocator) for allocator in ALLOCATORS for name in NAMES
    }
    for _ in range(asked.rounds):
        for server in servers.values():
            server.ask()
    for server in servers.values():
        server.process.communicate()
    print(
        f"{width} x {height}, {asked.threads} threads, {asked.rounds} rounds; "
        f"largest difference {apart(height, width):.1e}"
    )
    print("implementation   allocator    clock  processor   memory")
    for (name, allocator), server in servers.items():
        clock, processor = (statistics.median(times) for times in (server.clock, server.processor))
        print(f"{name:16} {allocator:9} {clock:6.2f} s {processor:8.2f} s {megabytes[name]:6,.0f} MB")
    print("PTG-RM is so many times as fast, and takes so much of the memory:")
    print("than             allocators           clock processor   memory")
    for slow in NAMES[:-1]:
        memory = megabytes[slow] / megabytes["ptgrm"]
        for theirs, ours in (("default", "default"), ("tuned", "tuned"), ("default", "tuned")):
            ratios = compared(servers[slow, theirs], servers["ptgrm", ours])
            print(f"{slow:16} {f'{theirs}, ours {ours}':20} {ratios}   1/{memory:.1f}")


if __name__ == "__main__":
    main()
