"""When the next cycle begins: changes counted, the debounce policy, the wait after a failure.

Invariants
1. `notify` costs next to nothing: it is called once for every change.
2. The event that says "something changed" is only ever exchanged when it is set: another task may
   wait on it, and would wait for ever.

Called by replicator and cycle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from s3ws_fs.core.backoff import RATE_WINDOW_S, Debounce, Patience
from s3ws_fs.core.config import MountConfig

BURST_WAIT_S: Final = 0.1
"""Changes in a burst are taken together, so that they do not wake us one by one."""


class Schedule:
    """The debounce policy over trio's clock."""

    def __init__(self, config: MountConfig) -> None:
        self._policy = Debounce(config.debounce_min_s, config.debounce_max_s)
        self.patience = Patience(config.debounce_max_s)
        """How long a mirror pass goes on though changes want the next cycle."""
        self._changed = trio.Event()
        self._pending = 0
        self._pending_since_s = 0.0
        self._hurrying = 0
        self._hurry = trio.Event()
        self.next_try_s = 0.0
        """No cycle begins by itself before it."""

    def notify(self) -> None:
        """A change was committed."""
        if not self._pending:
            self._pending_since_s = trio.current_time()
        self._pending += 1
        if not self._changed.is_set():
            self._changed.set()

    def note_old_dirt(self, age_s: float) -> None:
        """There is dirt of an earlier mount, and the oldest is so old."""
        now_s = trio.current_time()
        self._policy.changed(now_s, 1, oldest_s=now_s - age_s)
        self.wake()

    def wake(self) -> None:
        """Have `wait_due` look again."""
        self._changed.set()

    async def next_change(self) -> None:
        """Until something changes that no cycle took yet; at once when it did."""
        if not self.is_waiting:
            await self._changed.wait()

    @property
    def is_awake(self) -> bool:
        """Whether there is something that `wait_due` has not looked at yet."""
        return self._changed.is_set()

    @property
    def is_waiting(self) -> bool:
        """Whether changes wait for the next cycle."""
        return bool(self._pending) or self._policy.due_s() is not None

    def begin(self) -> float | None:
        """A cycle takes everything that changed up to now; returns when the oldest of it did."""
        self._take_changes()
        oldest_s = self._policy.oldest_s
        self._policy.frozen(trio.current_time())
        return oldest_s

    def give_back(self, oldest_s: float | None) -> None:
        """The cycle that began so failed: its dirt is still there."""
        if oldest_s is not None:
            self._policy.restore_dirt(oldest_s)

    def due_s(self) -> float | None:
        """When changes want the next cycle; None: there are none."""
        due_s = self._policy.due_s()
        return None if due_s is None else max(due_s, self.next_try_s)

    async def wait_due(self, otherwise_s: Callable[[float], float | None]) -> None:
        """Until a cycle is due: for changes, or, while there are none, when `otherwise_s` says,
        given the time."""
        while True:
            self._take_changes()
            now_s = trio.current_time()
            due_s = self._policy.due_s()
            if due_s is None:
                due_s = otherwise_s(now_s)
            if due_s is not None:
                due_s = max(due_s, self.next_try_s)
                if due_s <= now_s:
                    return
            with trio.move_on_after(math.inf if due_s is None else due_s - now_s):
                await self._changed.wait()
                if due_s is None:
                    continue
                await trio.sleep(min(BURST_WAIT_S, max(0.0, due_s - trio.current_time())))

    async def wait_changes_due(self) -> None:
        """Until changes want the next cycle, whatever the wait after a failure."""
        while True:
            self._take_changes()
            due_s = self._policy.due_s()
            now_s = trio.current_time()
            if due_s is None:
                await self._changed.wait()
            elif due_s > now_s:
                await trio.sleep(due_s - now_s)
            else:
                return

    @contextmanager
    def hurrying(self) -> Iterator[None]:
        """Whoever is in the block waits for the cycle under way: its mirror pass ends early."""
        self._hurrying += 1
        self._hurry.set()
        try:
            yield
        finally:
            self._hurrying -= 1
            if not self._hurrying:
                self._hurry = trio.Event()

    async def wait_hurry(self) -> None:
        """Until somebody waits for the cycle under way."""
        await self._hurry.wait()

    def _take_changes(self) -> None:
        if self._pending:
            now_s = trio.current_time()
            span_s = max(RATE_WINDOW_S, now_s - self._pending_since_s)
            rate = math.ceil(self._pending * RATE_WINDOW_S / span_s)
            self._pending = 0
            self._policy.changed(now_s, rate, oldest_s=self._pending_since_s)
        if self._changed.is_set():
            # Invariant 2.
            self._changed = trio.Event()
