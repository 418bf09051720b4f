import hashlib
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from restorekit import catalog
from restorekit.catalog import Checkpoint, Pretrained, find
from restorekit.errors import WeightsError
from restorekit.weights import WRAPPERS, check_fit, load_into, read_tensors


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(network().state_dict(), path)
    return path


def pretrained(path, **changes):
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "0" * 64
    facts = dict(licence="MIT", source="here", task="none", memory_per_pixel=1, sha256=sha256)
    return Pretrained(component="net", tag="tiny", file=path, **{**facts, **changes})


def test_safetensors_round_trip_is_exact(saved):
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 1))
    load_into(other, read_tensors(saved), saved)
    for name, value in network().state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_half_precision_is_widened(tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({name: value.half() for name, value in network().state_dict().items()}, path)
    other = network()
    load_into(other, read_tensors(path), path)
    assert all(parameter.dtype == torch.float32 for parameter in other.parameters())


@pytest.mark.parametrize("wrapper", [None, *WRAPPERS])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_containers_are_unwrapped(tmp_path, wrapper, prefix):
    state = {prefix + name: value for name, value in network().state_dict().items()}
    path = tmp_path / "net.pth"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    check_fit(network(), read_tensors(path), path)


def test_only_entry_of_a_document_is_unwrapped_whatever_its_name(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"generator": network().state_dict()}, path)
    check_fit(network(), read_tensors(path), path)


def test_pickled_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code ran')",))

    path = tmp_path / "evil.pth"
    torch.save({"params": Evil()}, path)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
@pytest.mark.parametrize("content", [b"", b"this is text", b"\xff" * 64])
def test_damaged_files_are_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=re.escape(str(path))):
        read_tensors(path)


def test_misfit_names_the_first_of_each_side(saved):
    other = nn.ModuleDict({"1": nn.Conv2d(5, 3, 1), "extra": nn.Conv2d(1, 1, 1)})
    with pytest.raises(WeightsError) as caught:
        load_into(other, read_tensors(saved), saved)
    message = str(caught.value)
    assert "2 of ModuleDict's are missing in the file, first 'extra.weight'" in message
    assert "2 of the file's are unknown to ModuleDict, first '0.weight'" in message or "'0.bias'" in message
    assert "first '1.weight': (3, 4, 1, 1) in the file, (3, 5, 1, 1) here" in message


def test_header_gives_shapes_and_count_without_torch(saved):
    checkpoint = Checkpoint("net/tiny", saved)
    assert checkpoint.shapes() == {name: tuple(value.shape) for name, value in network().state_dict().items()}
    assert checkpoint.parameter_count() == sum(value.numel() for value in network().parameters())


def test_indices_counts_and_hashes_are_no_parameters(tmp_path):
    path = tmp_path / "sparse.safetensors"
    held = {"val": torch.zeros(5), "half": torch.zeros(2, dtype=torch.bfloat16), "idx": torch.arange(7)}
    save_file({**held, "seen": torch.tensor(True), "hash": torch.zeros(32, dtype=torch.uint8)}, path)
    assert Checkpoint("net/sparse", path).parameter_count() == 7


@pytest.mark.parametrize("content", [b"", b"short", b"\x08" + b"\0" * 7 + b"not json", b"\xff" * 32])
def test_header_of_a_damaged_file_is_refused(tmp_path, content):
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="no safetensors file"):
        Checkpoint("net/tiny", path).shapes()


def test_changed_file_is_refused_by_its_hash(saved):
    declared = pretrained(saved)
    assert Checkpoint("net/tiny", saved, declared).sha256 == declared.sha256
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(WeightsError, match="expected is"):
        _ = Checkpoint("net/tiny", saved, declared).sha256


def test_weights_are_found_by_tag_and_by_path(saved, monkeypatch):
    monkeypatch.setattr(catalog, "declared", lambda: (pretrained(saved),))
    assert find("net", "tiny").name == "net/tiny"
    assert find("net", str(saved)).declared is None


def test_unknown_tag_has_a_near_one_and_unknown_path_is_a_file(saved, monkeypatch):
    monkeypatch.setattr(catalog, "declared", lambda: (pretrained(saved),))
    with pytest.raises(WeightsError, match="has: tiny") as caught:
        find("net", "tinny")
    assert caught.value.hint == "did you mean 'tiny'?"
    with pytest.raises(WeightsError, match=r"no file nowhere/net\.pth"):
        find("net", "nowhere/net.pth")


def test_declared_file_that_is_gone_says_to_install_again(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "declared", lambda: (pretrained(tmp_path / "gone.safetensors"),))
    with pytest.raises(WeightsError, match=r"gone.safetensors is missing"):
        find("net", "tiny")
