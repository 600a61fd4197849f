"""The bucket follows the cache: when to flush, what status says, and how it all ends.

Invariants
1. One cycle (flush, then mirror) at a time; `sync` and `final_flush` run their own in between.
2. An error never ends the service: health is degraded since then, the wait grows, and the next
   cycle begins by learning where the bucket stands.
3. Fenced is final: the service stops, everything stays in the cache, and every end says so. Reads
   go on, and local changes go to the cache, where `s3ws rescue` finds them.
4. A mount that began without the store (or was adopted) is verified, position and lease, before its
   first flush.

Called by the daemon.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.durability import Durability
from s3ws_fs.core import failpoints
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, S3wsError, StartOverError, UserError
from s3ws_fs.core.ids import RandBits
from s3ws_fs.core.types import Outdated
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.replica import position, report, restore
from s3ws_fs.replica.base import Health, Progress, Replica, nothing_more
from s3ws_fs.replica.cycle import Cycle
from s3ws_fs.replica.final import FinalFlush
from s3ws_fs.replica.flusher import Flusher
from s3ws_fs.replica.importing import Import
from s3ws_fs.replica.lease import LeaseKeeper
from s3ws_fs.replica.outside import OutsideChanges
from s3ws_fs.replica.rewind import Means, RewindAsk, Rewinder
from s3ws_fs.replica.schedule import Schedule
from s3ws_fs.replica.snapshots import Snapshots
from s3ws_fs.transfer.client import Start, start_process
from s3ws_fs.transfer.deadline import boot_s
from s3ws_fs.transfer.wire import FencedError

log = logging.getLogger(__name__)

SYNC_CYCLES_MAX: Final = 1000
"""Cycles one sync runs at most while files keep changing under it."""
SYNC_RESTARTS_MAX: Final = 3
"""A sync that was asked for goes on with a new worker so often. One may die by no fault of the
store: the kernel ends it when it was held up for longer than a proof of the lease lasts.
"""


class Replicator(Replica):
    """Keeps the bucket in step with one cache."""

    def __init__(
        self,
        config: MountConfig,
        cache: Cache,
        durability: Durability,
        *,
        random01: Callable[[], float] = random.random,
        randbits: RandBits = secrets.randbits,
        host: str | None = None,
        start_worker: Start = start_process,
        boot: Callable[[], float] = boot_s,
    ) -> None:
        """`host`: what a person calls this machine, when not by its own name."""
        super().__init__(config, cache, random01=random01, start_worker=start_worker)
        self._randbits = randbits
        host = position.host_name() if host is None else host
        self._lease = LeaseKeeper(
            cache,
            self.worker,
            config.lease_s,
            host=host,
            boot=boot,
            random01=random01,
            randbits=randbits,
        )
        self._flusher = Flusher(
            cache,
            self.worker,
            config,
            durability.cover,
            randbits=randbits,
            host=host,
            epoch=lambda: self._lease.epoch,
        )
        self._schedule = Schedule(config)
        self.notify = self._schedule.notify
        """A change was committed. Called once a change: no layer of calls is put around it."""
        self._cycle = Cycle(cache, self._flusher, self._lease, self._schedule, self._verify)
        self._cycle_lock = trio.Lock()
        self.history = Snapshots(
            cache,
            self.worker,
            self._cycle,
            self._schedule,
            self._cycle_lock,
            judge=self._judge,
            is_paused=lambda: self._paused,
        )
        self._health = Health(
            "flushing failed, it will be tried again", "the bucket is in step again"
        )
        self._verified = False
        self._is_adopted = False
        self.before_release: Callable[[Progress], Awaitable[object]] = nothing_more
        """Awaited at the end of a mount, when all is saved and the lease still held."""
        self._paused = False
        self._chilled = trio.Event()
        self._stopped = durability.stopped
        self.rewinder: Rewinder | None = None
        """Restores; where there is a filesystem (see attach)."""

    def attach(self, fs: FileSystem) -> None:
        """Where what somebody else did to the mirror is brought into the workspace. Without it,
        that is left alone and told, and nothing is imported."""

        async def forget(outdated: Outdated) -> None:
            await self.kernel_forget(outdated)
            fs.told()

        policy = self._config.outside_changes
        self._cycle.outside = OutsideChanges(self._cache, self.worker, fs, policy, forget)
        self._fs = fs
        self.rewinder = Rewinder(
            self._cache,
            self.worker,
            fs,
            Means(
                history=self.history.still,
                snapshot=self.history.take,
                sealed_generation=lambda: self.sealed_generation,
                unsnap=self.history.unsnap,
                forget=forget,
                renew=lambda: self.kernel_renew(),
                stopped=self._stopped,
                chilled=lambda: self._chilled.set(),
            ),
        )

    @property
    def _outside(self) -> OutsideChanges | None:
        return self._cycle.outside

    @property
    def sealed_generation(self) -> int:
        """Generation of the newest seal known."""
        return self._flusher.sealed_generation

    # --- before the mount ------------------------------------------------------------------

    async def prepare(self, progress: Progress) -> None:
        """Restore or verify the cache. Raises UserError; then nothing was pushed."""
        try:
            away = await restore.prepare(
                self._cache,
                self.worker,
                self._config,
                self._lease,
                progress,
                randbits=self._randbits,
                bring_in=self._importer,
            )
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._lease.give_back()
                await self.worker.close()
            raise
        self._hydrator.note_done_without()
        self._flusher.load()
        if self._outside is not None:
            self._outside.load()
            self._cycle.is_scan_due = True
        self._verified = away is None
        if away is not None:
            self._judge(away)
        self._note_old_dirt()

    def take_over(self) -> None:
        """Go on where the daemon before was killed or replaced: nothing is asked of the store.

        Position and lease are verified before the first flush, and the lease is taken from nobody,
        whatever the mount was started with: its command is an old one by now.
        """
        restore.take_over(self._cache, self.worker)
        self._flusher.load()
        if self._outside is not None:
            self._outside.load()
        if self.rewinder is not None:
            self.rewinder.take_over()
        self._is_adopted = True
        self._note_old_dirt()

    async def _importer(self, progress: Progress) -> bool:
        """Bring in what somebody put below files/ by hand; False when there is nothing."""
        if self._outside is None:
            return False
        bringing = Import(self._cache, self.worker, self._fs, self._config)
        done = await bringing.run(progress)
        for path, why in bringing.left.items():
            self._outside.leave(path, why)
        return done

    async def _verify(self) -> None:
        """Raises FencedError, StoreError, UserError."""
        if not self._verified:
            await restore.verify(
                self._cache,
                self.worker,
                self._config,
                self._lease,
                randbits=self._randbits,
                is_adopted=self._is_adopted,
            )
            # A seal of ours whose answer was lost may have been found.
            self._flusher.load()
            self._verified = True

    async def keep_lease(self) -> None:
        """The service that keeps the lease of an idle mount, until cancelled (or fenced)."""
        try:
            await self._lease.run()
        except FencedError as exc:
            self._judge(exc)
            self._schedule.wake()

    def _note_old_dirt(self) -> None:
        """Dirt of an earlier mount is as old as it is."""
        with self._cache.read() as view:
            count = view.dirty_count()
            oldest_ns = min((first for _, _, _, first in view.dirty()), default=None)
        if count and oldest_ns is not None:
            age_s = max(0.0, (self._cache.now_ns() - oldest_ns) / 1e9)
            self._schedule.note_old_dirt(age_s)

    # --- the service -----------------------------------------------------------------------

    async def run(self) -> None:
        """Flush when due, until cancelled (or fenced)."""
        if self.rewinder is not None:
            await self.rewinder.forgotten.wait()
        while self._flusher.fenced is None:
            await self._schedule.wait_due(self._idle_due_s)
            if not self._may_begin():
                # Paused for good: another daemon goes on.
                await trio.sleep_forever()
            async with self._cycle_lock:
                if self._may_begin():
                    await self._cycle_safely()

    def _may_begin(self) -> bool:
        return self._flusher.fenced is None and not self._paused

    async def pause(self) -> None:
        """No cycle is under way when this returns, and `run` begins none."""
        self._paused = True
        async with self._cycle_lock:
            return

    def _idle_due_s(self, now_s: float) -> float | None:
        """When a cycle is due though nothing changed."""
        if self._flusher.fenced is not None:
            return None
        if not self._verified:
            return now_s
        if self._cycle.is_mirror_behind():
            return now_s + self._lease.quiet_left_s()
        wanted = (self._cycle.look_again_s(), self._flusher.idle.due_s(now_s))
        return min((due_s for due_s in wanted if due_s is not None), default=None)

    async def _cycle_safely(self) -> bool:
        """One cycle; errors go to health and the wait before the next. True when all went well."""
        try:
            error = await self._cycle.run(None)
        except Exception as exc:
            error = exc
        return self._judge(error)

    def _judge(self, error: Exception | None) -> bool:
        if isinstance(error, FencedError):
            self._flusher.fence(error)
        if error is None:
            self._health.worked()
            self._schedule.next_try_s = 0.0
            return True
        self._health.failed(error)
        if not isinstance(error, S3wsError | OSError):
            log.error("unexpected error while flushing", exc_info=error)
        wait_s = self._health.retry.failed(self._random01())
        self._schedule.next_try_s = trio.current_time() + wait_s
        # The service may wait for a change: it was a sync's own cycle, perhaps, that failed.
        self._schedule.wake()
        return False

    # --- asked for -------------------------------------------------------------------------

    async def sync(self, progress: Progress, *, outside: bool = False) -> dict[str, Any]:
        """Seal and mirror now all that was changed before the call. Raises UserError.

        With `outside`, look before for what somebody else did to the mirror, and save that too.
        """
        wanted = self._cache.generation
        cycle = self._cycle
        looks = cycle.is_doubtful or (outside and cycle.outside is not None)
        cycle.is_scan_due = cycle.is_scan_due or looks
        is_asked, restarts = outside, 0
        for _ in range(SYNC_CYCLES_MAX):
            async with self._cycle_lock:
                error = await self._asked_cycle(progress)
            if isinstance(error, StartOverError) and restarts < SYNC_RESTARTS_MAX:
                restarts += 1
                continue
            if error is not None:
                raise self._as_user_error(error)
            if is_asked:
                # What came from outside by it is part of what was asked for.
                wanted, is_asked = self._cache.generation, False
            done = self._flusher.mirrored_generation >= wanted and cycle.is_mirror_known()
            if done or (self._flusher.sealed_generation >= wanted and self._flusher.conflicts):
                break
            await self._lease.quiet_over(progress)
        return {
            "generation": wanted,
            "sealed": self._flusher.sealed_generation,
            "mirrored": self._flusher.mirrored_generation,
            "conflicts": report.conflicts(self._flusher),
            "unmirrored": report.unmirrored(self._flusher),
            "outside": report.outside(self._outside),
        }

    async def snapshot(self, kind: str, name: str) -> dict[str, Any]:
        """Take a snapshot of what is there now (see Snapshots.take). Raises UserError."""
        async with self.history.still():
            return await self.history.take(kind, name)

    async def keep_hydrated(self) -> None:
        """Fetch in the background what is cold, and what a restore brought back."""
        while True:
            await self.hydrate()
            await self._chilled.wait()
            self._chilled = trio.Event()

    async def rewind(self, ask: RewindAsk, progress: Progress) -> dict[str, Any]:
        """Bring an earlier state back (see rewind.Rewinder). Raises UserError."""
        if self.rewinder is None:
            raise UserError("this mount can't be restored")
        if self._flusher.fenced is not None:
            raise position.fenced_error(self._flusher.fenced)
        try:
            return await self.rewinder.run(ask, progress)
        except (S3wsError, OSError) as exc:
            if isinstance(exc, FencedError):
                self._judge(exc)
                raise position.fenced_error(exc) from exc
            if isinstance(exc, UserError):
                raise
            raise UserError(
                f"nothing was restored: {exc}",
                remedy="Nothing was changed. See `s3ws status`, and try again.",
                exit_code=ExitCode.STORE,
            ) from exc

    async def _asked_cycle(self, progress: Progress) -> Exception | None:
        try:
            error = await self._cycle.run(progress)
        except BaseExceptionGroup as group:
            error = next((e for e in group.exceptions if isinstance(e, Exception)), None)
            if error is None:
                raise
        except Exception as exc:
            error = exc
        self._judge(error)
        return error

    def _as_user_error(self, error: Exception) -> UserError:
        if isinstance(error, UserError):
            return error
        if isinstance(error, FencedError):
            return position.fenced_error(error)
        return UserError(
            f"not everything could be saved: {error}",
            remedy="The cache keeps it, and saving is tried again and again (see `s3ws status`).",
            exit_code=ExitCode.STORE,
        )

    async def final_flush(self, progress: Progress) -> list[str]:
        """Save the rest; returns paths that are not saved. Raises UserError when fenced."""
        failpoints.hit(failpoints.FINAL_BEFORE)
        try:
            if not self._verified and self._cycle.is_clean():
                return []
            ending = FinalFlush(
                self._cache,
                self.worker,
                self._flusher,
                self._lease,
                self._cycle,
                self._schedule,
                self._cycle_lock,
                self._asked_cycle,
                self.before_release,
            )
            unsaved = await ending.run(progress)
            self.final_error = ending.error
            return unsaved
        finally:
            with trio.CancelScope(shield=True):
                await self.worker.close()

    # --- status ----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The replica's part of the status document. Never waits."""
        now_s = trio.current_time()
        flusher = self._flusher
        return {
            "generation": {
                "head": self._cache.generation,
                "sealed": flusher.sealed_generation,
                "mirrored": flusher.mirrored_generation,
            },
            "dirty": report.dirty(self._cache),
            "flush": self._flush_status(now_s),
            "mirror": report.mirror(self._cache, flusher),
            "outside": report.outside(self._outside),
            "health": self.health(),
            "hydration": report.hydration(self._hydrator),
            "requests": self.worker.requests,
            "worker_pid": self.worker.pid,
            "lease": self._lease.status(),
        }

    def counts(self) -> dict[str, Any]:
        """What only grows, for metrics."""
        flusher = self._flusher
        return super().counts() | {
            "flushes": dict(self._health.tries),
            "seals": {"count": flusher.seals, "sum_s": round(flusher.seals_s, 3)},
        }

    def summary(self) -> dict[str, Any]:
        """How much is not saved, in little time, and the health. Never waits."""
        return {**report.summary(self._cache), "health": self.health()}

    async def next_change(self) -> None:
        """Until there is something to save."""
        await self._schedule.next_change()

    def _flush_status(self, now_s: float) -> dict[str, Any]:
        flusher = self._flusher
        state = flusher.state
        if state == "idle" and self._health.error is not None:
            state = "backing_off"
        elif state == "idle" and self._schedule.is_waiting:
            state = "waiting"
        due_s = self._schedule.due_s()
        due_s = None if due_s is None else max(0.0, due_s - now_s)
        last_s = flusher.last_sealed_s
        return {
            "state": state,
            "next_due_s": None if due_s is None else round(due_s, 3),
            "last_sealed_age_s": None if last_s is None else round(now_s - last_s, 3),
            "checkpoint_error": flusher.checkpoint_error,
            "garbage_error": flusher.garbage_error,
        }

    def health(self) -> dict[str, Any]:
        """Well, degraded or fenced; since when, and why. Never waits."""
        now_s = trio.current_time()
        fenced = self._flusher.fenced
        if fenced is not None:
            return {
                "state": "fenced",
                "since_s": round(now_s - self._flusher.fenced_s, 3),
                "by": fenced.holder,
                "error": str(fenced),
            }
        return report.health(now_s, self._health.trouble, self.worker.late, self._hydrator.trouble)
