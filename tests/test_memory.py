from types import SimpleNamespace

import pytest
import torch
from torch import nn

from restorekit import memory
from restorekit.contracts import Backbone
from restorekit.memory import available_memory, memory_per_pixel

CPU = torch.device("cpu")
MB = 10**6


def test_the_cpu_has_memory():
    assert 10 * MB < available_memory(CPU) < 2**50


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/job/inner", "job", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu,memory:/job",
            "memory/job",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_a_container_limits_the_memory_of_the_cpu(line, folder, names, tmp_path):
    limit, usage, reclaimable = names
    group = tmp_path / folder
    group.mkdir(parents=True)
    (group / limit).write_text(f"{1000 * MB}\n")
    (group / usage).write_text(f"{700 * MB}\n")
    (group / "memory.stat").write_text(f"anon 5\n{reclaimable} {200 * MB}\nslab 7\n")
    membership = tmp_path / "cgroup"
    membership.write_text(f"9:pids:/job\n{line}\n")
    assert list(memory._cgroup_room(membership, tmp_path)) == [500 * MB]
    (group / limit).write_text("max\n")
    assert list(memory._cgroup_room(membership, tmp_path)) == []


def test_systems_without_control_groups_have_no_limit(tmp_path):
    assert list(memory._cgroup_room(tmp_path / "missing", tmp_path)) == []


def test_the_least_of_machine_and_container_counts(monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=900))
    monkeypatch.setattr(memory, "_cgroup_room", lambda: iter([700, 2**62]))
    assert available_memory(CPU) == 700
    monkeypatch.setattr(memory, "_cgroup_room", lambda: iter([]))
    assert available_memory(CPU) == 900


def test_memory_of_convolutions_is_counted_exactly():
    # At the peak: the input, kept by the caller, and both sides of the second convolution.
    assert memory_per_pixel(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3))) == 4 * (3 + 8 + 5)
    # The first feature map is dead when the third one is made.
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    assert memory_per_pixel(chain) == 4 * (3 + 8 + 8)


def test_memory_follows_the_precision_of_the_weights():
    assert memory_per_pixel(nn.Conv2d(3, 5, 1).bfloat16()) == 2 * (3 + 5)


def test_views_and_in_place_operators_take_no_memory():
    class Views(nn.Module):
        def forward(self, x):
            y = (x + 1).flatten(2).unflatten(2, x.shape[2:]).transpose(2, 3)
            return y.mul_(2).relu_()

    assert memory_per_pixel(Views()) == 4 * (3 + 3)


def test_what_does_not_grow_with_the_image_is_left_out():
    class Statistics(Backbone):
        channels = 1

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(100, 100))

        def forward(self, x):
            return x + (self.weight * 2).sum() + torch.zeros(50, 50).sum()

    # The input and both sides of the second sum.
    assert memory_per_pixel(Statistics()) == 4 * (1 + 1 + 1)


def test_arguments_of_other_networks_come_from_an_example():
    module = nn.Bilinear(4, 4, 2)

    def example(side):
        return [torch.empty(side, side, 4) for _ in range(2)]

    assert memory_per_pixel(module, example) >= 4 * (4 + 4 + 2)


def test_networks_that_need_values_cannot_be_measured():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.mean().item() > 0 else -x

    assert memory_per_pixel(Branching()) is None


def test_measuring_leaves_the_network_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    before = {name: (tensor, tensor.clone()) for name, tensor in network.state_dict(keep_vars=True).items()}
    memory_per_pixel(network)
    assert network.training
    after = network.state_dict(keep_vars=True)
    assert all(after[name] is tensor and torch.equal(tensor, copy) for name, (tensor, copy) in before.items())
    assert all(p.requires_grad for p in network.parameters())


def test_first_party_networks_can_be_measured():
    nafnet = pytest.importorskip("restorekit_nafnet.network").NAFNet
    small, large = (
        nafnet(width=width, encoder_blocks=[1, 1, 2], middle_blocks=4, decoder_blocks=[1, 1, 1])
        for width in (16, 32)
    )
    # The widest moment holds a few maps of twice the width beside the block's input and the skip.
    assert 4 * 16 * 5 < memory_per_pixel(small) < 4 * 16 * 10
    assert 1.9 < memory_per_pixel(large) / memory_per_pixel(small) < 2
    assert memory_per_pixel(large.to("meta")) == memory_per_pixel(large)


def test_the_measure_is_linear_in_pixels(monkeypatch):
    nafnet = pytest.importorskip("restorekit_nafnet.network").NAFNet
    network = nafnet(width=8, encoder_blocks=[1, 1], middle_blocks=1, decoder_blocks=[1, 1])
    figures = set()
    for probes in ((64, 128), (128, 512), (512, 1024)):
        monkeypatch.setattr(memory, "_PROBES", probes)
        figures.add(memory_per_pixel(network))
    assert len(figures) == 1


def test_a_median_holds_its_windows():
    median = pytest.importorskip("restorekit_median").Median
    assert memory_per_pixel(median(window=3)) > 4 * 3 * 9
    assert memory_per_pixel(median(window=5)) > 4 * 3 * 25
