"""Contract checks that any plug-in can call from its tests: ``check_backbone(Median)``.

Each check builds the class, gives it small images and raises ContractError naming the first promise that is
broken. Whether the values are right is for the plug-in's own tests to say. Needs no test framework.

Trainable tensors are stirred first: a network whose last layer starts at zero would keep every promise.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar, get_args

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from restorekit.catalog import Checkpoint, Pretrained
from restorekit.contracts import Adapter, Backbone, Padding, Prior, PriorFeatures, Refiner, Tiling, one_view
from restorekit.errors import ContractError
from restorekit.frozen import FrozenPrior
from restorekit.licences import Grade, grade
from restorekit.memory import memory_per_pixel
from restorekit.registry import adapters, backbones, priors, refiners
from restorekit.weights import check_fit, read_tensors

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# A batch of images in, one tensor out.
Run = Callable[[Tensor], Tensor]


def check_backbone(cls: type[Backbone], **params: Any) -> None:
    """Check that a backbone keeps its promises.

    They are: a constructor with named parameters; outputs of ``scale`` times the size at every multiple of
    ``size_multiple``; batch items that do not depend on each other; dtype kept; the same output twice in eval
    mode; the input left alone; ``for_image`` and ``training_outputs`` that agree with ``forward``; all that
    matters in the state dict; and a constructor that works on the meta device.

    Args:
        cls: the class.
        params: constructor arguments; choose small ones for a large network.

    Raises:
        ContractError: the first broken promise.
    """
    with _seeded():
        _check_constructor(cls, Backbone)
        backbone = _stirred(cls(**params))
        _check_backbone(cls.__name__, backbone)
        image = torch.rand(1, backbone.channels, *_sizes(backbone.size_multiple)[0])
        _check_state(cls, params, backbone, lambda network: network(image))
        _check_meta(cls, params)


def check_adapter(cls: type[Adapter], backbone: Backbone | None = None, /, **params: Any) -> None:
    """Check that an adapter makes a backbone that keeps its promises, and leaves the given one as it was.

    Args:
        cls: the class.
        backbone: what to attach to; a network of two convolutions when not given.
        params: constructor arguments.

    Raises:
        ContractError: the first broken promise.
    """
    with _seeded():
        _check_constructor(cls, Adapter)
        given = (backbone or _TwoConvolutions()).eval()
        before, name = copy.deepcopy(given), f"{cls.__name__}.attach"
        adapted = cls(**params).attach(given)
        _require(isinstance(adapted, Backbone), f"{name} returns {type(adapted).__name__}, not a Backbone")
        _require(adapted is not given, f"{name} returns the backbone it was given, not another one")
        _check_backbone(f"the backbone of {name}", _stirred(copy.deepcopy(adapted)))
        image = torch.rand(1, given.channels, *_sizes(given.size_multiple)[0])
        same = [*before.state_dict()] == [*given.state_dict()] and torch.equal(before(image), given(image))
        _require(same, f"{name} changes the backbone it is given")


def check_refiner(cls: type[Refiner], prior: Prior | None = None, /, **params: Any) -> None:
    """Check that a refiner keeps its promises: those of a backbone of scale 1, with three inputs.

    Args:
        cls: the class.
        prior: what guides it; a small random one when not given.
        params: constructor arguments; ``prior_features`` is filled in from the prior.

    Raises:
        ContractError: the first broken promise.
    """
    with _seeded():
        signature, name = _check_constructor(cls, Refiner), cls.__name__
        guide = prior or _RandomPrior(params.get("prior_features", 16))
        if "prior_features" in signature.parameters:
            params.setdefault("prior_features", guide.features)
        refiner = _stirred(cls(**params))

        def run(network: nn.Module, degraded: Tensor) -> Tensor:
            restored = 0.9 * one_view(degraded)
            kept = restored.clone()
            guidance = _guidance(guide, one_view(degraded).expand(-1, 3, -1, -1))
            refined: Tensor = network(degraded, restored, guidance)
            _require(torch.equal(restored, kept), f"{name} changes the restored image in place")
            return refined

        _check_attributes(name, refiner, ("size_multiple",))
        channels = refiner.channels or 3
        for height, width in _sizes(refiner.size_multiple):
            images = _images(channels, height, width)
            _check_images(name, refiner, lambda x: run(refiner, x), images, 1, refiner.out_channels)
            image, restored = images[:1], 0.9 * one_view(images[:1])
            guidance = _guidance(guide, one_view(image).expand(-1, 3, -1, -1))
            if refiner.in_parts:
                _require_close(
                    refiner.refine_in_parts(image, restored, guidance, 8),
                    refiner(image, restored, guidance),
                    f"{name}.refine_in_parts does not act like it",
                )
            if refiner.placed:
                _require_close(
                    refiner(image, restored, guidance, torch.tensor([[0.0, 0.0, 1.0, 1.0]])),
                    refiner(image, restored, guidance),
                    f"{name} takes the place of the whole image for another one",
                )
        image = torch.rand(1, channels, *_sizes(refiner.size_multiple)[0])
        _check_state(cls, params, refiner, lambda network: run(network, image))
        _check_meta(cls, params)


def check_prior(cls: type[Prior], **params: Any) -> None:
    """Check that a prior is frozen, and that its features have the declared size and depend on the image.

    Images as small as one pixel are described, too.

    Of a ``FrozenPrior`` also that it takes gray images, that checkpoints of its owner hold nothing of it,
    that it keeps its precision, that it can be built without memory, and that gradients reach the image when
    they are wanted.

    Args:
        cls: the class.
        params: constructor arguments; choose a small model without pretrained weights.

    Raises:
        ContractError: the first broken promise.
    """
    with _seeded():
        _check_constructor(cls, Prior)
        name, prior = cls.__name__, cls(**params)
        open_to_training = [key for key, parameter in prior.named_parameters() if parameter.requires_grad]
        _require(not open_to_training, f"{name} is not frozen: {_some(open_to_training)} asks for gradients")
        prior.train()
        training = [key or "the prior" for key, module in prior.named_modules() if module.training]
        _require(not training, f"{name} leaves eval mode: {_some(training)} follows train()")
        for height, width in ((64, 96), (64, 64), (101, 67)):
            _check_features(name, prior, _images(3, height, width))
        for height, width in ((1, 1), (20, 20), (3, 600)):
            said: PriorFeatures = prior(_images(3, height, width))
            _require(
                said.glob.shape == (2, prior.features) and said.is_finite,
                f"{name} returns {tuple(said.glob.shape)}, or no numbers, of images of {width} x {height}",
            )
        if isinstance(prior, FrozenPrior):
            _check_frozen(cls, params, prior)


def _check_features(name: str, prior: Prior, images: Tensor) -> None:
    first: PriorFeatures = prior(images)
    shape, stated = tuple(first.glob.shape), (2, prior.features)
    _require(shape == stated, f"{name} returns global features {shape}, states {stated}")
    same = _close(first.glob[0], first.glob[1])
    _require(not same, f"{name} says the same of two different images")
    if first.dense is not None:
        shape = tuple(first.dense.shape)
        stated_well = len(shape) == 4 and shape[0] == 2 and first.stride > 0
        _require(stated_well, f"{name} returns dense features {shape} of stride {first.stride}")
        same = _close(first.dense[0], first.dense[1])
        _require(not same, f"{name} returns the same dense features of two different images")

    def run(x: Tensor) -> Tensor:
        said: PriorFeatures = prior(x)
        # Of one length, so that neither hides a difference in the other.
        parts = [said.glob] if said.dense is None else [said.glob, said.dense.flatten(1)]
        return torch.cat([normalize(part, dim=1) for part in parts], 1)

    _check_call(name, run, images)


def _check_frozen(cls: type[Prior], params: dict[str, Any], prior: FrozenPrior) -> None:
    name, images = cls.__name__, _images(3, 96, 72)
    expected = prior(images).glob
    _require(expected.dtype == torch.float32, f"{name} returns {expected.dtype}, not float32")
    gray = prior(images[:, :1]).glob
    _require_close(
        prior(images[:, :1].expand(-1, 3, -1, -1)).glob, gray, f"{name} takes gray for another image"
    )
    owner = nn.ModuleDict({"prior": prior, "rest": nn.Linear(2, 2)})
    state = owner.state_dict()
    _require(set(state) == {"rest.weight", "rest.bias"}, f"checkpoints hold {name}: {_some(list(state))}")
    owner.load_state_dict(state)
    _require_close(prior(images).glob, expected, f"{name} is changed by a checkpoint of its owner")
    owner.half().float()
    _require(torch.equal(prior(images).glob, expected), f"{name} loses precision with its owner")
    _require(bool(re.fullmatch(r"[0-9a-f]{16,}", prior.fingerprint)), f"{name} has no fingerprint")
    _require(cls(**params).fingerprint == prior.fingerprint, f"the fingerprint of {name} changes")
    with torch.device("meta"):
        empty = cls(**params)
    real = [key for key, tensor in empty.named_parameters() if not tensor.is_meta]
    _require(not real, f"{name} built on the meta device still allocates {_some(real)}")
    _require(empty.features == prior.features, f"{name} states another width on the meta device")
    with torch.enable_grad():
        asking = images.clone().requires_grad_()
        glob = prior(asking).glob
        _require(glob.requires_grad == prior.differentiable, f"{name} mistakes whether gradients are wanted")
        if prior.differentiable:
            (gradient,) = torch.autograd.grad(glob[:, 0].sum(), asking)
            reaches = bool(gradient.isfinite().all()) and bool(gradient.abs().amax() > 0)
            _require(reaches, f"{name} passes no finite gradient on to the image")


def check_weights(item: Pretrained) -> None:
    """Check that declared weights are sound, and, where their file is on this machine, that they fit.

    They are: a component that is installed and takes the declared arguments; a licence that is named; a
    hash in hexadecimal where one is given; somewhere to get the file from; the declared number of parameters
    and memory. Downloads nothing.

    Args:
        item: the declaration.

    Raises:
        ContractError: the first thing that is wrong with the declaration.
        WeightsError: the file is not the declared one, or does not fit.
    """
    name = f"weights {item.name}"
    _require(bool(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", item.tag)), f"{name}: {item.tag!r} is no tag")
    _require(bool(item.task and item.source), f"{name} say no task or no source")
    # Of models that others publish a name for the terms is the most that there is.
    named = bool(item.reference) and item.licence.startswith("LicenseRef-")
    known = named or grade(item.licence) > Grade.UNKNOWN
    _require(known, f"{name}: {item.licence!r} is no known SPDX expression")
    stated = item.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", item.sha256)
    _require(bool(stated), f"{name}: {item.sha256!r} is no sha256 in hexadecimal")
    _require(
        item.file is None or (item.file.is_file() and item.sha256 is not None),
        f"{name}: the bundled file is missing, or has no declared sha256",
    )
    somewhere = item.file or item.urls or item.filename or item.reference
    _require(bool(somewhere), f"{name} cannot be got from anywhere")
    registry = next(
        (book for book in (backbones, adapters, refiners, priors) if item.component in book), None
    )
    if registry is None:
        raise ContractError(f"{name}: no installed component is called {item.component!r}")
    if item.reference:
        known_params = inspect.signature(registry[item.component].load()).parameters
        strange = [key for key in item.params if key not in known_params]
        _require(not strange, f"{name}: {item.component} takes no {_some(strange)}")
        whole = bool(item.needs) or not item.reference.startswith("hub:")
        _require(whole, f"{name} do not say which files of {item.reference} are needed")
        return
    with torch.device("meta"):
        try:
            network: nn.Module = registry[item.component].load()(**item.params)
        except (TypeError, ValueError) as error:
            raise ContractError(f"{name}: {item.component} refuses the declared params: {error}") from error
    checkpoint = Checkpoint(item.name, item.path, item)
    if isinstance(network, Adapter) and checkpoint.is_here:
        # How many filters there are, the file says.
        network.make_room(read_tensors(checkpoint.file))
    count = sum(parameter.numel() for parameter in network.parameters())
    _require(
        item.parameters in (None, count), f"{name} declare {item.parameters} parameters, there are {count}"
    )
    if item.memory_per_pixel is not None:
        found = memory_per_pixel(network)
        # Operators allocate a little more or less from one release of torch to the next.
        near = found is not None and abs(found - item.memory_per_pixel) <= 0.05 * item.memory_per_pixel
        _require(near, f"{name} declare {item.memory_per_pixel} bytes a pixel, {found} were measured")
    if checkpoint.is_here:
        _ = checkpoint.sha256
        check_fit(network, read_tensors(checkpoint.file), checkpoint.file)


def _check_constructor(cls: type[nn.Module], base: type[nn.Module]) -> inspect.Signature:
    _require(isinstance(cls, type) and issubclass(cls, base), f"{cls!r} is not a {base.__name__}")
    signature = inspect.signature(cls)
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    loose = [stars[p.kind] + p.name for p in signature.parameters.values() if p.kind in stars]
    _require(
        not loose,
        f"the constructor of {cls.__name__} takes {', '.join(loose)}",
        "define __init__ and name its parameters: they are what a pipeline file may say",
    )
    return signature


def _check_attributes(name: str, network: Backbone | Refiner, at_least_one: Iterable[str]) -> None:
    for attribute in at_least_one:
        value = getattr(network, attribute)
        _require(isinstance(value, int) and value >= 1, f"{name}.{attribute} is {value!r}, not 1 or more")
    _require(network.padding in get_args(Padding), f"{name}.padding is {network.padding!r}")
    overlap = network.overlap
    _require(isinstance(overlap, int) and overlap >= 0, f"{name}.overlap is {overlap!r}, not 0 or more")


def _check_backbone(name: str, backbone: Backbone) -> None:
    _check_attributes(name, backbone, ("size_multiple", "scale", "channels"))
    _require(backbone.tiling in get_args(Tiling), f"{name}.tiling is {backbone.tiling!r}")
    channels = backbone.out_channels
    stated = channels is None or (isinstance(channels, int) and channels >= 1)
    _require(stated, f"{name}.out_channels is {channels!r}, not None or 1 or more")
    for height, width in _sizes(backbone.size_multiple):
        images = _images(backbone.channels, height, width)
        _check_images(name, backbone, backbone, images, backbone.scale, channels)
        image, expected = images[:1], backbone(images[:1])
        tile = max(height, width)
        act = backbone.for_image(image, tile)
        _require(callable(act), f"{name}.for_image returns {type(act).__name__}, which cannot be called")
        _require_close(act(image), expected, f"{name}.for_image(image, {tile}) does not act like the network")
        _require_close(backbone(image), expected, f"{name}.for_image changes the network itself")
        outputs = backbone.training_outputs(image)
        _require_close(outputs[0], expected, f"{name}.training_outputs does not begin with the final output")
        if backbone.latent_features is not None:
            latent, rest = backbone.encode(image)
            found, features = latent.shape[1], backbone.latent_features
            _require(found == features, f"{name}.encode returns {found} features, states {features}")
            for _ in range(2):
                together = f"{name}: decode(*encode(image)) is not forward(image)"
                _require(torch.equal(backbone.decode(latent, rest), expected), together)


def _check_images(
    name: str,
    network: nn.Module,
    run: Run,
    images: Tensor,
    scale: int = 1,
    out_channels: int | None = None,
) -> None:
    """Check the promises that every function from images to images keeps, in both precisions."""
    batch, channels, height, width = images.shape
    stated = (batch, out_channels or channels, height * scale, width * scale)
    for dtype in (torch.float32, torch.float64):
        network.to(dtype)
        try:
            output = _check_call(name, run, images.to(dtype))
        finally:
            network.float()
        shape = tuple(output.shape)
        _require(shape == stated, f"{name} returns {shape} for {tuple(images.shape)}, expected {stated}")
        _require(output.dtype == dtype, f"{name} returns {output.dtype} for {dtype}")


def _check_call(name: str, run: Run, images: Tensor) -> Tensor:
    kept, shape = images.clone(), tuple(images.shape)
    try:
        output = run(images)
    except ContractError:
        raise
    # Whatever a stranger's network raises, the promise that it accepts these images is broken.
    except Exception as error:
        raise ContractError(f"{name} fails on {shape} of {images.dtype}: {error}") from error
    _require(isinstance(output, Tensor), f"{name} returns {type(output).__name__}, not a tensor")
    _require(torch.equal(images, kept), f"{name} changes its input in place")
    _require(bool(output.isfinite().all()), f"{name} returns values that are not finite for {shape}")
    _require(torch.equal(run(images), output), f"{name} is not deterministic in eval mode")
    for i in range(len(images)):
        alone = run(images[i : i + 1])
        together = output[i : i + 1]
        _require_close(alone, together, f"{name}: the items of a batch depend on each other")
    return output


def _check_state(
    cls: type[ModuleT], params: dict[str, Any], trained: ModuleT, run: Callable[[ModuleT], Tensor]
) -> None:
    try:
        saved = save_safetensors(trained.state_dict())
        fresh = _stirred(cls(**params))
        fresh.load_state_dict(load_safetensors(saved))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ContractError(f"the state dict of {cls.__name__} does not survive a file: {error}") from error
    lost = (
        f"{cls.__name__} with the same state dict gives another output: something that matters is not in it"
    )
    _require_close(run(fresh), run(trained), lost)


def _check_meta(cls: type[nn.Module], params: dict[str, Any]) -> None:
    try:
        with torch.device("meta"):
            module = cls(**params)
    except Exception as error:
        raise ContractError(f"{cls.__name__} cannot be built on the meta device: {error}") from error
    tensors = chain(module.named_parameters(), module.named_buffers())
    real = [key for key, tensor in tensors if not tensor.is_meta]
    _require(not real, f"{cls.__name__} built on the meta device still allocates {_some(real)}")


def _sizes(multiple: int) -> list[tuple[int, int]]:
    """Return sides that a network must accept: not square, the smallest, and odd ones where any size is."""
    steps = -(-24 // multiple)
    odd = [(17, 23)] if multiple == 1 else []
    return [(steps * multiple, (steps + 1) * multiple), (multiple, multiple), *odd]


def _images(channels: int, height: int, width: int) -> Tensor:
    """Return two images of different brightness, so that statistics that one takes from the other show."""
    return torch.rand(2, channels, height, width) * torch.tensor([1.0, 0.3]).reshape(2, 1, 1, 1)


def _guidance(prior: Prior, images: Tensor) -> PriorFeatures:
    """Describe each image by itself and in float32, so that the batch and the dtype change nothing."""
    each = [prior(image[None].float()) for image in images]
    dense = [one.dense.to(images.dtype) for one in each if one.dense is not None]
    glob = torch.cat([one.glob for one in each]).to(images.dtype)
    return PriorFeatures(glob, torch.cat(dense) if dense else None, each[0].stride)


def _stirred(module: ModuleT) -> ModuleT:
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


@contextmanager
def _seeded() -> Iterator[None]:
    """Fix the random numbers inside and leave the caller's as they were; no gradients."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        yield


def _close(one: Tensor, other: Tensor) -> bool:
    # Batches of other sizes are summed in another order; a broken promise is larger than that by far.
    relative = 1e-9 if other.dtype == torch.float64 else 1e-3
    allowed = relative * (other.abs().max() + 1e-3)
    return one.shape == other.shape and bool((one - other).abs().max() <= allowed)


def _require_close(one: Tensor, other: Tensor, broken: str) -> None:
    _require(_close(one, other), broken)


def _require(kept: bool, broken: str, hint: str = "") -> None:
    if not kept:
        raise ContractError(broken, hint)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3])


class _TwoConvolutions(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        correction: Tensor = self.second(self.first(degraded).relu())
        return degraded + correction


class _RandomPrior(Prior):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mix", torch.randn(features, 3))

    def forward(self, image: Tensor) -> PriorFeatures:
        """(B, C, H, W) -> glob (B, F), dense (B, F, h, w) of stride 8."""
        height, width = image.shape[-2:]
        cells = adaptive_avg_pool2d(image, (-(-height // 8), -(-width // 8)))
        dense = torch.einsum("fc,bchw->bfhw", self.mix, cells)
        return PriorFeatures(dense.mean((2, 3)), dense, stride=8)
