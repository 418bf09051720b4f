import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import conv2d, max_pool2d, normalize, pad

from restorekit.errors import ConfigError, ImageError, WeightsError
from restorekit.testing import check_prior, check_weights
from restorekit_perceptual.networks import Blur
from restorekit_perceptual.prior import Perceptual
from restorekit_perceptual.published import WEIGHTS

needs_package = pytest.mark.skipif(
    find_spec("stlpips_pytorch") is None,
    reason="the weights come with stlpips-pytorch, which is not installed",
)

LINE = torch.tensor([1.0, 2.0, 1.0]) / 4
# By layout: what each file calls its convolutions, their kernels and padding, part by part, and their widths.
CONVOLUTIONS = {
    "vgg16": (
        [["features.0", "features.2"], ["features.5", "features.7"]]
        + [[f"features.{first + step}" for step in (0, 2, 4)] for first in (10, 17, 24)],
        [(3, 1)] * 5,
        (4, 5, 6, 7, 8),
    ),
    "shift-tolerant vgg16": (
        [["net.slice1.0", "net.slice1.2"], ["net.slice2.6", "net.slice2.8"]]
        + [
            [f"net.slice{part}.{first + step}" for step in (0, 2, 4)]
            for part, first in ((3, 12), (4, 20), (5, 28))
        ],
        [(3, 1)] * 5,
        (4, 5, 6, 7, 8),
    ),
    "shift-tolerant alexnet": (
        [["net.slice1.0"], ["net.slice2.5"], ["net.slice3.9"], ["net.slice4.11"], ["net.slice5.13"]],
        [(11, 2), (5, 2), (3, 1), (3, 1), (3, 1)],
        (6, 7, 8, 9, 10),
    ),
}
STRIDES = {
    "vgg16": (1, 2, 4, 8, 16),
    "shift-tolerant vgg16": (1, 2, 4, 8, 16),
    "shift-tolerant alexnet": (2, 4, 8, 8, 8),
}
LAYOUTS = tuple(CONVOLUTIONS)


def narrow(layout):
    """Return the tensors of a narrow network, as a file has them."""
    drawn = torch.Generator().manual_seed(0)
    names, windows, widths = CONVOLUTIONS[layout]
    tensors, channels = {}, 3
    for part, (kernel, _), width in zip(names, windows, widths, strict=True):
        for name in part:
            scale = (2 / (channels * kernel**2)) ** 0.5
            tensors[f"{name}.weight"] = scale * torch.randn(width, channels, kernel, kernel, generator=drawn)
            tensors[f"{name}.bias"] = 0.1 * torch.randn(width, generator=drawn)
            channels = width
    if layout.startswith("shift"):
        tensors["net.slice2.5.filt"] = torch.outer(LINE, LINE).repeat(4, 1, 1, 1)
        tensors["scaling_layer.shift"] = torch.tensor([-0.2, 0.0, 0.1]).reshape(1, 3, 1, 1)
        tensors["scaling_layer.scale"] = torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1)
        tensors["lin0.model.1.weight"] = torch.ones(1, 4, 1, 1)
    else:
        tensors["classifier.0.weight"] = torch.ones(2, 2)
    return tensors


def blurred(maps):
    """Say what a blur is by its definition: a sum over 3 x 3 neighbours of what is reflected by two."""
    filters = torch.outer(LINE, LINE).to(maps).repeat(maps.shape[1], 1, 1, 1)
    return conv2d(pad(maps, (2, 2, 2, 2), mode="reflect"), filters, stride=2, groups=maps.shape[1])


def five_maps(layout, tensors, image):
    """Walk the network in float64 by a hand-made loop."""
    tensors = {name: value.double() for name, value in tensors.items()}
    names, windows, _ = CONVOLUTIONS[layout]
    alexnet = layout.endswith("alexnet")
    if layout == "vgg16":
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)
        x = (image.double() - mean[:, None, None]) / std[:, None, None]
    else:
        x = (2 * image.double() - 1 - tensors["scaling_layer.shift"]) / tensors["scaling_layer.scale"]
    found = []
    for part, (_, padding) in enumerate(windows):
        if layout == "vgg16":
            x = max_pool2d(x, 2) if part else x
        elif alexnet:
            x = blurred(max_pool2d(x, 3, 1)) if part in (1, 2) else x
        else:
            x = blurred(max_pool2d(x, 2, 1)) if part else x
        for name in names[part]:
            x = conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=padding)
            x = (blurred(x) if alexnet and part == 0 else x).relu()
        found.append(x)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Save a narrow network of each layout as those are that were published."""
    folder = tmp_path_factory.mktemp("perceptual")
    found = {}
    for layout in LAYOUTS:
        found[layout] = str(folder / f"{layout.replace(' ', '-')}.pth")
        torch.save(narrow(layout), found[layout])
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_contract_is_kept_by_every_layout(files, layout):
    check_prior(Perceptual, reference=files[layout], mode="dynamic", differentiable=True)
    check_prior(Perceptual, reference=files[layout], layers=(1,), size=48)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_contract_is_kept_in_half_precision(files, layout, dtype):
    check_prior(Perceptual, reference=files[layout], size=64, dtype=dtype)


@pytest.mark.parametrize("shape", [(8, 8), (9, 14), (3, 4)])
def test_a_blur_is_the_sum_that_defines_it(shape):
    maps = torch.rand(2, 3, *shape, dtype=torch.float64)
    found = Blur()(maps)
    assert found.shape[-2:] == tuple((side + 3) // 2 for side in shape)
    torch.testing.assert_close(found, blurred(maps))
    edges = pad(maps, (2, 2, 2, 2), mode="reflect")
    corner = sum(
        edges[:, :, 2 + row, 4 + column] * LINE[row] * LINE[column] for row in range(3) for column in range(3)
    )
    torch.testing.assert_close(found[:, :, 1, 2], corner)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_are_those_of_a_hand_made_network(files, layout):
    image = torch.rand(2, 3, 50, 67)
    expected = five_maps(layout, narrow(layout), image)
    for layer, maps in enumerate(expected):
        said = Perceptual(files[layout], layers=(layer,), mode="dynamic")(image)
        torch.testing.assert_close(said.dense, maps.float(), rtol=1e-4, atol=1e-5)
        glob = normalize(maps.mean((2, 3)), dim=1).float()
        torch.testing.assert_close(said.glob, glob, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_features_follow_the_size_of_the_image(files, layout):
    for layer, stride in enumerate(STRIDES[layout]):
        prior = Perceptual(files[layout], layers=(layer,), mode="dynamic")
        said = prior(torch.rand(1, 3, 320, 480))
        # A blur that pads by two adds a cell to each side of its maps, so that theirs are a little finer.
        assert 0.9 * stride <= said.stride <= stride
        assert said.dense.shape[1] == said.glob.shape[1] == prior.features == CONVOLUTIONS[layout][2][layer]
        assert all(
            abs(side / stride - cells) <= 3
            for side, cells in zip((320, 480), said.dense.shape[-2:], strict=True)
        )


@pytest.mark.parametrize("mode", ["dynamic", "long", "squash"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_any_size_are_described(files, layout, mode):
    prior = Perceptual(files[layout], mode=mode, size=64)
    for size in ((1, 1), (5, 5), (20, 24), (31, 40), (3, 300), (300, 2)):
        said = prior(torch.rand(1, 3, *size))
        assert said.is_finite
        assert said.glob.norm() > 0.99


@pytest.mark.parametrize("layer", range(5))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_least_side_is_the_smallest_that_the_network_takes(files, layout, layer):
    prior = Perceptual(files[layout], layers=(layer,))
    network = prior.network
    assert network(torch.rand(1, 3, prior.least, prior.least))[-1].numel()
    if prior.least > 1:
        with pytest.raises(RuntimeError):
            network(torch.rand(1, 3, prior.least - 1, prior.least))
        with pytest.raises(ConfigError, match=rf"params\.size: is 1, too small .*\n.*at least {prior.least}"):
            Perceptual(files[layout], layers=(layer,), size=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_built_behind_the_last_chosen_layer(files, layout):
    whole = Perceptual(files[layout]).network
    early = Perceptual(files[layout], layers=(1,)).network
    assert len(list(early.parameters())) == 2 * sum(len(part) for part in CONVOLUTIONS[layout][0][:2])
    assert len(list(whole.parameters())) == 2 * sum(len(part) for part in CONVOLUTIONS[layout][0])


def test_layers_of_one_stride_are_joined_in_the_order_of_the_network(files):
    file, image = files["shift-tolerant alexnet"], torch.rand(1, 3, 64, 64)
    joined = Perceptual(file, layers=(4, 2))
    each = [Perceptual(file, layers=(layer,))(image).dense for layer in (2, 4)]
    torch.testing.assert_close(joined(image).dense, torch.cat(each, 1))
    assert joined.features == 8 + 10
    with pytest.raises(ConfigError, match=r"params\.layers: are of strides \[1, 16\]"):
        Perceptual(files["vgg16"], layers=(0, -1))


def test_the_last_layer_is_the_same_however_it_is_named(files):
    default, *others = (Perceptual(files["vgg16"], layers=layers) for layers in ([-1], [4], [4, -1]))
    assert default.facts["layers"] == [-1]
    assert {other.fingerprint for other in others} == {default.fingerprint}
    assert Perceptual(files["vgg16"], layers=[3]).fingerprint != default.fingerprint


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (-1, r"are -1\n.*give a list of whole numbers"),
        ((), r"are \[\]\n.*there are 5"),
        ((5,), r"are \[5\]\n.*there are 5, from 0 to 4"),
    ],
)
def test_layers_that_are_none_are_refused(files, layers, said):
    with pytest.raises(ConfigError, match=rf"params\.layers: {said}"):
        Perceptual(files["vgg16"], layers=layers)


def test_an_image_is_described_by_itself_and_always_alike(files):
    images = torch.rand(3, 3, 40, 56)
    prior = Perceptual(files["shift-tolerant vgg16"], mode="dynamic")
    together, again = prior(images), prior(images)
    assert torch.equal(together.glob, again.glob) and torch.equal(together.dense, again.dense)
    alone = torch.cat([prior(image[None]).glob for image in images])
    torch.testing.assert_close(together.glob, alone)
    assert float((alone[0] - alone[1]).abs().max()) > 1e-4


def test_gradients_reach_the_image_only_when_they_are_wanted(files):
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    assert not Perceptual(files["shift-tolerant alexnet"])(image).dense.requires_grad
    said = Perceptual(files["shift-tolerant alexnet"], layers=(2, 3, 4), differentiable=True)(image)
    (gradient,) = torch.autograd.grad(said.dense.square().mean(), image)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_an_image_that_is_shifted_by_the_stride_has_shifted_maps(files):
    prior = Perceptual(files["shift-tolerant vgg16"], layers=(2,), mode="dynamic")
    scene = torch.rand(1, 3, 96, 96)
    here, there = (prior(scene[:, :, start : start + 80, 8:88]).dense for start in (0, 4))
    torch.testing.assert_close(here[:, :, 7:15], there[:, :, 6:14], rtol=1e-4, atol=1e-4)


def test_shuffled_weights_say_something_else(files):
    image = torch.rand(2, 3, 48, 48)
    plain, shuffled = Perceptual(files["vgg16"]), Perceptual(files["vgg16"], shuffled=1)
    assert plain.fingerprint != shuffled.fingerprint
    assert not torch.allclose(plain(image).glob, shuffled(image).glob, atol=1e-2)


def test_a_folder_and_a_safetensors_file_give_the_same(files, tmp_path):
    save_file(narrow("vgg16"), tmp_path / "model.safetensors")
    image = torch.rand(1, 3, 32, 32)
    for place in (tmp_path, tmp_path / "model.safetensors"):
        assert torch.equal(Perceptual(str(place))(image).glob, Perceptual(files["vgg16"])(image).glob)


def test_to_check_arguments_nothing_is_downloaded(monkeypatch):
    monkeypatch.setenv("RESTOREKIT_OFFLINE", "1")
    with torch.device("meta"):
        assert Perceptual("hub:acme/net").features == 512
    with pytest.raises(WeightsError, match=r"hub:acme/net has no model\.safetensors"):
        Perceptual("hub:acme/net")


def changed(**changes):
    return {
        name: value
        for name, value in {**narrow("shift-tolerant vgg16"), **changes}.items()
        if value is not None
    }


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"conv.weight": torch.ones(1)}, r"holds no tensors net\.\* or features\.\*"),
        ({"features.0.weight": torch.ones(4, 3, 3, 3)}, "no VGG16 or AlexNet .*: 1 convolutions, first"),
        ({"features.0.weight": torch.ones(())}, "no VGG16 or AlexNet .*: 0 convolutions"),
        (changed(**{"net.slice5.32.bias": None}), r"1 tensors are missing .*'32\.bias'"),
        (changed(**{"net.slice5.32.bias": torch.ones(8, dtype=torch.int64)}), r"1 tensors are missing"),
        (changed(**{"net.slice1.0.weight": torch.ones(4, 3, 5, 5)}), "1 of another shape"),
        (changed(**{"net.slice2.5.filt": torch.ones(4, 1, 3, 3) / 9}), r"another blur than \[1 2 1\]"),
        (changed(**{"net.slice2.5.filt": torch.ones(4, 1, 5, 5)}), r"another blur than \[1 2 1\]"),
        (changed(**{"scaling_layer.scale": None}), "does not say what images are normalised by"),
        (changed(**{"scaling_layer.scale": torch.zeros(3)}), "does not say what images are normalised by"),
    ],
)
def test_a_file_of_something_else_is_refused_by_its_name(tensors, said, tmp_path):
    file = tmp_path / "net.pth"
    torch.save(dict(tensors, other=torch.ones(1)), file)
    with pytest.raises(WeightsError, match=rf"net\.pth.*{said}"):
        Perceptual(str(file))


def test_a_damaged_file_is_refused_by_its_name(files, tmp_path):
    file = tmp_path / "torn.pth"
    file.write_bytes(Path(files["vgg16"]).read_bytes()[:2000])
    with pytest.raises(WeightsError, match=r"torn\.pth cannot be read as weights"):
        Perceptual(str(file))


def test_a_wrong_tag_says_what_is_near():
    with pytest.raises(WeightsError, match=r"tags: vgg16, alexnet(\n|.)*vgg16"):
        Perceptual("vgg61")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("restorekit.references.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="the package stlpips_pytorch is not installed"):
        Perceptual("alexnet")


def test_alpha_is_refused(files):
    with pytest.raises(ImageError, match="4 channels"):
        Perceptual(files["vgg16"])(torch.rand(1, 4, 32, 32))


@needs_package
@pytest.mark.parametrize("item", WEIGHTS, ids=lambda item: item.tag)
def test_published_weights_describe_images(item):
    check_prior(Perceptual, reference=item.tag, mode="dynamic")
    prior = Perceptual(item.tag)
    assert sum(each.numel() for each in prior.network.parameters()) == item.parameters
    torch.testing.assert_close(prior.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(prior.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    assert "stlpips_pytorch" not in sys.modules


# Of the package's own modules (0.0.2) for the image below: shape of each part's maps, their mean,
# and the length of what they say of the middle of the left edge.
GOLDEN = {
    "vgg16": [
        ((64, 48, 64), 0.0993492, 0.666459),
        ((128, 25, 33), 0.0332721, 0.861255),
        ((256, 13, 17), 0.0743387, 2.42896),
        ((512, 7, 9), 0.0787226, 10.7601),
        ((512, 4, 5), 1.84089, 38.0777),
    ],
    "alexnet": [
        ((64, 22, 30), 0.398617, 4.85984),
        ((192, 11, 15), 0.105294, 6.21047),
        ((384, 6, 8), 0.0234364, 2.06374),
        ((256, 6, 8), 0.00814781, 0.484888),
        ((256, 6, 8), 0.00255525, 0.129013),
    ],
}


@needs_package
@pytest.mark.parametrize("tag", GOLDEN)
def test_published_weights_say_what_they_say_in_their_package(tag):
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    waves = torch.stack([torch.sin(rows * columns / 97), torch.cos(rows / 3), torch.sin(columns / 5)])
    for layer, (shape, mean, edge) in enumerate(GOLDEN[tag]):
        maps = Perceptual(tag, layers=(layer,), mode="dynamic")(waves[None] / 2 + 0.5).dense[0]
        assert maps.shape == shape
        assert float(maps.mean()) == pytest.approx(mean, rel=1e-3)
        assert float(maps[:, shape[1] // 2, 0].norm()) == pytest.approx(edge, rel=1e-3)


@needs_package
@pytest.mark.parametrize("tag", GOLDEN)
def test_published_weights_know_a_photograph_from_a_noisy_one_and_both_from_another(tag):
    data = pytest.importorskip("skimage.data")
    face, coat = (
        torch.from_numpy(data.astronaut()[top : top + 128, left : left + 128]).permute(2, 0, 1) / 255
        for top, left in ((40, 170), (340, 60))
    )
    drawn = torch.Generator().manual_seed(0)
    noisy = (face + 0.04 * torch.randn(face.shape, generator=drawn)).clamp(0, 1)
    said = Perceptual(tag, mode="dynamic")(torch.stack([face, noisy, coat])).glob
    like_noisy, like_coat = (float(said[0] @ other) for other in said[1:])
    assert like_coat + 0.01 < like_noisy < 0.9999


@pytest.mark.parametrize("item", WEIGHTS, ids=lambda item: item.tag)
def test_declared_models_are_sound(item):
    check_weights(item)
