"""The end of a mount: cycles until all is saved, or until it is plain that it can't be.

Invariants
1. It ends: after FINAL_TRIES failures or FINAL_CYCLES_MAX cycles, or when the store is silent for
   FINAL_SILENCE_S.
2. "Nothing is left" is said only when all is sealed and mirrored, and the lease is given back then.

Called by replicator.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import failpoints
from s3ws_fs.core.errors import S3wsError
from s3ws_fs.replica import position, report
from s3ws_fs.replica.base import Progress
from s3ws_fs.replica.cycle import Cycle
from s3ws_fs.replica.flusher import Flusher
from s3ws_fs.replica.lease import LeaseKeeper
from s3ws_fs.replica.schedule import Schedule
from s3ws_fs.transfer.client import WorkerClient
from s3ws_fs.transfer.wire import FencedError

FINAL_CYCLES_MAX: Final = 100
"""Cycles at most, well or not: somebody else may change objects again and again."""
FINAL_TRIES: Final = 5
"""Failed cycles after which the final flush gives up and lists what is not saved."""
FINAL_SILENCE_S: Final = 60.0
"""A store silent for so long ends the final flush: whoever stops a container waits for it."""
SILENCE_POLL_S: Final = 1.0


class _SilentError(S3wsError):
    """The final flush was given up: nothing answers."""


@dataclass
class FinalFlush:
    """One final flush. `run_cycle` runs one and returns its error; it is called under the lock."""

    cache: Cache
    worker: WorkerClient
    flusher: Flusher
    lease: LeaseKeeper
    cycle: Cycle
    schedule: Schedule
    cycle_lock: trio.Lock
    run_cycle: Callable[[Progress], Awaitable[Exception | None]]
    before_release: Callable[[Progress], Awaitable[object]]
    """Called when all is saved and the lease is still held; it has a limit of its own."""
    error: str | None = None
    """Why not everything could be saved."""

    async def run(self, progress: Progress) -> list[str]:
        """Save the rest; returns paths that are not saved. Raises UserError when fenced."""
        tries = 0
        for _ in range(FINAL_CYCLES_MAX):
            async with self.cycle_lock:
                error = await self._cycle_unless_silent(progress)
            if isinstance(error, FencedError):
                raise position.fenced_error(error)
            self.error = None if error is None else str(error)
            if isinstance(error, _SilentError):
                break
            is_quiet = self.lease.quiet_left_s() > 0
            if error is None and not is_quiet and self.cycle.is_clean():
                await self.before_release(progress)
                await self.lease.give_back()
                failpoints.hit(failpoints.FINAL_AFTER)
                return report.conflict_lines(self.flusher)
            if error is None:
                await self.lease.quiet_over(progress)
            else:
                tries += 1
                if tries == FINAL_TRIES:
                    break
                progress({"phase": "waiting for the store", "error": str(error)})
                await trio.sleep(max(0.0, self.schedule.next_try_s - trio.current_time()))
        return report.unsaved(self.cache)

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
            error = await self.run_cycle(progress)
            nursery.cancel_scope.cancel()
        return error
