"""The pyfuse3 loop's wait for the next request: quick while requests keep coming, idle when not.

pyfuse3 (3.5, `internal.pxi`) takes a trio lock and waits in trio's epoll for every request: two
passes of the scheduler, which together cost more than an operation on the cache. It reaches trio
through its module global `trio`, as `pyfuse3.asyncio` uses it, so that can be exchanged: here for a
namespace with another `Lock` and other `lowlevel` functions.

Invariants
1. A task leaves `wait_readable` only when poll(2) just said that the descriptor is readable, and
   nothing awaits between that and the read (which would block the whole process if it found
   nothing).
2. At most one task waits in trio's epoll (the sleeper). Others park; whoever stops waiting wakes
   one of them, so that somebody listens while the request that was found waits for something.
3. Spinning is bounded by `spin_us` for each wait, and stops when it does not pay: after
   `MISSES_MAX` fruitless spins in a row it starts again only after a request has come within
   `spin_us`. On one processor there is none: it would take the time from the program that is to
   send the request.
4. Other trio tasks run at least every `SLICE_NS` while requests keep coming (that is where
   cancellation is delivered, too).
5. With a holder, `device` has the first word about what is read next, until it is through; and
   before every read `once` is told that what was done is answered.
6. `turn` is told when requests are served one after another, and before anybody else runs.
7. The end of `installed` gives pyfuse3 its trio back. It is for one loop of one thread.

Called by `fuse.mount`.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
import types
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol

import pyfuse3
import trio

from s3ws_fs.fuse.device import Device

SLICE_NS: Final = 2_000_000
"""How long requests may be served one after another before the other trio tasks get their turn."""

OTHERS_NS: Final = 1_000_000
"""How long that turn may last while requests wait: a task's step often needs several passes."""

QUIET_PASS_NS: Final = 50_000
"""A pass of trio's loop that took less ran nobody else (an empty one takes about 20 µs)."""

MISSES_MAX: Final = 4
"""Fruitless spins in a row after which spinning stops until requests come close together again."""


class _NoLock:
    """Stands where pyfuse3 wants a lock around the wait: `AdaptiveWait` orders the waiters."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None


class Turn(Protocol):
    """What is done for requests that are served without anybody else running between them."""

    def begin_batch(self) -> None:
        """From now on, until `settle`, nobody else runs."""

    def settle(self) -> object:
        """Others are going to run."""


class AdaptiveWait:
    """The waiting of one pyfuse3 loop. spin_us 0 switches spinning off.

    `hold` is awaited with every turn of the others, and by who was woken: while it waits, no
    request is taken. So the disk below can slow down those who write faster than it. `device`: see
    there.
    """

    def __init__(
        self,
        spin_us: int,
        hold: Callable[[], Awaitable[None]] | None = None,
        *,
        device: Device | None = None,
        turn: Turn | None = None,
    ) -> None:
        self._hold = hold
        self._turn = turn
        self._device = device
        self._once = None if device is None else device.once
        one_cpu = len(os.sched_getaffinity(0)) < 2
        self._spin_ns = 0 if one_cpu else spin_us * 1000
        self._pollers: dict[int, select.poll] = {}
        self._parked = trio.lowlevel.ParkingLot()
        self._sleeping = False
        self._closed = False
        self._misses = 0
        self._slice_end_ns = 0

    def _poller(self, fd: int) -> select.poll:
        poller = self._pollers.get(fd)
        if poller is None:
            poller = self._pollers[fd] = select.poll()
            poller.register(fd, select.POLLIN)
        return poller

    async def wait_readable(self, fd: int) -> None:
        """Return when a request can be read. Raises ClosedResourceError after notify_closing."""
        if self._device is not None and await self._is_staged(self._device):
            return
        poller = self._poller(fd)
        now_ns = time.perf_counter_ns()
        turn = self._turn
        if now_ns > self._slice_end_ns:
            if turn is not None:
                turn.settle()
            now_ns = await self._let_others_run(now_ns)
        if not (poller.poll(0) or self._spin(poller, now_ns)):
            if turn is not None:
                turn.settle()
            await self._idle(fd, poller)
            # Woken while all are stopped: it waits for them, and others may then have been quicker.
            while self._hold is not None:
                await self._hold()
                if poller.poll(0):
                    break
                await self._idle(fd, poller)
            woken_ns = time.perf_counter_ns()
            self._slice_end_ns = woken_ns + SLICE_NS
            if woken_ns - now_ns < 2 * self._spin_ns:
                self._misses = 0
        if turn is not None:
            turn.begin_batch()
        if self._once is not None:
            self._once.reading()

    async def _is_staged(self, device: Device) -> bool:
        """Whether `device` has a request for libfuse to read; if not, it is through."""
        while not device.is_direct:
            if device.step():
                return True
            if not device.is_direct:
                if self._turn is not None:
                    self._turn.settle()
                await trio.lowlevel.wait_readable(device.kernel_fd)
        self._device = None
        return False

    async def _let_others_run(self, start_ns: int) -> int:
        """Passes of trio's loop, until one brings nothing or the time for it is over."""
        if self._hold is not None:
            await self._hold()
        before_ns = start_ns
        while True:
            await trio.lowlevel.checkpoint()
            now_ns = time.perf_counter_ns()
            if now_ns - before_ns < QUIET_PASS_NS or now_ns - start_ns > OTHERS_NS:
                self._slice_end_ns = now_ns + SLICE_NS
                return now_ns
            before_ns = now_ns

    def _spin(self, poller: select.poll, now_ns: int) -> bool:
        if self._misses >= MISSES_MAX or not self._spin_ns:
            return False
        end_ns = now_ns + self._spin_ns
        while time.perf_counter_ns() < end_ns:
            if poller.poll(0):
                self._misses = 0
                return True
        self._misses += 1
        return False

    async def _idle(self, fd: int, poller: select.poll) -> None:
        try:
            while not poller.poll(0):
                if self._closed:
                    raise trio.ClosedResourceError
                if self._sleeping:
                    await self._parked.park()
                    continue
                self._sleeping = True
                try:
                    await trio.lowlevel.wait_readable(fd)
                finally:
                    self._sleeping = False
        finally:
            self._parked.unpark()

    def notify_closing(self, fd: int) -> None:
        """What `pyfuse3.terminate` calls: everybody who waits gets trio.ClosedResourceError."""
        self._closed = True
        self._parked.unpark_all()
        trio.lowlevel.notify_closing(fd)

    def namespace(self) -> types.SimpleNamespace:
        """What pyfuse3 gets to see as `trio`."""
        lowlevel = types.SimpleNamespace(
            wait_readable=self.wait_readable,
            notify_closing=self.notify_closing,
            current_task=trio.lowlevel.current_task,
            current_trio_token=trio.lowlevel.current_trio_token,
        )
        return types.SimpleNamespace(
            lowlevel=lowlevel,
            Lock=_NoLock,
            open_nursery=trio.open_nursery,
            ClosedResourceError=trio.ClosedResourceError,
            from_thread=trio.from_thread,
        )


@contextlib.contextmanager
def installed(wait: AdaptiveWait | None) -> Iterator[None]:
    """Let pyfuse3 wait by `wait` (None: leave it as it is) until the end of the block."""
    if wait is None:
        yield
        return
    module: Any = pyfuse3
    before = module.trio
    module.trio = wait.namespace()
    try:
        yield
    finally:
        module.trio = before
