"""Write golden.safetensors: what our MPRNet computes, so that a change of its values is seen.

Run it only when the values are meant to change, after `restorekit bench parity` held.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from restorekit_mprnet.network import MPRNet

ARGUMENTS = {"width": 4, "width_step": 2, "third_step": 2, "blocks": 1, "reduction": 2}


def network() -> MPRNet:
    """Return a small network whose every parameter matters."""
    generator = torch.Generator().manual_seed(0)
    made = MPRNet(**ARGUMENTS)
    for parameter in made.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) * 0.4 - 0.2
    return made.eval().requires_grad_(False)


def degraded() -> torch.Tensor:
    """Return an image (1, 3, 24, 32), with values outside of [0, 1]."""
    return torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2


if __name__ == "__main__":
    made = network()
    golden = {f"weights.{name}": tensor for name, tensor in made.state_dict().items()}
    golden |= {f"output{i}": output for i, output in enumerate(made.training_outputs(degraded()))}
    golden["degraded"] = degraded()
    save_file(golden, Path(__file__).with_name("golden.safetensors"))
