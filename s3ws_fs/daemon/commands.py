"""What the daemon does for the control socket: status, sync, unmount; and who looks on meanwhile.

Invariants
1. `unmount` answers when all is over: everything saved, or a ReplyError with the list of what is
   not. A busy mount is refused (exit code 11) and stays as it is.
2. An onlooker never delays anything: one that reads slowly misses events.

Called by `daemon.daemon`; the handlers by `control.server`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio

from s3ws_fs import __version__
from s3ws_fs.control import server
from s3ws_fs.control.wire import ReplyError
from s3ws_fs.core.config import INTERVAL_S_MAX
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.daemon.backups import BackupCommands
from s3ws_fs.daemon.history import HistoryCommands
from s3ws_fs.daemon.parts import status_document
from s3ws_fs.daemon.rewinding import RewindCommands
from s3ws_fs.daemon.watching import WatchCommands
from s3ws_fs.fuse import mount, table

if TYPE_CHECKING:
    from s3ws_fs.daemon.daemon import Daemon

FOLLOW_QUEUE_MAX: Final = 256
"""Progress events that wait for one onlooker; a slow one misses the newer ones."""

USERS_LISTED_MAX: Final = 5
"""Programs that an answer names as those who keep the mount busy."""

UNSAVED_LISTED_MAX: Final = 1000
"""Paths that an answer names; the count says how many there are."""

Event = dict[str, Any]

UNSAVED_REMEDY: Final = "mount the workspace again with the same settings: it goes on saving"
FENCED_REMEDY: Final = (
    "these changes are in this cache only, so keep it; `s3ws rescue` exports them, and `s3ws mount`"
    " will say how to go on with what is in the bucket"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a mount ended. `unsaved`: paths that are not in the bucket as they are in the cache."""

    exit_code: ExitCode
    message: str = ""
    unsaved: list[str] = field(default_factory=list)
    git: Event | None = None

    def answer(self) -> Event:
        """What `unmount` answers. Raises ReplyError when not everything is saved."""
        if self.exit_code is ExitCode.OK:
            return {"saved": True} | ({} if self.git is None else {"git": self.git})
        raise ReplyError(
            self.message,
            remedy=FENCED_REMEDY if self.exit_code is ExitCode.FENCED else UNSAVED_REMEDY,
            exit_code=self.exit_code,
            details={
                "unsaved": self.unsaved[:UNSAVED_LISTED_MAX],
                "unsaved_count": len(self.unsaved),
            },
        )


class Followers:
    """Those who want to see progress."""

    def __init__(self) -> None:
        self._channels: set[trio.MemorySendChannel[Event]] = set()
        self._closed = False

    def say(self, event: Event) -> None:
        """Pass an event on to all of them, now or never."""
        for channel in self._channels:
            with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError):
                channel.send_nowait(event)

    async def follow(self, emit: server.Emit) -> None:
        """Pass events on to `emit` until `close`."""
        send, receive = trio.open_memory_channel[Event](FOLLOW_QUEUE_MAX)
        if self._closed:
            return
        self._channels.add(send)
        try:
            async for event in receive:
                await emit(event)
        finally:
            self._channels.discard(send)

    async def meanwhile(self, emit: server.Emit, work: Callable[[], Awaitable[Event]]) -> Event:
        """Do something, and pass events on meanwhile. Raises what `work` raises."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.follow, emit)
                result = await work()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # The client is told the error itself, with its exit code.
            raise only_error(group) from None
        return result

    def close(self) -> None:
        """There will be no more events."""
        self._closed = True
        for channel in self._channels:
            channel.close()


class Commands:
    """The handlers of one daemon."""

    def __init__(self, life: Daemon) -> None:
        self._life = life
        self.answering = 0
        """How many `unmount` requests wait for the end."""

    def handlers(self) -> dict[str, server.Handler]:
        """By command."""
        return {
            "status": self._status,
            "sync": self._sync,
            "unmount": self._unmount,
            "restart": self._restart,
            **HistoryCommands(self._life).handlers(),
            **BackupCommands(self._life).handlers(),
            **RewindCommands(self._life).handlers(),
            **WatchCommands(self._life).handlers(),
        }

    async def _status(self, args: Event, emit: server.Emit) -> Event:
        life = self._life
        if life.parts is None:
            raise UserError(
                "the daemon is ending" if life.outcome else "the daemon is starting",
                remedy="ask again in a moment",
                exit_code=ExitCode.NOT_MOUNTED,
            )
        return status_document(
            life.config,
            life.parts,
            state=life.state,
            uptime_s=time.monotonic() - life.started_s,
            faults=life.faults(),
            holder=None if life.line is None else life.line.status(),
            tally=life.tally() if args.get("counts") is True else None,
        )

    async def _sync(self, args: Event, emit: server.Emit) -> Event:
        life = self._life
        if life.parts is None or life.state == "restoring":
            raise UserError(
                "the workspace is not mounted yet",
                remedy="try again when it is",
                exit_code=ExitCode.NOT_MOUNTED,
            )
        if life.mount is not None:
            await mount.write_back(life.mount)
        outside, parts = args.get("outside") is True, life.parts

        async def save() -> Event:
            result: Event = await parts.replica.sync(life.progress, outside=outside)
            if parts.git is not None:
                result["git"] = await parts.git.sync(life.progress)
            return result

        return await life.followers.meanwhile(emit, save)

    async def _restart(self, args: Event, emit: server.Emit) -> Event:
        """Answers when all is ready for the next daemon; then this one ends."""
        life = self._life
        if life.mount is None or life.parts is None or life.state != "ready":
            raise UserError(
                "the workspace is not mounted, or is being unmounted",
                remedy="`s3ws status` tells",
                exit_code=ExitCode.NOT_MOUNTED,
            )
        if not life.can_hand_on():
            raise UserError(
                "this mount can't be handed to another daemon: it has no holder, or the kernel"
                " can't send requests again (Linux 6.9 and later can)",
                remedy="unmount, and mount again",
                exit_code=ExitCode.CANT_RESTART,
            )
        # What is on disk already need not be flushed while everybody waits.
        await life.parts.durability.cover()
        life.hand_on()
        return {"pid": os.getpid(), "version": __version__}

    async def _unmount(self, args: Event, emit: server.Emit) -> Event:
        life = self._life
        self.answering += 1
        try:
            if life.state == "taking over":
                await life.serving.wait()
            if life.mount is not None:
                await self._umount(life.mount, args)
            elif life.state == "restoring":
                life.request_stop()
            await life.followers.follow(emit)
            await life.finished.wait()
        finally:
            self.answering -= 1
        if life.outcome is None:
            raise UserError("the daemon ended by an error of its own", remedy="see its log")
        answer = life.outcome.answer()
        return answer | {"read_only": True} if life.config.read_only else answer

    async def _umount(self, ours: mount.Mount, args: Event) -> None:
        mountpoint = ours.mountpoint
        grace_s = args.get("grace_s", 0.0)
        if not isinstance(grace_s, int | float) or not 0 <= grace_s <= INTERVAL_S_MAX:
            raise UserError("grace_s is not a number of seconds", exit_code=ExitCode.USAGE)
        try:
            await mount.unmount(ours, grace_s=float(grace_s))
        except mount.MountBusyError:
            raise UserError(
                f"{mountpoint} is in use by {users_text(mountpoint)}; it stays mounted",
                remedy="end those programs (or leave the directory), then unmount again",
                exit_code=ExitCode.BUSY,
            ) from None
        except OSError as exc:
            raise UserError(f"{mountpoint} can't be unmounted: {exc}") from exc
        self._life.ending.gone_here.set()


def users_text(mountpoint: str) -> str:
    """Who keeps the mount busy, for a message."""
    users = table.users(mountpoint, USERS_LISTED_MAX)
    return ", ".join(f"{name} (pid {pid})" for pid, name in users) or "a program not visible"


def only_error(exc: BaseException) -> BaseException:
    """What a nursery wrapped: groups of one are opened."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc
