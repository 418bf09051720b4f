"""What the tests of analysis share: small networks in pairs, images, and what tells how a network fails."""

import copy

import torch
from torch import nn

from restorekit.contracts import Backbone
from restorekit.registry import backbones

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


def images(count: int = 2, scale: int = 1, side: int = 16, seed: int = 0, dtype=torch.float64):
    """Return pairs of noisy and clean images (1, 3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        degraded = torch.rand(1, 3, side, side + 3, generator=generator, dtype=dtype)
        clean = degraded.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        noise = torch.randn(clean.shape, generator=generator, dtype=dtype)
        made.append((degraded, (clean + 0.1 * noise).clamp(0, 1)))
    return made
