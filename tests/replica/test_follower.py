"""Following without a kernel: seals, garbage, other histories, a store that is away."""

from __future__ import annotations

import os
import random

import pytest
import trio
import xxhash

from s3ws_fs.cache.checking import judge
from s3ws_fs.cache.tableset import copy_out
from s3ws_fs.core import layout
from s3ws_fs.core.errors import CacheError, FsError, TransientError, UserError
from s3ws_fs.core.findings import Report
from s3ws_fs.core.records import decode_location
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.replica import flusher
from s3ws_fs.replica.follower import SURE_S, Follower
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import following
from tests.replica.conftest import Mount, Mounter

only_local = pytest.mark.parametrize("store_config", ["local"], indirect=True)
"""What the kind of store has no part in."""


def _follower(m: Mount) -> Follower:
    replica: object = m.replica
    assert isinstance(replica, Follower)
    return replica


def _segment(m: Mount) -> int:
    return int(m.replica.status()["follow"]["segment"])


def _whole(m: Mount) -> None:
    """The follower's cache passes the checker: its records, and its bytes against their digests."""
    found = Report()
    with m.cache.read() as view:
        tables = copy_out(view)
        judge(tables, found, len(m.config.workspace.prefix))
        for key, data in view.txn.cursor(db=view.db.extents):
            raw = tables.chunks.get(key)
            if raw is not None:
                assert decode_location(raw).digest == xxhash.xxh3_128_digest(data)
    assert [str(finding) for finding in found.findings] == []


async def _same(writer: Mount, reader: Mount) -> None:
    assert reader.tree() == writer.tree()
    for path, node in writer.tree().items():
        if node[5] and node[1] & 0o170000 == 0o100000:  # type: ignore[operator]
            assert await reader.read(path[1:]) == await writer.read(path[1:])
    _whole(reader)


def _step(m: Mount, rng: random.Random) -> None:
    """One random change of a small tree."""
    with m.cache.read() as view:
        names = [name.decode() for _, name, _ in view.entries(ROOT_INO)]
    files = [name for name in names if name.startswith("f")]
    kind = rng.randrange(10)
    if kind <= 2 or not files:
        data = rng.randbytes(rng.choice((0, 5, 4000, 40_000, 100_000)))
        m.write(f"f{rng.randrange(20)}", data, offset=rng.choice((0, 0, 3, 33_000)))
    elif kind == 3:
        m.unlink(rng.choice(files))
    elif kind == 4:
        m.rename(rng.choice(files), f"f{rng.randrange(20)}")
    elif kind == 5:
        name = f"f{rng.randrange(20)}"
        if name not in names:
            m.fs.link(m.ino(rng.choice(files)), ROOT_INO, name.encode())
    elif kind == 6:
        m.fs.setattr(m.ino(rng.choice(files)), size=rng.choice((0, 7, 50_000)))
    elif kind == 7:
        m.fs.setxattr(m.ino(rng.choice(files)), b"user.x", rng.randbytes(9), 0)
    elif kind == 8:
        m.write(f"d{rng.randrange(3)}/f{rng.randrange(9)}", rng.randbytes(90))
    elif directories := [name for name in names if name.startswith("d")]:
        m.rename(rng.choice(directories), f"d{rng.getrandbits(40)}")


async def test_any_changes_are_followed(mounter: Mounter) -> None:
    rng = random.Random(4)
    async with mounter("a") as writer:
        writer.write("f0", b"x")
        await writer.sync()
        async with mounter("b", read_only=True) as reader:
            for _ in range(25):
                for _ in range(rng.randrange(1, 12)):
                    _step(writer, rng)
                await writer.sync()
                await reader.sync()
                await _same(writer, reader)
        async with mounter("b", read_only=True) as reader:
            await _same(writer, reader)


@only_local
async def test_a_segment_is_one_step(mounter: Mounter) -> None:
    """What a reader sees between two awaits is never half a segment."""
    seen: set[tuple[bytes, ...]] = set()
    async with mounter("a") as writer:
        writer.write("a", b"1")
        await writer.sync()
        async with mounter("b", read_only=True) as reader, trio.open_nursery() as nursery:

            async def look() -> None:
                while True:
                    with reader.cache.read() as view:
                        seen.add(tuple(name for _, name, _ in view.entries(ROOT_INO)))
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(look)
            for number in range(500):
                writer.write(f"n{number}", b"x")
            writer.rename("a", "b")
            await writer.sync()
            await reader.sync()
            with trio.fail_after(10):
                while all(len(names) < 501 for names in seen):
                    await trio.sleep(0)
            nursery.cancel_scope.cancel()
    assert {len(names) for names in seen} == {1, 501}


@only_local
async def test_open_files_survive_what_happens_in_the_bucket(mounter: Mounter) -> None:
    async with mounter("a") as writer:
        writer.write("file", b"kept" * 20_000)
        writer.write("cold", b"cold" * 20_000)
        await writer.sync()
        async with mounter("b", read_only=True) as reader:
            kept, cold = reader.ino("file"), reader.ino("cold")
            assert await reader.read("file") == b"kept" * 20_000
            reader.fs.open(kept)
            reader.fs.open(cold)
            writer.unlink("file")
            writer.unlink("cold")
            await writer.sync()
            await reader.sync()
            assert [name for name in reader.tree() if name] == []
            assert reader.fs.getattr(kept).nlink == 0
            assert reader.fs.read(kept, 0, 4) == b"kept"
            _whole(reader)
            reader.fs.release(kept)
            reader.fs.reap()
            with pytest.raises(FsError):
                reader.fs.getattr(kept)
            assert reader.fs.getattr(cold).size == 80_000
            _whole(reader)
        async with mounter("b", read_only=True) as reader:
            with pytest.raises(FsError):
                reader.fs.getattr(cold)
            _whole(reader)


async def test_garbage_collected_numbers_are_made_good_by_a_rebuild(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flusher, "CHECKPOINT_EVERY_SEGMENTS", 4)
    async with mounter("a") as writer:
        writer.write("stays", os.urandom(50_000))
        writer.write("open", b"open")
        await writer.sync()
        async with mounter("b", read_only=True) as reader:
            assert await reader.read("stays")
            open_ino = reader.ino("open")
            assert await reader.read("open") == b"open"
            reader.fs.open(open_ino)
            writer.unlink("open")
            for number in range(6):
                writer.write(f"n{number}", os.urandom(100))
                await writer.sync()
            for number in range(2, 4):
                bucket.delete(layout.seg_key(number))
            # It looked a moment ago: that number 2 is missing means it was not sealed yet.
            await reader.sync()
            assert _segment(reader) == 1
            _follower(reader)._boottime_s = lambda: SURE_S * 1e6
            await reader.sync()
            assert _segment(reader) == 7
            assert isinstance(reader.fs.read(reader.ino("stays"), 0, 9), bytes)  # still warm
            assert reader.fs.read(open_ino, 0, 9) == b"open"
            _whole(reader)
            reader.fs.release(open_ino)
            reader.fs.reap()
            await _same(writer, reader)


async def test_another_history_is_taken_over_whole(mounter: Mounter, bucket: ScopedStore) -> None:
    """The bucket was put back to an earlier point, and went on from there differently."""
    async with mounter("a") as writer:
        writer.write("old", b"old")
        await writer.sync()
    async with mounter("b") as writer:
        writer.write("one history", b"1" * 40_000)
        await writer.sync()
    async with mounter("r", read_only=True) as reader:
        assert await reader.read("one history")
        bucket.delete_many([layout.seg_key(2), layout.MIRRORED_KEY])
        async with mounter("c") as writer:
            writer.write("another", b"2" * 40_000)
            await writer.sync()
            writer.write("another", b"3" * 40_000)
            await writer.sync()
            await reader.sync()
            await _same(writer, reader)


@only_local
async def test_an_emptied_bucket_is_an_error_and_what_is_shown_stays(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as writer:
        writer.write("file", b"x")
        await writer.sync()
    async with mounter("r", read_only=True) as reader:
        assert await reader.read("file") == b"x"
        bucket.delete_many([entry.key for entry in bucket.list()])
        _follower(reader)._sure_s = None
        with pytest.raises(UserError, match="there is no workspace"):
            await reader.sync()
        assert await reader.read("file") == b"x"
        async with mounter("b") as writer:
            writer.write("other", b"y")
            await writer.sync()
        with pytest.raises(CacheError, match="shows workspace"):
            await reader.sync()
        assert await reader.read("file") == b"x"


async def test_a_damaged_segment_holds_up_nothing_before_it(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as writer:
        writer.write("one", b"1")
        await writer.sync()
        async with mounter("b", read_only=True) as reader:
            for name in ("two", "three", "four"):
                writer.write(name, b"x")
                await writer.sync()
            good = bucket.get(layout.seg_key(3)).data
            bad = bytearray(good)
            bad[len(bad) // 2] ^= 1
            bucket.put(layout.seg_key(3), bytes(bad))
            with pytest.raises(UserError, match="seg/0000000000000003"):
                await reader.sync()
            assert _segment(reader) == 2
            assert "two" in {path[1:] for path in reader.tree()}
            status = reader.replica.status()
            assert status["health"]["state"] == "degraded"
            assert "seg/0000000000000003" in status["health"]["error"]
            bucket.put(layout.seg_key(3), good)
            await reader.sync()
            assert reader.replica.status()["health"]["state"] == "ok"
            await _same(writer, reader)
        bucket.put(layout.seg_key(4), bytes(bad))
        async with mounter("b", read_only=True) as reader:
            # What it has, it shows: also when the bucket can't be read further.
            await _same(writer, reader)


@only_local
async def test_it_mounts_while_the_store_is_away_and_says_so(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounter("a") as writer:
        writer.write("one", b"1")
        await writer.sync()
        async with mounter("b", read_only=True) as reader:
            assert await reader.read("one") == b"1"

    async def away(*_: object, **__: object) -> None:
        raise TransientError("get", "", "connection refused")

    monkeypatch.setattr("s3ws_fs.transfer.client.WorkerClient.ask", away)
    async with mounter("b", read_only=True) as reader:
        assert await reader.read("one") == b"1"
        status = reader.replica.status()
        assert status["health"]["state"] == "degraded"
        assert status["follow"]["looked_age_s"] is None
        with pytest.raises(UserError, match="connection refused"):
            await reader.sync()
    with pytest.raises(UserError, match="connection refused"):
        async with mounter("fresh", read_only=True):
            pass


@only_local
async def test_many_segments_come_in_bounded_pieces(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounter("a") as writer:
        writer.write("n", b"0")
        await writer.sync()
        async with mounter("b", read_only=True) as reader:
            for number in range(following.SEGMENTS_MAX + 2):
                writer.write("n", b"%d" % number)
                await writer.sync()
            phases: list[object] = []
            await reader.replica.sync(lambda event: phases.append(event.get("segment")))
            assert phases == [following.SEGMENTS_MAX + 1]
            await _same(writer, reader)
            assert list(reader.cache.spool_dir.iterdir()) == []


@only_local
async def test_it_follows_by_itself_and_the_worker_rests(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounter("a") as writer:
        writer.write("n", b"0")
        await writer.sync()
        async with mounter("b", read_only=True, run=True) as reader:
            writer.write("n", b"1")
            await writer.sync()
            with trio.fail_after(30):
                while _segment(reader) != 2:
                    await trio.sleep(0.01)
                monkeypatch.setattr("s3ws_fs.replica.follower.REST_S", 0.01)
                while reader.replica.worker.pid is not None:
                    await trio.sleep(0.01)
                # Somebody reads: it looks again soon, though its next look was far away.
                follower = _follower(reader)
                follower._pace.wait_s = 1000.0
                follower._next_look_s = trio.current_time() + 1000
                writer.write("n", b"accessed")
                await writer.sync()
                follower.accessed()
                while _segment(reader) != 3:
                    await trio.sleep(0.01)
            # And is there again when it is needed.
            writer.write("n", b"2" * 100_000)
            await writer.sync()
            await reader.sync()
            await _same(writer, reader)
