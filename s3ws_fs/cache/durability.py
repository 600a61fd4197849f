"""Waiting for durability: fsync, the timer, and the seal share sync points.

Invariants
1. `ensure(g)` returns only when generation g is on the disk: a finished sync point covers it, or a
   flush of the redo log does, as long as that is intact.
2. At most one sync point and one flush of the log are under way; those who wait meanwhile share the
   next one.
3. A failed sync point fails those who waited for it; the next call tries again. After a failed
   flush of the environment there is none any more (cache.syncpoint): every later `ensure` of what
   was not covered before fails, and seals go on without, by `cover`.

Called by the daemon (composition), which hands `ensure` to fuse (fsync) and replica (seal).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final

import lmdb
import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.flushing import FlushThread
from s3ws_fs.cache.recovery import REMEDY
from s3ws_fs.cache.redo import Redo, flush
from s3ws_fs.cache.syncpoint import SPOILT
from s3ws_fs.core.errors import FsError

BYTES_BETWEEN_MAX: Final = 32 << 20
"""Bytes of pages after which one is made early. While one stands, freed pages can't be used again:
the file grows by what is committed between two (twice this, at worst)."""

UNCOVERED_BYTES_MAX: Final = 512 << 20
"""Bytes of pages beyond the newest sync point at which writers are held until there is a newer one:
the disk is slower than they are, and the cache's map must not fill up meanwhile."""

InThread = Callable[[Callable[[], None]], Awaitable[None]]
"""Runs a function that blocks, beside the loop."""


async def _in_thread(work: Callable[[], None]) -> None:
    await trio.to_thread.run_sync(work)


class Durability:
    """Makes sync points of a cache when asked, and now and then."""

    def __init__(self, cache: Cache, *, in_thread: InThread = _in_thread) -> None:
        self._cache = cache
        self._in_thread = in_thread
        self._lock = trio.Lock()
        self._kick = trio.Event()
        self._under_way_bytes = 0
        self._over: trio.Event | None = None
        """Set when those who are stopped may go on."""
        self.last_error: str | None = cache.recovered.why if cache.points.spoilt else None
        self._spoilt_s: float | None = None
        self.on_point: Callable[[], None] = lambda: None
        """Called after each sync point: something was changed before it."""
        self._log_lock = trio.Lock()
        self._flushing = FlushThread(lambda descriptors: flush(descriptors))
        cache.on_bytes = self._on_bytes
        cache.on_log_full = self._on_log_full

    def _on_bytes(self, uncovered_bytes: int) -> None:
        if uncovered_bytes >= min(BYTES_BETWEEN_MAX, self._cache.headroom.between_bytes):
            self._kick.set()

    def _on_log_full(self) -> None:
        self._kick.set()

    def _covers(self, generation: int) -> bool:
        cache = self._cache
        if cache.points.durable_generation >= generation:
            return True
        return cache.redo is not None and cache.redo.durable_generation >= generation

    async def ensure(self, generation: int | None = None) -> None:
        """Wait until `generation` (default: the newest) is power-loss safe. Raises FsError EIO."""
        cache = self._cache
        cache.settle()
        wanted = cache.generation if generation is None else generation
        while not self._covers(wanted):
            if cache.redo is not None and cache.redo.is_intact:
                async with self._log_lock:
                    if not self._covers(wanted) and cache.redo is not None:
                        await self._flush_log(cache.redo)
            else:
                await self.ensure_point(wanted)

    async def ensure_point(self, generation: int | None = None) -> None:
        """Wait for a sync point that covers `generation` (default: the newest). Raises FsError."""
        self._cache.settle()
        wanted = self._cache.generation if generation is None else generation
        while self._cache.points.durable_generation < wanted:
            async with self._lock:
                if self._cache.points.durable_generation < wanted:
                    await self._make()

    async def _flush_log(self, log: Redo) -> None:
        begun = log.begin_flush()
        if begun is None:
            return
        generation, descriptors = begun
        try:
            await self._flushing.flush(descriptors)
        except OSError as exc:
            self._cache.points.spoil()
            self._cache.drop_log()
            self._note_spoilt()
            raise FsError(errno.EIO, f"flush of the log failed: {exc}") from exc
        log.finish_flush(generation)

    def _note_spoilt(self) -> None:
        self.last_error = f"{SPOILT}; {REMEDY}"
        self._spoilt_s = self._spoilt_s or trio.current_time()

    async def cover(self, generation: int | None = None) -> None:
        """As `ensure`, for a seal. Returns also when the cache is spoilt: after a power cut it may
        then be older than the bucket, from which it is rebuilt (replica.restore). Raises FsError.
        """
        try:
            await self.ensure(generation)
        except FsError:
            if not self._cache.points.spoilt:
                raise

    async def _make(self) -> None:
        points = self._cache.points
        try:
            pending = self._cache.begin_point()
        except OSError as exc:
            self.last_error = str(exc)
            raise FsError(exc.errno or errno.EIO, f"sync point failed: {exc}") from exc
        covered = self._under_way_bytes = self._cache.start_sync()
        try:
            with trio.CancelScope(shield=True):
                await self._in_thread(partial(points.write, pending))
        except (OSError, lmdb.Error) as exc:
            points.abandon(pending)
            self._cache.uncovered_bytes += covered
            self.last_error = str(exc)
            if points.spoilt:
                self._cache.drop_log()
                self._note_spoilt()
            raise FsError(errno.EIO, f"sync point failed: {exc}") from exc
        finally:
            self._under_way_bytes = 0
        self._cache.finish_point(pending)
        self.last_error = None
        self._cache.headroom.measure()
        self.on_point()

    def health(self) -> dict[str, Any]:
        """The health of a mount whose cache is spoilt, since when as far as this process knows."""
        since_s = None if self._spoilt_s is None else trio.current_time() - self._spoilt_s
        return {
            "state": "degraded",
            "since_s": None if since_s is None else round(since_s, 3),
            "error": self.last_error,
        }

    async def renew(self) -> None:
        """A sync point now, changes or not: what was freed before serves again. Raises FsError."""
        async with self._lock:
            await self._make()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Meanwhile `hold` returns to nobody."""
        over = self._over = trio.Event()
        try:
            yield
        finally:
            self._over = None
            over.set()

    async def hold(self) -> None:
        """Wait while all are stopped, or too many bytes are beyond the newest sync point. Never
        raises.

        Too many is UNCOVERED_BYTES_MAX, or less when the cache has little room, for what was freed
        serves again only after a sync point; out of room, freeing anything is enough.
        When the disk fails, it is fsync that says so; work goes on until the cache is full.
        """
        while self._over is not None:
            await self._over.wait()
        cache = self._cache
        headroom = cache.headroom
        uncovered_bytes = cache.uncovered_bytes + self._under_way_bytes
        if (
            uncovered_bytes > UNCOVERED_BYTES_MAX
            or uncovered_bytes > headroom.hold_bytes
            or (headroom.level and cache.freed)
        ):
            with contextlib.suppress(FsError):
                await self.ensure_point()

    async def run(self, interval_s: float) -> None:
        """A sync point every `interval_s`, earlier after many bytes, while there is news."""
        while True:
            with trio.move_on_after(interval_s):
                await self._kick.wait()
            self._kick = trio.Event()
            self._cache.headroom.measure()
            try:
                await self.ensure_point()
            except FsError:
                # Kept in last_error for status; whoever fsyncs gets the error itself.
                await trio.sleep(interval_s)
