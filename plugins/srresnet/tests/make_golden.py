"""Write golden.safetensors: a small random network for each scale, an input, and their outputs.

Run only when a change of the outputs is meant: `python plugins/srresnet/tests/make_golden.py`.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from restorekit_srresnet import SRResNet

SMALL = dict(width=4, blocks=2)
SCALES = (1, 2, 3, 4, 8)


def randomised(scale):
    """Return a network of which no parameter is zero, so that every path shows in the output."""
    network = SRResNet(**SMALL, scale=scale).eval()
    generator = torch.Generator().manual_seed(scale)
    for parameter in network.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator) - 0.5
    return network


if __name__ == "__main__":
    tensors = {"input": torch.rand(1, 3, 7, 10, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1}
    for scale in SCALES:
        network = randomised(scale)
        tensors |= {f"{scale}.{key}": value for key, value in network.state_dict().items()}
        with torch.no_grad():
            tensors[f"{scale}.output"] = network(tensors["input"]).contiguous()
    save_file(tensors, Path(__file__).with_name("golden.safetensors"))
