import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from restorekit.errors import ConfigError, ContractError, WeightsError
from restorekit.references import Source
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


def test_features_of_a_residual_tower_are_those_of_the_whole_model(tmp_path):
    vision = dict(image_size=64, layers=(1, 1, 1, 1), width=8, head_width=16, patch_size=None)
    config = {**CONFIG, "vision_cfg": vision}
    torch.manual_seed(0)
    model = open_clip.CLIP(**config, quick_gelu=True).eval()
    preprocessing = dict(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    document = {"model_cfg": {**config, "quick_gelu": True}, "preprocess_cfg": preprocessing}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.encode_image(normed(image)), dim=1)
    torch.testing.assert_close(Clip(str(tmp_path))(image).glob, expected, rtol=0, atol=1e-6)


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


@pytest.mark.parametrize(("asked", "quick"), [(None, True), (True, True), (False, False)])
def test_a_model_that_is_named_after_its_activation_tells_it(folder, asked, quick):
    file = str(folder / "open_clip_model.safetensors")
    with torch.device("meta"):
        assert Clip(file, model="ViT-B-32-quickgelu", quick_gelu=asked).facts["quick_gelu"] is quick


@pytest.fixture
def silent(folder, tmp_path):
    """Lay out the same model with a config that does not say which activation it has."""
    silent = tmp_path / "clip-b32"
    silent.mkdir()
    (silent / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    (silent / "open_clip_model.safetensors").symlink_to(folder / "open_clip_model.safetensors")
    return silent


@pytest.mark.parametrize("name", ["clip-b32", "openai-clip", "laion"])
def test_a_config_that_does_not_say_the_activation_is_asked_about_wherever_it_is(silent, name):
    place = silent.rename(silent.with_name(name))
    with pytest.raises(ConfigError, match=r"quick_gelu: .*cannot tell") as caught:
        Clip(str(place))
    assert "true for OpenAI's own weights, false for LAION's" in caught.value.hint
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**CONFIG, "quick_gelu": None}}))
    with pytest.raises(ConfigError, match=r"quick_gelu: .*cannot tell"):
        Clip(str(place))
    image = torch.rand(1, 3, 32, 32)
    quick, plain = Clip(str(place), quick_gelu=True), Clip(str(place), quick_gelu=False)
    assert quick.facts["quick_gelu"] and not plain.facts["quick_gelu"]
    assert (quick(image).glob - plain(image).glob).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("reference", "quick"),
    [
        ("openai-vit-b-32", True),
        ("laion2b-vit-b-32", False),
        ("hub:timm/vit_base_patch32_clip_224.openai", True),
        ("hub:timm/vit_base_patch32_clip_224.openai@main", True),
        ("hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", False),
    ],
)
def test_the_activation_of_a_model_that_has_a_tag_is_known(silent, monkeypatch, reference, quick):
    """The files are those of the small model, as if the hub's cache held them under this name."""
    monkeypatch.setattr(
        Source, "_local", lambda _, name: silent / name if (silent / name).is_file() else None
    )
    assert Clip(reference).facts["quick_gelu"] is quick
    assert Clip(reference, quick_gelu=not quick).facts["quick_gelu"] is not quick


def test_the_activation_of_a_repository_without_a_tag_is_asked_about(silent, monkeypatch):
    monkeypatch.setattr(
        Source, "_local", lambda _, name: silent / name if (silent / name).is_file() else None
    )
    with pytest.raises(ConfigError, match=r"hub:openai/other cannot tell"):
        Clip("hub:openai/other")
    assert Clip("hub:openai/other", quick_gelu=True).facts["quick_gelu"]


def test_a_tower_of_timm_is_sent_there_before_anything_is_asked(silent):
    vision = {**CONFIG["vision_cfg"], "timm_model_name": "vit_base_patch16_siglip_224"}
    document = {"model_cfg": {**CONFIG, "vision_cfg": vision}}
    (silent / "open_clip_config.json").write_text(json.dumps(document))
    with pytest.raises(WeightsError, match="is timm's vit_base_patch16_siglip_224"):
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


def test_a_folder_without_any_file_is_told_both(tmp_path):
    with pytest.raises(
        WeightsError, match=r"has no open_clip_config.json and \(open_clip_model.safetensors or "
    ):
        Clip(str(tmp_path))


def test_what_is_not_finite_is_an_error(folder):
    image = torch.rand(1, 3, 32, 32)
    image[0, 0, 0, 0] = float("nan")
    with pytest.raises(ContractError, match="values that are not finite"):
        Clip(str(folder))(image)


def test_the_last_block_is_the_same_however_it_is_named(folder):
    default, *others = (Clip(str(folder), layers=layers) for layers in ([-1], [2], [2, -1]))
    assert default.facts["layers"] == [-1]
    image = torch.rand(1, 3, 32, 32)
    for other in others:
        assert other.fingerprint == default.fingerprint
        torch.testing.assert_close(other(image).dense, default(image).dense)


def test_wrong_layers_and_models_are_refused(folder):
    with pytest.raises(ConfigError, match="the model has 3 blocks"):
        Clip(str(folder), layers=(3,))
    with pytest.raises(ConfigError, match="open_clip has no 'ViT-B-33'"):
        Clip(str(folder), model="ViT-B-33")


@pytest.mark.parametrize("item", WEIGHTS, ids=lambda item: item.tag)
def test_declared_models_are_sound(item):
    check_weights(item)
