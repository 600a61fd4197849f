"""What a snapshot takes on a large workspace, over SeaweedFS and a real worker, without a kernel.

    python -m tests.history.big --files 50000

Files are made and sealed, and the mirror is taken for done. Then snapshots are taken with nothing
dirty and with ten files dirty; then flushes past two checkpoints, to say what these take, with the
garbage that is looked for after them, beside an ordinary flush; and what the long history costs the
next mount. The least of several is what the machine's other work hides least.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from s3ws_fs.cache.cache import open_cache
from s3ws_fs.cache.durability import Durability
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.core.history import NAMED
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.daemon.parts import identity
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.replica.flusher import CHECKPOINT_EVERY_SEGMENTS
from s3ws_fs.replica.replicator import Replicator
from tests.replica.conftest import CRED, Mount
from tests.support.seaweed import Seaweed, running_seaweed

TIMES = 9
FILES_IN_DIRECTORY = 100


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Seconds."""
    began = time.monotonic()
    await work()
    return time.monotonic() - began


def told(what: str, seconds: list[float]) -> None:
    ms = [round(each * 1e3) for each in sorted(seconds)]
    print(
        f"{what}: least {ms[0]} ms, median {statistics.median(ms):.0f} ms, most {ms[-1]} ms "
        f"of {len(ms)}",
        flush=True,
    )


def fill(m: Mount, files: int, size_bytes: int) -> None:
    """So many files, a hundred in a directory."""
    data = os.urandom(size_bytes)
    directory = ROOT_INO
    for number in range(files):
        if number % FILES_IN_DIRECTORY == 0:
            name = b"d%d" % (number // FILES_IN_DIRECTORY)
            directory = m.fs.mkdir(ROOT_INO, name, 0o755, CRED).ino
        ino = m.fs.create(directory, b"f%d" % number, 0o644, CRED).ino
        m.fs.write(ino, 0, data[: number * 7919 % size_bytes + 1])


def take_mirror_for_done(m: Mount) -> None:
    """The files of this workspace stand nowhere, and nobody will look."""
    with m.cache.read() as view:
        behind = list(view.mtodo())
    m.cache.record_mirrored((), (), behind)


async def measure(m: Mount, files: int, size_bytes: int) -> None:
    replica = m.replica
    began = time.monotonic()
    fill(m, files, size_bytes)
    used_mib = m.cache.head.used_bytes >> 20
    print(f"{files} files, {used_mib} MiB: {time.monotonic() - began:.1f} s to make", flush=True)

    async def seal() -> None:
        async with replica.history.still():
            await replica.history.seal()

    async def snapshot() -> None:
        await replica.snapshot(NAMED, "")

    print(f"first seal: {await timed(seal):.1f} s", flush=True)
    take_mirror_for_done(m)
    await snapshot()
    told("snapshot, nothing dirty", [await timed(snapshot) for _ in range(TIMES)])
    dirty = []
    for number in range(TIMES):
        for name in range(10):
            m.write(f"little-{name}", b"%d" % number * 100)
        dirty.append(await timed(snapshot))
        take_mirror_for_done(m)
    told("snapshot, 10 files dirty", dirty)
    seals = []
    for number in range(2 * CHECKPOINT_EVERY_SEGMENTS):
        m.write("churn", b"%d" % number * 1000)
        before = sum(replica.worker.requests.values())
        took = await timed(seal)
        seals.append((took, sum(replica.worker.requests.values()) - before))
        take_mirror_for_done(m)
    flush = replica.status()["flush"]
    assert flush["garbage_error"] is None and flush["checkpoint_error"] is None, flush
    seals.sort(key=lambda pair: pair[1])
    told("a flush", [took for took, _ in seals[:-2]])
    for took, requests in seals[-2:]:
        print(f"a flush with checkpoint and garbage: {took:.2f} s, {requests} requests")
    began = time.monotonic()
    before = sum(replica.worker.requests.values())
    await replica.worker.ask("survey")
    after = sum(replica.worker.requests.values())
    print(f"the look of a mount that starts: {time.monotonic() - began:.3f} s, {after - before}")


def config(base: Path, server: Seaweed) -> MountConfig:
    os.environ.update(server.env)
    store = StoreConfig(
        type="s3",
        bucket=server.bucket,
        endpoint_url=server.endpoint_url,
        region=server.region,
        addressing_style="path",
    )
    return MountConfig(
        mountpoint=str(base / "mnt"),
        workspace=WorkspaceId("u", "big"),
        store=store,
        cache_dir=str(base / "cache"),
        runtime_dir=str(base / "run"),
        max_size_bytes=8 << 30,
    )


async def run(base: Path, server: Seaweed, files: int, size_bytes: int) -> None:
    own = config(base, server)
    cache = open_cache(
        Path(own.workspace_cache_dir),
        identity(own),
        quota_bytes=own.max_size_bytes,
        now_ns=time.time_ns,
    )
    with cache:
        replica = Replicator(own, cache, Durability(cache))
        fs = FileSystem(
            cache,
            quota_bytes=own.max_size_bytes,
            quota_inodes=own.max_inodes,
            on_change=replica.notify,
        )
        replica.attach(fs)
        await replica.prepare(lambda _: None)
        fs.make_root(uid=0, gid=0, mode=0o755)
        try:
            await measure(Mount(own, cache, fs, replica), files, size_bytes)
        finally:
            await replica.worker.close()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=20_000, help="of the largest, in bytes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as base, running_seaweed() as server:
        trio.run(run, Path(base), server, args.files, args.size)


if __name__ == "__main__":
    main()
