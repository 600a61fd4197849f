"""One mount from its start to its end: the composition root.

    restoring    cache open, control socket answers, replica restores the workspace or verifies it
                 ("taking over" instead, where the mount stands already)
    ready        mounted and serving
    unmounting   asked to stop (signal, control `unmount`) or the mount went (umount(8)): last flush

With a holder (daemon/held.py) a daemon may also begin with the mount that another one left, and end
so that the next one goes on with it.

Invariants
1. The mount appears only when the workspace is whole, and nothing is flushed before.
2. Every way to the end is the same end: no more requests → final flush → cache closed → exit code.
   It is 0 only when all that was acknowledged is sealed and mirrored.
3. A fault in a service (flusher, hydrator, timer) never takes the mount away: it is logged, and the
   service starts again after a pause.
4. A daemon that took over a mount serves at once, also when the store is down: its cache is the
   workspace. It drops no orphan that the kernel still knows.
5. An upward need of a lower layer is a callable that is passed in here.

Called by the daemon's entry (`__main__`) and its tests.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio

from s3ws_fs import __version__
from s3ws_fs.cache.cache import Cache, disk_error, open_cache
from s3ws_fs.control import logfile, registry, server
from s3ws_fs.control.servicemanager import ServiceManager
from s3ws_fs.core.clock import CLOCK_REALTIME_COARSE, Clock
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, FormatError, FsError, UserError
from s3ws_fs.daemon import logs, points
from s3ws_fs.daemon.commands import Commands, Event, Followers, Outcome
from s3ws_fs.daemon.ending import Ending
from s3ws_fs.daemon.held import HolderLine
from s3ws_fs.daemon.parts import Parts, identity
from s3ws_fs.daemon.supervision import Supervision
from s3ws_fs.fuse import mount
from s3ws_fs.fuse.operations import Operations
from s3ws_fs.fuse.tally import Tally
from s3ws_fs.fuse.translate import IdMap
from s3ws_fs.replica.follower import Follower

log = logging.getLogger(__name__)

RESTART_PAUSE_S: Final = 1.0
RESTART_PAUSE_MAX_S: Final = 60.0
"""A service that fails again and again is started again after 1, 2, 4, … seconds."""

LOG_INTERVAL_S: Final = 60.0
"""How often the log is cut when it is full, and what storms left out is said."""

HAND_ON_WAIT_S: Final = 5.0
"""How long a flush under way may hold up a restart."""

Report = Callable[[Event], None]


class Daemon:
    """A mount's life. `report` hands events to whoever started the daemon; it must not block."""

    def __init__(
        self,
        config: MountConfig,
        report: Report,
        *,
        log_path: str | None = None,
        line: HolderLine | None = None,
        manager: ServiceManager | None = None,
    ) -> None:
        self.config = config
        self.line = line
        self._took_over = line is not None and line.kernel_fd is not None
        self._held: mount.Held | None = None
        self._handing_on = trio.Event()
        self._report_start = report
        self._log_path = log_path
        self._state = "taking over" if self._took_over else "restoring"
        self.serving = trio.Event()
        self.started_s = time.monotonic()
        self._clock = Clock(partial(time.clock_gettime_ns, CLOCK_REALTIME_COARSE))
        self.stop = trio.Event()
        self._preparing = trio.CancelScope()
        self.is_mount_gone = False
        self.mount: mount.Mount | None = None
        self.finished = trio.Event()
        self.outcome: Outcome | None = None
        self.followers = Followers()
        self.parts: Parts | None = None
        self._commands = Commands(self)
        self.ending = Ending(self)
        self.supervision = Supervision(self, manager or ServiceManager(None))
        self._operations: Operations | None = None

    @property
    def state(self) -> str:
        """As the head of this file has it."""
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state
        self.supervision.changed()

    # --- the whole life --------------------------------------------------------------------

    async def run(self) -> Outcome:
        """Live. Raises UserError when the mount never came to be."""
        config = self.config
        if not self._took_over:
            mount.check_mountpoint(config.mountpoint)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.ending.obey, signals)
                nursery.start_soon(_keep_running, "supervision", self.supervision.run)
                if self.line is not None:
                    nursery.start_soon(self.line.watch, self._lost_holder)
                path = registry.socket_path(config.runtime_dir, config.mountpoint)
                await nursery.start(server.serve, path, self._commands.handlers())
                try:
                    self.outcome = await self._with_cache()
                except UserError as exc:
                    self.outcome = Outcome(exc.exit_code, exc.message)
                    raise
                finally:
                    self.supervision.ended(self.outcome)
                    await self.ending.answer_all(self._commands)
                    nursery.cancel_scope.cancel()
        return self.outcome

    async def _with_cache(self) -> Outcome:
        config = self.config
        if not self._took_over:
            points.remove_left(config)
        cache = open_cache(
            Path(config.workspace_cache_dir),
            identity(config),
            quota_bytes=config.max_size_bytes,
            now_ns=self._clock,
            may_renew=not self._took_over,
            with_log=True,
        )
        log.info("cache %s: %s", cache.directory, cache.recovery)
        if told := cache.recovered.told():
            log.warning("%s", told)
            self._report_start({"event": "warning", "message": told})
        if self.line is not None:
            self._held = self.line.open(cache)
        before = self._entry_before()
        info = registry.MountInfo.for_this_process(
            config,
            log_path=self._log_path,
            version=__version__,
            holder_pid=None if self.line is None else self.line.pid,
        )
        registry.write(config.runtime_dir, info)
        is_over = False
        try:
            outcome = await self._with_services(cache)
            is_over = outcome.exit_code is ExitCode.OK
        except UserError:
            is_over = not self._took_over
            if before is None:
                registry.remove(config.runtime_dir, config.mountpoint, pid=info.pid)
            else:
                registry.write(config.runtime_dir, before)
            raise
        finally:
            self.parts = None
            _close(cache)
            if is_over:
                points.remove_own(config)
        if is_over:
            registry.remove(config.runtime_dir, config.mountpoint, pid=info.pid)
        return outcome

    def _entry_before(self) -> registry.MountInfo | None:
        """What the registry says of the mount before this one, to be put back if we fail."""
        try:
            return registry.read(self.config.runtime_dir, self.config.mountpoint)
        except FormatError as exc:
            log.warning("damaged registry entry replaced: %s", exc)
            return None

    def faults(self) -> int:
        """How many requests of the kernel ended in EIO by a fault of ours."""
        return 0 if self._operations is None else self._operations.faults.count

    def tally(self) -> Tally:
        """What the kernel asked for."""
        return Tally() if self._operations is None else self._operations.tally

    def _lost_holder(self) -> None:
        if self.mount is None and self.state == "restoring":
            self.request_stop()

    def can_hand_on(self) -> bool:
        """Whether another daemon could go on with this mount."""
        return self.line is not None and self.line.can_hand_on

    def hand_on(self) -> None:
        """Come to an end without ending the mount: the holder starts the next daemon."""
        self._handing_on.set()

    def request_stop(self) -> None:
        """Come to the end: unmount, final flush, exit."""
        self.stop.set()
        self.supervision.changed()
        self._preparing.cancel()

    async def _with_services(self, cache: Cache) -> Outcome:
        result: Outcome | UserError
        async with trio.open_nursery() as nursery:
            self.parts = Parts.make(self.config, cache)
            try:
                result = await self._live(self.parts, nursery)
            except UserError as exc:
                # Carried out by hand: a nursery would wrap it in a group.
                result = exc
            finally:
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await self.parts.replica.worker.close()
        if isinstance(result, UserError):
            raise result
        return result

    async def _live(self, parts: Parts, services: trio.Nursery) -> Outcome:
        """Restore, serve, flush. The cache stays open behind it."""
        await self._prepare(parts)
        for name, service in parts.services(self.config).items():
            services.start_soon(_keep_running, name, service)
        services.start_soon(_keep_running, "log", self._keep_log)
        try:
            await self._serve(parts)
        except UserError:
            raise
        except Exception:
            if self.can_hand_on():
                log.exception("serving the mount failed; the next daemon goes on")
                return Outcome(ExitCode.INTERNAL, "serving the mount failed")
            # The mount is gone, but what it acknowledged is in the cache: save it first.
            log.exception("serving the mount failed")
            parts.drop_orphans()
            outcome = await self.ending.final_flush(parts)
            return Outcome(
                outcome.exit_code or ExitCode.INTERNAL, "serving the mount failed", outcome.unsaved
            )
        if self._handing_on.is_set():
            log.info("the next daemon goes on")
            return Outcome(ExitCode.RESTART)
        parts.drop_orphans()
        return await self.ending.final_flush(parts)

    async def _prepare(self, parts: Parts) -> None:
        with self._preparing:
            if self.stop.is_set():
                self._preparing.cancel()
            if self._took_over:
                parts.take_over()
                return
            await self._restore(parts)
            config = self.config
            if not config.read_only:
                parts.fs.make_root(uid=config.root_uid, gid=config.root_gid, mode=config.root_mode)
            parts.drop_orphans()
        if self._preparing.cancelled_caught:
            raise UserError(
                "stopped before the mount was ready",
                remedy="nothing was changed in the bucket; mount again",
            )

    async def _restore(self, parts: Parts) -> None:
        try:
            await parts.replica.prepare(self.progress)
        except FsError as exc:
            raise disk_error(parts.cache.directory, exc) from exc

    async def _serve(self, parts: Parts) -> None:
        config = self.config
        operations = Operations(
            parts.fs,
            fetch=parts.replica.fetch,
            wait_durable=parts.durability.ensure,
            make_room=parts.room.make_room,
            settled=self._clock.settled,
            once=None if self.line is None else self.line.once,
            uids=IdMap(config.uid_map),
            gids=IdMap(config.gid_map),
            fetch_deadline_s=self.config.read_timeout_s,
            is_following=config.read_only,
            on_access=parts.replica.accessed if isinstance(parts.replica, Follower) else None,
        )
        self._operations = operations
        if isinstance(parts.replica, Follower):
            parts.replica.note_rewritten = operations.note_rewritten
            if self._took_over:
                operations.note_rewritten(None)
        with mount.mounted(
            operations,
            config.mountpoint,
            allow_other=config.allow_other,
            read_only=config.read_only,
            held=self._held,
            leave=self._leaves_mount,
        ) as ours:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._announce, parts, operations, ours)
                    nursery.start_soon(_keep_running, "hydrator", parts.replica.keep_hydrated)
                    for leave in (
                        self.ending.leave_when_asked,
                        self.ending.leave_who_holds_it_elsewhere,
                    ):
                        nursery.start_soon(leave, parts, operations, ours, nursery)
                    nursery.start_soon(self._hand_on_when_asked, parts, nursery)
                    await mount.serve(
                        adaptive_wait_us=config.adaptive_wait_us,
                        hold=parts.durability.hold,
                        device=ours.device,
                        turn=parts.cache,
                    )
                    self.is_mount_gone = not self._handing_on.is_set()
                    await parts.kernel.close()
                    nursery.cancel_scope.cancel()
            finally:
                self.mount = None
        if not self._handing_on.is_set():
            log.info("the mount is gone")

    def _leaves_mount(self) -> bool:
        """At the end of serving: whether the mount stays, for the next daemon."""
        return self.can_hand_on() and not self.is_mount_gone

    async def _hand_on_when_asked(self, parts: Parts, nursery: trio.Nursery) -> None:
        await self._handing_on.wait()
        # What is under way with the store or the kernel ends, or waits for the next daemon.
        with trio.move_on_after(HAND_ON_WAIT_S):
            await parts.replica.pause()
        await parts.kernel.close()
        nursery.cancel_scope.cancel()

    async def _announce(self, parts: Parts, operations: Operations, ours: mount.Mount) -> None:
        await operations.started.wait()
        if self.line is not None:
            await self.line.through.wait()
        parts.kernel.open(ours.kernel_fd)
        parts.reaper.notify()
        if not self._took_over:
            await mount.show_root(ours)
        self.mount = ours
        self.state = "ready"
        self.serving.set()
        if self.line is not None:
            self.line.serving()
        log.info("%s %s", "goes on with" if self._took_over else "mounted on", ours.mountpoint)
        self._report_start({"event": "ready", "pid": os.getpid()})
        await self._tell_the_rest(parts)

    async def _tell_the_rest(self, parts: Parts) -> None:
        """What the daemon before had committed, and the kernel was not told of."""
        try:
            await parts.finish_rewind()
            outdated = parts.fs.outdated()
            if outdated is None:
                return
            if self._took_over:
                await parts.kernel.forget(outdated)
            parts.fs.told()
        except (FormatError, OSError, FsError) as exc:
            log.error("programs may see names and bytes as they were before: %s", exc)

    def progress(self, event: Event) -> None:
        """Hand a progress event to the launcher and to whoever looks on. Never waits."""
        event = {"event": "progress", **event}
        self.supervision.heard(event)
        if self.state == "restoring":
            self._report_start(event)
        self.followers.say(event)

    async def _keep_log(self) -> None:
        while True:
            if self._log_path is not None:
                logfile.cap(sys.stderr.fileno(), self._log_path)
            logs.summarise()
            await trio.sleep(LOG_INTERVAL_S)


def _close(cache: Cache) -> None:
    """Whatever its disk says now: the outcome already says what is in the bucket."""
    try:
        cache.close()
    except FsError as exc:
        log.error("the cache was not closed cleanly: %s", exc)


async def _keep_running(name: str, service: Callable[[], Awaitable[None]]) -> None:
    """Run a service until it returns; after a fault start it again (invariant 3)."""
    pause_s = RESTART_PAUSE_S
    while True:
        started = trio.current_time()
        try:
            await service()
            return
        except Exception:
            log.exception("%s failed; it starts again in %.0f s", name, pause_s)
        if trio.current_time() - started > RESTART_PAUSE_MAX_S:
            pause_s = RESTART_PAUSE_S
        await trio.sleep(pause_s)
        pause_s = min(2 * pause_s, RESTART_PAUSE_MAX_S)
