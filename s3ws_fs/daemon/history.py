"""What the daemon does for the control socket about history: snapshots and turns.

Invariants
1. Before a snapshot the kernel writes back what programs wrote into mapped pages: what was answered
   is in it.
2. Of a mount that only reads nothing is taken and nothing removed.

Called by `daemon.commands`; the handlers by `control.server`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from s3ws_fs.control import server
from s3ws_fs.core import history
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.fuse import mount
from s3ws_fs.replica.follower import Follower
from s3ws_fs.replica.replicator import Replicator
from s3ws_fs.replica.snapshots import list_snapshots

if TYPE_CHECKING:
    from s3ws_fs.daemon.daemon import Daemon

Event = dict[str, Any]

MARKS: Final = {"begin": history.TURN_BEGIN, "end": history.TURN_END}


def replica_of(life: Daemon) -> Replicator | Follower:
    """The replica of a mount that is up. Raises UserError."""
    if life.parts is None or life.state == "restoring":
        raise UserError(
            "the workspace is not mounted yet",
            remedy="try again when it is",
            exit_code=ExitCode.NOT_MOUNTED,
        )
    return life.parts.replica


def replicator_of(life: Daemon) -> Replicator:
    """The same, of a mount that writes."""
    replica = replica_of(life)
    if isinstance(replica, Follower):
        raise UserError(
            "this mount is read-only",
            remedy="Ask on the mount that writes.",
            exit_code=ExitCode.USAGE,
        )
    return replica


class HistoryCommands:
    """The handlers of one daemon."""

    def __init__(self, life: Daemon) -> None:
        self._life = life

    def handlers(self) -> dict[str, server.Handler]:
        """By command."""
        return {
            "snapshot": self._snapshot,
            "snapshots": self._snapshots,
            "turn": self._turn,
            "seal": self._seal,
        }

    async def _write_back(self) -> None:
        if self._life.mount is not None:
            await mount.write_back(self._life.mount)

    async def _snapshot(self, args: Event, emit: server.Emit) -> Event:
        replica = replicator_of(self._life)
        if "delete" in args:
            return await replica.history.drop(_text(args, "delete"))
        name = _text(args, "name") if args.get("name") is not None else ""
        if name:
            history.check_name(name)
        await self._write_back()
        return await replica.snapshot(history.NAMED, name)

    async def _turn(self, args: Event, emit: server.Emit) -> Event:
        replica = replicator_of(self._life)
        kind = MARKS.get(_text(args, "mark"))
        if kind is None:
            raise UserError("a turn begins or ends", exit_code=ExitCode.USAGE)
        name = history.check_name(_text(args, "name"), what="turn")
        await self._write_back()
        return await replica.snapshot(kind, name)

    async def _snapshots(self, args: Event, emit: server.Emit) -> Event:
        return await list_snapshots(replica_of(self._life).worker)

    async def _seal(self, args: Event, emit: server.Emit) -> Event:
        """Seal now, for who looks at the newest point in the bucket; the mirror follows later."""
        replica = replica_of(self._life)
        if isinstance(replica, Follower):
            # There is nothing that could be sealed.
            return {}
        await self._write_back()
        async with replica.history.still():
            sealed = await replica.history.seal()
        return {"number": sealed.number, "generation": sealed.generation}


def _text(args: Event, name: str) -> str:
    value = args.get(name)
    if not isinstance(value, str):
        raise UserError(f"{name} is not a text", exit_code=ExitCode.USAGE)
    return value
