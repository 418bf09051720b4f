"""The verbs of PEFT on an adaptive network: filters come and go, are weighed, combined and merged."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from restorekit.contracts import Backbone
from restorekit.errors import RestoreKitError, WeightsError
from restorekit.filters import fingerprint
from restorekit.filterscores import FilterScores
from restorekit_adms.combining import How, Overlap, combined, overlap
from restorekit_adms.dedicated import Dedicated
from restorekit_adms.mixing import Kept, Mixer
from restorekit_adms.naming import unknown
from restorekit_adms.sharing import check_own, has_merged, merged_by, turn, unmerged


class Managed(Backbone):
    """A base and an adapter whose filters can be told what to do, in the words of Hugging Face's PEFT.

    Args:
        backbone: the base.
        adapter: the filters.
    """

    def __init__(self, backbone: Backbone, adapter: Dedicated) -> None:
        super().__init__()
        self.backbone, self.adapter = backbone, adapter
        self._mixer: Mixer | None = None
        self._own: tuple[tuple[str, nn.Module | None], ...] = ()
        # Weights that the user set instead of the router's, and factors on whatever weights there are.
        self._fixed: dict[str, float] | None = None
        self._scales: dict[str, float] = {}
        self._off = False
        # Weights by which filters were merged into the base, and what stood there before.
        self._merge: tuple[dict[str, float], Kept] | None = None
        self.register_load_state_dict_post_hook(_check_base)  # type: ignore[no-untyped-call,unused-ignore]
        _ = self.mixer

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a network that was copied; what it had merged stands in its own base."""
        super().__setstate__(state)  # type: ignore[no-untyped-call,unused-ignore]
        if self._merge is not None:
            merged_by(self.backbone, self)

    @property
    def _merged(self) -> tuple[dict[str, float], Kept] | None:
        """What is merged by now: weights that were loaded into the base since have taken its place."""
        if self._merge is not None and not has_merged(self.backbone, self):
            self._merge = None
        return self._merge

    @property
    def mixer(self) -> Mixer:
        """Where the filters fall; found again when the network was moved, or filters came and went.

        Raises:
            WeightsError: they do not fit the backbone.
        """
        own = tuple(self.adapter.deltas._modules.items())
        with turn(self.backbone):
            if self._mixer is None or self._own != own or not self._mixer.is_current:
                deltas = {name: self.adapter.delta(name) for name in self.adapter.names}
                # Where numbers stand serves inside and outside of inference mode, whichever asks first.
                with torch.inference_mode(False), torch.no_grad():
                    self._mixer, self._own = Mixer(self.backbone, deltas), own
            return self._mixer

    # Coming and going.

    @property
    def active_adapters(self) -> tuple[str, ...]:
        """The degradations whose filters may act now, those that are merged alone while some are."""
        if self.settled is not None:
            return tuple(self.settled[0])
        return tuple(name for name in self.adapter.names if name in self.adapter.routed)

    def add_adapter(
        self, name: str, scores: FilterScores | None = None, *, ratio: float | None = None
    ) -> None:
        """Give a degradation filters, at zero: the best by scores, or as many by chance.

        Where the adapter's filters are exclusive, those that others have are left out.

        A classifier that was trained before does not tell it and gives it no share, except under the name of
        one that was deleted, whose share it then has. It acts by ``set_adapter``, the oracle, ``uniform`` and
        ``overlap``, or when the classifier was trained again; until then ``Adms.save`` refuses, and
        ``save_adapter`` writes it alone.

        Args:
            name: of the degradation.
            scores: for this base; by chance without.
            ratio: share of the network's filters; the adapter's when not given.

        Raises:
            RestoreKitError: the name cannot be used, the scores are of another base, or others have
                all of these filters.
        """
        self._check_free(name)
        self.adapter.choose(self.backbone, {name: scores}, ratio)

    def load_adapter(self, path: str | Path, name: str = "", rename: str = "") -> str:
        """Take the filters of one degradation from a file; see ``Adms.load_delta``."""
        self._check_unmerged()
        return self.adapter.load_delta(path, name, rename)

    def save_adapter(self, name: str, path: str | Path, *, half: bool = False) -> Path:
        """Write the filters of one degradation; see ``Adms.save_delta``."""
        return self.adapter.save_delta(name, path, half=half)

    def delete_adapter(self, name: str) -> None:
        """Forget the filters of a degradation, and its scale; the router is asked where no other was set.

        The classifier shares out its part among the others, as if it had never told it.

        Raises:
            RestoreKitError: there are none.
        """
        self._check_unmerged()
        self.adapter.drop(name)
        self._scales.pop(name, None)
        if self._fixed is not None and name in self._fixed:
            self._fixed = {key: weight for key, weight in self._fixed.items() if key != name} or None

    # Weighing.

    def set_adapter(self, weights: str | Sequence[str] | Mapping[str, float] | None) -> None:
        """Act by these weights instead of what the router says; None asks the router again.

        Args:
            weights: the name of one degradation, several (each with weight 1), or weights by name.

        Raises:
            RestoreKitError: a name is unknown, or a weight is no number.
        """
        self._fixed = None if weights is None else self._read(weights)

    def set_scale(self, name: str, scale: float) -> None:
        """Multiply what a degradation's filters add, whatever says how much they act.

        Raises:
            RestoreKitError: there are none, or the scale is no number.
        """
        self.adapter.delta(name)
        self._scales[name] = _number(f"the scale of {name}", scale)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Be the base for a while.

        Raises:
            RestoreKitError: filters are merged into the base.
        """
        self._check_unmerged()
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def disable_adapters(self) -> None:
        """Be the base until ``enable_adapters``.

        Raises:
            RestoreKitError: filters are merged into the base.
        """
        self._check_unmerged()
        self._off = True

    def enable_adapters(self) -> None:
        """Act again, as before ``disable_adapters``."""
        self._off = False

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return how many parameters ask for gradients, and how many there are with those of the base."""
        own = list(self.adapter.parameters())
        trained = sum(parameter.numel() for parameter in own if parameter.requires_grad)
        return trained, sum(parameter.numel() for parameter in (*own, *self.backbone.parameters()))

    # Combining and merging.

    def combine(
        self,
        name: str,
        weights: Mapping[str, float],
        how: How = "linear",
        *,
        density: float = 1.0,
        seed: int = 0,
    ) -> dict[tuple[str, str], Overlap]:
        """Make filters of those of several degradations; return what each two of these have in common.

        See ``combining.combined`` for the ways. The new ones act by ``set_adapter``; no router chooses them.

        Raises:
            RestoreKitError: a name is unknown or taken, there is nothing to combine, a weight is no number,
                or there is no such way.
        """
        self._check_free(name)
        if not weights:
            raise RestoreKitError(
                "there is nothing to combine", "name weights of degradations, as {'rain': 0.5, 'blur': 0.5}"
            )
        deltas = {each: self.adapter.delta(each) for each in weights}
        weights = self._read(weights)
        self.adapter.put(name, combined(self.backbone, deltas, weights, how, density=density, seed=seed))
        self.adapter.combined += (name,)
        return {
            (one, other): overlap(self.backbone, deltas[one], deltas[other])
            for one, other in combinations(weights, 2)
        }

    def merge_adapter(
        self, weights: str | Mapping[str, float] | None = None, *, safe_merge: bool = False
    ) -> None:
        """Write a fixed mixture into the base until ``unmerge_adapter``: all who share the base see it.

        Other adaptive networks of this base refuse to run until then.

        Args:
            weights: as in ``set_adapter``; what was set there when not given.
            safe_merge: look first whether all of it is finite.

        Raises:
            RestoreKitError: there is no one mixture, the filters are disabled, some are merged already, by
                this network or another of this base, or they are not finite.
        """
        if self._off:
            raise RestoreKitError("the filters are disabled", "enable_adapters first")
        self._write(weights, safe_merge)

    def _write(self, weights: str | Mapping[str, float] | None, safe_merge: bool) -> None:
        given = self._fixed if weights is None else self._read(weights)
        if given is None:
            raise RestoreKitError(
                "the router decides for each image, there is no one mixture to merge",
                "name the weights, as {'rain': 1.0}",
            )
        with turn(self.backbone):
            self._check_unmerged()
            check_own(self.backbone, self)
            kept = self.mixer.write(self._row(given), check=safe_merge)
            if kept is None:
                raise RestoreKitError(
                    "the merged filters are not finite, nothing was merged", "train the adapter again"
                )
            self._merge = given, kept
            merged_by(self.backbone, self)

    def unmerge_adapter(self) -> None:
        """Put back what stood in the base before ``merge_adapter``, bit for bit; else do nothing."""
        with turn(self.backbone):
            if (merged := self._merged) is not None:
                merged[1].put_back()
                self._merge = None
                unmerged(self.backbone)

    def merge_and_unload(
        self, weights: str | Mapping[str, float] | None = None, *, safe_merge: bool = False
    ) -> Backbone:
        """Return a copy of the base with a fixed mixture in it; the base itself is left as it is.

        Raises:
            RestoreKitError: as ``merge_adapter``.
        """
        with turn(self.backbone):
            self._write(weights, safe_merge)
            try:
                return copy.deepcopy(self.backbone)
            finally:
                self.unmerge_adapter()

    def unload(self) -> Backbone:
        """Return the base as it was given.

        Raises:
            RestoreKitError: another network has merged filters into it.
        """
        self.unmerge_adapter()
        check_own(self.backbone, self)
        return self.backbone

    # What these share.

    @property
    def settled(self) -> tuple[Mapping[str, float], str] | None:
        """Weights that hold whatever the image is, and why they do; None where a router is asked."""
        if (merged := self._merged) is not None:
            return merged[0], "merged"
        if self._off:
            return {}, "disabled"
        return None if self._fixed is None else (self._fixed, "user")

    def _read(self, weights: str | Sequence[str] | Mapping[str, float]) -> dict[str, float]:
        if not isinstance(weights, Iterable):
            raise RestoreKitError(
                f"{weights!r} are no weights", "give a name, several, or weights by name, as {'rain': 1.0}"
            )
        if isinstance(weights, str):
            weights = [weights]
        named = weights if isinstance(weights, Mapping) else list(weights)
        for name in named:
            if name not in self.adapter.kinds:
                raise unknown(name, self.adapter.kinds)
        if not isinstance(named, Mapping):
            return dict.fromkeys(named, 1.0)
        return {name: _number(f"the weight of {name}", weight) for name, weight in named.items()}

    def _row(self, weights: Mapping[str, float]) -> Tensor:
        """Return weights by name as (D,), scaled."""
        names = self.adapter.names
        row = [weights.get(name, 0.0) * self._scales.get(name, 1.0) for name in names]
        return torch.tensor(row, device=self.adapter.base.device)

    def _check_free(self, name: str) -> None:
        self._check_unmerged()
        if name in self.adapter.names:
            raise RestoreKitError(
                f"there are filters for {name} already", "give another name, or delete_adapter"
            )

    def _check_unmerged(self) -> None:
        if self._merged is not None:
            raise RestoreKitError("filters are merged into the base", "unmerge_adapter first")


def _check_base(network: nn.Module, _: Any) -> None:
    """Refuse weights of an adapter and a base that are not of each other, as when the base was merged."""
    assert isinstance(network, Managed)
    made_for, state = network.adapter.base_hash, network.backbone.state_dict()
    if made_for and not any(tensor.is_meta for tensor in state.values()):
        found = fingerprint(state)
        if found != made_for:
            raise WeightsError(
                f"the adapter was made for the base {made_for[:16]}, what was loaded is {found[:16]}",
                "load weights that were taken while no filters were merged, or the base and Adms.save's file",
            )


def _number(what: str, value: object) -> float:
    # Numbers of NumPy and tensors of one element are numbers, too; texts that float() reads are not.
    try:
        number = math.nan if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise RestoreKitError(f"{what} is {value!r}", "give a number, as 0.5")
    return number
