"""Every installed backbone, given files and images that go wrong: one clear error, or a right result."""

import os
import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from restorekit import restore
from restorekit.errors import RestoreKitError, WeightsError
from restorekit.registry import backbones

SMALL = {
    "nafnet": {"width": 8, "encoder_blocks": (1, 1), "middle_blocks": 1, "decoder_blocks": (1, 1)},
    "restormer": {"dim": 4, "blocks": (1, 1, 1, 1), "refinement_blocks": 1, "heads": (1, 1, 1, 1)},
    "mprnet": {"width": 8, "width_step": 4, "third_step": 4, "blocks": 1},
    "srresnet": {"width": 8, "blocks": 1},
    "srcnn": {"widths": (8, 8)},
}
every_backbone = pytest.mark.parametrize("name", SMALL)


@pytest.fixture
def saved(tmp_path):
    """Save a small network; return the pipeline that uses the file, and the file."""

    def save(name, suffix=".safetensors", state=None, by=None):
        torch.manual_seed(0)
        if state is None:
            state = backbones[name].load()(**SMALL[name]).state_dict()
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".safetensors":
            save_file({key: value.clone() for key, value in state.items()}, path)
        else:
            torch.save({"params": state}, path)
        user = by or name
        step = {"restore": {"name": user, "params": SMALL[user], "weights": str(path)}}
        return {"steps": [step]}, path

    return save


def image(height, width, *channels):
    return np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def refusal(pipeline):
    with pytest.raises(WeightsError) as caught:
        restore(image(16, 16, 3), pipeline)
    assert "\n" not in caught.value.message and len(caught.value.message) < 600
    assert caught.value.hint
    return caught.value.message


@every_backbone
def test_checkpoint_of_another_architecture(saved, name):
    other = "mprnet" if name != "mprnet" else "restormer"
    pipeline, path = saved(other, by=name)
    message = refusal(pipeline)
    assert str(path) in message and "fit" in message


@every_backbone
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 0.01, 0.5, 0.99])
def test_truncated_file(saved, name, suffix, kept):
    pipeline, path = saved(name, suffix)
    os.truncate(path, int(path.stat().st_size * kept))
    assert str(path) in refusal(pipeline)


class _Touch:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("write", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))])
def test_pickle_that_runs_code(saved, tmp_path, write):
    pipeline, path = saved("nafnet", ".pth")
    victim = tmp_path / "victim"
    state = backbones["nafnet"].load()(**SMALL["nafnet"]).state_dict()
    write({"params": {**state, "more": _Touch(victim)}}, path)
    assert str(path) in refusal(pipeline)
    assert not victim.exists()
    # The file does run code where a loader lets it.
    if path.read_bytes()[:2] != b"PK":
        pickle.loads(path.read_bytes())["params"]["more"].close()
        assert victim.exists()


@every_backbone
def test_one_renamed_key(saved, name):
    state = backbones[name].load()(**SMALL[name]).state_dict()
    last = list(state)[-1]
    state[f"{last}_renamed"] = state.pop(last)
    pipeline, path = saved(name, state=state)
    message = refusal(pipeline)
    assert repr(last) in message and f"{last}_renamed" in message and str(path) in message


@every_backbone
def test_one_tensor_of_another_shape(saved, name):
    state = backbones[name].load()(**SMALL[name]).state_dict()
    key = next(key for key, value in state.items() if value.ndim == 4)
    state[key] = torch.zeros(*state[key].shape[:3], 7)
    pipeline, _ = saved(name, state=state)
    message = refusal(pipeline)
    assert repr(key) in message and "7" in message


@every_backbone
def test_gray_image_to_a_colour_network(saved, name):
    pipeline, _ = saved(name)
    gray = image(17, 22).astype(np.float32) / 255
    restored = restore(gray, pipeline)
    colour = restore(np.stack([gray] * 3, axis=-1), pipeline)
    scale = backbones[name].load()(**SMALL[name]).scale
    assert restored.shape == (17 * scale, 22 * scale) and restored.std() > 0.01
    np.testing.assert_allclose(restored, colour.mean(-1), atol=1e-5)


@every_backbone
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (2, 3), (7, 5)])
def test_image_smaller_than_the_padding(saved, name, size):
    pipeline, _ = saved(name)
    network = backbones[name].load()(**SMALL[name])
    restored = restore(image(*size, 3), pipeline)
    assert restored.shape == (size[0] * network.scale, size[1] * network.scale, 3)
    again = restore(image(*size, 3).astype(np.float32) / 255, pipeline)
    assert np.isfinite(again).all()


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x04."])
def test_refused_weights_leave_no_file_behind(run, photo, tmp_path, content):
    weights = tmp_path / "net.pth"
    weights.write_bytes(content)
    chain = tmp_path / "chain.yaml"
    chain.write_text(f"steps:\n  - restore: {{name: nafnet, weights: {weights}}}\n")
    target = tmp_path / "restored.png"
    code, out, err = run("restore", photo, "-p", chain, "-o", target)
    assert code == 2 and "net.pth" in err and err.count("error:") == 1
    assert not target.exists() and "Traceback" not in out + err


def test_refused_weights_keep_the_file_that_was_there(run, photo, tmp_path):
    target = tmp_path / "restored.png"
    PIL.Image.new("RGB", (2, 2)).save(target)
    before = target.read_bytes()
    (tmp_path / "net.safetensors").write_bytes(b"broken")
    chain = tmp_path / "chain.yaml"
    chain.write_text(f"steps:\n  - restore: {{name: nafnet, weights: {tmp_path / 'net.safetensors'}}}\n")
    code, _, _ = run("restore", photo, "-p", chain, "-o", target, "--overwrite")
    assert code == 2 and target.read_bytes() == before


def test_every_refusal_is_one_of_ours(saved):
    pipeline, path = saved("nafnet")
    path.unlink()
    with pytest.raises(RestoreKitError, match=r"nafnet\.safetensors"):
        restore(image(8, 8, 3), pipeline)
