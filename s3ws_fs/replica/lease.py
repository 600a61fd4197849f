"""The lease, as the daemon keeps it: taken at the mount, kept while it stands, given back then.

While the worker changes the bucket, its gate renews the lease by the way (transfer/gate.py). Here
is the rest: a mount with nothing to do extends its lease, for the longer the longer it is idle, by
a worker that ends again at once.

Invariants
1. Nothing is sealed before `take` succeeded, and that takes nothing from anybody alive unless a
   person said so.
2. After a take-over the mirror is left alone until the one before can't change it any more
   (`quiet_left_s`), over our own restarts too; then it is reconciled.
3. A lease that lapsed while the store was away is looked at again, never assumed: the renewal is
   conditional, and succeeds if and only if nobody took it.

Called by replicator and restore.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core.errors import S3wsError
from s3ws_fs.core.ids import RandBits, new_id
from s3ws_fs.core.lease import (
    LAPSE_SLACK_S,
    LAPSED,
    TAKEN,
    Grant,
    idle_lease_s,
    renew_after_s,
)
from s3ws_fs.replica import position
from s3ws_fs.transfer.client import WorkerClient
from s3ws_fs.transfer.wire import FencedError

RETRY_S: Final = 30.0
"""Pause after a renewal of an idle lease that failed; less when the lease is short."""
RETRY_PARTS: Final = 6
JITTER: Final = 0.25
"""Renewals of many mounts that started together drift apart by up to this part of the wait."""
RELEASE_S: Final = 10.0
"""How long the end of a mount waits for giving the lease back; else it lapses."""
QUIET: Final = "lease_quiet"
"""Meta value: until when (CLOCK_BOOTTIME) the mirror is left alone, and how long that was."""

Progress = Callable[[dict[str, Any]], None]


class LeaseKeeper:
    """The lease of one mount."""

    def __init__(
        self,
        cache: Cache,
        worker: WorkerClient,
        lease_s: float,
        *,
        host: str,
        boot: Callable[[], float],
        random01: Callable[[], float],
        randbits: RandBits,
    ) -> None:
        self._cache = cache
        self._worker = worker
        self._lease_s = lease_s
        self._host = host
        self._boot = boot
        self._randbits = randbits
        self._random01 = random01
        self._used_s = boot()
        self._quiet_until_s = 0.0
        self._taken = trio.Event()

    def _grant(self) -> Grant | None:
        found = self._worker.hello.get("lease")
        return None if found is None else Grant.from_json(found)

    @property
    def epoch(self) -> int:
        """Of our lease; 0 without one."""
        grant = self._grant()
        return 0 if grant is None else grant.lease.epoch

    def used(self) -> None:
        """The mount is not idle: something was flushed."""
        self._used_s = self._boot()

    async def take(
        self, state: dict[str, Any], *, take_over: bool, deadline_s: float
    ) -> dict[str, Any] | None:
        """Take the lease; returns what stands in the journal if that may differ from `state`.

        Raises UserError (exit 16) when another mount has it, StoreError.
        """
        header = state["header"]
        writer = position.writer_id(self._cache, self._randbits)
        claim = {
            "writer": writer,
            "host": self._host,
            "pid": os.getpid(),
            "since_ns": self._cache.now_ns(),
            "lease_s": self._lease_s,
            "epoch_floor": 0 if header is None else header["epoch"],
            "take_over": take_over,
        }
        is_ours = header is not None and header["writer"] == writer
        taken = await self._worker.ask(
            "lease", claim=claim, uuid=new_id(self._randbits), ours=is_ours, deadline_s=deadline_s
        )
        if taken["how"] in (LAPSED, TAKEN):
            self._cache.put_json("mirror_known", False)
        self._be_quiet(taken["quiet_s"])
        self.used()
        self._taken.set()
        fresh: dict[str, Any] | None = taken["state"]
        return fresh

    def _be_quiet(self, quiet_s: float) -> None:
        now_s = self._boot()
        if quiet_s:
            quiet_s += LAPSE_SLACK_S
            self._quiet_until_s = now_s + quiet_s
            self._cache.put_json(QUIET, {"until_s": self._quiet_until_s, "quiet_s": quiet_s})
            return
        noted = self._cache.get_json(QUIET)
        if noted is not None:
            # After a reboot the clock began anew: the whole time then.
            left_s = min(noted["until_s"] - now_s, noted["quiet_s"])
            self._quiet_until_s = now_s + left_s

    def quiet_left_s(self) -> float:
        """How long the mirror has to be left alone; 0 when it need not."""
        return max(0.0, self._quiet_until_s - self._boot())

    async def quiet_over(self, progress: Progress) -> None:
        """Wait until the mirror may be touched."""
        left_s = self.quiet_left_s()
        if left_s:
            progress({"phase": "waiting for the end of the lease that was taken over"})
            await trio.sleep(left_s)

    async def run(self) -> None:
        """Keep the lease of an idle mount alive. Raises FencedError when somebody took it."""
        await self._taken.wait()
        while True:
            grant = self._grant()
            if grant is None:
                return
            # Drawn anew each time we look, it would only ever come too early.
            part = 1 - JITTER * self._random01()
            due_s = grant.sent_s + renew_after_s(grant.lease.lasts_ms / 1e3) * part
            while (wait_s := due_s - self._boot()) > 0:
                await trio.sleep(wait_s)
            newest = self._grant()
            if newest is None or newest.sent_s != grant.sent_s:
                # The gate renewed it meanwhile.
                continue
            try:
                await self._renew()
            except FencedError:
                raise
            except S3wsError:
                # The next flush will say that the store is away; a lapsed lease harms nobody.
                await trio.sleep(min(RETRY_S, self._lease_s / RETRY_PARTS))

    async def _renew(self) -> None:
        idle_for_s = self._boot() - self._used_s
        lasts_s = idle_lease_s(self._lease_s, idle_for_s)
        await self._worker.ask("renew", lasts_s=lasts_s, then_end=True)

    async def give_back(self) -> None:
        """Say that we are done; a failure is no harm, the lease lapses then."""
        if self._worker.hello.get("lease") is None:
            return
        with trio.move_on_after(RELEASE_S, shield=True):
            try:
                await self._worker.ask("release", deadline_s=RELEASE_S)
            except S3wsError:
                return
            self._worker.hello.pop("lease", None)

    def status(self) -> dict[str, Any]:
        """For the status document."""
        grant = self._grant()
        if grant is None:
            return {"state": "none", "epoch": None, "left_s": None}
        left_s = grant.sent_s + grant.lease.lasts_ms / 1e3 - self._boot()
        return {
            "state": "held" if left_s > 0 else "lapsed",
            "epoch": grant.lease.epoch,
            "left_s": round(max(0.0, left_s), 1),
        }
