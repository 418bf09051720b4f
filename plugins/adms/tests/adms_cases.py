"""Small networks and adapters for the tests of ADMS."""

import torch

from restorekit.registry import backbones
from restorekit_adms.adapter import Adms

SMALL = {
    "nafnet": {"width": 8, "encoder_blocks": (1, 1), "middle_blocks": 1, "decoder_blocks": (1, 1)},
    "restormer": {"dim": 8, "blocks": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "refinement_blocks": 1},
    "mprnet": {"width": 8, "width_step": 4, "third_step": 4, "blocks": 1},
    "srresnet": {"width": 8, "blocks": 2, "scale": 2},
    "srcnn": {"widths": (8, 8), "scale": 2},
}
KINDS = ["rain", "blur"]


def network_of(name="nafnet", seed=0):
    torch.manual_seed(seed)
    network = backbones[name].load()(**SMALL[name]).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def adapter_of(network, stir=0.05, **params):
    """Return an adapter by chance whose filters do something, and the network that it makes."""
    torch.manual_seed(1)
    adapter = Adms(**{"degradations": KINDS, "mask": "random", "ratio": 0.1, "router": "uniform", **params})
    adaptive = adapter.attach(network)
    for parameter in adapter.parameters():
        parameter.data += stir * torch.randn_like(parameter)
    return adapter, adaptive.eval().requires_grad_(False)


def images(network, count=1, side=24, seed=3):
    side = -(-side // network.size_multiple) * network.size_multiple
    generator, dtype = torch.Generator().manual_seed(seed), next(network.parameters()).dtype
    return torch.rand(count, network.channels, side, side, generator=generator).to(dtype)


def bits(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
