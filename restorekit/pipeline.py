"""The workshop: builds a chain from a spec and runs it on images.

It finds components through the registry and knows none by name. Reading and writing images is image.py,
cutting them is tiling.py, devices and tiles that fit are runtime.py.
"""

from __future__ import annotations

import inspect
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from restorekit import plan
from restorekit.catalog import PRIOR_KEY, Checkpoint
from restorekit.config import ComponentRef, PipelineSpec, TileSpec, check
from restorekit.contracts import (
    Adapter,
    Backbone,
    DetectedBackbone,
    Judged,
    Prior,
    PriorFeatures,
    Refiner,
    Verdict,
)
from restorekit.download import Progress as Downloading
from restorekit.download import ensure
from restorekit.errors import ConfigError, ContractError, WeightsError, near
from restorekit.image import Image
from restorekit.licences import check_licences, resolve_policy
from restorekit.memory import memory_per_pixel
from restorekit.plan import Part
from restorekit.registry import backbones
from restorekit.result import RestoreResult, StepRecord
from restorekit.runtime import (
    channels_last,
    check_finite,
    choose_tile,
    resolve_device,
    resolve_dtype,
    run_with_ladder,
    smallest_tile,
)
from restorekit.tiling import Tiler, pad_to_multiple
from restorekit.weights import check_fit, load_into, read_tensors

log = logging.getLogger(__name__)

# Called with the step's component, tiles done and tiles in all.
Progress = Callable[[str, int, int], None]


def construct(part: Part, tensors: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build a component from its constructor's arguments, without the values of its weights.

    A DetectedBackbone is built from ``tensors``, the content of its checkpoint, and has their values; an
    Adapter makes room for them.

    Raises:
        ConfigError: an argument is unknown, missing, or refused by the constructor.
        PluginLoadError: the component cannot be imported.
        WeightsError: a DetectedBackbone has no weights, or does not recognise them.
    """
    kind: Callable[..., Any] = part.entry.load()
    where = f"{part.where}.params"
    if isinstance(kind, type) and issubclass(kind, DetectedBackbone):
        if tensors is None or part.checkpoint is None:
            raise _without_weights(part)
        kind = partial(kind.from_tensors, tensors, part.checkpoint.file)
    known = inspect.signature(kind).parameters
    for name in part.params:
        if name not in known:
            raise ConfigError(
                where,
                f"{part.entry.name} takes no {name!r}",
                near(name, known) or f"it takes: {', '.join(known) or 'none'}",
            )
    try:
        module = cast(nn.Module, kind(**part.params))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            where, f"{part.entry.name} refuses them: {error}", f"it takes: {', '.join(known) or 'none'}"
        ) from error
    if isinstance(module, Adapter) and tensors is not None:
        module.make_room(tensors)
    return module


def build(part: Part) -> nn.Module:
    """Build a component with its weights, in eval mode, without gradients.

    Raises:
        WeightsError: it has parameters and no weights are given, or they do not fit.
    """
    tensors = _tensors(part)
    module = construct(part, tensors)
    if part.checkpoint and tensors is not None:
        if not isinstance(module, DetectedBackbone):
            load_into(module, tensors, part.checkpoint.file)
    elif part.kind != "prior" and next(module.parameters(), None) is not None:
        raise _without_weights(part)
    return module.eval().requires_grad_(False)


def _tensors(part: Part) -> dict[str, Tensor] | None:
    if part.checkpoint is None:
        return None
    # Reading the hash compares it with the declared one, before anything is loaded.
    _ = part.checkpoint.sha256
    return read_tensors(part.checkpoint.file)


def _without_weights(part: Part) -> WeightsError:
    name = part.entry.name
    return WeightsError(
        f"{part.where}: {name} is a network, and no weights are given",
        f"name them: {{name: {name}, weights: TAG or FILE}}; see `restorekit list weights`",
    )


def _present(part: Part, offline: bool | None, downloading: Downloading | None) -> Part:
    """Return a part whose weights are on this machine."""
    if part.checkpoint is None:
        return part
    return replace(part, checkpoint=ensure(part.checkpoint, offline=offline, progress=downloading))


@dataclass
class _Conditions:
    """How a step runs, and what happens to it on the way."""

    device: torch.device
    dtype: torch.dtype
    tile: TileSpec
    progress: Callable[[int, int], None]
    events: list[str]
    verdicts: list[Verdict] = field(default_factory=list)


class Step:
    """One step of a chain: a network that is run on the whole image or on its tiles."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.verb = "restore" if parts[0].kind == "backbone" else "refine"
        main = build(parts[0])
        self.prior: Prior | None = None
        if isinstance(main, Backbone):
            for part in parts[1:]:
                main = cast(Adapter, build(part)).attach(main)
        elif len(parts) > 1:
            self.prior = cast(Prior, build(parts[1]))
            _check_prior(parts, cast(Refiner, main), self.prior)
        self.network = cast("Backbone | Refiner", main)

    def put_inside(self, before: Step | None) -> None:
        """Let a refiner that works inside a backbone do so in that of the step before.

        Raises:
            ConfigError: there is no such step.
            ContractError: the refiner cannot work in it.
        """
        assert isinstance(self.network, Refiner) and self.prior is not None
        if before is None or not isinstance(before.network, Backbone):
            main = self.parts[0]
            raise ConfigError(
                main.where,
                f"{main.entry.name} works inside a backbone, and the step before is none",
                "put it right after a restore step",
            )
        before.network = self.network.attach(before.network, self.prior)

    @cached_property
    def memory(self) -> int | None:
        """Bytes of working memory for each pixel that is run at a time; None when it cannot be measured."""
        return memory_of(self.network)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the networks; channels innermost is faster on every device that was measured."""
        for network in (self.network, self.prior):
            if network is not None:
                network.to(device=device, dtype=dtype)
                channels_last(network)

    def run(self, degraded: Tensor, current: Tensor, conditions: _Conditions) -> tuple[Tensor, StepRecord]:
        """Run on images (1, C, H, W); ``degraded`` is the pipeline's input, ``current`` the result so far.

        Raises:
            ContractError: the network returned something of another shape, or values that are not finite.
            MemoryLimitError: the image does not fit at any tile size.
        """
        started = time.perf_counter()
        conditions = replace(conditions, events=[], verdicts=[])
        if isinstance(self.network, Backbone) and conditions.dtype not in self.network.precisions:
            name = str(conditions.dtype).removeprefix("torch.")
            conditions.events.append(f"not known to work in {name}, ran in float32")
            conditions.dtype = torch.float32
        if isinstance(self.network, Refiner) and self.network.inside:
            # It has run within the step before.
            output, tile = current, 0
        else:
            output, tile = self._run_finite(degraded, current, conditions)
        main = self.parts[0]
        record = StepRecord(
            verb=self.verb,
            component="+".join(part.entry.name for part in self.parts),
            version=main.entry.version,
            weights=main.checkpoint.name if main.checkpoint else None,
            weights_sha256=main.checkpoint.sha256 if main.checkpoint else None,
            parameters=main.params,
            tile=tile,
            overlap=self._overlap(conditions) if tile and not self._in_parts else 0,
            dtype=str(conditions.dtype).removeprefix("torch."),
            device=str(conditions.device),
            seconds=round(time.perf_counter() - started, 4),
            licences=tuple(dict.fromkeys(licence for part in self.parts for licence in part.licences)),
            events=tuple(conditions.events),
            verdict=_together(conditions.verdicts),
        )
        return output, record

    def _run_finite(self, degraded: Tensor, current: Tensor, conditions: _Conditions) -> tuple[Tensor, int]:
        self.to(conditions.device, conditions.dtype)
        output, tile = self._run(degraded, current, conditions)
        if not check_finite(output) and conditions.dtype != torch.float32:
            name = str(conditions.dtype).removeprefix("torch.")
            conditions.events.append(f"the result was not finite in {name}, ran again in float32")
            conditions.dtype = torch.float32
            self.to(conditions.device, conditions.dtype)
            output, tile = self._run(degraded, current, conditions)
        if not check_finite(output):
            name = self.parts[0].entry.name
            raise ContractError(
                f"{self.verb} step {name} returned values that are not finite",
                "check the weights and the input",
            )
        return output, tile

    @property
    def _in_parts(self) -> bool:
        return isinstance(self.network, Refiner) and self.network.in_parts

    def _overlap(self, conditions: _Conditions) -> int:
        size, overlap = conditions.tile.size, conditions.tile.overlap
        if overlap != "auto":
            return overlap
        # A tile that the user wants small gets a smaller overlap than the network would like.
        return self.network.overlap if size == "auto" or size == 0 else min(self.network.overlap, size // 2)

    def _run(self, degraded: Tensor, current: Tensor, conditions: _Conditions) -> tuple[Tensor, int]:
        """Return the output (1, C, H, W) and the tile size that it took, 0 for the whole image."""
        network = self.network
        overlap = self._overlap(conditions)
        multiple = network.size_multiple
        height, width = current.shape[-2:]
        tile = conditions.tile.size
        if isinstance(network, Backbone) and network.tiling == "never":
            if tile not in ("auto", 0):
                conditions.events.append("tiles are not for this network, ran on the whole image")
            tile = 0
        elif tile == "auto" and isinstance(network, Refiner) and not network.in_parts:
            # A refiner may pool over its input, and then tiles change its result: they have to be asked for.
            tile = 0
        elif tile == "auto":
            tile = choose_tile(height, width, self.memory, conditions.device, overlap, multiple)
        if Tiler(tile, overlap).is_whole(height, width, multiple):
            tile = 0
        features = self._features(degraded, conditions)

        def run(size: int) -> Tensor:
            tiler = Tiler(size, overlap)
            if isinstance(network, Refiner):
                assert features is not None
                return self._refined(network, features, tiler, conditions, degraded, current)
            outputs = []
            # What an attempt that ran out of memory had found is found again.
            conditions.verdicts.clear()
            for plane in _planes(current, network.channels):
                padded = pad_to_multiple(plane, multiple, network.padding)
                whole = tiler.is_whole(padded.shape[2], padded.shape[3], multiple)
                act: Callable[..., Tensor] = network
                if network.judges or not whole:
                    act = network.for_image(padded, 0 if whole else size)
                if isinstance(act, Judged):
                    conditions.verdicts.append(act.verdict)
                outputs.append(self._tiled(act, tiler, conditions, plane))
            return _merged(outputs, current.shape[1])

        whole_only = isinstance(network, Backbone) and network.tiling == "never"
        output, tile = run_with_ladder(
            run,
            tile,
            smallest=max(height, width) if whole_only else smallest_tile(overlap, multiple),
            sides=(height, width),
            events=conditions.events,
        )
        if tile and isinstance(network, Backbone) and network.tiling == "discouraged":
            conditions.events.append(
                f"run in tiles of {tile}, which change its result; more memory avoids that"
            )
        return output, tile

    def _refined(
        self,
        network: Refiner,
        features: PriorFeatures,
        tiler: Tiler,
        conditions: _Conditions,
        degraded: Tensor,
        current: Tensor,
    ) -> Tensor:
        channels = current.shape[1] if network.channels is None else network.channels
        outputs = []
        for before, after in zip(_planes(degraded, channels), _planes(current, channels), strict=True):
            height, width = after.shape[-2:]
            if network.in_parts and not tiler.is_whole(height, width, network.size_multiple):
                before, after = (
                    pad_to_multiple(one, network.size_multiple, network.padding) for one in (before, after)
                )
                refined = network.refine_in_parts(before, after, features, tiler.size)
                conditions.progress(1, 1)
                outputs.append(refined[..., :height, :width])
            else:
                act = partial(_refine, network, features)
                outputs.append(self._tiled(act, tiler, conditions, before, after))
        return _merged(outputs, current.shape[1])

    def maps(self, degraded: Tensor, current: Tensor, conditions: _Conditions) -> dict[str, Tensor]:
        """Return what the network offers to look at, by name, for whole images (1, C, H, W)."""
        network = self.network
        if isinstance(network, Refiner) and network.inside:
            return {}
        self.to(conditions.device, conditions.dtype)

        def given(image: Tensor) -> Tensor:
            channels = image.shape[1] if network.channels is None else network.channels
            # A gray network sees a colour image as gray, here where it is only looked at.
            planes = _planes(image, channels)
            image = torch.stack(planes).mean(0)
            image = pad_to_multiple(image, network.size_multiple, network.padding)
            return image.to(conditions.device, conditions.dtype, memory_format=torch.channels_last)

        if isinstance(network, Backbone):
            return dict(network.maps(given(current)))
        features = self._features(degraded, conditions)
        assert features is not None
        return dict(network.maps(given(degraded), given(current), features))

    def _tiled(
        self, act: Callable[..., Tensor], tiler: Tiler, conditions: _Conditions, *images: Tensor
    ) -> Tensor:
        def cast_and_act(*windows: Tensor) -> Tensor:
            return act(
                *(window.to(conditions.dtype, memory_format=torch.channels_last) for window in windows)
            )

        return tiler(
            cast_and_act,
            *images,
            multiple=self.network.size_multiple,
            padding=self.network.padding,
            scale=self.network.scale if isinstance(self.network, Backbone) else 1,
            channels=self.network.out_channels if isinstance(self.network, Backbone) else None,
            device=conditions.device,
            progress=conditions.progress,
        )

    def _features(self, degraded: Tensor, conditions: _Conditions) -> PriorFeatures | None:
        if self.prior is None:
            return None
        colour = degraded.expand(-1, 3, -1, -1) if degraded.shape[1] == 1 else degraded
        features = cast(PriorFeatures, self.prior(colour.clamp(0, 1).to(conditions.device, conditions.dtype)))
        # In half precision the step is run again in float32, as for any other network.
        if conditions.dtype == torch.float32 and not check_finite(features.glob):
            raise ContractError(
                f"prior {self.parts[1].entry.name} returned values that are not finite",
                "check its weights and the input",
            )
        return features


def _refine(network: Refiner, features: PriorFeatures, before: Tensor, after: Tensor) -> Tensor:
    refined: Tensor = network(before, after, features)
    return refined


def memory_of(network: nn.Module) -> int | None:
    """Return ``memory_per_pixel`` of a backbone or a refiner; None when it cannot be measured."""
    if isinstance(network, Backbone):
        return memory_per_pixel(network)
    if not isinstance(network, Refiner) or network.prior_features is None or network.inside:
        return None
    channels, features = network.channels or 3, network.prior_features
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)

    def example(side: int) -> tuple[Tensor, Tensor, PriorFeatures]:
        images = torch.empty(2, 1, channels, side, side, dtype=dtype, device="meta")
        return images[0], images[1], PriorFeatures(torch.empty(1, features, dtype=dtype, device="meta"))

    return memory_per_pixel(network, example)


def _check_prior(parts: Sequence[Part], refiner: Refiner, prior: Prior) -> None:
    """Refuse a prior of another width than the refiner takes, or another one than it was trained with."""
    if refiner.prior_features not in (None, prior.features):
        name, guide = (part.entry.name for part in parts[:2])
        raise ConfigError(
            f"{parts[0].where}.prior",
            f"{name} was built for a prior of {refiner.prior_features} features, "
            f"{guide} has {prior.features}",
            "name the prior that it was trained with",
        )
    checkpoint, given = parts[0].checkpoint, parts[1]
    stated = json.loads((checkpoint.metadata() if checkpoint else {}).get(PRIOR_KEY, "null"))
    found = json.loads(json.dumps({"name": given.entry.name, "params": given.params}))
    if checkpoint and stated and stated != found:
        raise ConfigError(
            f"{parts[0].where}.prior",
            f"{checkpoint.name} was trained with {_said(stated)}, this is {_said(found)}",
            "name the prior that it was trained with, and its params",
        )


def _said(prior: Mapping[str, Any]) -> str:
    params = ", ".join(f"{key} {value}" for key, value in prior["params"].items())
    return f"{prior['name']} ({params})" if params else str(prior["name"])


def _planes(image: Tensor, channels: int) -> list[Tensor]:
    """Return the image (1, C, H, W) as inputs for a network of so many channels.

    A gray image is repeated for a colour network; a colour image goes through a gray network colour by
    colour, so that its colours survive.
    """
    have = image.shape[1]
    if channels == have:
        return [image]
    if have == 1 and channels == 3:
        return [image.expand(-1, channels, -1, -1)]
    if channels == 1:
        return list(torch.split(image, 1, dim=1))
    raise ContractError(
        f"the network takes {channels} channels, the image has {have}",
        "give the two views of a scene as one array (H, W, 6)" if channels == 6 else "use another network",
    )


def _together(verdicts: Sequence[Verdict]) -> Verdict | None:
    """Return the mean of the verdicts on the colours of an image; None where the network judges nothing."""
    if not verdicts:
        return None
    names = dict.fromkeys(name for verdict in verdicts for name in verdict.shares)
    shares = {
        name: sum(verdict.shares.get(name, 0.0) for verdict in verdicts) / len(verdicts) for name in names
    }
    return replace(verdicts[0], shares=shares)


def _merged(outputs: Sequence[Tensor], channels: int) -> Tensor:
    joined = torch.cat(list(outputs), dim=1)
    return joined.mean(1, keepdim=True) if channels == 1 and joined.shape[1] > 1 else joined


class Pipeline:
    """A chain of networks, built and ready to restore any number of images.

    Args:
        steps: the built steps in order.
        spec: what they were built from.
        device: where they run.
        dtype: precision they run in.
    """

    def __init__(
        self, steps: Sequence[Step], spec: PipelineSpec, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.steps, self.spec, self.device, self.dtype = tuple(steps), spec, device, dtype

    @classmethod
    def build(
        cls,
        spec: PipelineSpec,
        device: str = "auto",
        dtype: str = "auto",
        *,
        license_policy: str | None = None,
        offline: bool | None = None,
        downloading: Downloading | None = None,
    ) -> Self:
        """Build every network of a spec and load its weights; those that are not here are downloaded.

        Args:
            spec: the pipeline.
            device: auto, cpu, cuda, cuda:N or mps.
            dtype: auto, fp32, bf16 or fp16.
            license_policy: permissive, noncommercial or any; RESTOREKIT_LICENSE_POLICY when None. What it
                does not allow is refused before anything is downloaded.
            offline: download nothing; as RESTOREKIT_OFFLINE or HF_HUB_OFFLINE say when None.
            downloading: called with a name, bytes done and bytes in all while weights come in.

        Raises:
            LicenceError: the policy does not allow a component or its weights.
            RestoreKitError: a name, an argument, a file of weights, the device or the precision is wrong.
        """
        where = resolve_device(device)
        precision = resolve_dtype(dtype, where)
        planned = plan.parts(spec)
        every_part = [part for step in planned for part in step]
        for notice in check_licences(every_part, resolve_policy(license_policy)):
            log.warning("%s", notice)
        steps = [Step([_present(part, offline, downloading) for part in parts]) for parts in planned]
        for before, step in zip([None, *steps[:-1]], steps, strict=True):
            if isinstance(step.network, Refiner) and step.network.inside:
                step.put_inside(before)
        return cls(steps, spec, where, precision)

    def __call__(
        self,
        image: Image,
        *,
        tile: int | str | TileSpec = "auto",
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> RestoreResult:
        """Restore one image.

        Args:
            image: degraded; values outside [0, 1] reach the first network as they are.
            tile: ``auto`` for what the pipeline says, 0 for the whole image, or a side in pixels.
            seed: of torch's generators during the run; they are put back afterwards.
            progress: called after every tile.

        Raises:
            RestoreKitError: the image cannot be restored by this pipeline; the message says why.
        """
        settings = self.spec.tile
        if isinstance(tile, TileSpec):
            settings = tile
        elif tile != "auto":
            settings = check(TileSpec, {"size": tile, "overlap": settings.overlap}, "tile")
        degraded = current = image.pixels[None]
        records: list[StepRecord] = []
        with torch.inference_mode(), torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for step in self.steps:
                name = step.parts[0].entry.name
                report = _reporter(progress, name)
                conditions = _Conditions(self.device, self.dtype, settings, report, [])
                current, record = step.run(degraded, current, conditions)
                records.append(record)
        warnings = [
            *image.notes,
            *(f"{record.component}: {event}" for record in records for event in record.events),
        ]
        return RestoreResult(image.replace_pixels(current[0]), tuple(records), self.spec, tuple(warnings))

    def look(self, image: Image) -> tuple[Image, dict[str, dict[str, Tensor]]]:
        """Return the restored image, and what its components offer to look at on the way.

        Args:
            image: degraded; networks are run on the whole of it to be looked at.

        Returns:
            the restored image, and for each step, as ``1 ptgrm``, maps (1, D, h, w) or (1, D) by name.
        """
        degraded = current = image.pixels[None]
        looks: dict[str, dict[str, Tensor]] = {}
        with torch.inference_mode():
            for number, step in enumerate(self.steps, 1):
                conditions = _Conditions(
                    self.device, self.dtype, self.spec.tile, lambda done, total: None, []
                )
                name = "+".join(part.entry.name for part in step.parts)
                looks[f"{number} {name}"] = step.maps(degraded, current, conditions)
                current, _ = step.run(degraded, current, conditions)
        return image.replace_pixels(current[0]), looks


def _reporter(progress: Progress | None, name: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        if progress:
            progress(name, done, total)

    return report


def built_facts(part: Part) -> dict[str, Any]:
    """Return the facts of a part, checked by building it on the meta device: no memory, no values.

    A DetectedBackbone is built with its values, and its facts name the architecture that it recognised.

    Raises:
        RestoreKitError: the arguments or the tensors of the weights do not fit.
    """
    tensors = _tensors(part)
    with torch.device("meta"):
        module = construct(part, tensors)
    facts = part.facts()
    if isinstance(module, DetectedBackbone):
        facts["architecture"] = module.architecture
    elif part.checkpoint and tensors is not None:
        check_fit(module, tensors, part.checkpoint.file)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    memory = memory_of(module)
    return {**facts, "parameters": parameters, "memory_per_pixel": memory}


def fits(checkpoint: Checkpoint, component: str) -> str:
    """Return the class of the backbone that a checkpoint fits, by names and shapes; nothing is allocated.

    A backbone that recognises its architecture by the tensors says which one it is.

    Raises:
        RestoreKitError: the file cannot be read, or does not fit.
    """
    part = Part("weights", "backbone", backbones[component], ComponentRef(name=component), checkpoint)
    tensors = read_tensors(checkpoint.file)
    with torch.device("meta"):
        network = construct(part, tensors)
    if isinstance(network, DetectedBackbone):
        return network.architecture
    check_fit(network, tensors, checkpoint.file)
    return type(network).__name__
