"""What the tests of analysis share: small networks in pairs, images, and what tells how a network fails."""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call

from restorekit.analysis import restored
from restorekit.analysis.walk import sse
from restorekit.contracts import Backbone
from restorekit.filters import FilterTable
from restorekit.registry import backbones

TOY = Path(__file__).with_name("analysis_toy.safetensors")

# A small network of each family: constructor arguments.
SMALL = {
    "nafnet": {"width": 4, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]},
    "restormer": {"dim": 4, "blocks": [1, 1, 1, 1], "refinement_blocks": 1, "heads": [1, 1, 2, 2]},
    "mprnet": {"width": 4, "width_step": 2, "third_step": 2, "blocks": 1},
    "srresnet": {"width": 6, "blocks": 2, "scale": 2},
    "srcnn": {"widths": [6, 8, 8], "scale": 2},
}


class Layers(Backbone):
    """Any layers, one after the other."""

    def __init__(self, *layers: nn.Module, scale: int = 1):
        super().__init__()
        self.layers, self.scale = nn.Sequential(*layers), scale

    def forward(self, degraded):
        return self.layers(degraded)


def small(name: str) -> Backbone:
    torch.manual_seed(0)
    return backbones[name].load()(**SMALL[name]).double().eval()


def moved(base: Backbone, size: float = 0.05, seed: int = 1) -> Backbone:
    """Return a copy whose parameters moved a little."""
    target = copy.deepcopy(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter += size * parameter.abs().mean().clamp(min=0.02) * torch.randn_like(parameter)
    return target


def both(name: str) -> tuple[Backbone, Backbone]:
    base = small(name)
    return base, moved(base, 0.3)


def images(
    count: int = 2, scale: int = 1, side: int = 16, seed: int = 0, dtype=torch.float64, wider: int = 3
):
    """Return pairs of noisy and clean images (1, 3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        degraded = torch.rand(1, 3, side, side + wider, generator=generator, dtype=dtype)
        clean = degraded.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        noise = torch.randn(clean.shape, generator=generator, dtype=dtype)
        made.append((degraded, (clean + 0.1 * noise).clamp(0, 1)))
    return made


def loss_of(network, pairs):
    with torch.no_grad():
        return sum(float(sse(restored(network, degraded), clean)) for degraded, clean in pairs) / len(pairs)


def by_definition(base, target, pairs, steps, unit="kernel"):
    """Follow the release step by step: dense gradients of every step, kept apart, in its order."""
    table = FilterTable.of(target, unit)
    states = [{key: value.detach() for key, value in net.state_dict().items()} for net in (base, target)]
    total = torch.zeros(len(table), dtype=torch.float64)
    for degraded, clean in pairs:
        gradients = {tensor.name: 0.0 for tensor in table}
        for step in range(steps):
            alpha = step / steps
            state = {key: alpha * states[0][key] + (1 - alpha) * states[1][key] for key in states[0]}
            for tensor in table:
                state[tensor.name].requires_grad_()
            output = functional_call(target, state, (degraded,), tie_weights=False)
            loss = ((output - clean) ** 2).sum()
            found = torch.autograd.grad(loss, [state[tensor.name] for tensor in table])
            for tensor, gradient in zip(table, found, strict=True):
                gradients[tensor.name] = gradients[tensor.name] + gradient
        for tensor in table:
            element = (states[0][tensor.name] - states[1][tensor.name]) * gradients[tensor.name] / steps
            rows = tensor.rows(element.abs()).sum(1)
            total[tensor.offset : tensor.offset + tensor.count] += rows
    return total / len(pairs)


def scenes(count: int, side: int, seed: int) -> torch.Tensor:
    """Return pictures (B, 3, H, W) of soft ground with hard edges: what cannot be restored by heart."""
    generator = torch.Generator().manual_seed(seed)
    ground = torch.rand(count, 3, 4, 4, generator=generator)
    ground = nn.functional.interpolate(ground, (side, side), mode="bilinear")
    for picture in ground:
        for _ in range(6):
            top, left, height, width = torch.randint(0, side // 2, (4,), generator=generator).tolist()
            colour = torch.rand(3, 1, 1, generator=generator)
            picture[:, top : top + height + 2, left : left + width + 2] = colour
    return ground


def striped(clean: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Add vertical stripes two pixels wide."""
    columns = torch.arange(clean.shape[-1])
    return clean + 0.06 * ((columns // 2) % 2 * 2.0 - 1)


def noisy(clean: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return clean + 0.15 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


def fitted(network: Backbone, steps: int, degrade, seed: int) -> Backbone:
    """Train a copy for a few seconds; ``degrade`` takes clean pictures and a number."""
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(steps):
        clean = scenes(8, 20, seed * 100_000 + step)
        loss = (network(degrade(clean, step)) - clean).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def mixed(clean: torch.Tensor, number: int) -> torch.Tensor:
    """A quarter each of clean, striped, noisy and both."""
    generator = torch.Generator().manual_seed(number)
    return torch.stack(
        [
            [lambda x: x, striped, lambda x: noisy(x, number), lambda x: noisy(striped(x), number)][
                int(torch.randint(4, (), generator=generator))
            ](one[None])[0]
            for one in clean
        ]
    )


def trained_toy(seed: int = 0, steps: int = 400) -> tuple[Backbone, Backbone]:
    """Train a baseline that keeps images, and from it a target that removes stripes and noise."""
    base = fitted(fresh_toy(seed), steps // 4, lambda clean, step: clean, seed)
    return base, fitted(base, steps, mixed, seed + 50)


def fresh_toy(seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return backbones["srresnet"].load()(width=12, blocks=2, scale=1).eval()


def toy() -> tuple[Backbone, Backbone]:
    """Return what ``trained_toy`` gave when this file was run as a program."""
    tensors = load_file(TOY)
    networks = []
    for name in ("base", "target"):
        network = fresh_toy()
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(name)}
        network.load_state_dict(own)
        networks.append(network.eval())
    return networks[0], networks[1]


if __name__ == "__main__":
    made = zip(("base", "target"), trained_toy(), strict=True)
    save_file(
        {f"{name}.{key}": value for name, network in made for key, value in network.state_dict().items()}, TOY
    )


class StoppedError(Exception):
    """Raised by tests, to end an attribution in the middle."""
