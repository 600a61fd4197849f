"""The bucket follows the cache: when to flush, what status says, and how it all ends.

Invariants
1. One cycle (flush, then mirror) at a time; `sync` and `final_flush` run their own in between.
2. The mirror never holds up a seal: when a flush is due, the pass is ended early and goes on later.
3. An error never ends the service: health is degraded since then, the wait grows, and the next
   cycle begins by learning where the bucket stands.
4. Fenced is final: the service stops, everything stays in the cache, and every end says so. Reads
   go on, and local changes go to the cache, where `s3ws rescue` finds them.
5. A mount that began without the store (or was adopted) is verified, position and lease, before its
   first flush.

Called by the daemon.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.durability import Durability
from s3ws_fs.core import failpoints
from s3ws_fs.core.backoff import RATE_WINDOW_S, Debounce, Retry
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, S3wsError, TransientError, UserError
from s3ws_fs.core.ids import RandBits
from s3ws_fs.core.layout import FILES_PREFIX
from s3ws_fs.core.types import NeedExtents, Outdated
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.replica import position, report, restore
from s3ws_fs.replica.flusher import Flusher, Pass
from s3ws_fs.replica.hydrate import Hydrator
from s3ws_fs.replica.importing import Import
from s3ws_fs.replica.lease import LeaseKeeper
from s3ws_fs.replica.outside import OutsideChanges
from s3ws_fs.transfer.client import Start, WorkerClient, start_process
from s3ws_fs.transfer.deadline import boot_s
from s3ws_fs.transfer.objects import LATE
from s3ws_fs.transfer.wire import FencedError

log = logging.getLogger(__name__)

SYNC_CYCLES_MAX: Final = 1000
"""Cycles one sync runs at most while files keep changing under it."""
FINAL_CYCLES_MAX: Final = 100
"""Cycles of the final flush at most: somebody else may change objects again and again."""
FINAL_TRIES: Final = 5
"""Failed cycles in a row after which the final flush gives up and lists what is not saved."""
FINAL_SILENCE_S: Final = 60.0
"""A store silent for so long ends the final flush: whoever stops a container waits for it."""
SILENCE_POLL_S: Final = 1.0

Progress = Callable[[dict[str, Any]], None]


class _SilentError(S3wsError):
    """The final flush was given up: nothing answers."""


async def nothing_cached(_: Outdated) -> None:
    """Without a kernel there is nothing to forget."""


class Replicator:
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
        self._config = config
        self._cache = cache
        self._random01 = random01
        self._randbits = randbits
        self.worker = WorkerClient(
            {
                "store": config.store.to_json(),
                "prefix": config.workspace.prefix,
                "cache_dir": str(cache.directory),
                "spool_dir": str(cache.spool_dir),
            },
            reader_check=cache.reader_check,
            start=start_worker,
        )
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
            durability.ensure,
            randbits=randbits,
            host=host,
            epoch=lambda: self._lease.epoch,
        )
        self._hydrator = Hydrator(cache, self.worker, config.read_timeout_s, random01)
        self._policy = Debounce(config.debounce_min_s, config.debounce_max_s)
        self._retry = Retry()
        self._cycle_lock = trio.Lock()
        self._changed = trio.Event()
        self._pending = 0
        self._pending_since_s = 0.0
        self._next_try_s = 0.0
        self._degraded_since_s: float | None = None
        self._error: str | None = None
        self._verified = False
        self._is_adopted = False
        self._paused = False
        self.final_error: str | None = None
        """Why the final flush could not save everything."""
        self._outside: OutsideChanges | None = None
        self._scan_due = False
        """Whether the next cycle looks for what somebody else did, though the mirror is known."""
        self.kernel_forget: Callable[[Outdated], Awaitable[None]] = nothing_cached
        """To be awaited after a change that did not come through the kernel was committed: when it
        returns, programs see it. Set by the daemon. Never within a read's `fetch`."""

    def attach(self, fs: FileSystem) -> None:
        """Where what somebody else did to the mirror is brought into the workspace. Without it,
        that is left alone and told, and nothing is imported."""

        async def forget(outdated: Outdated) -> None:
            await self.kernel_forget(outdated)
            fs.told()

        policy = self._config.outside_changes
        self._outside = OutsideChanges(self._cache, self.worker, fs, policy, forget)
        self._fs = fs

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
            self._scan_due = True
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
            self._changed.set()

    def _note_old_dirt(self) -> None:
        """Dirt of an earlier mount is as old as it is."""
        with self._cache.read() as view:
            count = view.dirty_count()
            oldest_ns = min((first for _, _, _, first in view.dirty()), default=None)
        if count and oldest_ns is not None:
            age_s = max(0.0, (self._cache.now_ns() - oldest_ns) / 1e9)
            now_s = trio.current_time()
            self._policy.changed(now_s, 1, oldest_s=now_s - age_s)
            self._changed.set()

    # --- the service -----------------------------------------------------------------------

    def notify(self) -> None:
        """A change was committed. Called once a change, so it must cost next to nothing."""
        if not self._pending:
            self._pending_since_s = trio.current_time()
        self._pending += 1
        if not self._changed.is_set():
            self._changed.set()

    def _take_changes(self) -> None:
        if self._pending:
            now_s = trio.current_time()
            span_s = max(RATE_WINDOW_S, now_s - self._pending_since_s)
            rate = math.ceil(self._pending * RATE_WINDOW_S / span_s)
            self._pending = 0
            self._policy.changed(now_s, rate, oldest_s=self._pending_since_s)
        if self._changed.is_set():
            # Never one that is not set: another task may wait on it, and would wait for ever.
            self._changed = trio.Event()

    async def run(self) -> None:
        """Flush when due, until cancelled (or fenced)."""
        while self._flusher.fenced is None:
            await self._wait_due()
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

    def _mirror_behind(self) -> bool:
        with self._cache.read() as view:
            behind = view.mtodo_count()
        return (
            behind > self._flusher.conflict_inos
            or self._scan_due
            or not self._cache.get_json("mirror_known")
        )

    async def _wait_due(self) -> None:
        while True:
            self._take_changes()
            now_s = trio.current_time()
            due_s = self._due_s(now_s)
            if due_s is not None and due_s <= now_s:
                return
            with trio.move_on_after(math.inf if due_s is None else due_s - now_s):
                await self._changed.wait()
                if due_s is None:
                    continue
                # Changes in a burst are taken together, so that they do not wake us one by one.
                await trio.sleep(min(0.1, max(0.0, due_s - trio.current_time())))

    def _due_s(self, now_s: float) -> float | None:
        due_s = self._policy.due_s()
        if due_s is None and self._flusher.fenced is None:
            if not self._verified:
                due_s = now_s
            elif self._mirror_behind():
                due_s = now_s + self._lease.quiet_left_s()
        return None if due_s is None else max(due_s, self._next_try_s)

    async def _cycle_safely(self) -> bool:
        """One cycle; errors go to health and the wait before the next. True when all went well."""
        try:
            error = await self._cycle(interruptible=True, progress=None)
        except Exception as exc:
            error = exc
        return self._judge(error)

    def _judge(self, error: Exception | None) -> bool:
        if isinstance(error, FencedError):
            self._flusher.fence(error)
        if error is None:
            if self._error is not None:
                log.info("the bucket is in step again")
            self._retry.worked()
            self._next_try_s = 0.0
            self._degraded_since_s = self._error = None
            return True
        if self._error is None:
            log.warning("flushing failed, it will be tried again: %s", error)
            self._degraded_since_s = trio.current_time()
        if not isinstance(error, S3wsError | OSError):
            log.error("unexpected error while flushing", exc_info=error)
        self._error = str(error) or type(error).__name__
        self._next_try_s = trio.current_time() + self._retry.failed(self._random01())
        # The service may wait for a change: it was a sync's own cycle, perhaps, that failed.
        self._changed.set()
        return False

    async def _cycle(self, *, interruptible: bool, progress: Progress | None) -> Exception | None:
        """Flush, then mirror. Raises what the flush raised; returns the mirror's first error."""
        self._take_changes()
        oldest_s = self._policy.oldest_s
        self._policy.frozen(trio.current_time())
        if progress is not None:
            progress({"phase": "sealing"})
        try:
            await self._verify()
            is_quiet = self._lease.quiet_left_s() > 0
            unknown = None if is_quiet else await self._reconcile()
            flush_id, has_mirror_work = await self._flusher.flush()
        except BaseException:
            if oldest_s is not None:
                self._policy.restore_dirt(oldest_s)
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
        return await self._mirror(flush_id, interruptible, progress)

    async def _reconcile(self) -> Exception | None:
        """Learn the mirror after a restore, and what somebody else did to it.

        When that fails, sealing goes on without a mirror.
        """
        try:
            found = await self._flusher.reconcile(scan=self._scan_due)
            if self._outside is not None:
                if self._scan_due:
                    self._outside.left.clear()
                if found:
                    # A stale writer must not take the new one's doings for somebody else's.
                    await self._flusher.check_writer()
                    await self._outside.handle(found)
        except FencedError:
            raise
        except S3wsError as exc:
            return exc
        self._scan_due = False
        self._flusher.reconciled()
        return None

    async def _settle(self) -> Exception | None:
        """See to the conflicts that a pass met; the next pass puts what may be put then."""
        flusher = self._flusher
        if self._outside is None:
            return None
        self._outside.missed(flusher.missed)
        flusher.missed = []
        if not flusher.conflicts:
            return None
        try:
            found = await flusher.look_outside()
            flusher.settled(await self._outside.handle(found))
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
        for path in flusher.conflicts.keys() & self._outside.left.keys():
            flusher.conflicts[path] = self._outside.left[path]
        return None

    async def _mirror(
        self, flush_id: str, interruptible: bool, progress: Progress | None
    ) -> Exception | None:
        with self._cache.read() as view:
            total = view.mtodo_count()

        def written(count: int) -> None:
            if progress is not None:
                progress({"phase": "mirroring", "done": count, "total": max(total, count)})

        result: Pass | S3wsError
        async with trio.open_nursery() as nursery:
            if interruptible:
                nursery.start_soon(self._stop_when_due)
            try:
                result = await self._flusher.mirror(flush_id, written)
            except S3wsError as exc:
                # Carried out by hand: a nursery would wrap it in a group.
                result = exc
            nursery.cancel_scope.cancel()
        if not isinstance(result, Pass):
            return result
        return await self._settle() or result.error

    async def _stop_when_due(self) -> None:
        while True:
            self._take_changes()
            due_s = self._policy.due_s()
            now_s = trio.current_time()
            if due_s is not None and due_s <= now_s:
                # A worker that died meanwhile is told by the pass itself.
                with contextlib.suppress(S3wsError):
                    await self._flusher.stop_mirror()
                return
            if due_s is None:
                await self._changed.wait()
            else:
                await trio.sleep(due_s - now_s)

    # --- asked for -------------------------------------------------------------------------

    async def sync(self, progress: Progress, *, outside: bool = False) -> dict[str, Any]:
        """Seal and mirror now all that was changed before the call. Raises UserError.

        With `outside`, look before for what somebody else did to the mirror, and save that too.
        """
        wanted = self._cache.generation
        self._scan_due = self._scan_due or (outside and self._outside is not None)
        is_asked = outside
        for _ in range(SYNC_CYCLES_MAX):
            async with self._cycle_lock:
                error = await self._asked_cycle(progress)
            if error is not None:
                raise self._as_user_error(error)
            if is_asked:
                # What came from outside by it is part of what was asked for.
                wanted, is_asked = self._cache.generation, False
            is_known = bool(self._cache.get_json("mirror_known"))
            done = self._flusher.mirrored_generation >= wanted and is_known
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

    async def _asked_cycle(self, progress: Progress) -> Exception | None:
        try:
            error = await self._cycle(interruptible=True, progress=progress)
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
        tries = 0
        failpoints.hit(failpoints.FINAL_BEFORE)
        try:
            if not self._verified and self._is_clean():
                return []
            while tries < FINAL_TRIES:
                async with self._cycle_lock:
                    error = await self._cycle_unless_silent(progress)
                if isinstance(error, FencedError):
                    raise position.fenced_error(error)
                self.final_error = None if error is None else str(error)
                if isinstance(error, _SilentError):
                    break
                is_quiet = self._lease.quiet_left_s() > 0
                if error is None and not is_quiet and self._is_clean():
                    await self._lease.give_back()
                    failpoints.hit(failpoints.FINAL_AFTER)
                    return report.conflict_lines(self._flusher)
                if error is None:
                    await self._lease.quiet_over(progress)
                else:
                    tries += 1
                    if tries < FINAL_TRIES:
                        progress({"phase": "waiting for the store", "error": str(error)})
                        await trio.sleep(max(0.0, self._next_try_s - trio.current_time()))
            return report.unsaved(self._cache)
        finally:
            with trio.CancelScope(shield=True):
                await self.worker.close()

    async def _cycle_unless_silent(self, progress: Progress) -> Exception | None:
        """A cycle that is given up (_SilentError) when the store keeps silent in it."""
        error: Exception | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal error
                while True:
                    await trio.sleep(SILENCE_POLL_S)
                    late = self.worker.late
                    if late is None:
                        continue
                    progress({"phase": "waiting for the store", "error": late[0]})
                    if trio.current_time() - late[1] >= FINAL_SILENCE_S:
                        error = _SilentError(late[0])
                        nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            error = await self._asked_cycle(progress)
            nursery.cancel_scope.cancel()
        return error

    def _is_clean(self) -> bool:
        with self._cache.read() as view:
            is_done = view.dirty_count() == 0
            behind = view.mtodo_count()
        is_known = bool(self._cache.get_json("mirror_known"))
        return is_done and is_known and behind <= self._flusher.conflict_inos

    async def fetch(self, need: NeedExtents) -> None:
        """Bring cold extents into the cache. Raises FsError EIO."""
        await self._hydrator.fetch(need)

    def set_make_room(self, make_room: Callable[[], Awaitable[bool]]) -> None:
        """What to call when there is no room for fetched bytes (see Hydrator.make_room)."""
        self._hydrator.make_room = make_room

    async def watch(self) -> None:
        """After a failed read: see by itself when the store is back."""
        await self._hydrator.watch()

    async def hydrate(self) -> None:
        """Fetch everything cold in the background, then return."""
        await self._hydrator.run()

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
            "health": self._health(now_s),
            "hydration": report.hydration(self._hydrator),
            "requests": self.worker.requests,
            "worker_pid": self.worker.pid,
            "lease": self._lease.status(),
        }

    def _flush_status(self, now_s: float) -> dict[str, Any]:
        flusher = self._flusher
        state = flusher.state
        due_s = self._policy.due_s()
        if state == "idle" and self._error is not None:
            state = "backing_off"
        elif state == "idle" and (due_s is not None or self._pending):
            state = "waiting"
        due_s = None if due_s is None else max(0.0, max(due_s, self._next_try_s) - now_s)
        last_s = flusher.last_sealed_s
        return {
            "state": state,
            "next_due_s": None if due_s is None else round(due_s, 3),
            "last_sealed_age_s": None if last_s is None else round(now_s - last_s, 3),
            "checkpoint_error": flusher.checkpoint_error,
        }

    def _health(self, now_s: float) -> dict[str, Any]:
        fenced = self._flusher.fenced
        if fenced is not None:
            return {
                "state": "fenced",
                "since_s": round(now_s - self._flusher.fenced_s, 3),
                "by": fenced.holder,
                "error": str(fenced),
            }
        flushing = (self._error, self._degraded_since_s)
        return report.health(now_s, flushing, self.worker.late, self._hydrator.trouble)
