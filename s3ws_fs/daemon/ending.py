"""How a mount ends: by a signal, by umount(8), with programs that still use it; the final flush.

Invariants
1. When the mount is still in use at the end of a signal's grace: flush, refuse changes, flush
   again, detach. So what any program was told is written, is saved.
2. The final flush never raises: whatever happens, the end says what is not saved.
3. A second signal gives up on flushing, and on nothing else.
4. A mount that was taken away here, but is held by another mount namespace (a container that bound
   it), is not waited for without end: after the same grace it ends as in 1.

Called by daemon.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

import trio

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.daemon.commands import Commands, Outcome, only_error, users_text
from s3ws_fs.daemon.parts import Parts
from s3ws_fs.fuse import mount
from s3ws_fs.fuse.operations import Operations

if TYPE_CHECKING:
    from s3ws_fs.daemon.daemon import Daemon

log = logging.getLogger(__name__)

ANSWER_TIME_S: Final = 5.0
"""How long the end waits for the answers to those who asked for it."""

ANSWER_POLL_S: Final = 0.02

ELSEWHERE_S: Final = 1.0
"""How long the kernel may take to end a connection whose last mount went."""

SAME_SIGNAL_S: Final = 1.0
"""A signal so soon after another is no further one."""


class Ending:
    """The end of one daemon's mount."""

    def __init__(self, life: Daemon) -> None:
        self._life = life
        self.given_up = trio.Event()
        self.gone_here = trio.Event()

    async def obey(self, signals: Any) -> None:
        """Take each signal for what it says, until cancelled."""
        life = self._life
        first_s = None
        async for number in signals:
            name = signal.Signals(number).name
            now_s = trio.current_time()
            if first_s is not None and now_s - first_s < SAME_SIGNAL_S:
                # To a whole group at once: it reaches us, and our holder, which passes it on.
                continue
            first_s = now_s
            if life.stop.is_set() and life.state == "unmounting":
                log.warning("%s again: giving up on the final flush", name)
                self.given_up.set()
            else:
                log.info("%s: unmounting", name)
                life.request_stop()

    async def leave_when_asked(
        self, parts: Parts, operations: Operations, ours: mount.Mount, nursery: trio.Nursery
    ) -> None:
        """Wait until the end is asked for; then unmount, or save and detach."""
        life = self._life
        await life.stop.wait()
        await operations.started.wait()
        if life.line is not None:
            await life.line.through.wait()
        try:
            await mount.unmount(ours, grace_s=life.config.unmount_grace_s)
            self.gone_here.set()
            return
        except mount.MountBusyError:
            users = users_text(ours.mountpoint)
            log.warning("still in use after %g s: %s", life.config.unmount_grace_s, users)
        except OSError as exc:
            log.error("unmounting failed: %s", exc)
        await self._cut_off(parts, operations, ours, nursery)

    async def leave_who_holds_it_elsewhere(
        self, parts: Parts, operations: Operations, ours: mount.Mount, nursery: trio.Nursery
    ) -> None:
        """Once the mount was taken away here: when serving goes on all the same, end it."""
        grace_s = self._life.config.unmount_grace_s
        await self.gone_here.wait()
        # Serving ends at once, and this with it, unless somebody else has the mount.
        await trio.sleep(ELSEWHERE_S)
        self._life.progress({"phase": "waiting for a container that still has it"})
        await trio.sleep(max(0.0, grace_s - ELSEWHERE_S))
        log.warning("another mount namespace (a container) has it after %g s", grace_s)
        await self._cut_off(parts, operations, ours, nursery)

    async def _cut_off(
        self, parts: Parts, operations: Operations, ours: mount.Mount, nursery: trio.Nursery
    ) -> None:
        """Save, refuse changes, and end the mount although it is in use."""
        life = self._life
        life.state = "unmounting"
        await self._save_what_is_there(parts, ours)
        operations.refuse_changes()
        await parts.kernel.close()
        life.is_mount_gone = True
        try:
            await mount.detach(ours)
        except OSError as exc:
            log.error("detaching failed: %s", exc)
        nursery.cancel_scope.cancel()

    async def _save_what_is_there(self, parts: Parts, ours: mount.Mount) -> None:
        """Most of the final flush, while programs still use the mount. Never raises."""
        life = self._life
        if life.config.read_only:
            return
        try:
            if ours.stands():
                await mount.write_back(ours)
            async with self._unless_given_up():
                await parts.replica.sync(life.progress)
        except Exception as exc:
            log.warning("flush before detaching failed: %s", exc)

    @contextlib.asynccontextmanager
    async def _unless_given_up(self) -> AsyncIterator[None]:
        """The block ends early, without an error, when a second signal says so."""
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await self.given_up.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            yield
            nursery.cancel_scope.cancel()

    async def final_flush(self, parts: Parts) -> Outcome:
        """Save the rest. Never raises: whatever happens, the end says what is not saved."""
        life = self._life
        life.state = "unmounting"
        unsaved: list[str] | None = None
        code, why = ExitCode.NOT_SAVED, ""
        if parts.backups is not None:
            await parts.backups.stop()
        try:
            async with self._unless_given_up():
                unsaved = await parts.replica.final_flush(life.progress)
                if unsaved and parts.replica.final_error:
                    why = f": {parts.replica.final_error}"
        except Exception as exc:
            error = only_error(exc)
            log.error("the final flush failed", exc_info=error)
            why = f": {error}"
            if isinstance(error, UserError):
                # Its remedy speaks of a mount that still stands.
                why, code = f": {error.message}", error.exit_code
        if unsaved is None:
            unsaved = parts.unsaved()
        if not unsaved and not why:
            log.info("everything is saved")
            return Outcome(ExitCode.OK, git=None if parts.git is None else parts.git.told())
        log.error("%d paths are not saved: %s", len(unsaved), ", ".join(unsaved[:20]))
        message = f"{len(unsaved)} paths are not saved, the cache keeps them{why}"
        if parts.backups is not None and code is not ExitCode.FENCED:
            place = await parts.backups.final(why)
            if place is not None:
                message += f"; a backup of the workspace is in {place}"
        return Outcome(code, message, unsaved)

    async def answer_all(self, commands: Commands) -> None:
        """Let those who asked for the end hear how it was, before the socket goes."""
        self._life.finished.set()
        self._life.followers.close()
        with trio.move_on_after(ANSWER_TIME_S):
            while commands.answering:
                await trio.sleep(ANSWER_POLL_S)
            await trio.sleep(ANSWER_POLL_S)
