"""A batch of different verdicts that is run at once, each image with weights of its own."""

import pytest
import torch
from adms_cases import SMALL, adapter_of, bits, images, network_of, same
from torch import nn
from torch.nn.functional import conv2d

from restorekit.contracts import Backbone
from restorekit.errors import RestoreKitError

SHARES = torch.tensor([[0.7, 0.3], [0.0, 1.0], [0.25, 0.75]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def adaptive_of(network, **params):
    adapter, adaptive = adapter_of(network, router=lambda batch: SHARES[: len(batch)], **params)
    return adapter, adaptive.double()


def counted(network):
    """Return where it is noted that a network is run, however many images it is given."""
    runs = []
    network.register_forward_pre_hook(lambda module, inputs: runs.append(1))
    return runs


@pytest.mark.parametrize("vectors", ["none", "all"])
@pytest.mark.parametrize("name", SMALL)
def test_images_with_mixtures_of_their_own_are_run_at_once(name, vectors):
    network = network_of(name).double()
    adapter, adaptive = adaptive_of(network, vectors=vectors)
    x = images(network, 3)
    expected, before, runs = adaptive(x), bits(network), counted(network)
    adapter.mode = "batched"
    torch.testing.assert_close(adaptive(x), expected, rtol=0, atol=1e-11)
    assert len(runs) == 1
    assert same(bits(network), before)
    # The first alone, as in a batch of one.
    torch.testing.assert_close(adaptive(x[:1]), expected[:1], rtol=0, atol=1e-11)


@torch.enable_grad()
@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_those_of_image_by_image(name):
    network = network_of(name).double().requires_grad_(True)
    adapter, adaptive = adaptive_of(network)
    adapter.requires_grad_(True)
    x, found = images(network, 3), {}
    for mode in ("soft", "batched"):
        adapter.mode = mode
        sum(output.square().mean() for output in adaptive.training_outputs(x)).backward()
        found[mode] = [parameter.grad.clone() for parameter in adapter.parameters()]
        adapter.zero_grad()
    assert any(gradient.any() for gradient in found["soft"])
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)
    assert all(parameter.grad is None for parameter in network.parameters())


class Around(Backbone):
    """Runs one of its layers by its weight alone, another under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.third = nn.Conv2d(3, 3, 3, padding=1)
        self.third.weight = self.first.weight

    def forward(self, degraded):
        return self.third(conv2d(self.first(degraded), self.second.weight, padding=1))


class Looking(Around):
    """Does what depends on the values of an image: not to be run on several at once."""

    def forward(self, degraded):
        return super().forward(degraded) if float(degraded.mean()) > 0 else degraded


def test_layers_that_are_gone_around_and_shared_are_mixed_too():
    torch.manual_seed(0)
    network = Around().double().eval().requires_grad_(False)
    adapter, adaptive = adaptive_of(network, ratio=0.5)
    x = images(network, 3)
    expected = adaptive(x)
    adapter.mode = "batched"
    torch.testing.assert_close(adaptive(x), expected, rtol=0, atol=1e-11)


def test_a_network_that_cannot_be_run_so_is_named_with_the_way_out():
    network = Looking().double().eval().requires_grad_(False)
    adapter, adaptive = adaptive_of(network, ratio=0.5, mode="batched")
    with pytest.raises(RestoreKitError, match="Looking cannot be run with weights for each image") as caught:
        adaptive(images(network, 3))
    assert "mode: group" in caught.value.hint
    adapter.mode = "group"
    assert adaptive(images(network, 3)).isfinite().all()


def test_memory_that_runs_out_is_left_to_who_can_tell_it(monkeypatch):
    network = network_of().double()
    _, adaptive = adaptive_of(network, mode="batched")

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    network.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        adaptive(images(network, 2))
