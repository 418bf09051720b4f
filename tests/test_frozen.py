import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from restorekit.catalog import Need
from restorekit.errors import (
    ConfigError,
    ContractError,
    ImageError,
    PluginLoadError,
    RestoreKitError,
    WeightsError,
)
from restorekit.frozen import FrozenPrior, fill, generated_images, library, on_meta, read_tensors_of, version
from restorekit.references import Source
from restorekit.testing import check_prior


class Patches(FrozenPrior):
    """Mean and map of a convolution over patches of 8."""

    def __init__(
        self,
        mode: str = "squash",
        size: int | None = None,
        dtype: str = "fp32",
        differentiable: bool = False,
        broken: bool = False,
        shuffled: int | None = None,
    ) -> None:
        super().__init__(mode=mode, size=size, dtype=dtype, differentiable=differentiable, shuffled=shuffled)
        self.broken, self.given = broken, []
        network = nn.Conv2d(3, 4, 8, stride=8)
        if not on_meta():
            generator = torch.Generator().manual_seed(0)
            network.weight.data = torch.randn(network.weight.shape, generator=generator)
            network.bias.data.fill_(0.5)
        self.adopt(
            network,
            features=4,
            native=32,
            multiple=8,
            mean=(0.4, 0.5, 0.6),
            std=(0.2, 0.25, 0.3),
            facts={"broken": broken},
        )

    def describe(self, image):
        self.given.append(image)
        dense = self.network(image)
        return dense.mean((2, 3)), dense * float("nan") if self.broken else dense


@pytest.mark.parametrize("mode", ["squash", "long", "dynamic"])
def test_contract_is_kept(mode):
    check_prior(Patches, mode=mode)
    check_prior(Patches, mode=mode, differentiable=True)
    check_prior(Patches, mode=mode, dtype="bf16")


@pytest.mark.parametrize(
    ("mode", "size", "image", "expected"),
    [
        ("squash", None, (40, 90), (32, 32)),
        ("squash", 64, (40, 90), (64, 64)),
        ("long", None, (40, 90), (16, 32)),
        ("long", 64, (300, 100), (64, 24)),
        ("dynamic", None, (101, 67), (104, 64)),
        ("dynamic", None, (3, 5), (8, 8)),
        ("dynamic", 64, (128, 96), (64, 48)),
        ("dynamic", None, (2048, 64), (1024, 32)),
    ],
)
def test_images_are_sized_as_the_mode_says(mode, size, image, expected):
    prior = Patches(mode=mode, size=size)
    prior(torch.rand(1, 3, *image))
    assert prior.given[0].shape[-2:] == expected


def test_an_image_of_the_right_size_is_normalised_and_nothing_else():
    prior = Patches()
    image = torch.rand(1, 3, 32, 32)
    prior(image)
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
    torch.testing.assert_close(prior.given[0], (image - mean) / std)


def test_precision_stays_whatever_the_owner_is_cast_to():
    image = torch.rand(1, 3, 50, 40)
    prior = Patches()
    expected = prior(image).glob
    prior.half()
    assert prior.network.weight.dtype == prior.mean.dtype == torch.float32
    assert torch.equal(prior(image).glob, expected)
    low = Patches(dtype="bf16").double()
    assert low.network.weight.dtype == torch.bfloat16
    features = low(image.to(torch.float16))
    assert features.glob.dtype == features.dense.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prior(image).glob, expected)


def test_it_can_follow_to_another_device_and_layout():
    prior = Patches()
    prior.to(memory_format=torch.channels_last)
    assert prior.network.weight.is_contiguous(memory_format=torch.channels_last)
    moved = Patches().to("meta")
    assert moved.network.weight.is_meta and moved.mean.is_meta
    assert moved(torch.rand(1, 3, 32, 32, device="meta")).glob.shape == (1, 4)


def test_gradients_reach_the_image_when_they_are_wanted_and_never_the_weights():
    image = torch.rand(1, 3, 50, 40, requires_grad=True)
    assert not Patches()(image).glob.requires_grad
    prior = Patches(differentiable=True)
    prior(image).glob[0, 0].backward()
    assert image.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in prior.parameters())


def test_features_made_in_a_pipelines_inference_mode_are_still_made():
    with torch.inference_mode():
        assert Patches()(torch.rand(1, 3, 32, 32)).glob.shape == (1, 4)


def test_features_feed_a_trained_layer():
    layer = nn.Linear(4, 1)
    layer(Patches()(torch.rand(2, 3, 32, 32)).glob).sum().backward()
    assert layer.weight.grad.abs().max() > 0


def test_a_checkpoint_that_holds_a_prior_leaves_it_as_it_is():
    owner = nn.ModuleDict({"prior": Patches(), "rest": nn.Linear(1, 1)})
    kept = owner["prior"].network.weight.clone()
    owner.load_state_dict({**owner.state_dict(), "prior.network.weight": torch.zeros_like(kept)})
    assert torch.equal(owner["prior"].network.weight, kept)
    assert owner["prior"].state_dict() == {}


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (RuntimeError("[enforce] can't allocate memory: 9 bytes"), "out of memory at 40 x 16", "below 40"),
        (
            torch.OutOfMemoryError("CUDA"),
            "out of memory at 40 x 16 pixels, for an image of 37 x 20",
            "device",
        ),
        (RuntimeError("grids differ"), "cannot describe an image of 37 x 20: grids differ", "mode: squash"),
    ],
)
def test_what_a_network_refuses_is_said_of_the_prior_and_the_image(monkeypatch, error, said, hint):
    def refuse(self, image):
        raise error

    monkeypatch.setattr(Patches, "describe", refuse)
    with pytest.raises(RestoreKitError, match=f"prior Patches.* {said}") as caught:
        Patches(mode="dynamic")(torch.rand(1, 3, 20, 37))
    assert hint in caught.value.hint


def test_values_that_are_not_finite_are_an_error():
    with pytest.raises(ContractError, match="prior Patches returned values that are not finite"):
        Patches(broken=True)(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(1, 4, 32, 32), "4 channels"),
        (torch.rand(1, 6, 32, 32), "6 channels"),
        (torch.rand(3, 32, 32), "float images"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "not torch.uint8"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ImageError, match=message):
        Patches()(image)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (dict(mode="squahs"), r"params.mode: is 'squahs'.*\n.*'squash'"),
        (dict(dtype="fp8"), r"params.dtype"),
        (dict(dtype=["fp16"]), r"params.dtype"),
        (dict(size=0), r"params.size: is 0"),
        (dict(size="224"), r"params.size: is '224'\n.*whole number of pixels"),
        (dict(size=22.4), r"params.size: is 22.4"),
        (dict(shuffled="yes"), r"params.shuffled: is 'yes'\n.*a seed"),
    ],
)
def test_wrong_arguments_are_refused(params, message):
    with pytest.raises(ConfigError, match=message):
        Patches(**params)


def test_fingerprints_tell_arguments_and_files_apart():
    marks = {Patches(**params).fingerprint for params in ({}, dict(size=64), dict(mode="long"))}
    assert len(marks) == 3


def test_shuffled_weights_are_the_same_values_in_another_order_that_the_seed_says():
    own, first, again, second = (Patches(shuffled=seed) for seed in (None, 0, 0, 1))
    for name, value in own.network.named_parameters():
        assert torch.equal(first.network.get_parameter(name).flatten().sort()[0], value.flatten().sort()[0])
    assert not torch.equal(own.network.weight, first.network.weight)
    assert torch.equal(first.network.weight, again.network.weight)
    assert not torch.equal(first.network.weight, second.network.weight)
    assert len({prior.fingerprint for prior in (own, first, again, second)}) == 3


class Deep(FrozenPrior):
    """Eight convolutions, each normalised by what it gave for some images, as after training."""

    def __init__(self, shuffled: int | None = None) -> None:
        super().__init__(mode="squash", size=None, dtype="fp32", differentiable=False, shuffled=shuffled)
        layers = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for index in range(8):
                conv = nn.Conv2d(
                    16 if index else 3, 16, 3, padding=1, stride=2 if index < 2 else 1, bias=False
                )
                # Taps of one sign, as learned ones agree with what they see; shuffled ones cancel out.
                conv.weight.data.abs_().mul_(torch.randn(16, 1, 1, 1).sign())
                norm = nn.BatchNorm2d(16, momentum=None)
                nn.init.normal_(norm.bias, std=0.3)
                layers += [conv, norm, nn.ReLU()]
            network = nn.Sequential(*layers)
            with torch.no_grad():
                network(seen(16) * 4 - 2)
        self.adopt(network, features=16, native=32, multiple=1, mean=(0.5,) * 3, std=(0.25,) * 3, facts={})

    def describe(self, image):
        dense = self.network(image)
        return dense.mean((2, 3)), dense


def seen(count, seed=0):
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)


def test_shuffled_features_differ_between_images_as_the_real_ones_do():
    def spread(prior):
        glob = prior(seen(8, 1)).glob
        return ((glob - glob.mean(0)).square().mean() / glob.square().mean()).sqrt()

    prior, shuffled, again = (Deep(seed) for seed in (None, 1, 1))
    # With the old statistics it is 2e-4.
    assert spread(prior) > 0.3 and spread(shuffled) > spread(prior) / 4
    assert torch.equal(again(seen(8, 1)).glob, shuffled(seen(8, 1)).glob)
    assert again.fingerprint == shuffled.fingerprint
    assert shuffled.facts["renormalised"] == "16 generated images of 32" and "renormalised" not in prior.facts
    assert not any(module.training for module in shuffled.modules())


def test_generated_images_are_always_the_same_and_different_from_each_other():
    images = generated_images(3, 40)
    assert images.shape == (3, 3, 40, 40) and 0 <= images.min() < images.max() <= 1
    torch.manual_seed(5)
    assert torch.equal(generated_images(3, 40), images)
    assert (images[0] - images[1]).abs().mean() > 0.1


def test_tensors_are_read_by_their_beginnings(tmp_path):
    save_file({"eye.weight": torch.ones(2, 2), "ear.x": torch.ones(1)}, tmp_path / "net.safetensors")
    torch.save({"state_dict": {"eye.weight": torch.ones(2, 2)}}, tmp_path / "net.pth")
    need = Need(("net.safetensors",), ("eye.",))
    for reference in (f"dir:{tmp_path}", f"file:{tmp_path / 'net.pth'}"):
        tensors = read_tensors_of(Source(reference), need, strip="eye.")
        assert list(tensors) == ["weight"]
    with pytest.raises(WeightsError, match=r"holds no tensors nose\.\*"):
        read_tensors_of(Source(f"dir:{tmp_path}"), Need(("net.safetensors",), ("nose.",)))
    (tmp_path / "net.safetensors").write_bytes(b"torn")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_tensors_of(Source(f"dir:{tmp_path}"), need)


def test_a_network_without_memory_is_filled_or_refused():
    with torch.device("meta"):
        network = nn.Linear(2, 2)
    with pytest.raises(WeightsError, match=r"1 tensors are missing .* of 2; first 'bias'"):
        fill(network, {"weight": torch.ones(2, 2)}, "a file")
    with pytest.raises(WeightsError, match="1 of another shape"):
        fill(network, {"weight": torch.ones(3, 2), "bias": torch.ones(2)}, "a file")
    fill(network, {"weight": torch.ones(2, 2), "bias": torch.ones(2), "more": torch.ones(1)}, "a file")
    assert network(torch.ones(1, 2)).tolist() == [[3.0, 3.0]]
    with torch.device("meta"):
        hidden = nn.Linear(2, 2)
        hidden.register_buffer("table", torch.ones(1), persistent=False)
    with pytest.raises(WeightsError, match="values that no file holds: table"):
        fill(hidden, {"weight": torch.ones(2, 2), "bias": torch.ones(2)}, "a file")


def test_a_library_that_is_missing_is_named_with_what_installs_it():
    with pytest.raises(PluginLoadError, match="restorekit-acme cannot use acme_missing") as caught:
        library("acme_missing", "restorekit-acme")
    assert "pip install restorekit-acme" in caught.value.hint
    assert library("json", "restorekit-acme").dumps({}) == "{}"
    assert version("torch").startswith("torch ")
