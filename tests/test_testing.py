"""Each check is given components that break one promise: a check that cannot fail proves nothing."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from strangers import Trained
from torch import nn

from restorekit.catalog import Pretrained
from restorekit.contracts import Adapter, Backbone, Prior, PriorFeatures, Refiner
from restorekit.errors import ContractError, WeightsError
from restorekit.testing import check_adapter, check_backbone, check_prior, check_refiner, check_weights


class Honest(Backbone):
    def __init__(self, channels: int = 3, size_multiple: int = 1) -> None:
        super().__init__()
        self.channels, self.size_multiple = channels, size_multiple
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, degraded):
        return degraded + self.conv(degraded)


class Doubling(Honest):
    scale = 2

    def forward(self, degraded):
        return self.conv(degraded).repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("params", [{}, {"channels": 1}, {"size_multiple": 16}, {"size_multiple": 32}])
def test_an_honest_backbone_passes(params):
    check_backbone(Honest, **params)


def test_an_honest_super_resolution_passes():
    check_backbone(Doubling)


def test_the_random_numbers_of_the_caller_are_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    check_backbone(Honest)
    assert torch.equal(torch.rand(3), expected)


class AnyArguments(Honest):
    def __init__(self, *blocks: int, **options: int) -> None:
        super().__init__()


class InheritedConstructor(Backbone):
    def forward(self, degraded):
        return degraded


class BadPadding(Honest):
    padding = "mirror"


class NoMultiple(Honest):
    def __init__(self) -> None:
        super().__init__(size_multiple=0)


class Cropping(Honest):
    def forward(self, degraded):
        return degraded[..., 1:, :]


class Transposing(Honest):
    def forward(self, degraded):
        return degraded.transpose(2, 3)


class EvenOnly(Honest):
    def forward(self, degraded):
        return degraded.unflatten(2, (-1, 2)).flatten(2, 3)


class Mixing(Honest):
    def forward(self, degraded):
        return degraded - degraded.mean()


class Downcasting(Honest):
    def forward(self, degraded):
        return super().forward(degraded).float()


class FloatOnly(Honest):
    def forward(self, degraded):
        return degraded * torch.full((1,), 0.5) @ torch.eye(degraded.shape[-1])


class Noisy(Honest):
    def forward(self, degraded):
        return degraded + 0.01 * torch.randn_like(degraded)


class Counting(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.calls = itertools.count()

    def forward(self, degraded):
        return degraded + next(self.calls)


class InPlace(Honest):
    def forward(self, degraded):
        return degraded.mul_(0.5)


class NotFinite(Honest):
    def forward(self, degraded):
        return degraded / 0


class Tupled(Honest):
    def forward(self, degraded):
        return (degraded,)


class Forgetful(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.randn(1).item() if not self.conv.weight.is_meta else 0.0

    def forward(self, degraded):
        return degraded * self.gain


class UnsavedBuffer(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.randn(1), persistent=False)

    def forward(self, degraded):
        return degraded * self.gain


class SharedTensors(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.conv


class ReadsValues(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.rates = [x.item() for x in torch.linspace(0, 1, 4)]


class OnTheProcessor(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(3, device="cpu"))


class UncallableForImage(Honest):
    def for_image(self, degraded, tile):
        return self(degraded)


class OtherForImage(Honest):
    def for_image(self, degraded, tile):
        return lambda window: window


class ShrinkingForImage(Honest):
    def for_image(self, degraded, tile):
        return lambda window: self(window)[..., :-1]


class RememberingForImage(Honest):
    offset = 0.0

    def forward(self, degraded):
        return degraded + self.offset

    def for_image(self, degraded, tile):
        self.offset = 1.0
        return lambda window: window


class FinalOutputLast(Honest):
    def training_outputs(self, degraded):
        return (degraded, self(degraded))


@pytest.mark.parametrize(
    ("cls", "promise"),
    [
        (nn.Identity, "is not a Backbone"),
        (AnyArguments, r"the constructor of AnyArguments takes \*blocks, \*\*options"),
        (InheritedConstructor, r"the constructor of InheritedConstructor takes \*args"),
        (BadPadding, r"padding is 'mirror'"),
        (NoMultiple, r"size_multiple is 0"),
        (Cropping, r"returns \(2, 3, 23, 25\) for \(2, 3, 24, 25\), expected \(2, 3, 24, 25\)"),
        (Transposing, r"returns \(2, 3, 25, 24\)"),
        (EvenOnly, r"fails on \(2, 3, 1, 1\)"),
        (Mixing, "items of a batch depend on each other"),
        (Downcasting, r"returns torch.float32 for torch.float64"),
        (FloatOnly, r"fails on .* of torch.float64"),
        (Noisy, "not deterministic"),
        (Counting, "not deterministic"),
        (InPlace, "changes its input in place"),
        (NotFinite, "not finite"),
        (Tupled, "returns tuple, not a tensor"),
        (Forgetful, "gives another output: something that matters is not in it"),
        (UnsavedBuffer, "gives another output: something that matters is not in it"),
        (SharedTensors, "state dict of SharedTensors does not survive a file"),
        (ReadsValues, "cannot be built on the meta device"),
        (OnTheProcessor, "on the meta device still allocates kernel"),
        (UncallableForImage, "for_image returns Tensor, which cannot be called"),
        (OtherForImage, "does not act like the network"),
        (ShrinkingForImage, "does not act like the network"),
        (RememberingForImage, "for_image changes the network itself"),
        (FinalOutputLast, "does not begin with the final output"),
    ],
)
def test_a_broken_promise_of_a_backbone_is_named(cls, promise):
    with pytest.raises(ContractError, match=promise):
        check_backbone(cls)


class Gain(Adapter):
    def __init__(self) -> None:
        super().__init__()

    def attach(self, backbone):
        return Amplified(backbone)


class Amplified(Honest):
    def __init__(self, inner: Backbone) -> None:
        super().__init__(inner.channels)
        self.inner = inner

    def forward(self, degraded):
        return 0.5 * self.inner(degraded)


class AttachesInPlace(Gain):
    def attach(self, backbone):
        return backbone


class DamagesTheBackbone(Gain):
    def attach(self, backbone):
        for parameter in backbone.parameters():
            parameter.data.mul_(2)
        return Amplified(backbone)


class ReturnsAModule(Gain):
    def attach(self, backbone):
        return nn.Sequential(backbone)


class AttachesTheImpure(Gain):
    def attach(self, backbone):
        return Mixing()


def test_an_honest_adapter_passes_on_any_backbone():
    check_adapter(Gain)
    check_adapter(Gain, Honest(channels=1))


@pytest.mark.parametrize(
    ("cls", "promise"),
    [
        (Honest, "is not a Adapter"),
        (AttachesInPlace, "returns the backbone it was given"),
        (DamagesTheBackbone, "changes the backbone it is given"),
        (ReturnsAModule, "returns Sequential, not a Backbone"),
        (AttachesTheImpure, "the backbone of AttachesTheImpure.attach: the items of a batch depend"),
    ],
)
def test_a_broken_promise_of_an_adapter_is_named(cls, promise):
    with pytest.raises(ContractError, match=promise):
        check_adapter(cls)


class Tinting(Refiner):
    def __init__(self, prior_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(prior_features, 3)

    def forward(self, degraded, restored, prior):
        return (degraded + restored) / 2 + self.linear(prior.glob)[:, :, None, None]


class ConsumingRefiner(Tinting):
    def forward(self, degraded, restored, prior):
        return restored.add_(degraded)


class CroppingRefiner(Tinting):
    def forward(self, degraded, restored, prior):
        return restored[..., :-1]


class FirstOfBatch(Tinting):
    def forward(self, degraded, restored, prior):
        return restored + prior.glob[0].mean()


class ForgetfulRefiner(Tinting):
    def __init__(self, prior_features: int) -> None:
        super().__init__(prior_features)
        self.register_buffer("gain", torch.randn(1), persistent=False)

    def forward(self, degraded, restored, prior):
        return restored * self.gain


class MisplacedRefiner(Tinting):
    """Counts from another corner than everybody else."""

    placed = True

    def forward(self, degraded, restored, prior, places=None):
        tinted = super().forward(degraded, restored, prior)
        return tinted if places is None else tinted + 0.1 * places[:, 2, None, None, None]


def test_an_honest_refiner_passes():
    check_refiner(Tinting)
    check_refiner(Tinting, prior_features=5)
    check_refiner(Tinting, Describing())


@pytest.mark.parametrize(
    ("cls", "promise"),
    [
        (Honest, "is not a Refiner"),
        (ConsumingRefiner, "changes the restored image in place"),
        (CroppingRefiner, r"returns \(2, 3, 24, 24\) for \(2, 3, 24, 25\)"),
        (FirstOfBatch, "items of a batch depend on each other"),
        (ForgetfulRefiner, "gives another output"),
        (MisplacedRefiner, "takes the place of the whole image for another one"),
    ],
)
def test_a_broken_promise_of_a_refiner_is_named(cls, promise):
    with pytest.raises(ContractError, match=promise):
        check_refiner(cls)


class Describing(Prior):
    features = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8).requires_grad_(False)
        self.train(False)

    def train(self, mode=True):
        return super().train(False)

    def forward(self, image):
        dense = self.conv(nn.functional.adaptive_avg_pool2d(image, (32, 32)))
        return PriorFeatures(dense.mean((2, 3)), dense, stride=8)


class Trainable(Describing):
    def __init__(self) -> None:
        super().__init__()
        self.conv.requires_grad_(True)


class FollowsTrain(Describing):
    def train(self, mode=True):
        return nn.Module.train(self, mode)


class WrongCount(Describing):
    features = 5


class Blind(Describing):
    def forward(self, image):
        return PriorFeatures(torch.ones(len(image), 4))


class BlindToPlaces(Describing):
    def forward(self, image):
        said = super().forward(image)
        return PriorFeatures(said.glob, torch.ones_like(said.dense), said.stride)


class NoStride(Describing):
    def forward(self, image):
        said = super().forward(image)
        return PriorFeatures(said.glob, said.dense)


class MixingPrior(Describing):
    def forward(self, image):
        return super().forward(image - image.mean())


class NormalisesInPlace(Describing):
    def forward(self, image):
        return super().forward(image.sub_(0.5))


class Dreaming(Describing):
    def forward(self, image):
        return super().forward(image + torch.randn_like(image))


def test_an_honest_prior_passes():
    check_prior(Describing)


@pytest.mark.parametrize(
    ("cls", "promise"),
    [
        (Honest, "is not a Prior"),
        (Trainable, r"not frozen: conv.weight, conv.bias asks for gradients"),
        (FollowsTrain, "leaves eval mode"),
        (WrongCount, r"returns global features \(2, 4\), states \(2, 5\)"),
        (Blind, "says the same of two different images"),
        (BlindToPlaces, "the same dense features of two different images"),
        (NoStride, "of stride 0"),
        (MixingPrior, "items of a batch depend on each other"),
        (NormalisesInPlace, "changes its input in place"),
        (Dreaming, "not deterministic"),
    ],
)
def test_a_broken_promise_of_a_prior_is_named(cls, promise):
    with pytest.raises(ContractError, match=promise):
        check_prior(cls)


@pytest.fixture
def sound(strangers, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(Trained(width=4).state_dict(), path)
    return Pretrained(
        component="trained",
        tag="tiny",
        licence="MIT",
        source="here",
        task="nothing",
        params={"width": 4},
        file=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        parameters=4 * 3 * 9 + 4,
        memory_per_pixel=4 * (3 + 4),
    )


def test_a_sound_declaration_passes(sound):
    check_weights(sound)
    check_weights(replace(sound, file=None, sha256=None, urls=("https://example.com/net.pth",)))


@pytest.mark.parametrize(
    ("changes", "promise"),
    [
        ({"tag": "Not A Tag"}, "is no tag"),
        ({"task": ""}, "say no task"),
        ({"licence": "see README"}, "no known SPDX expression"),
        ({"sha256": "abc"}, "no sha256"),
        ({"sha256": None}, "has no declared sha256"),
        ({"file": None, "sha256": None}, "cannot be got from anywhere"),
        ({"component": "trianed"}, "no installed component"),
        ({"params": {"widht": 4}}, "refuses the declared params"),
        ({"parameters": 7}, "declare 7 parameters, there are 112"),
        ({"memory_per_pixel": 40}, "declare 40 bytes a pixel, 28 were measured"),
    ],
)
def test_a_fault_of_a_declaration_is_named(sound, changes, promise):
    with pytest.raises(ContractError, match=promise):
        check_weights(replace(sound, **changes))


def test_a_declared_file_has_to_fit(sound):
    with pytest.raises(WeightsError, match="differ in shape"):
        check_weights(replace(sound, params={"width": 5}, parameters=None, memory_per_pixel=None))
    sound.file.write_bytes(sound.file.read_bytes() + b"x")
    with pytest.raises(WeightsError, match="expected is"):
        check_weights(sound)
