"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds by what they were spent on.

    On a GPU work is queued, and waiting for it falls to whoever first needs a result.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def counting(self, what: str) -> Iterator[None]:
        """Count the time inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - started

    def shares(self) -> dict[str, float]:
        """Return the share of each in all that was counted."""
        total = sum(self.seconds.values()) or 1.0
        return {what: seconds / total for what, seconds in self.seconds.items()}
