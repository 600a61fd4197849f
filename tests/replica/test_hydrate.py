"""What is fetched when: for a reader, ahead of one, and in the background. The worker is ours."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.core.errors import TransientError
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.types import ROOT_INO, Cred, Location, NeedExtents
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.replica.hydrate import FLIGHTS_MAX, READ_AHEAD_BYTES_MAX, Hydrator
from s3ws_fs.replica.pace import PACE_BYTES_FIRST, PACE_BYTES_MAX
from s3ws_fs.transfer.client import WorkerClient
from tests.support import caches

MIB = 1 << 20
QUOTA_BYTES = 512 << 20


class Worker:
    """Answers a fetch when it may: `free` of None is at once, else so many are let through."""

    def __init__(self, bytes_of: dict[tuple[int, int], bytes]) -> None:
        self._bytes_of = bytes_of
        self.asked: list[list[Location]] = []
        self.under_way = 0
        self.most = 0
        self.failures = 0
        self.gate: trio.Semaphore | None = None
        self.takes_s = 0.0

    async def ask(
        self,
        cmd: str,
        on_part: Callable[..., Any],
        *,
        locations: list[list[Any]],
        **_: object,
    ) -> None:
        assert cmd == "fetch"
        wanted = [Location(a, b, c, bytes.fromhex(d)) for a, b, c, d in locations]
        self.asked.append(wanted)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await trio.sleep(self.takes_s)
            if self.gate is not None:
                await self.gate.acquire()
            if self.failures:
                self.failures -= 1
                raise TransientError("get", "x", "away")
            body = b"".join(self._bytes_of[loc.object_id, loc.offset] for loc in wanted)
            items = [[loc.object_id, loc.offset, loc.length] for loc in wanted]
            await on_part({"items": items}, memoryview(body))
        finally:
            self.under_way -= 1


class Cold:
    """One large file, all of it cold."""

    def __init__(self, cache: Cache, fs: FileSystem, size_bytes: int) -> None:
        self.cache, self.fs = cache, fs
        self.data = random.Random(1).randbytes(size_bytes)
        self.ino = fs.create(ROOT_INO, b"large", 0o644, Cred(1, 1)).ino
        for at in range(0, size_bytes, MIB):
            fs.write(self.ino, at, self.data[at : at + MIB])
        caches.seal(cache)
        bytes_of = {}
        with cache.read() as view:
            for index, loc in view.chunks(self.ino):
                extent = view.extent(self.ino, index)
                assert extent is not None
                bytes_of[loc.object_id, loc.offset] = extent
        resume: bytes | None = b""
        while resume is not None:
            _, resume = cache.evict(resume)
        self.worker = Worker(bytes_of)
        self.hydrator = Hydrator(cache, cast(WorkerClient, self.worker), 60.0, lambda: 0.5)

    def index_of(self, wanted: Location) -> int:
        with self.cache.read() as view:
            return next(index for index, loc in view.chunks(self.ino) if loc == wanted)

    async def read(self, offset: int, length: int = 256 << 10) -> int:
        """As a program does; returns how often it had to wait."""
        waits = 0
        while isinstance(got := self.fs.read(self.ino, offset, length), NeedExtents):
            waits += 1
            await self.hydrator.fetch(got)
        assert got == self.data[offset : offset + length]
        return waits

    def is_warm(self, offset: int) -> bool:
        with self.cache.read() as view:
            return view.extent(self.ino, offset // EXTENT_BYTES) is not None


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[Cold]:
    identity = Identity(prefix="conversations/u/c/workspace/", store="memory:")
    with open_cache(
        tmp_path / "ws", identity, quota_bytes=QUOTA_BYTES, now_ns=time.time_ns
    ) as cache:
        fs = FileSystem(cache, quota_bytes=QUOTA_BYTES, quota_inodes=1000, on_change=lambda: None)
        fs.make_root(uid=0, gid=0, mode=0o755)
        yield Cold(cache, fs, 24 * MIB)


async def test_pieces_are_under_way_together_but_no_more_than_may(
    cold: Cold, autojump_clock: trio.testing.MockClock
) -> None:
    cold.worker.takes_s = 0.1
    await cold.hydrator.run()
    assert cold.hydrator.state == "complete"
    assert cold.worker.most == FLIGHTS_MAX
    assert cold.worker.under_way == 0
    for at in range(0, len(cold.data), 256 << 10):
        assert await cold.read(at) == 0
    sizes = [sum(loc.length for loc in asked) for asked in cold.worker.asked]
    assert sum(sizes) == len(cold.data), "none was fetched twice"
    assert sizes[0] == PACE_BYTES_FIRST
    assert max(sizes) == PACE_BYTES_MAX


async def test_it_goes_on_behind_a_reader(
    cold: Cold, autojump_clock: trio.testing.MockClock
) -> None:
    cold.worker.takes_s = 0.1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cold.hydrator.run)
        await trio.sleep(0.01)
        began = len(cold.worker.asked)
        assert await cold.read(12 * MIB) == 1
        await trio.sleep(0.01)
    behind = cold.index_of(cold.worker.asked[began + 1][0])
    read_index = 12 * MIB // EXTENT_BYTES
    assert behind == read_index + (READ_AHEAD_BYTES_MAX + (256 << 10)) // EXTENT_BYTES
    assert cold.hydrator.state == "complete"
    assert all(cold.is_warm(at) for at in range(0, len(cold.data), EXTENT_BYTES))


async def test_who_waits_for_what_is_coming_holds_up_nothing(
    cold: Cold, autojump_clock: trio.testing.MockClock
) -> None:
    """A reader right behind the hydrator waits for its pieces only, and these keep coming."""
    cold.worker.takes_s = 0.1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cold.hydrator.run)
        await trio.sleep(0.01)
        for at in range(0, len(cold.data), 256 << 10):
            await cold.read(at)
    sizes = [sum(loc.length for loc in asked) for asked in cold.worker.asked]
    assert sum(sizes) == len(cold.data)
    assert cold.worker.most == FLIGHTS_MAX
    assert len(sizes) <= 12, "no piece was a reader's own"


async def test_while_a_reader_waits_for_its_own_nothing_is_begun(cold: Cold) -> None:
    cold.worker.gate = trio.Semaphore(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cold.hydrator.run)
        await trio.testing.wait_all_tasks_blocked()
        assert len(cold.worker.asked) == FLIGHTS_MAX
        nursery.start_soon(cold.read, 12 * MIB)
        await trio.testing.wait_all_tasks_blocked()
        assert len(cold.worker.asked) == FLIGHTS_MAX + 1
        for _ in range(FLIGHTS_MAX):
            # Those of the hydrator land first.
            cold.worker.gate.release()
            await trio.testing.wait_all_tasks_blocked()
        assert len(cold.worker.asked) == FLIGHTS_MAX + 1
        assert cold.worker.under_way == 1
        cold.worker.gate = None
        nursery.cancel_scope.cancel()


async def test_who_reads_on_gets_more_ahead(
    cold: Cold, autojump_clock: trio.testing.MockClock
) -> None:
    """Without a hydrator: of what was evicted."""
    waits = 0
    for at in range(0, len(cold.data), 256 << 10):
        waits += await cold.read(at)
    sizes = [sum(loc.length for loc in asked) for asked in cold.worker.asked]
    assert waits == len(sizes)
    assert sizes[0] == READ_AHEAD_BYTES_MAX + (256 << 10)
    assert max(sizes) == PACE_BYTES_MAX + (256 << 10)
    assert len(sizes) <= 10


async def test_who_reads_elsewhere_does_not(cold: Cold) -> None:
    for at in (16 * MIB, 8 * MIB, 20 * MIB, 0):
        assert await cold.read(at) == 1
    sizes = {sum(loc.length for loc in asked) for asked in cold.worker.asked}
    assert sizes == {READ_AHEAD_BYTES_MAX + (256 << 10)}


async def test_a_store_that_is_away_for_a_while_is_waited_for(
    cold: Cold, autojump_clock: trio.testing.MockClock
) -> None:
    cold.worker.takes_s = 0.1
    cold.worker.failures = 2 * FLIGHTS_MAX
    await cold.hydrator.run()
    assert cold.hydrator.state == "complete"
    assert cold.hydrator.trouble is None
    assert all(cold.is_warm(at) for at in range(0, len(cold.data), EXTENT_BYTES))
    assert cold.worker.under_way == 0
