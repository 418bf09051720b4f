"""What an adapter has: filters for each degradation, a classifier that tells these, and what a run trains.

What acts by an adapter knows this much of it; how it is made and written is adapter.py.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from restorekit.contracts import Adapter
from restorekit.errors import RestoreKitError, WeightsError
from restorekit.filterscores import FilterScores
from restorekit_adms import files
from restorekit_adms.classifier import Classifier, Pooling, layers_in
from restorekit_adms.deltas import Delta
from restorekit_adms.naming import check_names, unknown
from restorekit_adms.routing import RouterChoice

Train = Literal["deltas", "classifier", "all"]
Mode = Literal["auto", "merge", "group", "soft", "batched"]


class Dedicated(Adapter):
    """Filters dedicated to degradations by name, and perhaps a classifier: what an adaptive network acts by.

    Args:
        degradations: that filters are wanted for; what there is are the names of the filters.
        none: name of one more kind, without filters; empty for no such kind.
        combined: degradations that no router chooses.
        widths: features of the classifier's convolutions.
        train: what a training run trains: ``deltas``, ``classifier`` or ``all``.

    Raises:
        RestoreKitError: a name of a degradation cannot be used.
    """

    base: Tensor
    # What decides, and how it is acted by: arguments of the adapter.
    router: RouterChoice
    temperature: float
    top1: bool
    least: float
    mode: Mode

    def __init__(
        self,
        degradations: Sequence[str],
        none: str,
        combined: Sequence[str],
        widths: Sequence[int],
        pooling: Pooling,
        train: Train,
    ) -> None:
        super().__init__()
        check_names([*degradations, *([none] if none else [])])
        self.wanted, self.none, self.combined = tuple(degradations), none, tuple(combined)
        self.widths, self.pooling, self.train_what = tuple(widths), pooling, train
        self.register_buffer("base", torch.zeros(32, dtype=torch.uint8))
        self.deltas = nn.Module()
        self.classifier: Classifier | None = None
        self._data_kinds: tuple[str, ...] | None = None
        self._given: Tensor | None = None

    # What there is.

    @property
    def names(self) -> tuple[str, ...]:
        """The degradations that have filters, in order."""
        return tuple(self.deltas._modules)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What verdicts speak of: the degradations, then ``none`` where there is such a kind."""
        return (*(self.names or self.wanted), *([self.none] if self.none else []))

    @property
    def routed(self) -> tuple[str, ...]:
        """The kinds that a router chooses among: all but the combined ones."""
        return tuple(name for name in self.kinds if name not in self.combined)

    def delta(self, name: str) -> Delta:
        """Return the filters of a degradation.

        Raises:
            RestoreKitError: it has none.
        """
        if name not in self.names:
            raise unknown(name, self.names)
        return cast(Delta, self.deltas._modules[name])

    def put(self, name: str, delta: Delta) -> None:
        """Give a degradation its filters."""
        check_names([name])
        if self.none and name == self.none:
            raise RestoreKitError(
                f"{name!r} is the kind without filters", "call the degradation otherwise, or set none: ''"
            )
        self.deltas._modules.pop(name, None)
        self.deltas.add_module(name, delta.requires_grad_(self.train_what in ("deltas", "all")))

    def drop(self, name: str) -> None:
        """Forget a degradation and its filters; the classifier goes on among those that are left.

        Raises:
            RestoreKitError: it has none.
        """
        self.delta(name)
        del self.deltas._modules[name]
        self.combined = tuple(each for each in self.combined if each != name)
        self.wanted = tuple(each for each in self.wanted if each != name)

    @property
    def base_hash(self) -> str:
        """Fingerprint of the network that it was made for; empty while there was none."""
        found = bytes(self.base.cpu().tolist()) if not self.base.is_meta else b""
        return found.hex() if any(found) else ""

    # What is done with them.

    @abstractmethod
    def choose(
        self, backbone: nn.Module, scores: Mapping[str, FilterScores | None], ratio: float | None = None
    ) -> None:
        """Give degradations filters of a base, at zero."""

    @abstractmethod
    def save_delta(self, name: str, path: str | Path, *, half: bool = False) -> Path:
        """Write the filters of one degradation alone."""

    def load_delta(self, path: str | Path, name: str = "", rename: str = "") -> str:
        """Take the filters of one degradation from a file; return what they are called here.

        Args:
            path: of an adapter for the same base.
            name: which one, where the file has several.
            rename: what to call it here.

        Raises:
            WeightsError: the file cannot be read, or was made for another base.
            RestoreKitError: it has no filters for that, or there are some here already.
        """
        tensors, _ = files.read(path)
        self.check_same_base(str(path), tensors)
        found = files.by_degradation(tensors)
        if not name and len(found) != 1:
            raise RestoreKitError(f"{path} has filters for {', '.join(found) or 'nothing'}", "name one")
        name = name or next(iter(found))
        if name not in found:
            raise unknown(name, found, str(path))
        own = rename or name
        if own in self.names:
            raise RestoreKitError(f"there are filters for {own} already", "give them another name")
        delta = Delta.shaped_like(found[name])
        files.load_values(delta, found[name])
        self.put(own, delta.to(self.base.device))
        return own

    def check_same_base(self, path: str, tensors: Mapping[str, Tensor]) -> None:
        """Take a file's base as that of the adapter, where it has none yet.

        Raises:
            WeightsError: the file was made for another one.
        """
        base = bytes(tensors["base"].tolist()).hex()
        if self.base_hash and base != self.base_hash:
            raise WeightsError(
                f"{path} was made for the base {base[:16]}, the others for {self.base_hash[:16]}",
                "put together adapters of one base",
            )
        self.base.copy_(tensors["base"])

    # Training.

    def add_classifier(
        self, told: Sequence[str] = (), like: Mapping[str, Tensor] | None = None
    ) -> Classifier:
        """Return a new classifier, which is the adapter's from now on.

        Args:
            told: the kinds that it tells apart; those that routers choose among when not given.
            like: tensors of one with the layers that it gets; those that the adapter asks for when not given.
        """
        told = told or self.routed
        if like:
            self.widths, self.pooling = layers_in(like)
        self.classifier = Classifier(len(told), self.widths, self.pooling)
        self.classifier.name(told)
        return self.classifier

    def freeze(self) -> None:
        """Leave gradients to what a run is to train."""
        self.deltas.requires_grad_(self.train_what in ("deltas", "all"))
        if self.classifier is not None:
            self.classifier.requires_grad_(self.train_what in ("classifier", "all"))

    def learn_kinds(self, names: Sequence[str]) -> None:
        """Take the kinds of the data; where there is one degradation, data of one kind are of that one.

        Raises:
            RestoreKitError: a kind is unknown here, or a classifier would never see one of its kinds.
        """
        known = self.routed
        alone = len(known) == 1 and len(names) <= 1
        names = known if alone else tuple(names)
        if not names:
            raise RestoreKitError(
                f"nobody knows which patches are of {', '.join(known)}",
                "write degradation: {one_of: [...]} with a label for each, or a kind for each of data.pairs",
            )
        for name in names:
            if name not in known:
                raise unknown(name, known)
        if self.train_what != "deltas" and (missing := [name for name in known if name not in names]):
            raise RestoreKitError(
                f"the data have no patches of {', '.join(missing)}, which the classifier is to tell",
                "add them to the data, or leave them out of params.degradations",
            )
        self._data_kinds = names

    @contextmanager
    def given_kinds(self, kinds: Tensor) -> Iterator[None]:
        """Route by what is known of the images, (B, K) in the order of ``learn_kinds``."""
        assert self._data_kinds is not None
        known = kinds.new_zeros(len(kinds), len(self.kinds))
        if kinds.shape[1] == 0:
            known[:, self.kinds.index(self._data_kinds[0])] = 1
        else:
            known[:, [self.kinds.index(name) for name in self._data_kinds]] = kinds
        self._given = known if self.train_what == "deltas" else None
        try:
            yield
        finally:
            self._given = None

    @property
    def given(self) -> Tensor | None:
        """Shares (B, K) that are known of the images of now."""
        return self._given

    def kind_logits(self, degraded: Tensor) -> Tensor | None:
        """(B, C, H, W) -> logits (B, K) in the order of ``learn_kinds``; None where none is trained."""
        if self.classifier is None or self.train_what == "deltas":
            return None
        logits: Tensor = self.classifier(degraded)
        names = self._data_kinds or self.routed
        return logits[:, [self.classifier.kinds.index(name) for name in names]]
