"""Functions that block, taking turns with the trio loop: threads used as coroutines.

The transfer worker is blocking code: requests to the store, a pool of threads, answers to the
daemon. Here each of its functions is a *strand*: it runs on a thread of its own, but only while the
loop stands still, up to the next thing that it has to wait for. That is handed to the loop as an
async function, and the thread stands still until it is done. So the real code runs unchanged, all
waiting is on the simulated clock, and who runs next is decided by the loop alone.

Invariants
1. At any moment one thread runs: the loop's, or that of one strand. So a run is repeatable.
2. A strand whose task is cancelled is dead: what it waits for raises Died, and so does everything
   that it would still wait for while it unwinds; nothing of it reaches the world any more.
3. Threads are used again; none is left running when the loop has ended.

Called by the modules of sim only.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, Final, Generic, TypeVar, cast

import trio

T = TypeVar("T")
Wish = Callable[[], Awaitable[Any]]


class Died(BaseException):
    """The process of this strand was killed."""


class _Thread(threading.Thread):
    """Runs one strand after the other, each when it is its turn."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.turn = threading.Lock()
        self.turn.acquire()
        self.strand: Strand[Any] | None = None
        self.start()

    def run(self) -> None:
        while True:
            self.turn.acquire()
            if self.strand is None:
                return
            self.strand.live()


_idle: Final[list[_Thread]] = []
_here = threading.local()


def end_threads() -> None:
    """Let the threads that wait for work end."""
    while _idle:
        thread = _idle.pop()
        thread.strand = None
        thread.turn.release()
        thread.join()


class Strand(Generic[T]):
    """One call of a blocking function. `owner` is whatever the caller wants to find again."""

    def __init__(self, work: Callable[[], T], owner: Any) -> None:
        self._work = work
        self.owner = owner
        self._back = threading.Lock()
        self._back.acquire()
        self._wish: Wish | None = None
        self._answer: Any = None
        self._error: BaseException | None = None
        self._is_done = False
        self._is_dead = False

    async def run(self) -> T:
        """Run it to its end. Raises what it raises; Cancelled when the task is cancelled."""
        self._thread = _idle.pop() if _idle else _Thread()
        self._thread.strand = self
        cancelled: BaseException | None = None
        while True:
            self._thread.turn.release()
            self._back.acquire()
            if self._is_done:
                break
            assert self._wish is not None
            self._answer, self._error = None, None
            try:
                self._answer = await self._wish()
            except Exception as exc:
                self._error = exc
            except BaseException as exc:
                cancelled, self._is_dead = exc, True
                self._error = Died()
        _idle.append(self._thread)
        if cancelled is not None:
            raise cancelled
        if self._error is not None:
            raise self._error
        return cast("T", self._answer)

    def live(self) -> None:
        """On the thread."""
        _here.strand = self
        try:
            self._answer, self._error = self._work(), None
        except BaseException as exc:
            self._answer, self._error = None, exc
        _here.strand = None
        self._is_done = True
        self._back.release()

    def wait(self, wish: Wish) -> Any:
        """On the thread: have the loop do something, and wait for what comes of it."""
        if self._is_dead:
            raise Died
        self._wish = wish
        self._back.release()
        self._thread.turn.acquire()
        if self._error is not None:
            raise self._error
        return self._answer


def current() -> Strand[Any] | None:
    """The strand that runs; None on the loop's thread."""
    return getattr(_here, "strand", None)


def wait(wish: Wish) -> Any:
    """Have the loop do something, from within a strand."""
    strand = current()
    assert strand is not None, "not in a strand"
    return strand.wait(wish)


class StrandLock:
    """A lock that strands may hold while they wait."""

    def __init__(self) -> None:
        self._lock = trio.Lock()

    def __enter__(self) -> None:
        wait(self._lock.acquire)

    def __exit__(self, *_: object) -> None:
        async def release() -> None:
            self._lock.release()

        wait(release)


def sleep(seconds: float) -> None:
    """Stand still for so long, by the simulated clock."""
    wait(partial(trio.sleep, seconds))


class StrandFuture(Generic[T]):
    """What `StrandPool.submit` returns: as much of a future as the program uses."""

    def __init__(self) -> None:
        self._done = trio.Event()
        self._result: T | None = None
        self._error: BaseException | None = None
        self._begun = False
        self._cancelled = False

    async def fill(self, strand: Strand[T]) -> None:
        """Run the strand, and keep what comes of it."""
        if self._cancelled:
            return
        self._begun = True
        try:
            self._result = await strand.run()
        except Exception as exc:
            self._error = exc
        self._done.set()

    def cancel(self) -> bool:
        """Not to be run at all; False when it runs already, or did."""
        if not self._begun:
            self._cancelled = True
        return self._cancelled

    def result(self) -> T:
        """What the function returned. Raises what it raised."""
        error = self.exception()
        if error is not None:
            raise error
        return cast("T", self._result)

    def exception(self) -> BaseException | None:
        """What the function raised."""
        if not self._done.is_set():
            wait(self._done.wait)
        return self._error


class StrandPool(Executor):
    """So many strands side by side, all of one owner, in its nursery."""

    def __init__(self, workers: int, owner: Any, nursery: trio.Nursery) -> None:
        self._owner = owner
        self._nursery = nursery
        self._lanes = trio.Semaphore(workers)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """See Executor.submit. From within a strand."""
        strand = Strand(partial(fn, *args, **kwargs), self._owner)
        future: StrandFuture[Any] = StrandFuture()

        async def run() -> None:
            try:
                async with self._lanes:
                    await future.fill(strand)
            except Died:
                # It killed its own process: the nursery is about to end.
                await trio.sleep_forever()

        async def start() -> None:
            self._nursery.start_soon(run)

        wait(start)
        return future
