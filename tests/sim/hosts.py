"""A host with its disk, and the processes on it: daemon and transfer worker in this process.

The cache is a real one in a directory; daemon and worker are the real code, put together as
`daemon.parts` and `transfer.worker` do, with clock, randomness, threads and store from the seed.

Invariants
1. When a process is killed, the cache's files are taken as they are at that very moment; whatever
   its code still does while it unwinds is undone, and reaches nobody.
2. When the power goes, each page written since the last sync is there or not, as the seed says, and
   the next boot has another id.

Called by the modules of sim only.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import trio
import trio.testing

from s3ws_fs.cache import syncpoint
from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.core import failpoints
from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import TransientError
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import wire
from s3ws_fs.transfer.session import FETCH_LANES, Handler, Means, Reply
from s3ws_fs.transfer.worker import FETCH_REQUESTS, IDLE_S, Worker
from tests.sim import strands
from tests.sim.bucket import Link
from tests.sim.tree import Branch, Nodes, Wrong

if TYPE_CHECKING:
    from tests.sim.life import Life
    from tests.sim.world import World

PAGE_BYTES: Final = 4096
SICK_CHANCE: Final = 0.005
"""Of disk flushes, so many fail."""
SYNC_S: Final = 0.02
"""How long a disk flush takes, on average."""


class Killed(BaseException):
    """The daemon was killed at this point of its code."""


class Host:
    """A machine with a disk. `branch` is what its cache must hold (None: no cache yet)."""

    def __init__(self, world: World, number: int, base: Path) -> None:
        self.world = world
        self.name = f"host-{number}"
        self.base = base / self.name
        self.branch: Branch | None = None
        self.boots = 0
        self.points: dict[int, Nodes] = {}
        """States at sync points, by generation."""
        self.fsynced = 0
        """Newest generation that an fsync, or a seal, promised."""
        self.lost_power = False
        self.cache: Cache | None = None
        self.process: Process | None = None
        self.is_gone = False
        """The daemon was killed: its code may only unwind."""
        self.life: Life | None = None
        self.number = 0
        """The newest segment that it knows of, as restored or sealed by itself."""
        self.is_refused = False
        """Its cache has changes that the bucket went on without."""
        self.out_of_touch_until_s = 0.0
        self.died_at = ""
        """The failpoint, if it was one."""
        self._image: bytes | None = None
        self.keeps_image = False
        self._syncing: Callable[[], None] | None = None
        self._saved: dict[Path, bytes] | None = None

    @property
    def directory(self) -> Path:
        assert self.cache is not None
        return self.cache.directory

    def opened(self, cache: Cache) -> None:
        """A daemon opened the cache: which made a sync point."""
        self.cache = cache
        self.died_at = ""
        self._saved = None
        self._syncing = None
        self.flushed()

    def flushed(self) -> None:
        """The database is on the disk as it is now."""
        if self.keeps_image:
            self._image = self._data_file.read_bytes()

    @property
    def _data_file(self) -> Path:
        return self.directory / DATA_DIR / DATA_FILE

    async def in_thread(self, work: Callable[[], None]) -> None:
        """Durability's helper thread: a sync point takes its time, and may be cut off."""
        pending = cast("partial[None]", work).args[0]
        assert self.branch is not None
        if pending.generation == self.branch.generation:
            self.points[pending.generation] = self.branch.copy()
        rng = self.world.rng
        self._syncing = work
        await trio.sleep(rng.expovariate(1 / SYNC_S))
        if not self.is_gone:
            if rng.random() < SICK_CHANCE:
                self.world.weather.trouble()
                self.world.count("disk errors")
                self._syncing = None
                raise OSError(errno.EIO, "simulated")
            work()
            self._syncing = None
        await trio.sleep(rng.expovariate(1 / SYNC_S))

    def die(self) -> None:
        """SIGKILL for daemon and worker, now (invariant 1)."""
        if self.is_gone:
            return
        self.is_gone = True
        self.world.note("killed", self.name)
        self.world.weather.trouble()
        files = [self._data_file, self.directory / syncpoint.SIDE_FILE]
        files.append(self.directory / syncpoint.BOOT_FILE)
        self._saved = {path: path.read_bytes() for path in files}
        if self.process is not None:
            self.process.kill()

    def cut_power(self) -> None:
        """As `die`, and what was not synced is there in part (invariant 2)."""
        self.die()
        rng = self.world.rng
        assert self._saved is not None
        now = self._saved[self._data_file]
        image = now if self._image is None else self._image
        kept = bytearray(now)
        for at in range(0, len(now), PAGE_BYTES):
            page = image[at : at + PAGE_BYTES]
            if rng.random() < 0.5 and len(page) == PAGE_BYTES:
                kept[at : at + PAGE_BYTES] = page
        if rng.random() < 0.3:
            del kept[max(len(image), 2 * PAGE_BYTES) :]
        self._saved[self._data_file] = bytes(kept)
        if self._syncing is not None and rng.random() < 0.5:
            self._tear_slot()
        self.boots += 1
        self.lost_power = True

    def _tear_slot(self) -> None:
        """The slot of the side file that was being written is torn."""
        assert self.cache is not None and self._saved is not None
        path = self.directory / syncpoint.SIDE_FILE
        at = self.cache.points._next_slot * syncpoint.SLOT_BYTES
        raw = bytearray(self._saved[path])
        raw[at : at + 600] = self.world.rng.randbytes(600)
        self._saved[path] = bytes(raw)

    def lose_touch(self, seconds: float) -> None:
        """What it sends from now on gets there after so long only: frozen, or cut off."""
        self.world.note("loses touch", self.name)
        self.world.weather.trouble()
        self.out_of_touch_until_s = self.world.now_s() + seconds

    async def process_dies(self) -> None:
        """SIGKILL for the worker alone."""
        self.world.weather.trouble()
        if self.process is not None:
            self.process.kill()

    def release(self) -> None:
        """The daemon that was killed is gone: its files are as they were when it was."""
        cache = self.cache
        assert cache is not None and self._saved is not None
        if self.died_at not in (failpoints.CLOSE_SYNCED, failpoints.CLOSE_AFTER):
            cache.let_go()
        os.close(cache._lock_fd)
        for path, data in self._saved.items():
            # In place: a cache knows its file by its inode.
            with path.open("r+b") as file:
                file.write(data)
                file.truncate()
        self._saved = None
        self.cache = None

    async def start_worker(self) -> tuple[Process, trio.abc.Stream]:
        """Starts a transfer worker (see WorkerClient)."""
        if self.is_gone:
            raise TransientError("worker", "", "the daemon is dead")
        await trio.sleep(self.world.rng.expovariate(5))
        ours, theirs = trio.testing.memory_stream_pair()
        self.process = Process(self, theirs)
        self.world.nursery.start_soon(self.process.run)
        self.world.count("workers")
        return self.process, ours


class Process:
    """A transfer worker's process: what its main loop does, as tasks of the loop."""

    def __init__(self, host: Host, stream: trio.abc.Stream) -> None:
        self.host = host
        self.pid = host.world.next_pid()
        self._stream = stream
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._fetch_lanes = trio.Semaphore(FETCH_LANES)
        self._flush_lane = trio.Lock()
        self._write_lock = trio.Lock()
        self._busy = 0

    async def wait(self) -> int:
        """See Running."""
        await self._ended.wait()
        return 0

    def kill(self) -> None:
        """SIGKILL."""
        self._scope.cancel()

    def sends(self, op: str, key: str) -> None:
        """A request leaves for the store: what must hold by then."""
        cache = self.host.cache
        if op in ("put", "copy", "delete") and "/journal/probe/" not in key and cache is not None:
            # Before a restore the lease is taken, and who had it is shut out.
            is_first = key.endswith(("/journal/workspace.json", "/journal/lease.json"))
            is_first = is_first or (self._worker.is_taking and "/journal/seg/" in key)
            if not is_first and not cache.restore_complete:
                raise Wrong(f"{op} {key} before the restore was complete")

    async def run(self) -> None:
        """Serve until killed, idle, or the daemon closes its end."""
        world = self.host.world
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    means = Means(
                        open_store=self._open_store,
                        open_reader=self._open_reader,
                        pool=lambda workers, _: strands.StrandPool(workers, self, nursery),
                        randbits=world.ids.getrandbits,
                        boot=world.now_s,
                        lock=strands.StrandLock,
                    )
                    self._worker = _Worker(self, means)
                    await self._serve(nursery)
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._stream.aclose()
            self._worker.close_files()
            self._ended.set()
            world.release_late()

    async def _serve(self, nursery: trio.Nursery) -> None:
        while True:
            head = None
            with trio.move_on_after(IDLE_S):
                head = await self._read(wire.HEAD_BYTES)
            if head is None:
                if self._busy == 0 and self._worker.is_idle:
                    return
                continue
            if not head:
                return
            rest = await self._read(wire.rest_bytes(head))
            ask, _ = wire.decode(head, rest)
            self._busy += 1
            nursery.start_soon(self._answer, ask)

    async def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = await self._stream.receive_some(count - len(data))
            if not part:
                return b""
            data += part
        return data

    async def _answer(self, ask: dict[str, Any]) -> None:
        command = ask["cmd"]
        lane: contextlib.AbstractAsyncContextManager[Any] = self._flush_lane
        if command in ("ping", "stop-mirror"):
            lane = contextlib.AsyncExitStack()
        elif command in FETCH_REQUESTS:
            lane = self._fetch_lanes
        try:
            async with lane:
                await strands.Strand(partial(self._worker.answer, ask), self).run()
        except strands.Died:
            self.kill()
            await trio.sleep_forever()
        self._busy -= 1

    async def send(self, frame: bytes) -> None:
        """A frame to the daemon."""
        async with self._write_lock:
            await self._stream.send_all(frame)

    def _open_store(self, _: StoreConfig, prefix: str) -> ScopedStore:
        world = self.host.world
        return ScopedStore(Link(world.faulty, self), prefix, randbits=world.ids.getrandbits)

    def _open_reader(self, _: Path) -> Cache:
        assert self.host.cache is not None
        return self.host.cache


class _Worker(Worker):
    """The real worker's functions. Its answers go by way of the loop."""

    def __init__(self, process: Process, means: Means) -> None:
        super().__init__(cast("Any", None), means=means)
        self._process = process
        self.is_taking = False
        self.handlers["lease"] = partial(self._lease, self.handlers["lease"])
        self.handlers["freeze"] = partial(self._freeze, self.handlers["freeze"])

    def _lease(self, handler: Handler, ask: dict[str, Any], part: Reply) -> dict[str, Any] | None:
        """And note that it is under way."""
        self.is_taking = True
        try:
            return handler(ask, part)
        finally:
            self.is_taking = False

    @property
    def is_idle(self) -> bool:
        return self.session.frozen is None

    def answer(self, ask: dict[str, Any]) -> None:
        self._answer(ask)

    def _send(self, message: dict[str, Any], payload: bytes | memoryview = b"") -> None:
        try:
            strands.wait(partial(self._process.send, wire.encode(message, payload)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise strands.Died from None

    def _freeze(self, handler: Handler, ask: dict[str, Any], part: Reply) -> dict[str, Any] | None:
        """And note what the model holds at that moment."""
        host = self._process.host
        assert host.branch is not None and host.cache is not None
        if not host.cache.restore_complete:
            raise Wrong("a freeze before the restore was complete")
        answer = handler(ask, part)
        assert answer is not None
        host.world.frozen(host, ask["freeze"]["flush_id"], answer["generation"])
        return answer

    def close_files(self) -> None:
        """As when a process ends: what it has open is closed, nothing is removed."""
        frozen = self.session.frozen
        if frozen is None:
            return
        files = [blob.file for blob in frozen.blobs.values()]
        if frozen.segment_file is not None:
            files.append(frozen.segment_file)
        for file in files:
            with contextlib.suppress(OSError, ValueError):
                file.close()
