"""Batches made ahead of the step that needs them, by threads.

Threads are enough: decoding, noise and compression run outside of Python's lock. They never change a batch,
which depends on seed and step alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(make: Callable[[int], T], first: int, last: int, workers: int) -> Generator[T, None, None]:
    """Yield ``make(step)`` for the steps from ``first`` up to, and without, ``last``.

    Args:
        make: called in another thread.
        first: step to begin with.
        last: where to stop.
        workers: threads; each is one batch ahead. 0 makes every batch when it is asked for.
    """
    if workers == 0:
        yield from map(make, range(first, last))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    waiting: deque[Future[T]] = deque()
    try:
        for step in range(first, last):
            waiting.append(pool.submit(make, step))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # A run that stops early waits for the batches that were begun, and for no others.
        pool.shutdown(wait=True, cancel_futures=True)
