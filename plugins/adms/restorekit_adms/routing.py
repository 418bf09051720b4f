"""Routers: from images to the share that each kind of degradation has in them.

Shapes: B batch, C image channels, H W pixels, K kinds: the degradations, then the kind that needs none
of their filters, if there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from restorekit.errors import ConfigError, RestoreKitError, near
from restorekit_adms.naming import unknown

# (B, C, H, W) -> (B, K), rows that sum to one; of the kinds that are routed to.
Route = Callable[[Tensor], Tensor]

ROUTERS = ("auto", "classifier", "oracle", "uniform", "overlap")
# What each option must be, and what to write.
_OPTIONS = {
    "label": ("a name", "write the degradation, as rain"),
    "steps": ("a whole number above 0", "write 8"),
    "ratio": ("a share above 0, up to 1", "write 0.25"),
    "temperature": ("a number above 0.000001", "write 0.1"),
}
# Below it, logits that are divided by it are no numbers in single precision.
COLDEST = 1e-6
# By how much shares may miss a sum of one, in precisions that do not round by more.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class RouterChoice:
    """Which router, and its options.

    Attributes:
        name: one of ``ROUTERS``, or ``custom``.
        label: of the oracle: the kind that every image is of.
        options: of the router by overlap.
        custom: the user's own.
    """

    name: str
    label: str = ""
    options: Mapping[str, Any] | None = None
    custom: Route | None = None

    @classmethod
    def of(cls, given: str | Mapping[str, Any] | Route) -> RouterChoice:
        """Read what stands in a pipeline: a name, or a mapping with the name and options.

        Raises:
            ConfigError: there is no such router or option, or an option has a value that makes no sense.
        """
        if not isinstance(given, (str, Mapping)):
            if not callable(given):
                raise ConfigError("params.router", f"{given!r} is no router", f"use {', '.join(ROUTERS)}")
            return cls("custom", custom=given)
        facts = {"name": given} if isinstance(given, str) else dict(given)
        name = facts.pop("name", None)
        if name not in ROUTERS:
            hint = near(str(name), ROUTERS) or f"routers are {', '.join(ROUTERS)}"
            raise ConfigError("params.router", f"no router called {name!r}", hint)
        takes = {"oracle": ("label",), "overlap": ("ratio", "steps", "temperature")}.get(name, ())
        for key in facts:
            if key not in takes:
                hint = near(str(key), takes) or f"it takes {', '.join(takes) or 'none'}"
                raise ConfigError("params.router", f"{name} has no option {key!r}", hint)
        if name == "oracle" and not facts.get("label"):
            raise ConfigError(
                "params.router",
                "the oracle must be told the degradation",
                "router: {name: oracle, label: rain}",
            )
        for key, value in facts.items():
            if not _fits(key, value):
                raise ConfigError(
                    f"params.router.{key}", f"{value!r} is not {_OPTIONS[key][0]}", _OPTIONS[key][1]
                )
        return cls(name, label=facts.pop("label", ""), options=facts)

    @property
    def argument(self) -> str | dict[str, Any]:
        """What ``of`` reads this router from; a user's own, which no file can state, is not kept."""
        if self.custom is not None:
            return "auto"
        options = {**({"label": self.label} if self.label else {}), **(self.options or {})}
        return {"name": self.name, **options} if options else self.name


def _fits(key: str, value: object) -> bool:
    if key == "label":
        return isinstance(value, str)
    # True and false are numbers to Python.
    if isinstance(value, bool) or not isinstance(value, int if key == "steps" else (int, float)):
        return False
    smallest = COLDEST if key == "temperature" else 0
    return math.isfinite(value) and smallest < value <= (1 if key == "ratio" else math.inf)


def certain(label: str, kinds: Sequence[str], images: Tensor) -> Tensor:
    """Return (B, K) that says the same kind of every image.

    Raises:
        RestoreKitError: nobody knows the kind.
    """
    if label not in kinds:
        raise unknown(label, kinds)
    row = torch.zeros(len(kinds), device=images.device)
    row[list(kinds).index(label)] = 1
    return row.expand(len(images), -1)


def uniform(kinds: Sequence[str], images: Tensor) -> Tensor:
    """Return (B, K), every kind with the same share."""
    return torch.full((len(images), len(kinds)), 1 / max(1, len(kinds)), device=images.device)


def checked(shares: object, images: Tensor, kinds: Sequence[str]) -> Tensor:
    """Return what a user's router said, (B, K).

    Raises:
        RestoreKitError: it is no tensor, has another shape, or its rows are no shares.
    """
    if not isinstance(shares, Tensor) or shares.is_complex():
        found = shares.dtype if isinstance(shares, Tensor) else type(shares).__name__
        raise RestoreKitError(
            f"the router returned {found}, expected a tensor of shares",
            "return torch.tensor([[1.0, 0.0]]) for one image that is wholly of the first of two kinds",
        )
    shape, expected = tuple(shares.shape), (len(images), len(kinds))
    if shape != expected:
        raise RestoreKitError(
            f"the router returned {shape} for {len(images)} images, expected {expected}",
            f"return one weight for each of: {', '.join(kinds)}",
        )
    if not bool(torch.isfinite(shares).all()):
        raise RestoreKitError(
            "the router returned values that are not finite", "check the router and the image"
        )
    # Of whole numbers, mixtures would be rounded to whole numbers.
    shares = shares if shares.is_floating_point() else shares.float()
    tolerance = max(_TOLERANCE, torch.finfo(shares.dtype).eps)
    for row in shares.tolist():
        if any(share < 0 for share in row) or (row and abs(sum(row) - 1) > tolerance):
            told = ", ".join(f"{share:.4g}" for share in row)
            raise RestoreKitError(
                f"the router returned {told} for an image, which are no shares: none negative, 1 in all",
                "return logits.softmax(1), or set_adapter for weights of any size",
            )
    return shares


def largest(shares: Tensor, least: float = 0.0) -> Tensor:
    """(B, K) -> (B, K): all to the kind with the largest share, or nothing where that is below the least."""
    chosen = one_hot(shares.argmax(1), shares.shape[1]).to(shares.dtype)
    return chosen * (shares.amax(1, keepdim=True) >= least)
