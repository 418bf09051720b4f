"""One attribution that several processes, devices or machines shared by its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import torch

from restorekit.analysis.result import Completeness, FAIGResult
from restorekit.errors import RestoreKitError


def joined(parts: Sequence[FAIGResult]) -> FAIGResult:
    """Return what one attribution with the images of all parts gives, up to rounding.

    A score is a mean over images, so that it does not matter who looks at which; no image should be in two
    parts. Steps should be given, as ``steps="auto"`` looks at the first images of each part.

    Args:
        parts: of the same networks and filters, for the same degradation, made alike.

    Raises:
        RestoreKitError: there are none, they differ in anything but their images, which is named, or one is
            contrasted already.
    """
    if not parts:
        raise RestoreKitError("there are no parts to join", "give two or more results of an attribution")
    first = parts[0]
    for number, part in enumerate(parts, 1):
        if "minus" in part.details:
            raise RestoreKitError(
                f"part {number} is contrasted with {', '.join(part.details['minus']['labels'])}",
                "join parts as they were attributed, then contrast",
            )
        if part.table != first.table:
            raise RestoreKitError(
                f"part {number} is of other filters than part 1", "use one network and one unit"
            )
        for what in ("method", "label", "base", "target", "rule", "steps", "loss"):
            one, other = getattr(first, what), getattr(part, what)
            if one != other:
                hint = ", as steps=16 or --steps 16" if what == "steps" else ""
                raise RestoreKitError(
                    f"part {number} has another {what} than part 1: {_short(other)}, not {_short(one)}",
                    f"attribute all parts alike{hint}",
                )
    counts = [part.images for part in parts]
    images = sum(counts)
    shares = [count / images for count in counts]
    details = {
        **first.details,
        "images": images,
        "completeness": asdict(_complete([part.completeness for part in parts], shares)),
        "others": {
            name: sum(share * part.others.get(name, 0.0) for share, part in zip(shares, parts, strict=True))
            for name in first.others
        },
    }
    rows = torch.stack([share * part.values for share, part in zip(shares, parts, strict=True)])
    return replace(first, values=rows.sum(0), details=details)


def _complete(parts: Sequence[Completeness], shares: Sequence[float]) -> Completeness:
    def mean(values: Sequence[float]) -> float:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    whole = mean([part.whole for part in parts])
    missed = mean([part.error * part.whole for part in parts])
    return Completeness(
        change=mean([part.change for part in parts]),
        attributed=mean([part.attributed for part in parts]),
        filters=mean([part.filters for part in parts]),
        error=missed / whole if whole else 0.0,
        whole=whole,
    )


def _short(value: object) -> str:
    return str(value)[:16] or "none"
