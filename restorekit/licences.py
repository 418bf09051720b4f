"""What a licence lets its user do, and the gate that holds a pipeline to it.

Classes of licences, not legal advice: an SPDX expression is permissive, allows use at least without profit,
or is not known to allow anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Literal, get_args

from license_expression import ExpressionError, Licensing, ParseError

from restorekit.errors import ConfigError, LicenceError, near

if TYPE_CHECKING:
    from restorekit.plan import Part

Policy = Literal["permissive", "noncommercial", "any"]

# The academic licence of Restormer and MPRNet, which SPDX does not list.
ACADEMIC = "LicenseRef-Academic-Public-License"

_PERMISSIVE = {
    *("0bsd", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-3.0"),
    *("cc-by-4.0", "cc0-1.0", "hpnd", "isc", "mit", "mit-0", "psf-2.0", "python-2.0", "unlicense", "wtfpl"),
    *("x11", "zlib"),
}
# What older metadata calls licences that have an SPDX name.
_SPELLINGS = {
    "mit license": "MIT",
    "apache license 2.0": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd license": "BSD-3-Clause",
}
# Beginnings of names: these licences come in versions.
_SHARE_ALIKE = ("agpl", "cc-by-sa", "epl", "eupl", "gpl", "lgpl", "mpl")
_NONCOMMERCIAL = ("cc-by-nc", ACADEMIC.lower())


class Grade(IntEnum):
    """How much a licence allows; larger is more."""

    UNKNOWN = 0
    NONCOMMERCIAL = 1
    SHARE_ALIKE = 2
    PERMISSIVE = 3


# The least grade that each policy lets through. Share-alike terms bind what is distributed, not who uses it.
_LEAST = {"any": Grade.UNKNOWN, "noncommercial": Grade.NONCOMMERCIAL, "permissive": Grade.PERMISSIVE}


@cache
def grade(expression: str) -> Grade:
    """Return what an SPDX expression allows: the least of ``AND``, the most of ``OR``.

    What is no SPDX expression, or names a licence that is not in the list here, is ``UNKNOWN``.
    """
    try:
        parsed = Licensing().parse(_SPELLINGS.get(expression.strip().lower(), expression))
    except (ExpressionError, ParseError):
        return Grade.UNKNOWN
    return _grade(parsed)


def _grade(parsed: object) -> Grade:
    parts = getattr(parsed, "args", ())
    operator = str(getattr(parsed, "operator", "")).strip()
    if parts and operator in ("AND", "OR"):
        grades = [_grade(part) for part in parts]
        return min(grades) if operator == "AND" else max(grades)
    # An exception (WITH) only ever gives more.
    name = str(getattr(parsed, "license_symbol", parsed)).removesuffix("+").lower()
    if name in _PERMISSIVE:
        return Grade.PERMISSIVE
    if name.startswith(_NONCOMMERCIAL):
        return Grade.NONCOMMERCIAL
    if name.startswith(_SHARE_ALIKE):
        return Grade.SHARE_ALIKE
    return Grade.UNKNOWN


def resolve_policy(name: str | None) -> Policy:
    """Return a policy by name; None is RESTOREKIT_LICENSE_POLICY, else ``any``.

    Raises:
        ConfigError: there is no such policy.
    """
    where = "license_policy" if name is not None else "RESTOREKIT_LICENSE_POLICY"
    wish = name if name is not None else os.environ.get(where) or "any"
    for policy in get_args(Policy):
        if wish.lower() == policy:
            return policy  # type: ignore[no-any-return]
    raise ConfigError(
        where,
        f"unknown policy {wish!r}",
        near(wish, get_args(Policy)) or "use permissive, noncommercial or any",
    )


def check_licences(parts: Iterable[Part], policy: Policy) -> list[str]:
    """Refuse a pipeline that a policy does not allow, and return notices of what is less than permissive.

    Args:
        parts: every component of the pipeline.
        policy: ``permissive`` refuses terms beyond naming the authors, ``noncommercial`` refuses what is not
            known to allow use without profit, ``any`` refuses nothing.

    Raises:
        LicenceError: a component or its weights are outside the policy; all of them are named.
    """
    claims = list(dict.fromkeys(claim for part in parts for claim in part.claims))
    outside = [f"{what} ({licence})" for what, licence in claims if grade(licence) < _LEAST[policy]]
    if outside:
        raise LicenceError(
            f"the license policy {policy!r} does not allow {', '.join(outside)}",
            "choose other weights (`restorekit weights list`), or another --license-policy",
        )
    words = {
        Grade.UNKNOWN: "has a licence that is not known to allow any use",
        Grade.NONCOMMERCIAL: "is for non-commercial use only",
        Grade.SHARE_ALIKE: "asks that what is made of it is shared alike",
    }
    return [
        f"{what} {words[grade(licence)]}: {licence}"
        for what, licence in claims
        if grade(licence) < Grade.PERMISSIVE
    ]
