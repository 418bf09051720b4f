"""Write golden.safetensors: small random networks of each kind, an input, and their outputs.

Run only after the parity test against the official outputs has passed: `python
plugins/nafnet/tests/make_golden.py`.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from restorekit_nafnet.network import Baseline, NAFNet

SMALL = dict(width=4, encoder_blocks=(1, 1), middle_blocks=1, decoder_blocks=(1, 1))
NETWORKS = {
    "nafnet": lambda: NAFNet(**SMALL),
    "nafnet_local": lambda: NAFNet(**SMALL, local_window=12),
    "baseline": lambda: Baseline(**SMALL),
    "baseline_wide": lambda: Baseline(**SMALL, dw_expand=2, local_window=(8, 16)),
}


def randomised(name):
    """Return a network of which no parameter is zero, so that every path shows in the output."""
    torch.manual_seed(len(name))
    network = NETWORKS[name]().eval()
    for parameter in network.parameters():
        parameter.data.uniform_(-0.5, 0.5)
    return network


if __name__ == "__main__":
    tensors = {"input": torch.rand(1, 3, 21, 34, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.1}
    for name in NETWORKS:
        network = randomised(name)
        tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        with torch.no_grad():
            tensors[f"{name}.output"] = network(tensors["input"]).contiguous()
    save_file(tensors, Path(__file__).with_name("golden.safetensors"))
