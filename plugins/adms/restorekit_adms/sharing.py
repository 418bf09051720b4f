"""One lock for each base, and who has merged filters into it: all who share a base take turns at it.

While a base is run its parameters are exchanged, which all who hold it see: another run at that time would
take what is lent for the base's own, and give that back. What is merged stays until it is unmerged: others
would run what they take for the base, and put back what never was. Who runs the base itself, not by way of
an adapter, is not kept out.
"""

from __future__ import annotations

from threading import Lock, RLock
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, ref

from torch import nn

from restorekit.errors import RestoreKitError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

# By base, and not in it: a lock can be neither copied nor pickled, and a copy of a base has nothing to share.
_LOCKS: WeakKeyDictionary[nn.Module, AbstractContextManager[bool]] = WeakKeyDictionary()
# Weakly, for a network holds its base: who is gone has left the base as it is, and is not forgotten.
_MERGED: WeakKeyDictionary[nn.Module, ReferenceType[nn.Module]] = WeakKeyDictionary()
# Bases that tell when their weights are loaded.
_WATCHED: WeakSet[nn.Module] = WeakSet()
_GUARD = Lock()


def turn(base: nn.Module) -> AbstractContextManager[bool]:
    """Return the lock of a base; who holds it may take it again."""
    with _GUARD:
        return _LOCKS.setdefault(base, RLock())


def merged_by(base: nn.Module, network: nn.Module) -> None:
    """Note that a network has merged filters into a base, until they are unmerged or other weights loaded."""
    with _GUARD:
        _MERGED[base] = ref(network)
        if base not in _WATCHED:
            base.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call,unused-ignore]
            _WATCHED.add(base)


def has_merged(base: nn.Module, network: nn.Module) -> bool:
    """Return whether it is this network that has merged filters into a base."""
    with _GUARD:
        holder = _MERGED.get(base)
    return holder is not None and holder() is network


def unmerged(base: nn.Module) -> None:
    """Note that a base is what it was before filters were merged into it."""
    with _GUARD:
        _MERGED.pop(base, None)


def _loaded(base: nn.Module, keys: Any) -> None:
    """Forget what was merged: where all of a base was loaded, what stood there before is not to come back."""
    if not keys.missing_keys:
        unmerged(base)


def check_own(base: nn.Module, network: nn.Module | None = None) -> None:
    """Refuse to go on where another network has merged filters into a base.

    Args:
        base: that is to be run, merged into, or given to an adapter.
        network: who asks; None for one that is still to be made.

    Raises:
        RestoreKitError: another has.
    """
    with _GUARD:
        holder = _MERGED.get(base)
        owner = None if holder is None else holder()
    if holder is None or (owner is not None and owner is network):
        return
    if owner is None:
        raise RestoreKitError(
            "the base holds filters that were merged by another network, which is gone",
            "load the base again, or go on with what it is now: copy.deepcopy(base)",
        )
    raise RestoreKitError(
        "another network has merged its filters into the base that both share",
        "call unmerge_adapter there first; merge_and_unload merges into a copy",
    )
