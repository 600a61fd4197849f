"""What the daemon does for the control socket when an earlier state is wanted back: restore, undo.

Invariants
1. Before anything is compared the kernel writes back what programs wrote into mapped pages: it
   belongs to the state before.
2. Of a mount that only reads, or is on its way in or out, nothing is restored.

Called by `daemon.commands`; the handlers by `control.server`.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from s3ws_fs.control import server
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.history import UNDO
from s3ws_fs.daemon.history import replicator_of
from s3ws_fs.fuse import mount
from s3ws_fs.replica.rewind import RewindAsk

if TYPE_CHECKING:
    from s3ws_fs.daemon.daemon import Daemon

Event = dict[str, Any]


class RewindCommands:
    """The handlers of one daemon."""

    def __init__(self, life: Daemon) -> None:
        self._life = life

    def handlers(self) -> dict[str, server.Handler]:
        """By command."""
        return {"restore": self._restore, "undo": self._undo}

    async def _restore(self, args: Event, emit: server.Emit) -> Event:
        """Bring an earlier state back: `ref`, and `paths` below the root (none: all)."""
        ref, paths = args.get("ref"), args.get("paths", [])
        if not isinstance(ref, str) or not isinstance(paths, list):
            raise UserError("a restore needs a ref, and a list of paths", exit_code=ExitCode.USAGE)
        return await self._rewind(ref, paths, args, emit)

    async def _undo(self, args: Event, emit: server.Emit) -> Event:
        """Bring back what stood before the last restore, or the last undo."""
        return await self._rewind(UNDO, [], args, emit)

    async def _rewind(self, ref: str, paths: list[Any], args: Event, emit: server.Emit) -> Event:
        life = self._life
        replica = replicator_of(life)
        if life.mount is None or life.state != "ready":
            raise UserError(
                "the workspace is not mounted, or is being unmounted",
                remedy="`s3ws status` tells",
                exit_code=ExitCode.NOT_MOUNTED,
            )
        try:
            names = tuple(os.fsencode(path) for path in paths)
        except (TypeError, UnicodeEncodeError) as exc:
            raise UserError("a path is no text", exit_code=ExitCode.USAGE) from exc
        ask = RewindAsk(
            ref,
            names,
            everything=args.get("everything") is True,
            dry_run=args.get("dry_run") is True,
        )
        await mount.write_back(life.mount)
        return await life.followers.meanwhile(emit, partial(replica.rewind, ask, life.progress))
