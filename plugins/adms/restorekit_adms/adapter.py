"""The adapter: filters for each degradation and the classifier, out of files, by scores or by chance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import torch
from torch import Tensor, nn

from restorekit.catalog import PARAMS_KEY
from restorekit.contracts import Adapter, Backbone
from restorekit.errors import ConfigError, RestoreKitError, WeightsError
from restorekit.filters import Budget, FilterScores, Scope, Unit, fingerprint
from restorekit.weights import load_into
from restorekit_adms import files
from restorekit_adms.choosing import Choice, Init, Mask, check_word
from restorekit_adms.classifier import WIDTHS, Classifier
from restorekit_adms.deltas import Delta, Vectors
from restorekit_adms.naming import check_names, unknown
from restorekit_adms.network import Adaptive, Mode
from restorekit_adms.routing import Route, RouterChoice

FORMAT = "restorekit.adms/1"

Train = Literal["deltas", "classifier", "all"]


class Adms(Adapter):
    """Filters dedicated to each degradation, mixed for each image: theta_um + sum_d c_d * delta_d on masks.

    Park, Lee, Chun, CVPR 2023; reconstructed from the abstract and public slides. Where they say nothing:
    deltas start at zero and are trained alone, the base stays frozen, and the classifier is a network of its
    own. A file of weights decides which filters there are; without one, scores or chance choose them when the
    adapter meets its backbone.

    Args:
        degradations: their names, in order; those of the weights or parts by default.
        scores: by degradation, a file of scores that `restorekit faig` wrote.
        parts: files of adapters and classifiers for the same base, put together; to go on training from.
        ratio: share of the network's filters for each degradation, in (0, 1].
        budget: what the ratio counts: ``parameters`` or ``filters``.
        unit: what counts as one filter: ``kernel``, ``out`` or ``weight``; that of the scores where given.
        scope: choose over the whole ``network``, or in each ``layer``.
        share: largest part of one layer that may be chosen.
        exclusive: give a filter that several degradations chose to the one that it scores highest for; those
            that come later leave to the others what they have, and go without a replacement.
        mask: ``scores``, or ``random``: as many filters by chance, a control.
        seed: of that chance.
        vectors: ``all`` also adds to every bias, norm and scale.
        init: ``zeros``, or ``copy``: what a specialist has at the filters beyond the base.
        specialists: by degradation, weights of the base fine-tuned on it.
        router: ``classifier``, ``oracle``, ``uniform`` or ``overlap``, a mapping with its name and options,
            or a function (B, C, H, W) -> (B, K). ``auto`` is the classifier where there is one, else the only
            degradation.
        none: name of one more kind for which the base acts alone, such as clean; empty for no such kind.
        temperature: divides the classifier's logits; above 1 mixes more.
        top1: act by the largest share alone.
        least: with ``top1``, the smallest share that is acted by; where the largest is below it, the base
            acts alone: to undo what an image does not suffer from costs more than to leave it. These, the
            temperature and ``none`` are, where left at their defaults, those of the part that has the
            classifier.
        mode: how a batch of several verdicts is run: ``merge``, ``group`` or ``soft``, which agree; see
            ``Adaptive``.
        widths: features of the classifier's convolutions, each at half the size of the one before.
        combined: degradations whose filters were combined of those of others: they act by ``set_adapter`` or
            an oracle, no other router chooses them.
        train: what a training run trains: ``deltas`` by the kinds of the data, ``classifier`` alone, or
            ``all`` with the classifier's own shares.

    Raises:
        ConfigError: an argument makes no sense.
        RestoreKitError: a name of a degradation cannot be used.
    """

    base: Tensor

    def __init__(
        self,
        degradations: Sequence[str] = (),
        scores: Mapping[str, str] | None = None,
        parts: Sequence[str] = (),
        ratio: float = 0.03,
        budget: Budget = "parameters",
        unit: Unit | None = None,
        scope: Scope = "network",
        share: float = 1.0,
        exclusive: bool = False,
        mask: Mask = "scores",
        seed: int = 0,
        vectors: Vectors = "none",
        init: Init = "zeros",
        specialists: Mapping[str, str] | None = None,
        router: str | Mapping[str, Any] | Route = "auto",
        none: str = "",
        temperature: float = 1.0,
        top1: bool = False,
        least: float = 0.0,
        mode: Mode = "auto",
        widths: Sequence[int] = WIDTHS,
        combined: Sequence[str] = (),
        train: Train = "deltas",
    ) -> None:
        super().__init__()
        self.choice = Choice(
            scores=dict(scores or {}),
            ratio=ratio,
            budget=budget,
            unit=unit,
            scope=scope,
            share=share,
            exclusive=exclusive,
            mask=mask,
            seed=seed,
            vectors=vectors,
            init=init,
            specialists=dict(specialists or {}),
        )
        check_word("mode", mode, get_args(Mode))
        check_word("train", train, get_args(Train))
        if not temperature > 0:
            raise ConfigError("params.temperature", f"{temperature} is not above 0", "write 1")
        if not 0 <= least <= 1:
            raise ConfigError("params.least", f"{least} is no share", "write a number from 0 to 1, as 0.5")
        if least and not top1:
            raise ConfigError("params.least", "without top1 every share acts", "write top1: true, too")
        check_names([*degradations, *([none] if none else [])])
        self.parts = tuple(parts)
        self.combined = tuple(combined)
        for key, named in (
            ("scores", self.choice.scores),
            ("specialists", self.choice.specialists),
            ("combined", self.combined),
        ):
            for name in named:
                if name not in degradations:
                    raise ConfigError(
                        f"params.{key}", f"{name!r} is no degradation here", f"degradations: [{name}]"
                    )
        if not widths or min(widths) < 1:
            raise ConfigError("params.widths", f"{list(widths)} are no widths", "write [16, 24, 32, 32, 48]")
        self.widths = tuple(widths)
        self.router, self.none, self.mode = RouterChoice.of(router), none, mode
        self.temperature, self.top1, self.least = temperature, top1, least
        self.train_what = train
        self.register_buffer("base", torch.zeros(32, dtype=torch.uint8))
        self.deltas = nn.Module()
        self.classifier: Classifier | None = None
        # What was asked for; what there is are the names of the filters.
        self._wanted = tuple(degradations)
        self.base_parameters = 0
        self._data_kinds: tuple[str, ...] | None = None
        self._given: Tensor | None = None
        if self.parts:
            self._put_together()
        needed = self.router.name == "classifier" or train != "deltas"
        if needed and self.classifier is None and (self._wanted or self.names):
            self._add_classifier()
        self._freeze()

    # What there is.

    @property
    def names(self) -> tuple[str, ...]:
        """The degradations that have filters, in order."""
        return tuple(self.deltas._modules)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What verdicts speak of: the degradations, then ``none`` where there is such a kind."""
        return (*(self.names or self._wanted), *([self.none] if self.none else []))

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
        """Forget the filters of a degradation.

        Raises:
            RestoreKitError: it has none.
        """
        self.delta(name)
        del self.deltas._modules[name]
        self.combined = tuple(each for each in self.combined if each != name)

    @property
    def base_hash(self) -> str:
        """Fingerprint of the network that it was made for; empty while there was none."""
        found = bytes(self.base.cpu().tolist()) if not self.base.is_meta else b""
        return found.hex() if any(found) else ""

    # Meeting a backbone.

    def attach(self, backbone: Backbone) -> Backbone:
        """Return the adaptive network; the base is shared, and untouched after every run.

        Raises:
            WeightsError: the adapter was made for another base; both hashes are named.
            RestoreKitError: the network has no filters, or nothing says which ones to take.
        """
        state = backbone.state_dict()
        if not any(tensor.is_meta for tensor in state.values()):
            self._check_base(fingerprint(state))
        if self.classifier is not None and not self.classifier.is_in_order:
            raise WeightsError(
                f"the classifier was not trained to tell {', '.join(self.classifier.kinds)}, in this order",
                "leave out params.degradations and params.none: the file states them",
            )
        self.base_parameters = sum(parameter.numel() for parameter in backbone.parameters())
        if not self.names:
            self._begin(backbone)
        return Adaptive(backbone, self)

    def _check_base(self, found: str) -> None:
        if self.base_hash and found != self.base_hash:
            raise WeightsError(
                f"the adapter was made for the base {self.base_hash[:16]}, the network is {found[:16]}",
                "give the weights that it was trained on, or train it again for these",
            )
        self.base.copy_(torch.tensor(list(bytes.fromhex(found)), dtype=torch.uint8))

    def _begin(self, backbone: Backbone) -> None:
        """Take filters by scores or by chance for every degradation, where filters are to be trained."""
        if not self._wanted:
            raise RestoreKitError(
                "the adapter has no degradation", "name them: params: {degradations: [rain]}"
            )
        if self.train_what == "classifier":
            return
        found = self.choice.begin(backbone, self._wanted)
        for name, delta in found.items():
            self.put(name, delta)

    def choose(
        self, backbone: nn.Module, scores: Mapping[str, FilterScores | None], ratio: float | None = None
    ) -> None:
        """Give degradations filters, at zero.

        Args:
            backbone: the base.
            scores: by degradation; None for filters by chance.
            ratio: share of the filters; the adapter's when not given.

        Raises:
            RestoreKitError: scores are of another base or of different filters, the ratio is too small, or
                others have all the filters that were chosen and filters are exclusive.
        """
        others = [self.delta(name) for name in self.names if name not in scores]
        for name, delta in self.choice.among(backbone, scores, ratio, others=others).items():
            self.put(name, delta)

    # Files.

    def make_room(self, tensors: Mapping[str, Tensor]) -> None:
        """Make zeros for the filters, and a classifier, of the sizes that a file has.

        Raises:
            WeightsError: it is no file of such an adapter, or has other degradations than were named.
        """
        if "base" not in tensors:
            raise WeightsError(
                "the file is of no ADMS adapter: it names no base", "give what `restorekit train` wrote"
            )
        found = _by_degradation(tensors)
        if self._wanted and found and set(found) != set(self._wanted):
            raise WeightsError(
                f"the file has filters for {', '.join(found)}, asked for were {', '.join(self._wanted)}",
                "leave out params.degradations",
            )
        self.deltas._modules.clear()
        for name in self._wanted if found and self._wanted else found:
            self.put(name, Delta.shaped_like(found[name]))
        told = self.classifier.kinds if self.classifier is not None else ()
        if any(key.startswith("classifier.") for key in tensors) and told != self.routed:
            self._add_classifier()
        self._freeze()

    def file_arguments(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return those that say how it acts by now, and the degradations in their order."""
        # The others say how it was made, or name other files.
        acts: dict[str, Any] = {
            "router": self.router.argument,
            "none": self.none,
            "temperature": self.temperature,
            "top1": self.top1,
            "least": self.least,
            "mode": self.mode,
            "widths": WIDTHS if self.classifier is None else self.widths,
            "combined": self.combined,
        }
        default = signature(Adms).parameters
        stated = {key: value for key, value in acts.items() if value != default[key].default}
        return {**stated, "degradations": list(self.names or self._wanted)}

    def file_facts(self) -> Mapping[str, str]:
        """Return format, base, and how the filters were chosen."""
        return {
            "adms.format": FORMAT,
            "adms.base": self.base_hash,
            **({} if self.parts else {"adms.choice": json.dumps(self.choice.facts)}),
            **({"adms.base_parameters": str(self.base_parameters)} if self.base_parameters else {}),
            "adms.parameters": json.dumps({name: self.delta(name).parameter_count for name in self.names}),
        }

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the adapter of a file, as it states itself.

        Raises:
            WeightsError: the file cannot be read, or is of something else.
        """
        tensors, facts = files.read(path)
        adapter = cls(**_stated(path, facts))
        adapter.make_room(tensors)
        load_into(adapter, tensors, Path(path))
        return adapter

    def save(self, path: str | Path, *, half: bool = False) -> Path:
        """Write everything to a file that a pipeline takes as weights.

        Raises:
            RestoreKitError: the classifier does not tell what there are filters for.
            OutputError: the file cannot be written.
        """
        if self.classifier is not None and set(self.classifier.kinds) != set(self.routed):
            raise RestoreKitError(
                f"the classifier tells {', '.join(self.classifier.kinds)}, "
                f"the filters are for {', '.join(self.routed)}",
                "save degradations alone with save_delta, or train the classifier again",
            )
        return files.write(path, self.state_dict(), self.file_arguments({}), self.file_facts(), half=half)

    def save_delta(self, name: str, path: str | Path, *, half: bool = False) -> Path:
        """Write the filters of one degradation alone, to be put together with those of others.

        Raises:
            RestoreKitError: there are none for it.
            OutputError: the file cannot be written.
        """
        prefix = f"deltas.{name}."
        state = {f"{prefix}{key}": value for key, value in self.delta(name).state_dict().items()}
        facts = {key: value for key, value in self.file_facts().items() if key != "adms.parameters"}
        return files.write(path, {"base": self.base, **state}, {"degradations": [name]}, facts, half=half)

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
        self._same_base(str(path), tensors)
        found = _by_degradation(tensors)
        if not name and len(found) != 1:
            raise RestoreKitError(f"{path} has filters for {', '.join(found) or 'nothing'}", "name one")
        name = name or next(iter(found))
        if name not in found:
            raise unknown(name, found, str(path))
        own = rename or name
        if own in self.names:
            raise RestoreKitError(f"there are filters for {own} already", "give them another name")
        delta = Delta.shaped_like(found[name])
        _load(delta, found[name])
        self.put(own, delta.to(self.base.device))
        return own

    def _same_base(self, path: str, tensors: Mapping[str, Tensor]) -> None:
        base = bytes(tensors["base"].tolist()).hex()
        if self.base_hash and base != self.base_hash:
            raise WeightsError(
                f"{path} was made for the base {base[:16]}, the others for {self.base_hash[:16]}",
                "put together adapters of one base",
            )
        self.base.copy_(tensors["base"])

    def _put_together(self) -> None:
        """Take degradations and a classifier from the files that are named as parts."""
        for path in self.parts:
            tensors, facts = files.read(path)
            stated = _stated(path, facts)
            self._same_base(path, tensors)
            for name in _by_degradation(tensors, stated.get("degradations", ())):
                if self._wanted and name not in self._wanted:
                    raise unknown(name, self._wanted, "params.degradations")
                self.load_delta(path, name)
                if name in stated.get("combined", ()):
                    self.combined = tuple(dict.fromkeys((*self.combined, name)))
            own = {key: value for key, value in tensors.items() if key.startswith("classifier.")}
            if own and self.classifier is not None:
                raise RestoreKitError(f"{path} has a second classifier", "leave one out")
            if own:
                self._take_classifier(own, stated)
        for name in (each for each in self._wanted if each in self.names):
            self.deltas._modules[name] = self.deltas._modules.pop(name)
        check_names(self.kinds)
        if self.classifier is None:
            return
        if set(self.classifier.kinds) != set(self.routed):
            raise WeightsError(
                f"the classifier tells {', '.join(self.classifier.kinds)}, "
                f"the parts are {', '.join(self.routed)}",
                "train it on these: params: {train: classifier}, or leave it out of the parts",
            )
        self._reorder(self.classifier)

    def _take_classifier(self, tensors: Mapping[str, Tensor], stated: Mapping[str, Any]) -> None:
        """Take the classifier of a part, and how its shares are acted by where nothing else was asked for."""
        none: str = stated.get("none", "")
        self.none = self.none or none
        if not self.top1:
            self.top1, self.least = bool(stated.get("top1")), float(stated.get("least", 0))
        if self.temperature == 1:
            self.temperature = float(stated.get("temperature", 1))
        named = (*stated.get("degradations", ()), *([none] if none else []))
        told = [name for name in named if name not in stated.get("combined", ())]
        classifier = self._add_classifier(told, stated.get("widths", ()))
        _load(classifier, {key.removeprefix("classifier."): value for key, value in tensors.items()})

    @torch.no_grad()
    def _reorder(self, classifier: Classifier) -> None:
        """Bring the classifier's outputs into the order of the degradations here."""
        order = [classifier.kinds.index(name) for name in self.routed]
        head = classifier.head
        head.weight.copy_(head.weight[order].clone())
        head.bias.copy_(head.bias[order].clone())
        classifier.name(self.routed)

    # Training.

    def _add_classifier(self, told: Sequence[str] = (), widths: Sequence[int] = ()) -> Classifier:
        told = told or self.routed
        self.widths = tuple(widths) or self.widths
        self.classifier = Classifier(len(told), self.widths)
        self.classifier.name(told)
        return self.classifier

    def _freeze(self) -> None:
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


def _by_degradation(tensors: Mapping[str, Tensor], order: Sequence[str] = ()) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each degradation, its name taken off theirs; in this order where it is known."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "deltas":
            name, _, rest = rest.partition(".")
            found.setdefault(name, {})[rest] = value
    return {name: found[name] for name in dict.fromkeys([*order, *found]) if name in found}


def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module; one on the meta device, built for its names and shapes, has no values."""
    if not next(module.parameters()).is_meta:
        module.load_state_dict(dict(tensors))


def _stated(path: str | Path, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return the constructor's arguments that a file states."""
    try:
        return dict(json.loads(facts.get(PARAMS_KEY, "{}")))
    except (ValueError, TypeError) as error:
        raise WeightsError(
            f"{path} is damaged: {error}", "give a file that `restorekit train` wrote"
        ) from error
