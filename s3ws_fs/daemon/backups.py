"""What the daemon does for the control socket about backups.

Invariants
1. Before a backup the kernel writes back what programs wrote into mapped pages.
2. Progress never holds up the backup: events that the client does not take in time are dropped.

Called by `daemon.commands`; the handler by `control.server`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import trio

from s3ws_fs.control import server
from s3ws_fs.core.errors import ExitCode, S3wsError, StoreError, UserError
from s3ws_fs.fuse import mount
from s3ws_fs.snapshot.git.service import GitState
from s3ws_fs.snapshot.service import Backups

if TYPE_CHECKING:
    from s3ws_fs.daemon.daemon import Daemon

Event = dict[str, Any]

EVENTS_QUEUED_MAX: Final = 256


class BackupCommands:
    """The handler of one daemon."""

    def __init__(self, life: Daemon) -> None:
        self._life = life

    def handlers(self) -> dict[str, server.Handler]:
        """By command."""
        return {"backup": self._backup}

    async def _backup(self, args: Event, emit: server.Emit) -> Event:
        """Make a backup now, and bundles of git repositories; answers when all is in the bucket."""
        backups, git, ours = self._of_mount()
        await mount.write_back(ours)
        send, receive = trio.open_memory_channel[Event](EVENTS_QUEUED_MAX)

        def heard(event: Event) -> None:
            with contextlib.suppress(trio.WouldBlock):
                send.send_nowait({"event": "progress", **event})

        async def tell() -> None:
            async for event in receive:
                await emit(event)

        result: Event | Exception
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            with send:
                try:
                    result = dict(await backups.backup(heard))
                    if git is not None:
                        result["git"] = await git.sync(heard)
                except (S3wsError, OSError) as exc:
                    # Carried out by hand: a nursery would wrap it in a group.
                    result = exc
        if isinstance(result, Exception):
            raise _as_user_error(result)
        return result

    def _of_mount(self) -> tuple[Backups, GitState | None, mount.Mount]:
        life = self._life
        if life.mount is None or life.parts is None or life.state != "ready":
            raise UserError(
                "the workspace is not mounted, or is being unmounted",
                remedy="`s3ws status` tells",
                exit_code=ExitCode.NOT_MOUNTED,
            )
        if life.parts.backups is None:
            raise UserError(
                "a read-only mount makes no backups",
                remedy="Ask on the mount that writes; `s3ws backups` lists those that are there.",
                exit_code=ExitCode.USAGE,
            )
        return life.parts.backups, life.parts.git, life.mount


def _as_user_error(exc: Exception) -> UserError:
    if isinstance(exc, UserError):
        return exc
    return UserError(
        f"no backup was made: {exc}",
        remedy="The workspace itself is saved as always; see `s3ws status`.",
        exit_code=ExitCode.STORE if isinstance(exc, StoreError) else ExitCode.INTERNAL,
    )
