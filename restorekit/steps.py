"""One step of a chain: a network, run on the whole image, on its tiles or in parts, with what guides it.

Cutting images is tiling.py, devices and tiles that fit are runtime.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import cast

import torch
from torch import Tensor

from restorekit.building import Priors, build, check_guide, memory_of, stand_in
from restorekit.config import TileSpec
from restorekit.contracts import (
    Adapter,
    Backbone,
    GuidedBackbone,
    Judged,
    Prior,
    PriorFeatures,
    Refiner,
    Verdict,
)
from restorekit.errors import ConfigError, ContractError, WeightsError
from restorekit.plan import NO_PRIOR, Part
from restorekit.result import PriorRecord, StepRecord
from restorekit.runtime import channels_last, check_finite, choose_tile, run_with_ladder, smallest_tile
from restorekit.tiling import Tiler, pad_to_multiple


@dataclass
class Conditions:
    """How a step runs, and what happens to it on the way."""

    device: torch.device
    dtype: torch.dtype
    tile: TileSpec
    progress: Callable[[int, int], None]
    events: list[str]
    verdicts: list[Verdict] = field(default_factory=list)
    # What priors said of the pipeline's input; they may guide several steps.
    described: dict[Prior, PriorFeatures] = field(default_factory=dict)


class Step:
    """One step of a chain: a network that is run on the whole image or on its tiles.

    Args:
        parts: the network, then what adapts or guides it.
        priors: builds the prior of a refiner, or returns one that guides another step.

    Attributes:
        prior: guides a refiner; another one that describes images alike may take its place.
    """

    def __init__(self, parts: Sequence[Part], priors: Priors) -> None:
        self.parts = parts
        # The step whose refiner works inside this one's network, and whose prior this one has to ask.
        self._inner: Step | None = None
        self.verb = "restore" if parts[0].kind == "backbone" else "refine"
        main = build(parts[0])
        self.prior: Prior | None = None
        if isinstance(main, Backbone):
            for part in parts[1:]:
                main = _attached(part, main, parts[0])
        elif len(parts) == 1:
            self.prior = stand_in(parts[0])
        else:
            refiner = cast(Refiner, main)
            self.prior = _found_prior(parts, refiner, priors)
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
        if isinstance(before.network, GuidedBackbone):
            before._inner = self

    @cached_property
    def memory(self) -> int | None:
        """Bytes of working memory for each pixel that is run at a time; None when it cannot be measured.

        What a prior needs that guides inside counts once, when it is asked, and not here.
        """
        prior = self._inner.prior if self._inner else None
        said = PriorFeatures(torch.zeros(1, prior.features)) if prior else None
        return memory_of(self._told(said))

    @property
    def guide(self) -> PriorRecord | None:
        """Which prior guides a refiner."""
        if self.prior is None:
            return None
        name = self.parts[1].entry.name if len(self.parts) > 1 else NO_PRIOR
        return PriorRecord(name, self.prior.fingerprint, self.prior.library)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the networks, the prior in its own precision.

        Channels innermost is faster on every device that was measured.
        """
        # What inference mode made could not be written to outside of it, as by a merge of filters.
        with torch.inference_mode(False), torch.no_grad():
            for network in (self.network, self.prior):
                if network is not None:
                    network.to(device=device, dtype=dtype)
                    channels_last(network)

    def run(self, degraded: Tensor, current: Tensor, conditions: Conditions) -> tuple[Tensor, StepRecord]:
        """Run on images (1, C, H, W); ``degraded`` is the pipeline's input, ``current`` the result so far.

        Raises:
            ContractError: the network returned something of another shape, or values that are not finite.
            MemoryLimitError: the image does not fit at any tile size.
        """
        started = time.perf_counter()
        conditions = replace(conditions, events=[], verdicts=[])
        if self.guide is not None and self.guide.name == NO_PRIOR:
            conditions.events.append("ran without a prior: the mean of those of its training stood in")
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
            prior=self.guide,
        )
        return output, record

    def _run_finite(self, degraded: Tensor, current: Tensor, conditions: Conditions) -> tuple[Tensor, int]:
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

    def _overlap(self, conditions: Conditions) -> int:
        size, overlap = conditions.tile.size, conditions.tile.overlap
        if overlap != "auto":
            return overlap
        # A tile that the user wants small gets a smaller overlap than the network would like.
        return self.network.overlap if size == "auto" or size == 0 else min(self.network.overlap, size // 2)

    def _run(self, degraded: Tensor, current: Tensor, conditions: Conditions) -> tuple[Tensor, int]:
        """Return the output (1, C, H, W) and the tile size that it took, 0 for the whole image."""
        features = self._features(degraded, conditions)
        network = self._told(features)
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
        conditions: Conditions,
        degraded: Tensor,
        current: Tensor,
    ) -> Tensor:
        channels = current.shape[1] if network.channels is None else network.channels
        planes = _planes(degraded, channels), _planes(current, network.out_channels or channels)
        outputs = []
        for before, after in zip(*planes, strict=True):
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

    def maps(self, degraded: Tensor, current: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        """Return what the network offers to look at, by name, for whole images (1, C, H, W)."""
        if isinstance(self.network, Refiner) and self.network.inside:
            return {}
        self.to(conditions.device, conditions.dtype)
        features = self._features(degraded, conditions)
        network = self._told(features)

        def given(image: Tensor, channels: int | None) -> Tensor:
            channels = image.shape[1] if channels is None else channels
            # A gray network sees a colour image as gray, here where it is only looked at.
            planes = _planes(image, channels)
            image = torch.stack(planes).mean(0)
            image = pad_to_multiple(image, network.size_multiple, network.padding)
            return image.to(conditions.device, conditions.dtype, memory_format=torch.channels_last)

        height, width = current.shape[-2:]

        def cut(found: Mapping[str, Tensor], padded: torch.Size) -> dict[str, Tensor]:
            """Leave what was padded out of maps that are as large as the image."""
            return {
                name: look[..., :height, :width] if look.shape[2:] == padded else look
                for name, look in found.items()
            }

        if isinstance(network, Backbone):
            image = given(current, network.channels)
            return cut(network.maps(image), image.shape[2:])
        assert features is not None
        before = given(degraded, network.channels)
        after = given(current, network.out_channels or network.channels)
        return cut(network.maps(before, after, features), after.shape[2:])

    def _tiled(
        self, act: Callable[..., Tensor], tiler: Tiler, conditions: Conditions, *images: Tensor
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
            channels=self.network.out_channels,
            device=conditions.device,
            progress=conditions.progress,
        )

    def _features(self, degraded: Tensor, conditions: Conditions) -> PriorFeatures | None:
        """Return what the prior says of the pipeline's input, the one inside a backbone too."""
        prior = (self._inner or self).prior
        if prior is None:
            return None
        if prior not in conditions.described:
            with torch.inference_mode(False):
                prior.to(conditions.device)
            conditions.described[prior] = prior.guidance(degraded.to(conditions.device))
        return conditions.described[prior]

    def _told(self, features: PriorFeatures | None) -> Backbone | Refiner:
        """Return the network, told what the prior says where it is guided inside."""
        if isinstance(self.network, GuidedBackbone) and features is not None:
            return self.network.under(features)
        return self.network


def _refine(network: Refiner, features: PriorFeatures, before: Tensor, after: Tensor) -> Tensor:
    refined: Tensor = network(before, after, features)
    return refined


def _found_prior(parts: Sequence[Part], refiner: Refiner, priors: Priors) -> Prior:
    """Return the prior of a refiner.

    Raises:
        ConfigError: it is of another width than the refiner takes, or another one than it was trained with.
        WeightsError: it cannot be had.
    """
    main, guide = parts
    try:
        prior = priors.of(guide, refiner)
    except WeightsError as error:
        if not main.differs_from(guide):
            raise
        # What cannot be had is not even wanted.
        raise main.untrained(guide) from error
    check_guide(main, refiner, guide, prior)
    return prior


def _attached(part: Part, base: Backbone, to: Part) -> Backbone:
    """Return a backbone with an adapter.

    Raises:
        ConfigError: an argument of the adapter does not fit what it holds.
        WeightsError: the adapter was made for another base; both files are named.
    """
    adapter = cast(Adapter, build(part))
    try:
        return adapter.attach(base)
    except ConfigError as error:
        raise error.below(part.where) from error
    except WeightsError as error:
        files = " on ".join(each.checkpoint.name for each in (part, to) if each.checkpoint)
        message = f"{part.where}: {error.message}" + (f" ({files})" if files else "")
        raise WeightsError(message, error.hint) from error


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
    return replace(verdicts[0], shares=shares, sure=any(verdict.sure for verdict in verdicts))


def _merged(outputs: Sequence[Tensor], channels: int) -> Tensor:
    joined = torch.cat(list(outputs), dim=1)
    return joined.mean(1, keepdim=True) if channels == 1 and joined.shape[1] > 1 else joined
