import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from restorekit.errors import ConfigError, ContractError, WeightsError
from restorekit.testing import check_prior, check_weights
from restorekit_clip.prior import Clip
from restorekit_clip.published import WEIGHTS

open_clip = pytest.importorskip("open_clip", exc_type=(ImportError, RuntimeError))
timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))

CONFIG = dict(
    embed_dim=32,
    vision_cfg=dict(image_size=32, layers=3, width=32, head_width=16, patch_size=8),
    text_cfg=dict(context_length=8, vocab_size=64, width=16, heads=2, layers=1),
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return open_clip.CLIP(**CONFIG, quick_gelu=True).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Save a small model, text tower included, as the hub's repositories of open_clip are."""
    folder = tmp_path_factory.mktemp("clip")
    preprocessing = dict(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    document = {"model_cfg": {**CONFIG, "quick_gelu": True}, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def normed(image):
    return (image - torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).reshape(
        3, 1, 1
    )


@pytest.mark.parametrize("mode", ["squash", "long", "dynamic"])
def test_contract_is_kept_at_every_size(folder, mode):
    check_prior(Clip, reference=str(folder), mode=mode, differentiable=True)


def test_contract_is_kept_in_half_precision(folder):
    check_prior(Clip, reference=str(folder), dtype="bf16", layers=(0, 2))


def test_features_are_those_of_the_whole_model(folder, model):
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.encode_image(normed(image)), dim=1)
    features = Clip(str(folder))(image)
    torch.testing.assert_close(features.glob, expected, rtol=0, atol=1e-6)
    assert features.dense.shape == (2, 32, 4, 4) and features.stride == 8


@pytest.mark.parametrize("size", [(32, 32), (48, 64)])
def test_features_equal_timms_reading_of_the_same_file(folder, size):
    settings = dict(embed_dim=32, depth=3, num_heads=2, patch_size=8, img_size=32, num_classes=32)
    overlay = dict(file=str(folder / "open_clip_model.safetensors"), num_classes=32)
    other = timm.create_model(
        "vit_base_patch32_clip_quickgelu_224",
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        dynamic_img_size=True,
        **settings,
    ).eval()
    image = torch.rand(2, 3, *size)
    features = Clip(str(folder), mode="dynamic")(image)
    with torch.no_grad():
        last, (tokens,) = other.forward_intermediates(normed(image), indices=[-1], norm=True)
        glob = torch.nn.functional.normalize(other.forward_head(last), dim=1)
    torch.testing.assert_close(features.glob, glob, rtol=0, atol=1e-5)
    torch.testing.assert_close(features.dense, tokens, rtol=0, atol=1e-5)


def test_only_the_image_tower_is_in_memory(folder, model):
    count = sum(each.numel() for each in model.visual.parameters())
    assert sum(each.numel() for each in Clip(str(folder)).parameters()) == count


def test_the_activation_is_explicit(folder, tmp_path):
    image = torch.rand(1, 3, 32, 32)
    stated, wrong = Clip(str(folder)), Clip(str(folder), quick_gelu=False)
    assert (stated(image).glob - wrong(image).glob).abs().max() > 1e-4
    assert stated.fingerprint != wrong.fingerprint
    with pytest.raises(ConfigError, match="write model: ViT-B-32"):
        Clip(str(folder / "open_clip_model.safetensors"))
    with pytest.raises(ConfigError, match=r"quick_gelu: .*cannot tell"):
        Clip(str(folder / "open_clip_model.safetensors"), model="ViT-B-32")
    silent = tmp_path / "openai-model"
    silent.mkdir()
    (silent / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    with pytest.raises(ConfigError, match=r"quick_gelu: .*cannot tell"):
        Clip(str(silent))


def test_positions_can_be_left_out(folder):
    image = torch.rand(1, 3, 64, 64)
    kept = Clip(str(folder), mode="dynamic")
    left = Clip(str(folder), mode="dynamic", positions="none")
    assert not torch.allclose(kept(image).glob, left(image).glob)
    with pytest.raises(ConfigError, match="positions"):
        Clip(str(folder), positions="nome")


def test_missing_tensors_and_files_are_named(folder, tmp_path):
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(
        WeightsError, match=r"has no open_clip_model.safetensors or open_clip_pytorch_model.bin"
    ):
        Clip(str(tmp_path))
    tensors = load_file(folder / "open_clip_model.safetensors")
    del tensors["visual.ln_post.weight"]
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(WeightsError, match=r"1 tensors are missing .* first 'ln_post.weight'"):
        Clip(str(tmp_path))
    save_file({"text.x": torch.ones(1)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(WeightsError, match=r"holds no tensors visual\.\*"):
        Clip(str(tmp_path))


def test_what_is_not_finite_is_an_error(folder):
    image = torch.rand(1, 3, 32, 32)
    image[0, 0, 0, 0] = float("nan")
    with pytest.raises(ContractError, match="features that are not finite"):
        Clip(str(folder))(image)


def test_wrong_layers_and_models_are_refused(folder):
    with pytest.raises(ConfigError, match="the model has 3 blocks"):
        Clip(str(folder), layers=(3,))
    with pytest.raises(ConfigError, match="open_clip has no 'ViT-B-33'"):
        Clip(str(folder), model="ViT-B-33")


@pytest.mark.parametrize("item", WEIGHTS, ids=lambda item: item.tag)
def test_declared_models_are_sound(item):
    check_weights(item)
