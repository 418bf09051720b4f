"""The adaptive network: a backbone whose filters are mixed anew for each image.

Shapes: B batch, C image channels, H W pixels, D degradations, K kinds: these, perhaps one without filters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from restorekit.contracts import Backbone, Judged, Verdict
from restorekit.errors import RestoreKitError
from restorekit.runtime import is_out_of_memory
from restorekit_adms.dedicated import Dedicated
from restorekit_adms.managing import Managed
from restorekit_adms.overlapping import overlap_shares
from restorekit_adms.routing import certain, checked, largest, uniform
from restorekit_adms.sharing import check_own, turn

T = TypeVar("T")
# Sources of shares that differ by what the image looks like.
_LOOKING = ("classifier", "overlap", "custom")
# Shares that differ by less are one verdict.
_DIGITS = 6


class _Calls(nn.Module):
    """Calls functions of a backbone while ``functional_call`` holds other tensors in its place."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, fn: Callable[..., T], *inputs: Any) -> T:
        """Return ``fn(*inputs)``."""
        return fn(*inputs)


class Adaptive(Managed):
    """A frozen backbone and filters for each degradation, mixed by what a router finds in the image.

    The base is shared with its other users and written to by ``merge_adapter`` alone; threads take turns at
    it, and while another network has filters merged into it, this one refuses to run. Without
    gradients it is lent a copy of its filters with the mixture in them; with gradients, or with mode
    ``soft``, it is run with other tensors in their place. A batch is run verdict by verdict (``group``, the
    default); ``merge`` and ``soft`` go image by image; ``batched`` runs all images at once, each with its
    own copy of the filters that are mixed, for devices that small batches leave idle. All give the same up to
    rounding.

    Args:
        backbone: the base.
        adapter: the filters, the classifier, and what to do with them.
    """

    judges = True

    def __init__(self, backbone: Backbone, adapter: Dedicated) -> None:
        super().__init__(backbone, adapter)
        self.size_multiple, self.padding, self.scale = (
            backbone.size_multiple,
            backbone.padding,
            backbone.scale,
        )
        self.channels, self.out_channels = backbone.channels, backbone.out_channels
        self.overlap, self.tiling, self.precisions = backbone.overlap, backbone.tiling, backbone.precisions

    def train(self, mode: bool = True) -> Adaptive:
        """Switch the adapter; the base stays in eval mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    # Running.

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), by the base's ``scale`` larger; any sides that the base takes."""
        restored: Tensor = self._act(self.backbone, degraded, self.weights(degraded))
        return restored

    def training_outputs(self, degraded: Tensor) -> Sequence[Tensor]:
        """Return the base's outputs with its filters mixed for each image."""
        return self._act(self.backbone.training_outputs, degraded, self.weights(degraded))

    def for_image(self, degraded: Tensor, tile: int) -> Judged:
        """Return the network with the mixture for this image (1, C, H, W), judged once, and the verdict."""
        shares, source = self.judge(degraded)
        weights = self._weights_of(shares, source)
        act: Callable[[Tensor], Tensor] = self.backbone
        if tile:
            act = self._act(lambda image: self.backbone.for_image(image, tile), degraded, weights)
        found = dict(zip(self.adapter.kinds, shares[0].tolist(), strict=True))
        left = bool(shares.any()) and not self._acted(shares, source).any()
        verdict = Verdict(found, source, sure=not left)
        return Judged(lambda window: self._act(act, window, weights.expand(len(window), -1)), verdict)

    def judge(self, degraded: Tensor) -> tuple[Tensor, str]:
        """(B, C, H, W) -> shares (B, K) of the kinds, and what found them.

        Filters that are merged, disabled or weighed by the user ask no router.

        Raises:
            RestoreKitError: the router knows other degradations, or there is none.
        """
        adapter, kinds, routed = self.adapter, self.adapter.kinds, self.adapter.routed
        place = self.adapter.base.device
        if adapter.given is not None:
            return adapter.given.to(place), "given"
        if self.settled is not None:
            weights, source = self.settled
            row = torch.tensor([weights.get(name, 0.0) for name in kinds], device=place)
            return row.expand(len(degraded), -1), source
        if not len(degraded):
            return torch.zeros(0, len(kinds), device=place), "nothing"
        name = adapter.router.name
        if name == "auto":
            name = "classifier" if adapter.classifier is not None else "only"
        if name == "only":
            if not kinds:
                raise RestoreKitError(
                    "the adapter has no degradation left",
                    "add_adapter or load_adapter one, or be the base: unload",
                )
            if len(routed) != 1:
                raise RestoreKitError(
                    f"nothing tells {', '.join(routed)} apart: the adapter has no classifier",
                    "train one with params: {train: classifier}, or name a router, as router: uniform",
                )
            return certain(routed[0], kinds, self._here(degraded)), "only"
        if name == "oracle":
            return certain(adapter.router.label, kinds, self._here(degraded)), "oracle"
        if name == "uniform":
            return self._of_kinds(uniform(routed, self._here(degraded)), routed), "uniform"
        if name == "overlap":
            return torch.cat([overlap_shares(self, image) for image in torch.split(degraded, 1)]), "overlap"
        if name == "custom":
            assert adapter.router.custom is not None
            shares = checked(adapter.router.custom(degraded), degraded, routed)
            return self._of_kinds(shares.to(place), routed), "custom"
        return self._classified(degraded), "classifier"

    def _classified(self, degraded: Tensor) -> Tensor:
        classifier, kinds = self.adapter.classifier, self.adapter.kinds
        if classifier is None:
            raise RestoreKitError(
                "the adapter has no classifier",
                "train one with params: {train: classifier}, or name a router, as router: uniform",
            )
        # Filters that came after the classifier take no part; a kind whose filters are gone is no choice.
        told = [name for name in classifier.kinds if name in self.adapter.routed]
        if not told:
            raise RestoreKitError(
                f"the classifier tells {', '.join(classifier.kinds)}, "
                f"the filters are for {', '.join(kinds) or 'none'}",
                "name one by set_adapter, or a router that needs no classifier, as router: uniform",
            )
        logits: Tensor = classifier(degraded)
        if len(told) < len(classifier.kinds):
            logits = logits[:, [classifier.kinds.index(name) for name in told]]
        # Softmax in half precision would round the shares; in double there is nothing to widen.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        shares = (logits / self.adapter.temperature).softmax(1)
        return self._of_kinds(shares, told)

    def _of_kinds(self, shares: Tensor, names: Sequence[str]) -> Tensor:
        """Return shares of the kinds of these names as (B, K), nothing for the others."""
        kinds = self.adapter.kinds
        if tuple(names) == kinds:
            return shares
        known = shares.new_zeros(len(shares), len(kinds))
        known[:, [kinds.index(name) for name in names]] = shares
        return known

    def weights(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> weights (B, D) of the filters of each degradation."""
        return self._weights_of(*self.judge(degraded))

    def _weights_of(self, shares: Tensor, source: str) -> Tensor:
        weights = self._acted(shares, source)[:, : len(self.adapter.names)]
        if self._scales:
            factors = [self._scales.get(name, 1.0) for name in self.adapter.names]
            weights = weights * torch.tensor(factors, device=weights.device, dtype=weights.dtype)
        return weights

    def _acted(self, shares: Tensor, source: str) -> Tensor:
        """(B, K) -> (B, K): what is acted by."""
        if self.adapter.top1 and source in _LOOKING:
            return largest(shares, self.adapter.least if source == "classifier" else 0)
        return shares

    def _here(self, degraded: Tensor) -> Tensor:
        """Return the batch as a stand-in on the adapter's device, where shares are made."""
        return degraded.new_empty(len(degraded), 0, device=self.adapter.base.device)

    def _act(self, fn: Callable[[Tensor], T], images: Tensor, weights: Tensor) -> T:
        """Return ``fn(images)``, a tensor or several, with the base's filters mixed by weights (B, D)."""
        # Also where the base is run as it is, it must not be lent to others; nor merged half way through.
        with turn(self.backbone):
            check_own(self.backbone, self)
            if self._off or self._merged is not None or not self.adapter.names or not len(images):
                return fn(images)
            if len(images) == 1:
                return self._mixed(fn, images, weights[0])
            if self.adapter.mode in ("merge", "soft"):
                groups = [torch.tensor([row], device=images.device) for row in range(len(images))]
            else:
                groups = _groups(weights)
            if self.adapter.mode == "batched" and len(groups) > 1:
                return self._at_once(fn, images, weights)
            if len(groups) == 1:
                return self._mixed(fn, images, weights[0])
            outputs = [self._mixed(fn, images[rows.to(images.device)], weights[rows[0]]) for rows in groups]
            return cast(T, _joined(outputs, groups))

    def _at_once(self, fn: Callable[[Tensor], T], images: Tensor, weights: Tensor) -> T:
        mixer, calls = self.mixer, _Calls(self.backbone)
        base = mixer.frozen()
        rows = [mixer.placed(base, mixer.values(row)) for row in weights]
        mixed = {name for place in mixer.places for name in place.names}
        held = {f"backbone.{name}": tensor for name, tensor in base.items()}
        held |= {f"backbone.{name}": torch.stack([row[name] for row in rows]) for name in mixed}
        where = {f"backbone.{name}": 0 if name in mixed else None for name in base}

        def one(tensors: dict[str, Tensor], image: Tensor) -> Any:
            return _first(functional_call(calls, tensors, (fn, image[None]), tie_weights=False))

        try:
            return cast(T, vmap(one, in_dims=(where, 0), randomness="different")(held, images))
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            name = type(self.backbone).__name__
            raise RestoreKitError(
                f"{name} cannot be run with weights for each image of a batch: {error}",
                "run it verdict by verdict: params: {mode: group}",
            ) from error

    def _mixed(self, fn: Callable[[Tensor], T], images: Tensor, weights: Tensor) -> T:
        mixer = self.mixer
        if torch.is_grad_enabled() or self.adapter.mode == "soft" or not mixer.can_lend:
            tensors = mixer.placed(mixer.frozen(), mixer.values(weights))
            held = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
            # Every name is given; tying them once more leaves a shared module with what it was lent.
            return cast(T, functional_call(_Calls(self.backbone), held, (fn, images), tie_weights=False))
        with mixer.lent(weights):
            return fn(images)


def _groups(weights: Tensor) -> list[Tensor]:
    """Return the rows (B, D) that are the same verdict, group by group."""
    _, inverse = torch.unique(_rounded(weights), dim=0, return_inverse=True)
    return [(inverse == group).nonzero()[:, 0] for group in range(int(inverse.max()) + 1)]


def _rounded(weights: Tensor) -> Tensor:
    return weights.detach().double().round(decimals=_DIGITS)


def _first(outputs: Any) -> Any:
    """Return outputs for a batch of one without the batch."""
    return outputs[0] if isinstance(outputs, Tensor) else tuple(_first(output) for output in outputs)


def _joined(outputs: Sequence[Any], groups: Sequence[Tensor]) -> Any:
    """Return the outputs of groups as those of the batch, in its order."""
    if not isinstance(outputs[0], Tensor):
        return tuple(_joined(each, groups) for each in zip(*outputs, strict=True))
    order = torch.cat(list(groups)).argsort()
    return torch.cat(list(outputs))[order.to(outputs[0].device)]
