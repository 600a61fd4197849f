"""A read-only mount follows the bucket: it looks for new seals, and shows each at one instant.

Invariants
1. Nothing is ever written to the bucket: the worker's store refuses it (ScopedStore, read-only).
2. What is shown is one sealed point: a segment, or a rebuild, is one transaction of the cache,
   which carries the position too.
3. The store may be away for as long as it likes: what is shown stays, and says since when.
4. A number that is missing is taken for "not sealed yet" only if it was looked for less than
   SURE_S ago; else the journal is surveyed, and what was collected as garbage is made good by a
   rebuild from the checkpoint, under the living mount.
5. Looks get rare while there is nothing new and nobody reads; meanwhile the worker rests.

Called by the daemon, in the place of a Replicator.
"""

from __future__ import annotations

import logging
import math
import random
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.following import Applied, apply_segment, rebuild
from s3ws_fs.cache.following import Sealed as SealedRecords
from s3ws_fs.core.backoff import Pace
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import (
    CacheError,
    ExitCode,
    FormatError,
    S3wsError,
    StoreError,
    TransientError,
    UserError,
)
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.types import ROOT_INO, Outdated
from s3ws_fs.replica import report, restore
from s3ws_fs.replica.base import Health, Progress, Replica
from s3ws_fs.replica.position import DONE_WITHOUT, Sealed
from s3ws_fs.transfer import spool
from s3ws_fs.transfer.client import Start, start_process
from s3ws_fs.transfer.spool import RecordsFile, open_records

log = logging.getLogger(__name__)

SURE_S: Final = 1800.0
"""Half of the age below which nothing is collected as garbage (transfer.garbage.GC_GRACE_S)."""
REST_S: Final = 10.0
"""With longer waits than this between looks the worker is ended meanwhile."""
COLD_KEYS_MAX: Final = 100_000
"""Cold extents remembered one by one for the hydrator; with more it looks through all of them."""


def _boottime_s() -> float:
    """Seconds since boot, those of a suspended host included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass
class Shown:
    """Where the segment that is shown comes from, for status."""

    host: str = ""
    created_ns: int = 0


class Follower(Replica):
    """Shows the newest seal; the parts of a Replicator that a mount without writes needs."""

    def __init__(
        self,
        config: MountConfig,
        cache: Cache,
        *,
        random01: Callable[[], float] = random.random,
        boottime_s: Callable[[], float] = _boottime_s,
        start_worker: Start = start_process,
    ) -> None:
        super().__init__(
            config, cache, random01=random01, start_worker=start_worker, read_only=True
        )
        self._boottime_s = boottime_s
        self._pace = Pace(config.follow_interval_s)
        self._health = Health("following the bucket failed", "following the bucket again")
        self._lock = trio.Lock()
        self._position = Sealed()
        self._shown = Shown()
        self._sure_s: float | None = None
        self._looked_s: float | None = None
        self._next_look_s = 0.0
        self._sooner = trio.Event()
        self._cold: list[bytes] = []
        self._is_sweep_due = False
        self._is_cold = trio.Event()
        # Set by the daemon.
        self.is_open: Callable[[int], bool] = lambda _: False
        self.note_orphans: Callable[[list[int]], None] = lambda _: None
        self.note_rewritten: Callable[[list[int] | None], None] = lambda _: None
        """Told of inodes whose bytes changed (None: any may have): pages of them are old."""

    @property
    def sealed_generation(self) -> int:
        """Generation of the seal that is shown."""
        return self._position.generation

    def notify(self) -> None:
        """Nothing changes here."""

    # --- before the mount ------------------------------------------------------------------

    async def prepare(self, progress: Progress) -> None:
        """Show the newest seal, or, while the store does not answer, what the cache has.

        Raises UserError.
        """
        try:
            spool.clean(self._cache.spool_dir)
            await self._prepare(progress)
        except BaseException as exc:
            with trio.CancelScope(shield=True):
                await self.worker.close()
            if isinstance(exc, StoreError | FormatError):
                raise restore.readable(exc, self._config) from exc
            raise

    def take_over(self) -> None:
        """Go on where the daemon before ended: nothing is asked of the store. Raises CacheError."""
        restore.need_whole(self._cache)
        self._load_position()

    def _load_position(self) -> None:
        self._position = Sealed.from_json(self._cache.get_json("sealed"))
        self._shown = Shown(**(self._cache.get_json("shown") or {}))

    async def _prepare(self, progress: Progress) -> None:
        cache = self._cache
        if not cache.restore_complete:
            cache.clear_all()
            await self._rebuild(progress)
            cache.set_restore_complete()
            return
        self._load_position()
        try:
            await self._catch_up(progress)
        except (TransientError, FormatError) as exc:
            self._judge(exc)

    async def _catch_up(self, progress: Progress) -> None:
        while not await self._look(progress):
            progress({"phase": "following", "segment": self._position.number})

    # --- looking ---------------------------------------------------------------------------

    async def pause(self) -> None:
        """No look is under way when this returns, and none begins."""
        async with self._lock:
            self._next_look_s = math.inf

    async def run(self) -> None:
        """Look for new seals, until cancelled."""
        while True:
            await self._wait()
            async with self._lock:
                await self._look_safely()
            if self._next_look_s - trio.current_time() > REST_S:
                await self.worker.rest()

    async def _wait(self) -> None:
        while (left_s := self._next_look_s - trio.current_time()) > 0:
            self._sooner = trio.Event()
            with trio.move_on_after(left_s):
                await self._sooner.wait()

    def accessed(self) -> None:
        """Somebody reads: look at the usual interval. Called for each lookup, so it costs little.

        Not while looks fail: then the wait is what keeps them bounded.
        """
        if self._pace.is_slow and self._health.error is None:
            self._pace.found()
            now_s = trio.current_time()
            looked_s = now_s if self._looked_s is None else self._looked_s
            due_s = max(now_s, looked_s + self._pace.wait_s)
            if due_s < self._next_look_s:
                self._next_look_s = due_s
                self._sooner.set()

    async def _look_safely(self) -> None:
        before = self._position.number
        error: Exception | None = None
        try:
            while not await self._look(lambda _: None):
                pass
        except (S3wsError, OSError) as exc:
            error = exc
        self._judge(error)
        if self._position.number != before:
            self._pace.found()
        elif error is None:
            self._pace.nothing()
        wait_s = self._pace.wait_s
        if error is not None:
            wait_s = max(wait_s, self._health.retry.failed(self._random01()))
        self._next_look_s = trio.current_time() + wait_s

    def _judge(self, error: Exception | None) -> None:
        if error is None:
            self._health.worked()
        else:
            self._health.failed(error)

    async def _look(self, progress: Progress) -> bool:
        """Apply what is new, up to the worker's limit; whether that is all."""
        looked_s = self._boottime_s()
        surely = self._sure_s is None or looked_s - self._sure_s > SURE_S
        files: list[RecordsFile] = []

        async def on_part(part: dict[str, Any], _: memoryview) -> None:
            files.append(open_records(Path(part["file"]), part["where"], whole=False))

        answer = await self.worker.ask(
            "follow",
            on_part,
            workspace=self._cache.get_json("workspace"),
            number=self._position.number,
            hash=self._position.hash,
            surely=surely,
        )
        for file in files:
            await self._apply(file)
        if answer["lost"]:
            log.warning("the workspace is read anew from its checkpoint: %s", answer["lost"])
            await self._rebuild(progress)
        if answer["end"]:
            self._sure_s = looked_s
            self._looked_s = trio.current_time()
        return bool(answer["end"])

    async def _apply(self, file: RecordsFile) -> None:
        header = file.header
        position = Sealed(header.number, file.header_hash, header.generation)
        sealed = SealedRecords(header, file.frames())
        applied = apply_segment(self._cache, sealed, position.to_json(), self.is_open)
        self._take_over(position, Shown(header.host, header.created_ns), applied)
        self.note_rewritten(applied.rewritten)
        file.path.unlink(missing_ok=True)
        await self._refresh_open_files(applied)

    def _take_over(self, position: Sealed, shown: Shown, applied: Applied) -> None:
        """What follows from a commit, before anything else runs."""
        self._position, self._shown = position, shown
        self.note_orphans(applied.orphans)
        self._cold += applied.cold
        if len(self._cold) > COLD_KEYS_MAX:
            self._cold, self._is_sweep_due = [], True
        if self._cold or self._is_sweep_due:
            self._is_cold.set()
        self._cache.put_json("shown", {"host": shown.host, "created_ns": shown.created_ns})

    async def _refresh_open_files(self, applied: Applied) -> None:
        """Files changed under a reader: fetch first, so that nobody waits for their pages long."""
        inodes = tuple(ino for ino in applied.rewritten if self.is_open(ino))
        if inodes:
            wanted = {ino.to_bytes(8, "big") for ino in inodes}
            with trio.move_on_after(self._config.read_timeout_s):
                await self._hydrator.bring([key for key in applied.cold if key[:8] in wanted])
            await self.kernel_forget(Outdated(inodes=inodes))

    async def _rebuild(self, progress: Progress) -> None:
        looked_s = self._boottime_s()
        state, files = await restore.fetch_records(self.worker, progress)
        self._check_workspace(state["workspace"])
        position = Sealed()
        if files:
            last = files[-1].header
            position = Sealed(state["newest"], state["header_hash"], last.generation)
        self._sure_s, self._looked_s = looked_s, trio.current_time()
        await self._show(files, position, state["workspace"], progress, state["damaged"])

    async def _show(
        self,
        files: list[RecordsFile],
        position: Sealed,
        workspace: str | None,
        progress: Progress,
        damaged: object = None,
    ) -> None:
        """Show what these records say, whatever was shown before; then the files are not needed.

        `damaged`: what had to be done without (position.DONE_WITHOUT).
        """
        progress({"phase": "loading metadata", "done": 0, "total": len(files)})
        last = files[-1].header if files else None
        shown = Shown() if last is None else Shown(last.host, last.created_ns)
        objects = (SealedRecords(file.header, file.frames()) for file in files)
        applied = rebuild(self._cache, objects, position.to_json(), self._root(), self.is_open)
        self._is_sweep_due = True
        self._take_over(position, shown, applied)
        self.note_rewritten(None)
        self._cache.put_json("workspace", workspace)
        self._cache.put_json(DONE_WITHOUT, damaged)
        self._hydrator.note_done_without()
        for file in files:
            file.path.unlink(missing_ok=True)
        await self._refresh_open_files(applied)

    def _check_workspace(self, found: str | None) -> None:
        if found is None:
            raise UserError(
                f"there is no workspace {self._config.workspace.prefix} in "
                f"{self._config.store.location}",
                remedy="Check bucket and ids, or mount it for writing first.",
                exit_code=ExitCode.STORE,
            )
        known = self._cache.get_json("workspace")
        if known not in (None, found):
            raise CacheError(
                f"the cache in {self._cache.directory} shows workspace {known}, but the bucket "
                f"holds {found}",
                remedy="Unmount, move that cache directory away, and mount again.",
            )

    def _root(self) -> InodeRec:
        """The root of a workspace in which nothing was sealed yet."""
        config, now_ns = self._config, self._cache.now_ns()
        mode = stat.S_IFDIR | config.root_mode
        return InodeRec(
            ROOT_INO, mode, config.root_uid, config.root_gid, 2, 0, 0, 0, now_ns, now_ns, now_ns,
            0, ROOT_INO, b"", b"",
        )  # fmt: skip

    # --- asked for -------------------------------------------------------------------------

    async def sync(self, progress: Progress, *, outside: bool = False) -> dict[str, Any]:
        """Show now what is sealed by now; what others do to the mirror is the writer's business.

        Raises UserError.
        """
        async with self._lock:
            try:
                await self._catch_up(progress)
            except (S3wsError, OSError) as exc:
                self._judge(exc)
                if isinstance(exc, StoreError | FormatError):
                    raise restore.readable(exc, self._config) from exc
                raise
            self._judge(None)
            self._pace.found()
            self._next_look_s = trio.current_time() + self._pace.wait_s
        return self._synced()

    def _synced(self) -> dict[str, Any]:
        generation = self._position.generation
        return {
            "read_only": True,
            "generation": generation,
            "segment": self._position.number,
            "sealed": generation,
        }

    async def final_flush(self, _: Progress) -> list[str]:
        """There is nothing to save."""
        with trio.CancelScope(shield=True):
            await self.worker.close()
        return []

    async def hydrate(self) -> None:
        """Fetch in the background what is cold, and what becomes so, until cancelled."""
        await super().hydrate()
        while True:
            await self._is_cold.wait()
            self._is_cold = trio.Event()
            wanted, self._cold = self._cold, []
            if self._is_sweep_due:
                self._is_sweep_due = False
                await self._hydrator.run()
            else:
                await self._hydrator.bring(wanted)
                self._hydrator.state = "complete"

    # --- status ----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The replica's part of the status document. Never waits."""
        now_s = trio.current_time()
        generation = self._position.generation
        return {
            "generation": {"head": generation, "sealed": generation, "mirrored": generation},
            "dirty": {"records": 0, "files": 0, "bytes": 0, "oldest_age_s": None},
            "flush": {
                "state": "read_only",
                "next_due_s": None,
                "last_sealed_age_s": None,
                "checkpoint_error": None,
                "garbage_error": None,
            },
            "mirror": {"pending_files": 0, "unmirrored": [], "conflicts": []},
            "follow": self._follow_status(now_s),
            "health": report.health(
                now_s, self._health.trouble, self.worker.late, self._hydrator.trouble
            ),
            "hydration": report.hydration(self._hydrator),
            "requests": self.worker.requests,
            "worker_pid": self.worker.pid,
        }

    def summary(self) -> dict[str, Any]:
        """Nothing is ever to be saved here; the health. Never waits."""
        return {"health": self.status()["health"]}

    async def next_change(self) -> None:
        """Never: there is nothing to save."""
        await trio.sleep_forever()

    def _follow_status(self, now_s: float) -> dict[str, Any]:
        """What is shown, and how old it may be: nothing newer was there `looked_age_s` ago."""
        shown, looked_s = self._shown, self._looked_s
        return {
            "segment": self._position.number,
            "generation": self._position.generation,
            "sealed_by": shown.host or None,
            "sealed_at_s": round(shown.created_ns / 1e9, 3) if shown.created_ns else None,
            "looked_age_s": None if looked_s is None else round(now_s - looked_s, 3),
            "next_look_s": round(max(0.0, self._next_look_s - now_s), 3),
        }
