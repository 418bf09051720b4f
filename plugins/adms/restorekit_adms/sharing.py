"""One lock for each base: threads and adapters that share a base take turns at it.

While a base is run its parameters are exchanged, which all who hold it see: another run at that time would
take what is lent for the base's own, and give that back. Who runs the base itself, not by way of an adapter,
is not kept out.
"""

from __future__ import annotations

from threading import Lock, RLock
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import nn

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

# By base, and not in it: a lock can be neither copied nor pickled, and a copy of a base has nothing to share.
_LOCKS: WeakKeyDictionary[nn.Module, AbstractContextManager[bool]] = WeakKeyDictionary()
_GUARD = Lock()


def turn(base: nn.Module) -> AbstractContextManager[bool]:
    """Return the lock of a base; who holds it may take it again."""
    with _GUARD:
        return _LOCKS.setdefault(base, RLock())
