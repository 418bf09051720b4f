"""Write golden.safetensors: what our Restormer computes, so that a change of its values is seen.

Run it only when the values are meant to change, after `restorekit bench parity` held.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from restorekit_restormer.network import Restormer

SMALL = {"dim": 4, "blocks": (1, 1, 1, 1), "refinement_blocks": 1, "heads": (1, 2, 2, 4)}
VARIANTS = {
    "with-bias": {},
    "bias-free": {"norm": "bias-free", "bias": True},
    "dual-pixel": {"channels": 6, "out_channels": 3, "dual_pixel": True},
}


def network(variant="with-bias") -> Restormer:
    """Return a small network whose every parameter matters."""
    generator = torch.Generator().manual_seed(0)
    made = Restormer(**SMALL, **VARIANTS[variant])
    for parameter in made.parameters():
        noise = torch.rand(parameter.shape, generator=generator) * 2 - 1
        is_filter = parameter.ndim == 4
        parameter.data = noise * 1.5 / parameter[0].numel() ** 0.5 if is_filter else 1 + noise / 2
    return made.eval().requires_grad_(False)


def degraded(channels=3) -> torch.Tensor:
    """Return an image (1, C, 24, 32), with values outside of [0, 1]."""
    return torch.rand(1, channels, 24, 32, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2


if __name__ == "__main__":
    golden = {}
    for variant in VARIANTS:
        made = network(variant)
        golden |= {f"{variant}.weights.{name}": tensor for name, tensor in made.state_dict().items()}
        golden[f"{variant}.degraded"] = degraded(made.channels)
        golden[f"{variant}.restored"] = made(degraded(made.channels)).contiguous()
    save_file(golden, Path(__file__).with_name("golden.safetensors"))
