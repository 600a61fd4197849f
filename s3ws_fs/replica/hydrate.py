"""Cold bytes into the cache: for a reader who waits, and in the background.

Invariants
1. An extent is fetched once however many wait for it (single flight), and stored only if the inode
   still names that location (Bookkeeping.store_fetched).
2. A person's read goes first: the hydrator begins nothing while one is under way that it did not
   see coming, and goes on behind it, so that whoever reads on finds the bytes there, or coming.
3. A read never fails for what others wait for, or for what comes along with it.
4. What the store refuses or does not answer is tried again, with a growing and random pause, until
   the reader's time is up; that it is in trouble is told (`trouble`) until a fetch works again.
5. At most FLIGHTS_MAX pieces of the hydrator are under way, each what comes in a moment.
6. A damaged extent is an error naming its path, unless the mirror has the same bytes
   (second_copy.py); it keeps nobody from the others.

Called by replicator.
"""

from __future__ import annotations

import errno
import logging
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.headroom import LAST, OK
from s3ws_fs.core import failpoints, keys
from s3ws_fs.core.backoff import Retry
from s3ws_fs.core.errors import FormatError, FsError, PermanentError, S3wsError, TransientError
from s3ws_fs.core.types import Location, NeedExtents
from s3ws_fs.replica import cold
from s3ws_fs.replica.cold import Item
from s3ws_fs.replica.pace import Pace
from s3ws_fs.replica.position import DONE_WITHOUT
from s3ws_fs.replica.second_copy import SecondCopies
from s3ws_fs.transfer.client import WorkerClient

log = logging.getLogger(__name__)

FETCH_SILENCE_S: Final = 60.0
"""So long the worker may say nothing before a fetch has failed."""
READ_AHEAD_EXTENTS: Final = 256
READ_AHEAD_BYTES_MAX: Final = 1 << 20
"""Extents, and bytes, fetched along behind those that a reader needs; for who reads on, Pace."""
SCAN_KEYS: Final = 2000
"""Chunk records looked at in one read transaction."""
FLIGHTS_MAX: Final = 3
"""Pieces of the hydrator under way at once."""
PAUSE_S: Final = 0.01
ROOM_PAUSE_S: Final = 2.0


async def _none_to_make() -> bool:
    return False


@dataclass(eq=False)
class _Flight:
    """An extent on its way; `failed` is set before `landed` when it did not arrive."""

    landed: trio.Event
    failed: bool = False


class Hydrator:
    """Fetches cold extents through the worker."""

    def __init__(
        self,
        cache: Cache,
        worker: WorkerClient,
        patience_s: float,
        random01: Callable[[], float] = random.random,
    ) -> None:
        self._cache = cache
        self._worker = worker
        self._patience_s = patience_s
        self._random01 = random01
        self._in_trouble = trio.Event()
        self.trouble: tuple[str, float] | None = None
        """Why nothing can be read from the bucket, and since when (trio's clock)."""
        self._flights: dict[tuple[int, int, Location], _Flight] = {}
        self._asked_for = 0
        self._pace = Pace()
        self._reading = Pace()
        self._read_on = b""
        """Chunk key behind what the last read brought: who goes on there gets more ahead."""
        self._jump: bytes | None = None
        """Where the hydrator is to go on."""
        self.make_room: Callable[[], Awaitable[bool]] = _none_to_make
        """Frees what it can at once; whether there is room now. Set by the daemon."""
        self.state = "none"
        self.cold_bytes = 0
        self.cold_files = 0
        self.damaged: dict[str, str] = {}
        self.second_copies = SecondCopies(cache, worker)

    def note_done_without(self) -> None:
        """Say what a restore had to do without (position.DONE_WITHOUT), with the second copies."""
        found = self._cache.get_json(DONE_WITHOUT)
        if found is not None:
            where, why = found
            self.second_copies.used[where] = f"{why}; the checkpoint before it was used"

    async def fetch(self, need: NeedExtents) -> None:
        """Bring these extents into the cache. Raises FsError EIO.

        While the store (or the worker) does not answer it is tried again, for `patience_s`.
        """
        try:
            wanted = [(need.ino, index, loc) for index, loc in need.locations]
            try:
                await self._bring_patiently(wanted, self._read_ahead(need))
            except FormatError:
                await self._bring_damaged(wanted)
        except FsError:
            # No room for the bytes: not the store's fault.
            raise
        except (S3wsError, OSError) as exc:
            path = self._path(need.ino)
            log.warning("reading %s from the bucket failed: %s", path, exc)
            if isinstance(exc, FormatError):
                self.damaged[path] = str(exc)
            raise FsError(errno.EIO, f"{path}: {exc}") from exc

    async def _bring_damaged(self, wanted: list[Item]) -> None:
        """Bring extents of which some are damaged: one by one, and from where there is another."""
        for ino, index, loc in wanted:
            try:
                await self._bring_patiently([(ino, index, loc)], [])
            except FormatError as exc:
                if not await self.second_copies.bring(ino, index, loc, exc):
                    raise

    def _path(self, ino: int) -> str:
        with self._cache.read() as view:
            rec = view.inode(ino)
            paths = [] if rec is None else view.paths_of(rec)
        return os.fsdecode(paths[0]) if paths else f"inode {ino}"

    def _read_ahead(self, need: NeedExtents) -> list[Item]:
        """Cold extents that follow in the same object: the rest of the file, and the next files.

        What was sealed together stands together, in the order of the chunks' keys, so one request
        brings a directory of small files where each would else be a round trip.
        """
        index, loc = need.locations[-1]
        after = keys.chunk_key(need.ino, index + 1)
        following, _ = cold.scan_cold(self._cache, after, READ_AHEAD_EXTENTS)
        found: list[Item] = []
        goes_on = keys.chunk_key(need.ino, need.locations[0][0]) == self._read_on
        room_bytes = self._reading.size_bytes if goes_on else READ_AHEAD_BYTES_MAX
        for item in following:
            room_bytes -= item[2].length
            if item[2].object_id != loc.object_id or room_bytes < 0:
                break
            found.append(item)
        return found

    async def _bring_patiently(self, wanted: list[Item], ahead: list[Item]) -> None:
        until_s = trio.current_time() + self._patience_s
        retry = Retry()
        while True:
            try:
                if await self._bring(wanted, ahead):
                    return
            except (TransientError, PermanentError):
                # Also what is refused: keys are changed, and buckets put back.
                wait_s = retry.failed(self._random01())
                if trio.current_time() + wait_s >= until_s:
                    raise
                await trio.sleep(wait_s)
            except FormatError:
                # Perhaps it is only what would have come along that is damaged.
                if not ahead:
                    raise
            ahead = []

    async def _bring(self, wanted: list[Item], ahead: list[Item]) -> bool:
        """Fetch what is not on its way already, and wait for the rest of what is wanted.

        False when somebody else's flight failed: that may be for what else was on it.
        """
        waiting = [self._flights[item] for item in wanted if item in self._flights]
        mine = [item for item in (*wanted, *ahead) if item not in self._flights]
        if any(item in mine for item in wanted):
            ino, index, _ = mine[-1]
            self._jump = self._read_on = keys.chunk_key(ino, index + 1)
            self._asked_for += 1
            try:
                await self._fly(mine, self._reading)
            finally:
                self._asked_for -= 1
        for flight in waiting:
            await flight.landed.wait()
        return not any(flight.failed for flight in waiting)

    async def _fly(self, items: list[Item], pace: Pace) -> None:
        begun_s = trio.current_time()
        flights = {item: _Flight(trio.Event()) for item in items}
        self._flights.update(flights)
        failed = True
        try:
            await self._ask(items)
            failed = False
            self.trouble = None
            pace.took(sum(loc.length for _, _, loc in items), trio.current_time() - begun_s)
        except (TransientError, PermanentError) as exc:
            self._note_trouble(exc)
            raise
        finally:
            for item, flight in flights.items():
                flight.failed = failed
                flight.landed.set()
                self._flights.pop(item, None)

    async def _ask(self, items: list[Item]) -> None:
        by_place: dict[tuple[int, int, int], list[Item]] = {}
        for item in items:
            loc = item[2]
            by_place.setdefault((loc.object_id, loc.offset, loc.length), []).append(item)

        async def on_part(part: dict[str, Any], payload: memoryview) -> None:
            at = 0
            stored = []
            for object_id, offset, length in part["items"]:
                data = bytes(payload[at : at + length])
                at += length
                for ino, index, loc in by_place.get((object_id, offset, length), ()):
                    stored.append((ino, index, loc, data))
            await self._need_room()
            failpoints.hit(failpoints.HYDRATE_FETCHED)
            self._cache.store_fetched(stored)
            failpoints.hit(failpoints.HYDRATE_STORED)
            await trio.lowlevel.checkpoint()

        places = {item[2]: None for item in items}
        await self._worker.ask(
            "fetch",
            on_part,
            deadline_s=FETCH_SILENCE_S,
            patience_s=FETCH_SILENCE_S,
            locations=[[loc.object_id, loc.offset, loc.length, loc.digest.hex()] for loc in places],
        )

    def _note_trouble(self, exc: S3wsError) -> None:
        since_s = trio.current_time() if self.trouble is None else self.trouble[1]
        self.trouble = (str(exc), since_s)
        self._in_trouble.set()

    async def watch(self) -> None:
        """While in trouble, see whether the store answers again, also when nobody reads."""
        while True:
            await self._in_trouble.wait()
            self._in_trouble = trio.Event()
            retry = Retry()
            while self.trouble is not None:
                await trio.sleep(retry.failed(self._random01()))
                try:
                    await self._worker.ask("check")
                except S3wsError as exc:
                    self._note_trouble(exc)
                else:
                    self.trouble = None

    async def _need_room(self) -> None:
        """Have room for a part. Raises FsError ENOSPC.

        When short of it and none can be made, what is kept back must do; not the last of it.
        """
        room = self._cache.headroom
        if room.level != OK and not await self.make_room() and room.level == LAST:
            raise FsError(errno.ENOSPC, room.reason())

    async def run(self) -> None:
        """Fetch everything cold, then return. Errors of the store are waited out."""
        if self._cache.get_json("hydrated"):
            self.state = "complete"
            return
        self.state = "running"
        await self._count()
        retry = Retry()
        complete = False
        while not complete:
            try:
                complete = await self._sweep()
                retry.worked()
            except S3wsError as exc:
                log.info("hydration waits: %s", exc)
                await trio.sleep(retry.failed(self._random01()))
        self.cold_bytes = self.cold_files = 0
        failpoints.hit(failpoints.HYDRATE_AFTER)
        if not self.damaged and not self._cache.has_evicted:
            self._cache.put_json("hydrated", True)
        self.state = "complete"

    async def bring(self, wanted: Sequence[bytes]) -> None:
        """Fetch what is cold of these chunk keys, in the background as `run` does."""
        retry = Retry()
        at = 0
        while at < len(wanted):
            items = self._cold_of(wanted[at : at + cold.PIECE_EXTENTS])
            try:
                await self._when_idle()
                await self._bring_piece(items)
            except S3wsError as exc:
                log.info("hydration waits: %s", exc)
                await trio.sleep(retry.failed(1.0))
                continue
            retry.worked()
            at += cold.PIECE_EXTENTS

    def _cold_of(self, wanted: Iterable[bytes]) -> list[Item]:
        items: list[Item] = []
        with self._cache.read() as view:
            for key in wanted:
                ino, index = keys.split_chunk_key(key)
                loc = view.chunk(ino, index)
                if loc is not None and view.txn.get(key, db=view.db.extents) is None:
                    items.append((ino, index, loc))
        return items

    async def _when_idle(self) -> None:
        """Return when nobody waits for bytes, and there is room for some."""
        while self._asked_for:
            await trio.sleep(PAUSE_S)
        while not self._cache.headroom.is_roomy:
            self.state = "no room"
            await trio.sleep(ROOM_PAUSE_S)
        self.state = "running"

    async def _count(self) -> None:
        files = set()
        resume = b""
        self.cold_bytes = 0
        while True:
            items, next_resume = self._scan(resume)
            for ino, _, loc in items:
                files.add(ino)
                self.cold_bytes += loc.length
            await trio.lowlevel.checkpoint()
            if next_resume is None:
                break
            resume = next_resume
        self.cold_files = len(files)

    def _scan(self, resume: bytes) -> tuple[list[Item], bytes | None]:
        """Cold extents among the next SCAN_KEYS chunks, and where to go on (None: the end)."""
        return cold.scan_cold(self._cache, resume, SCAN_KEYS)

    def _elsewhere(self) -> bytes | None:
        """Where a read has been that was not seen coming."""
        jump, self._jump = self._jump, None
        return jump

    async def _sweep(self) -> bool:
        """One way through all chunks; True when nothing cold was left by it.

        A read that was not seen coming takes it elsewhere: then it was not all of the way.
        """
        resume: bytes | None = b""
        complete = True
        errors: list[Exception] = []
        free = trio.Semaphore(FLIGHTS_MAX)

        async def bring(piece: list[Item]) -> None:
            nonlocal complete
            flights = [self._flights[item] for item in piece if item in self._flights]
            try:
                await self._bring_piece(piece)
                for flight in flights:
                    await flight.landed.wait()
                    complete = complete and not flight.failed
            except Exception as exc:
                # Carried out by hand: a nursery would wrap it in a group.
                errors.append(exc)
            finally:
                free.release()
            self.cold_bytes = max(0, self.cold_bytes - sum(loc.length for _, _, loc in piece))

        self._elsewhere()
        async with trio.open_nursery() as nursery:
            while resume is not None and not errors:
                items, resume = self._scan(resume)
                at = 0
                while at < len(items):
                    await self._when_idle()
                    await free.acquire()
                    if errors:
                        break
                    elsewhere = self._elsewhere()
                    if elsewhere is not None:
                        resume, complete = elsewhere, False
                        free.release()
                        break
                    piece = cold.piece_of(items, at, self._pace.size_bytes)
                    at += len(piece)
                    nursery.start_soon(bring, piece)
                await trio.lowlevel.checkpoint()
        if errors:
            raise errors[0]
        return complete

    async def _bring_piece(self, piece: list[Item]) -> None:
        """Fetch a piece; around damage it is halved, so that only the damaged is left out."""
        fresh = [item for item in piece if item not in self._flights]
        if not fresh:
            return
        try:
            await self._fly(fresh, self._pace)
        except FormatError as exc:
            if len(fresh) == 1:
                if await self.second_copies.bring(*fresh[0], exc):
                    return
                path = self._path(fresh[0][0])
                log.error("%s is damaged in the bucket: %s", path, exc)
                self.damaged[path] = str(exc)
                return
            half = len(fresh) // 2
            await self._bring_piece(fresh[:half])
            await self._bring_piece(fresh[half:])
