"""One cycle: verify, learn what others did to the mirror, flush, then the mirror behind it.

Invariants
1. The mirror does not hold up a seal: when a flush is due, or somebody waits for a snapshot, the
   pass is ended early and goes on later; for whoever waits so is its planning. Where no pass would
   ever come to its end by a due flush, it has the time of Patience before it.
2. While the writer before may still change the mirror (the quiet time), only seals are made.
3. What somebody else did is looked at only by who is sure to be the writer still: a stale one must
   not take the new one's doings for somebody else's.
4. That an object is not ours is no last word while it says that it is: its bytes may have been
   spoilt on their way. The mirror is listed again later, LOOKS_MAX times, and with every sync.

Called by replicator, one cycle at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core.errors import S3wsError, TransientError
from s3ws_fs.core.layout import FILES_PREFIX
from s3ws_fs.replica.base import Progress
from s3ws_fs.replica.flusher import Flusher
from s3ws_fs.replica.lease import LeaseKeeper
from s3ws_fs.replica.outside import OutsideChanges
from s3ws_fs.replica.position import Sealed
from s3ws_fs.replica.schedule import Schedule
from s3ws_fs.transfer.wire import FencedError
from s3ws_fs.transfer.words import LATE

_T = TypeVar("_T")

LOOK_AGAIN_S: Final = 60.0
LOOKS_MAX: Final = 8
"""After 1, 2, 4, … minutes a doubtful object is looked at again, so often; then when somebody asks
for a sync, and at the next mount."""


class Cycle:
    """What one cycle does. `verify`: position and lease, before the first flush."""

    def __init__(
        self,
        cache: Cache,
        flusher: Flusher,
        lease: LeaseKeeper,
        schedule: Schedule,
        verify: Callable[[], Awaitable[None]],
    ) -> None:
        self._cache = cache
        self._flusher = flusher
        self._lease = lease
        self._schedule = schedule
        self._verify = verify
        self.outside: OutsideChanges | None = None
        """Who brings in what somebody else did to the mirror; without it that is left alone."""
        self.is_scan_due = False
        """Whether the next cycle looks for what somebody else did, though the mirror is known."""
        self.is_doubtful = False
        """Whether an object that says it is ours is left alone, for its bytes were others."""
        self._looks = 0
        self._again_s: float | None = None

    def is_mirror_behind(self) -> bool:
        """Whether a cycle would find something to do though nothing changed."""
        return not self._is_mirror_done() or self.is_scan_due

    def is_clean(self) -> bool:
        """Whether all is sealed and mirrored, but for what somebody else's objects hinder."""
        with self._cache.read() as view:
            is_sealed = view.dirty_count() == 0
        return is_sealed and self._is_mirror_done()

    def _is_mirror_done(self) -> bool:
        with self._cache.read() as view:
            behind = view.mtodo_count()
        return behind <= self._flusher.conflict_inos and self.is_mirror_known()

    def is_mirror_known(self) -> bool:
        """Whether the cache's rows say what stands in the mirror."""
        return bool(self._cache.get_json("mirror_known"))

    async def run(self, progress: Progress | None) -> Exception | None:
        """Flush, then mirror. Raises what the flush raised; returns the mirror's first error."""
        oldest_s = self._schedule.begin()
        if progress is not None:
            progress({"phase": "sealing"})
        try:
            await self._verify()
            is_quiet = self._lease.quiet_left_s() > 0
            again_s = self.look_again_s()
            if again_s is not None and again_s <= trio.current_time():
                self.is_scan_due = True
            unknown = None if is_quiet else await self._reconcile()
            # Nobody who waits for a cycle waits for that of an idle workspace.
            flush = partial(self._flusher.flush, idle=progress is None)
            flush_id, has_mirror_work = await self._until(flush, self._schedule.wait_hurry)
        except BaseException:
            self._schedule.give_back(oldest_s)
            raise
        self._lease.used()
        if is_quiet:
            await self._flusher.drop()
            return None
        if unknown is not None or not has_mirror_work:
            await self._flusher.drop()
            if unknown is None:
                self._flusher.mirrored_generation = self._flusher.sealed_generation
            return unknown
        return await self._mirror(flush_id, progress)

    async def _reconcile(self) -> Exception | None:
        """Learn the mirror after a restore, and what somebody else did to it.

        When that fails, sealing goes on without a mirror.
        """
        try:
            found = await self._flusher.reconcile(scan=self.is_scan_due)
            settled: set[str] = set()
            if self.outside is not None:
                if self.is_scan_due:
                    self.outside.left.clear()
                if found:
                    # Invariant 3.
                    await self._flusher.check_writer()
                    settled = await self.outside.handle(found)
        except FencedError:
            raise
        except S3wsError as exc:
            return exc
        if self.is_scan_due or found:
            self._note_doubt(any(item.ours and item.path not in settled for item in found))
        self.is_scan_due = False
        self._flusher.reconciled()
        return None

    def look_again_s(self) -> float | None:
        """When the mirror is listed again for what is doubtful; None: not by itself."""
        return self._again_s if self.is_doubtful else None

    def _note_doubt(self, is_doubtful: bool) -> None:
        self._looks = self._looks + 1 if is_doubtful else 0
        self.is_doubtful, self._again_s = is_doubtful, None
        if is_doubtful and self._looks <= LOOKS_MAX:
            self._again_s = trio.current_time() + LOOK_AGAIN_S * 2 ** (self._looks - 1)

    async def _settle(self) -> Exception | None:
        """See to the conflicts that a pass met; the next pass puts what may be put then."""
        flusher = self._flusher
        if self.outside is None:
            return None
        self.outside.missed(flusher.missed)
        flusher.missed = []
        if not flusher.conflicts:
            return None
        try:
            found = await flusher.look_outside()
            flusher.settled(await self.outside.handle(found))
        except S3wsError as exc:
            return exc
        strangers = {item.path for item in found}
        passing = [
            path for path, why in flusher.conflicts.items() if path not in strangers and why != LATE
        ]
        if passing:
            # Gone by now, or ours after all: tried again, but not at once.
            flusher.settled(passing)
            return TransientError("mirror", FILES_PREFIX + passing[0], "it changed meanwhile")
        for path in flusher.conflicts.keys() & self.outside.left.keys():
            flusher.conflicts[path] = self.outside.left[path]
        return None

    async def _mirror(self, flush_id: str, progress: Progress | None) -> Exception | None:
        with self._cache.read() as view:
            total = view.mtodo_count()

        def written(count: int) -> None:
            if progress is not None:
                progress({"phase": "mirroring", "done": count, "total": max(total, count)})

        try:
            result = await self._until(
                lambda: self._flusher.mirror(flush_id, written),
                self._wait_flush_due,
                self._schedule.wait_hurry,
            )
        except S3wsError as exc:
            return exc
        if not result.stopped:
            self._schedule.patience.completed()
        return await self._settle() or result.error

    async def _wait_flush_due(self) -> None:
        patience = self._schedule.patience
        await trio.sleep(patience.wait_s)
        await self._schedule.wait_changes_due()
        patience.cut_off()

    async def seal(self, *, collect: bool) -> Sealed:
        """Seal what is there, and leave the mirror to a later cycle; returns the newest segment.
        Without `collect` no garbage is removed.

        With nothing to seal, of a bucket that is known, no request is made. Raises as a flush does.
        """
        with self._cache.read() as view:
            is_sealed = view.dirty_count() == 0
        known = self._flusher.sealed
        if is_sealed and known is not None and known.number:
            return known
        oldest_s = self._schedule.begin()
        try:
            await self._verify()
            await self._flusher.flush(mirror=False, collect=collect)
        except BaseException:
            self._schedule.give_back(oldest_s)
            raise
        finally:
            # The service may wait for a change, and the mirror is behind by now.
            self._schedule.wake()
        self._lease.used()
        await self._flusher.drop()
        sealed = self._flusher.sealed
        assert sealed is not None
        return sealed

    async def _until(
        self, work: Callable[[], Awaitable[_T]], *waits: Callable[[], Awaitable[None]]
    ) -> _T:
        """Do it; once one of `waits` is over, the mirror's part of it ends early."""
        result: _T | Exception
        async with trio.open_nursery() as nursery:
            for wait in waits:
                nursery.start_soon(self._stop_after, wait)
            try:
                result = await work()
            except Exception as exc:
                # Carried out by hand: a nursery would wrap it in a group.
                result = exc
            nursery.cancel_scope.cancel()
        if isinstance(result, Exception):
            raise result
        return result

    async def _stop_after(self, wait: Callable[[], Awaitable[None]]) -> None:
        await wait()
        # A worker that died meanwhile is told by the pass itself.
        with contextlib.suppress(S3wsError):
            await self._flusher.stop_mirror()
