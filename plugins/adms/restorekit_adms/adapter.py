"""The adapter: filters for each degradation and the classifier, out of files, by scores or by chance."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn

from restorekit.contracts import Backbone
from restorekit.errors import ConfigError, RestoreKitError, WeightsError
from restorekit.filters import Unit, fingerprint
from restorekit.filterscores import Budget, FilterScores, Scope
from restorekit.weights import load_into
from restorekit_adms import files
from restorekit_adms.choosing import Choice, Init, Mask, check_word
from restorekit_adms.classifier import WIDTHS, Pooling
from restorekit_adms.dedicated import Dedicated, Mode, Train
from restorekit_adms.deltas import Delta, Vectors
from restorekit_adms.naming import unknown
from restorekit_adms.network import Adaptive
from restorekit_adms.parts import put_together
from restorekit_adms.routing import COLDEST, Route, RouterChoice
from restorekit_adms.sharing import check_own

FORMAT = "restorekit.adms/1"


class Adms(Dedicated):
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
        top1: act by the largest share alone, where a router looks at the image.
        least: with ``top1``, the smallest share of the classifier that is acted by; where the largest is
            below it, the base acts alone: to undo what an image does not suffer from costs more than to
            leave it. These, the temperature and ``none`` are, where left at their defaults, those of the
            part that has the classifier.
        mode: how a batch of several verdicts is run: ``merge``, ``group``, ``soft`` or ``batched``, which
            agree; see ``Adaptive``.
        widths: features of the classifier's convolutions, each at half the size of the one before.
        pooling: what of each it sees over the image: the ``mean``, or ``statistics``: largest value and
            standard deviation, too, which tell haze from clean images better.
        combined: degradations whose filters were combined of those of others: they act by ``set_adapter`` or
            an oracle, no other router chooses them.
        train: what a training run trains: ``deltas`` by the kinds of the data, ``classifier`` alone, or
            ``all`` with the classifier's own shares.

    Raises:
        ConfigError: an argument makes no sense.
        RestoreKitError: a name of a degradation cannot be used.
    """

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
        pooling: Pooling = "mean",
        combined: Sequence[str] = (),
        train: Train = "deltas",
    ) -> None:
        for key, texts in (("degradations", degradations), ("parts", parts), ("combined", combined)):
            if isinstance(texts, str):
                raise ConfigError(
                    f"params.{key}", f"{texts!r} is one text, not a list", f"write {key}: [{texts}]"
                )
        super().__init__(degradations, none, combined, widths, pooling, train)
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
        check_word("pooling", pooling, get_args(Pooling))
        check_word("train", train, get_args(Train))
        if not COLDEST < temperature < math.inf:
            raise ConfigError(
                "params.temperature",
                f"{temperature} is no number above {COLDEST}",
                "write 1; to act by the first choice alone top1: true",
            )
        if not 0 <= least <= 1:
            raise ConfigError("params.least", f"{least} is no share", "write a number from 0 to 1, as 0.5")
        if least and not top1:
            raise ConfigError(
                "params.least", "without top1 every share acts", "write top1: true, too, or least: 0"
            )
        self.parts = tuple(parts)
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
        self.router, self.mode = RouterChoice.of(router), mode
        self.temperature, self.top1, self.least = temperature, top1, least
        self.base_parameters = 0
        if self.parts:
            put_together(self, self.parts)
        needed = self.router.name == "classifier" or train != "deltas"
        self._is_filled = bool(self.parts) and set(self.wanted) <= set(self.names)
        if needed and self.classifier is None and (self.wanted or self.names):
            self._is_filled = False
            self.add_classifier()
        self.freeze()

    @property
    def is_filled(self) -> bool:
        """Whether all filters, and the classifier where there is one, came from ``parts``."""
        return self._is_filled

    # Meeting a backbone.

    def attach(self, backbone: Backbone) -> Backbone:
        """Return the adaptive network; the base is shared, and untouched after every run.

        Raises:
            WeightsError: the adapter was made for another base; both hashes are named.
            ConfigError: the oracle names what there are no filters for.
            RestoreKitError: the network has no filters, or nothing says which ones to take, or another
                network has merged its own into the base.
        """
        check_own(backbone)
        state = backbone.state_dict()
        if not any(tensor.is_meta for tensor in state.values()):
            self._check_base(fingerprint(state))
        if self.classifier is not None:
            self.classifier.check_order()
        self.base_parameters = sum(parameter.numel() for parameter in backbone.parameters())
        if not self.names:
            self._begin(backbone)
        label = self.router.label
        if label and label not in self.kinds:
            error = unknown(label, self.kinds)
            raise ConfigError("params.router.label", error.message, error.hint)
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
        if not self.wanted:
            raise RestoreKitError(
                "the adapter has no degradation", "name them: params: {degradations: [rain]}"
            )
        if self.train_what == "classifier":
            return
        found = self.choice.begin(backbone, self.wanted)
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
        found = files.by_degradation(tensors)
        if self.wanted and found and set(found) != set(self.wanted):
            raise WeightsError(
                f"the file has filters for {', '.join(found)}, asked for were {', '.join(self.wanted)}",
                "leave out params.degradations",
            )
        self.deltas._modules.clear()
        for name in self.wanted if found and self.wanted else found:
            self.put(name, Delta.shaped_like(found[name]))
        if own := files.classifier_in(tensors):
            # By its tensors: what a file states leaves out what was a default when it was written.
            self.add_classifier(like=own)
        self.freeze()

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
            "pooling": "mean" if self.classifier is None else self.pooling,
            "combined": self.combined,
        }
        default = signature(Adms).parameters
        stated = {key: value for key, value in acts.items() if value != default[key].default}
        return {**stated, "degradations": list(self.names or self.wanted)}

    def file_facts(self) -> Mapping[str, str]:
        """Return format, base, and how the filters were chosen."""
        return {
            "adms.format": FORMAT,
            "adms.base": self.base_hash,
            **({} if self.parts else {files.CHOICE_KEY: json.dumps(self.choice.facts)}),
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
        # How filters were chosen counts for those that are added.
        arguments = {**files.chosen_by(path, facts), **files.stated_by(path, facts)}
        try:
            adapter = cls(**arguments)
        except (TypeError, ValueError) as error:
            raise WeightsError(
                f"{path} states arguments that an adapter does not take: {error}",
                "give a file that `restorekit train` wrote, or update restorekit-adms",
            ) from error
        adapter.make_room(tensors)
        load_into(adapter, tensors, Path(path))
        return adapter

    def save(self, path: str | Path, *, half: bool = False) -> Path:
        """Write everything to a file that a pipeline takes as weights.

        Of the classifier, what tells degradations that were deleted is left out.

        Raises:
            RestoreKitError: the classifier does not tell what there are filters for.
            WeightsError: the classifier's weights are of other kinds.
            OutputError: the file cannot be written.
        """
        state = self.state_dict()
        if self.classifier is not None:
            told, routed = self.classifier.kinds, self.routed
            if not routed or any(name not in told for name in routed):
                raise RestoreKitError(
                    f"the classifier tells {', '.join(told)}, "
                    f"the filters are for {', '.join(routed) or 'none'}",
                    "write each degradation alone with save_delta and train the classifier again: params: "
                    "{parts: [...], train: classifier}; or set classifier = None to write all without it. "
                    "Until then set_adapter acts by what it does not tell, or another router, as uniform",
                )
            left = copy.deepcopy(self.classifier)
            left.keep(routed)
            state |= {f"classifier.{name}": value for name, value in left.state_dict().items()}
        return files.write(path, state, self.file_arguments({}), self.file_facts(), half=half)

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
