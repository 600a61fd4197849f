"""Work on many items in a pool of threads, in order, with a bound on what is under way.

Called by audit_bytes, outside, reconcile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Final, TypeVar

SUBMIT_WINDOW: Final = 32

_T = TypeVar("_T")
_R = TypeVar("_R")


def windowed(
    pool: Executor,
    work: Callable[[_T], _R],
    items: Iterable[_T],
    window: int = SUBMIT_WINDOW,
) -> Iterator[_R]:
    """Run `work` on all items in the pool, `window` at a time, yielding in order."""
    waiting: deque[Future[_R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
