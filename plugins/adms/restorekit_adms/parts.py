"""Adapters of different people for the same base, put together into one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from restorekit.errors import RestoreKitError, WeightsError
from restorekit_adms import files
from restorekit_adms.dedicated import Dedicated
from restorekit_adms.naming import check_names, unknown


def put_together(adapter: Dedicated, paths: Iterable[str]) -> None:
    """Take degradations and a classifier from the files that are named as parts.

    Raises:
        WeightsError: a part cannot be read, is for another base, or the classifier tells other kinds.
        RestoreKitError: two parts have filters for one degradation, or a classifier each, or a part has
            filters that were not asked for.
    """
    for path in paths:
        tensors, facts = files.read(path)
        stated = files.stated_by(path, facts)
        adapter.check_same_base(path, tensors)
        for name in files.by_degradation(tensors, stated.get("degradations", ())):
            if adapter.wanted and name not in adapter.wanted:
                raise unknown(name, adapter.wanted, "params.degradations")
            adapter.load_delta(path, name)
            if name in stated.get("combined", ()):
                adapter.combined = tuple(dict.fromkeys((*adapter.combined, name)))
        own = files.classifier_in(tensors)
        if own and adapter.classifier is not None:
            raise RestoreKitError(f"{path} has a second classifier", "leave one out")
        if own:
            _take_classifier(adapter, own, stated)
    for name in (each for each in adapter.wanted if each in adapter.names):
        adapter.deltas._modules[name] = adapter.deltas._modules.pop(name)
    check_names(adapter.kinds)
    if adapter.classifier is None:
        return
    if set(adapter.classifier.kinds) != set(adapter.routed):
        raise WeightsError(
            f"the classifier tells {', '.join(adapter.classifier.kinds)}, "
            f"the parts are {', '.join(adapter.routed)}",
            "train it on these: params: {train: classifier}, or leave it out of the parts",
        )
    adapter.classifier.keep(adapter.routed)


def _take_classifier(adapter: Dedicated, tensors: Mapping[str, Tensor], stated: Mapping[str, Any]) -> None:
    """Take the classifier of a part, and how its shares are acted by where nothing else was asked for."""
    none: str = stated.get("none", "")
    adapter.none = adapter.none or none
    if not adapter.top1:
        adapter.top1, adapter.least = bool(stated.get("top1")), float(stated.get("least", 0))
    if adapter.temperature == 1:
        adapter.temperature = float(stated.get("temperature", 1))
    named = (*stated.get("degradations", ()), *([none] if none else []))
    told = [name for name in named if name not in stated.get("combined", ())]
    classifier = adapter.add_classifier(told, tensors)
    files.load_values(classifier, tensors)
