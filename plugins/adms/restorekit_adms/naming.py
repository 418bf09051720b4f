"""Names of degradations: which are allowed, and what is said when one is not known."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from restorekit.errors import RestoreKitError, near


def check_names(names: Iterable[str]) -> None:
    """Refuse names that cannot stand in the name of a tensor, or that stand twice.

    Raises:
        RestoreKitError: with the name.
    """
    seen = set()
    for name in names:
        taken = hasattr(nn.Module(), name) if isinstance(name, str) else False
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or taken or name in seen:
            reason = "stands twice" if name in seen else "is no name for a degradation"
            raise RestoreKitError(
                f"{name!r} {reason}", "use letters, digits, - and _, as in rain or low_light"
            )
        seen.add(name)


def unknown(name: object, known: Iterable[str], of: str = "the adapter") -> RestoreKitError:
    """Return the error for a degradation that nobody knows here."""
    names = list(known)
    return RestoreKitError(
        f"{of} knows no degradation {name!r}; it knows: {', '.join(names) or 'none'}",
        near(str(name), names) or "name one of these",
    )
