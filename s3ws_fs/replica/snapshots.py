"""Snapshots of a mount: taken, dropped, listed; and history held still for whoever restores.

Invariants
1. A snapshot is of the newest sealed point, after everything that was answered before it was asked
   for is sealed. It does not wait for the mirror: a pass under way is ended early.
2. It needs the store. Without it there is a UserError and no snapshot; local work is as it was.
3. Garbage is collected inside a cycle only: in a `still` block none is under way, and the seal
   before a restore collects none, so that a point found there stays whole until the block ends.

Called by replicator (for the daemon's commands and restores).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import history
from s3ws_fs.core.errors import ExitCode, S3wsError, UserError
from s3ws_fs.replica import position
from s3ws_fs.replica.cycle import Cycle
from s3ws_fs.replica.position import Sealed
from s3ws_fs.replica.schedule import Schedule
from s3ws_fs.transfer.client import WorkerClient
from s3ws_fs.transfer.wire import FencedError


class Snapshots:
    """What the commands about history ask of one mount."""

    def __init__(
        self,
        cache: Cache,
        worker: WorkerClient,
        cycle: Cycle,
        schedule: Schedule,
        cycle_lock: trio.Lock,
        judge: Callable[[Exception | None], bool],
        is_paused: Callable[[], bool],
    ) -> None:
        """`judge` is told how a seal went, for health; `is_paused`: another daemon goes on."""
        self._cache = cache
        self._worker = worker
        self._cycle = cycle
        self._schedule = schedule
        self._cycle_lock = cycle_lock
        self._judge = judge
        self._is_paused = is_paused

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """No cycle is under way in the block, and no garbage is collected. Raises UserError."""
        with self._schedule.hurrying():
            await self._cycle_lock.acquire()
        try:
            if self._is_paused():
                raise UserError(
                    "the mount is being handed to another daemon",
                    remedy="Try again in a moment.",
                    exit_code=ExitCode.NOT_MOUNTED,
                )
            yield
        finally:
            self._cycle_lock.release()

    async def take(
        self, kind: str, name: str, said: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Seal, and take a snapshot of that; within `still`. Raises UserError.

        `said`: more that its object says (of one before a restore, what that is of).

        The answer is the snapshot's JSON with `ref`, and `is_new`: False when it stood already.
        """
        created_ns = self._cache.now_ns()
        if kind == history.NAMED:
            name = history.check_name(name) if name else _name_of(created_ns)
        elif kind not in history.UNDOABLE:
            history.check_name(name, what="turn")
        sealed = await self.seal(collect=kind not in history.UNDOABLE)
        snap = {
            "number": sealed.number,
            "header_hash": sealed.hash,
            "generation": sealed.generation,
            "name": name,
            "kind": kind,
            "created_ns": created_ns,
            **(said or {}),
        }
        try:
            return await self._ask("no snapshot was taken", "snap-put", snap=snap)
        except Exception:
            if kind in history.UNDOABLE:
                # It may stand, and only the answer was lost: then the next undo would be of it.
                await self.unsnap(sealed.number, history.snap_id(kind, name, created_ns))
            raise

    async def unsnap(self, number: int, ident: str) -> None:
        """Take a snapshot of before away that was for nothing; where that can't be, it stays."""
        with trio.CancelScope(shield=True), contextlib.suppress(S3wsError, OSError):
            await self._worker.ask("unsnap", number=number, ident=ident)

    async def seal(self, *, collect: bool = True) -> Sealed:
        """Seal everything that was answered; within `still`. Raises UserError.

        Without `collect` no garbage is removed by it, whatever is due.
        """
        try:
            sealed = await self._cycle.seal(collect=collect)
        except Exception as exc:
            self._judge(exc)
            raise _as_user_error("the newest changes could not be sealed", exc) from exc
        self._judge(None)
        return sealed

    async def drop(self, ref: str) -> dict[str, Any]:
        """Remove the snapshot of a name, or a turn's marks. Raises UserError."""
        async with self.still():
            return await self._ask("the snapshot was not removed", "snap-drop", ref=ref)

    async def _ask(self, failed: str, cmd: str, **args: Any) -> dict[str, Any]:
        try:
            return await self._worker.ask(cmd, **args)
        except Exception as exc:
            if isinstance(exc, FencedError):
                self._judge(exc)
            raise _as_user_error(failed, exc) from exc


async def list_snapshots(worker: WorkerClient) -> dict[str, Any]:
    """All snapshots, also for a mount that only reads. Raises UserError."""
    found: list[dict[str, Any]] = []

    async def on_part(part: dict[str, Any], _: memoryview) -> None:
        found.extend(part["snapshots"])

    try:
        done = await worker.ask("snap-list", on_part)
    except Exception as exc:
        raise _as_user_error("the snapshots could not be read", exc) from exc
    return {"snapshots": found, "damaged": done["damaged"]}


def _name_of(created_ns: int) -> str:
    """The name of a snapshot that nobody named."""
    when = datetime.fromtimestamp(created_ns // 1_000_000_000, UTC)
    return f"snapshot-{when:%Y%m%d-%H%M%S}-{created_ns // 1_000_000 % 1000:03}"


def _as_user_error(failed: str, exc: Exception) -> Exception:
    if isinstance(exc, UserError):
        return exc
    if isinstance(exc, FencedError):
        return position.fenced_error(exc)
    if not isinstance(exc, S3wsError | OSError):
        return exc
    return UserError(
        f"{failed}: {exc}",
        remedy="Try again when the store answers (see `s3ws status`). Nothing else was changed.",
        exit_code=ExitCode.STORE,
    )
