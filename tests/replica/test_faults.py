"""What goes wrong: other writers, foreign objects, damage, dead workers, stores that are away."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from s3ws_fs.core import journal, layout
from s3ws_fs.core.bounds import LEASE_S_MIN
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import (
    CacheError,
    ExitCode,
    FsError,
    S3wsError,
    TransientError,
    UserError,
)
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.types import NeedExtents
from s3ws_fs.replica.replicator import SYNC_RESTARTS_MAX
from s3ws_fs.store.scoped import ScopedStore
from tests.replica.conftest import Mount, Mounter
from tests.replica.test_roundtrip import mirror
from tests.support.seaweed import Seaweed


def the_segments(bucket: ScopedStore) -> list[str]:
    return [entry.key for entry in bucket.list(layout.SEG_PREFIX)]


async def test_a_second_writer_is_fenced(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", lease_s=LEASE_S_MIN) as first:
        first.write("a", b"1")
        await first.sync()
        async with mounter("b", take_over=True) as second:
            second.write("b", b"2")
            await second.sync()
            before = the_segments(bucket)
            first.write("a", b"lost race")
            with pytest.raises(UserError) as caught:
                await first.sync()
            assert caught.value.exit_code == ExitCode.FENCED
            assert first.replica.status()["health"]["state"] == "fenced"
            with pytest.raises(UserError) as caught:
                await first.replica.final_flush(lambda _: None)
            assert caught.value.exit_code == ExitCode.FENCED
            assert the_segments(bucket) == before
            assert mirror(bucket) == {"a": b"1", "b": b"2"}
    with pytest.raises(UserError) as caught:
        async with mounter("a"):
            pass
    assert caught.value.exit_code == ExitCode.FENCED
    async with mounter("c") as m:
        assert await m.read("a") == b"1"


async def test_a_clean_cache_behind_the_bucket_is_rebuilt(mounter: Mounter) -> None:
    async with mounter("a") as m:
        m.write("a", b"old")
        await m.sync()
    async with mounter("b") as m:
        m.write("a", b"new")
        await m.sync()
    async with mounter("a") as m:
        assert await m.read("a") == b"new"


async def test_a_worker_killed_in_mid_flush(mounter: Mounter, bucket: ScopedStore) -> None:
    async with mounter("a", run=True) as m:
        for number in range(100):
            m.write(f"f{number}", os.urandom(20_000))
            if number % 20 == 10:
                await trio.sleep(0.06)
                pid = m.replica.worker.pid
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
        with trio.fail_after(60):
            while m.replica.status()["generation"]["mirrored"] < m.cache.generation:
                await trio.sleep(0.05)
        assert m.replica.worker.spawned > 1
        assert m.replica.status()["health"]["state"] == "ok"
        tree = m.tree()
        want = {f"f{number}": await m.read(f"f{number}") for number in range(100)}
    assert mirror(bucket) == want
    async with mounter("b") as m:
        assert m.tree() == tree
        await m.replica.hydrate()
        assert {path: await m.read(path) for path in want} == want


def kill_at(m: Mount, monkeypatch: pytest.MonkeyPatch, at: str, deaths: int) -> list[str]:
    """The worker gets SIGKILL when it is asked that, so many times; the list is what was asked."""
    ask, asked = m.replica.worker.ask, []

    async def deadly(cmd: str, *args: object, **more: object) -> object:
        asked.append(cmd)
        if cmd == at and asked.count(at) <= deaths:
            return await _dying(m, partial(ask, cmd, *args, **more))  # type: ignore[arg-type]
        return await ask(cmd, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(m.replica.worker, "ask", deadly)
    return asked


async def _dying(m: Mount, ask: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """The worker dies with the request in its hands: before, another one would have been asked."""
    pid = m.replica.worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    result: dict[str, Any] | S3wsError

    async def kill() -> None:
        await trio.testing.wait_all_tasks_blocked()
        os.kill(pid, signal.SIGKILL)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        try:
            result = await ask()
        except S3wsError as exc:
            result = exc
    if isinstance(result, S3wsError):
        raise result
    return result


@pytest.mark.parametrize("at", ["freeze", "seal", "mirror"])
async def test_a_sync_goes_on_with_another_worker(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    async with mounter("a") as m:
        m.write("f", b"1")
        await m.sync()
        m.write("f", b"2")
        asked = kill_at(m, monkeypatch, at, 1)
        await m.sync()
        assert asked.count(at) > 1
        assert mirror(bucket) == {"f": b"2"}


async def test_a_sync_whose_workers_keep_dying_says_so(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mounter("a") as m:
        m.write("f", b"1")
        await m.sync()
        m.write("f", b"2")
        with monkeypatch.context() as patch:
            asked = kill_at(m, patch, "seal", 1 + SYNC_RESTARTS_MAX)
            with pytest.raises(UserError, match="not everything could be saved"):
                await m.sync()
            assert asked.count("seal") == 1 + SYNC_RESTARTS_MAX
        await m.sync()
        assert mirror(bucket) == {"f": b"2"}


async def test_an_object_lost_outside_comes_back_with_the_next_change(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as m:
        m.write("f", b"1")
        await m.sync()
        bucket.delete("files/f")
        m.write("f", b"2")
        await m.sync()
        bucket.delete("files/f")
        m.rename("f", "g")
        await m.sync()
    assert mirror(bucket) == {"g": b"2"}


async def test_damaged_bytes_are_an_error_that_names_the_path(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as m:
        m.write("good", b"g" * 5000)
        await m.sync()
        m.write("dir/bad", b"b" * 5000)
        await m.sync()
    key = the_segments(bucket)[-1]
    raw = bytearray(bucket.get(key).data)
    raw[raw.index(b"bbbb", journal.HEADER_BYTES) + 2] ^= 1
    async with mounter("b") as m:
        bucket.put(key, bytes(raw))
        bucket.delete("files/dir/bad")
        with pytest.raises(FsError, match="dir/bad"):
            await m.read("dir/bad")
        await m.replica.hydrate()
        assert [item["path"] for item in m.replica.status()["hydration"]["damaged"]] == ["dir/bad"]
        assert await m.read("good") == b"g" * 5000


async def test_a_damaged_journal_restores_nothing_and_pushes_nothing(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as m:
        for number in range(3):
            m.write(f"f{number}", b"x" * 100)
            await m.sync()
    keys = the_segments(bucket)
    good = bucket.get(keys[1]).data
    bad = bytearray(good)
    bad[-40] ^= 0x10
    bucket.put(keys[1], bytes(bad))
    with pytest.raises(UserError, match=keys[1]):
        async with mounter("b"):
            pass
    bucket.delete(keys[1])
    with pytest.raises(UserError, match="missing"):
        async with mounter("b"):
            pass
    assert the_segments(bucket) == [keys[0], keys[2]]
    bucket.put(keys[1], good)
    async with mounter("b") as m:
        assert await m.read("f2") == b"x" * 100


async def test_a_cache_of_another_workspace_is_refused(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter("a") as m:
        m.write("f", b"1")
        await m.sync()
    for entry in list(bucket.list()):
        bucket.delete(entry.key)
    with pytest.raises(CacheError) as caught:
        async with mounter("a"):
            pass
    assert caught.value.exit_code == ExitCode.BAD_CACHE
    assert not list(bucket.list())


async def test_nothing_outside_the_workspace_is_touched(
    mounter: Mounter, config: MountConfig, bucket: ScopedStore
) -> None:
    outside = bucket._inner
    above = config.workspace.prefix.removesuffix("workspace/")
    outside.put(above + "events/1.json", b"theirs")
    async with mounter("a") as m:
        m.write("f", b"1")
        await m.sync()
        m.unlink("f")
        await m.sync()
    async with mounter("b"):
        pass
    ours = [e.key for e in outside.list(above) if not e.key.startswith(config.workspace.prefix)]
    assert ours == [above + "events/1.json"]
    assert outside.get(above + "events/1.json").data == b"theirs"


@pytest.mark.parametrize("store_config", [pytest.param("s3", marks=pytest.mark.s3)], indirect=True)
async def test_a_store_that_is_away_and_comes_back(
    seaweed: Seaweed, mounter: Mounter, bucket: ScopedStore
) -> None:
    server = seaweed
    async with mounter("a", run=True) as m:
        m.write("f", b"1")
        await m.sync()
        server.stop()
        try:
            m.write("f", b"2")
            with trio.fail_after(60):
                while m.replica.status()["health"]["state"] != "degraded":
                    await trio.sleep(0.02)
            assert m.replica.status()["health"]["error"]
            with pytest.raises(UserError) as caught:
                await m.sync()
            assert caught.value.exit_code == ExitCode.STORE
            m.write("f", b"3")
        finally:
            server.start()
        with trio.fail_after(90):
            while m.replica.status()["generation"]["mirrored"] < m.cache.generation:
                await trio.sleep(0.02)
        assert m.replica.status()["health"]["state"] == "ok"
    assert mirror(bucket) == {"f": b"3"}


async def test_checkpoints_fold_and_restore(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3ws_fs.replica.flusher.CHECKPOINT_EVERY_SEGMENTS", 4)
    async with mounter("a") as m:
        for number in range(11):
            m.write(f"d{number % 2}/f{number}", b"%d" % number * 100)
            if number > 2:
                m.unlink(f"d{(number - 2) % 2}/f{number - 2}")
            await m.sync()
        tree = m.tree()
    checkpoints = [entry.key for entry in bucket.list(layout.CKPT_PREFIX)]
    assert checkpoints == [layout.ckpt_key(4), layout.ckpt_key(8)]
    async with mounter("b") as m:
        assert m.tree() == tree
        await m.replica.hydrate()
        assert await m.read("d0/f10") == b"10" * 100
        assert await m.replica.final_flush(lambda _: None) == []
        assert m.replica.status()["requests"]["head"] <= 20
    want = {"d1/f9": b"9" * 100, "d0/f10": b"10" * 100, "d0/f0": b"0" * 100}
    assert {path: mirror(bucket)[path] for path in want} == want


async def test_a_checkpoint_comes_when_segments_weigh_as_much_as_the_last(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is learnt from the bucket how much that is."""
    monkeypatch.setattr("s3ws_fs.replica.flusher.CHECKPOINT_EVERY_SEGMENTS", 2)
    monkeypatch.setattr("s3ws_fs.core.folding.SEGMENT_COST_BYTES", 0)

    def sizes(prefix: str) -> list[int]:
        return [entry.size_bytes for entry in sorted(bucket.list(prefix), key=lambda e: e.key)]

    async def change(m: Mount) -> None:
        m.write("f0", os.urandom(100))
        await m.sync()

    async with mounter("a") as m:
        for number in range(100):
            m.write(f"f{number}", b"")
        await m.sync()
        await change(m)
        (weight,) = sizes(layout.CKPT_PREFIX)
        await change(m)
        segments = sizes(layout.SEG_PREFIX)
        assert 3 * segments[-1] < weight, "or nothing is to be seen"
        assert len(sizes(layout.CKPT_PREFIX)) == 1
    for _ in range(20):
        async with mounter("a") as m:
            await change(m)
        if len(sizes(layout.CKPT_PREFIX)) == 2:
            break
    folded = sizes(layout.SEG_PREFIX)[2:]
    assert sum(folded[:-2]) < weight <= sum(folded[:-1])


@pytest.mark.parametrize("remount", [False, True], ids=["same daemon", "next daemon"])
async def test_a_seal_that_was_not_noted_is_adopted(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch, remount: bool
) -> None:
    """The daemon dies, or the answer is lost, between the seal and the forgetting."""

    async def lost(*_: object) -> None:
        raise TransientError("seal", "journal", "the answer was lost")

    async with mounter("a") as m:
        m.write("f", b"sealed, but who knows")
        with monkeypatch.context() as patch:
            patch.setattr(m.replica._flusher, "_forget", lost)
            with pytest.raises(UserError):
                await m.sync()
        assert len(the_segments(bucket)) == 1
        if not remount:
            await m.sync()
    if remount:
        async with mounter("a") as m:
            await m.sync()
    assert len(the_segments(bucket)) == 2
    async with mounter("b") as m:
        assert await m.read("f") == b"sealed, but who knows"
    assert mirror(bucket) == {"f": b"sealed, but who knows"}


def lose_what_the_mirror_says(m: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirror passes do their work, but we die (or the worker does) before anything is noted."""
    ask = m.replica.worker.ask

    async def lossy(cmd: str, *args: object, **more: object) -> object:
        if cmd != "mirror":
            return await ask(cmd, *args, **more)  # type: ignore[arg-type]
        await ask(cmd, **more)  # type: ignore[arg-type]
        raise TransientError("mirror", "", "the transfer worker died")

    monkeypatch.setattr(m.replica.worker, "ask", lossy)


@pytest.mark.parametrize("again", ["same worker", "next mount"])
async def test_objects_of_a_pass_that_was_cut_off_are_not_left(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    async with mounter("a") as m:
        m.write("stays", b"0")
        await m.sync()
        m.write("gone", b"1")
        m.write("file/then/dir", b"2")
        m.write("dir", b"3")
        with monkeypatch.context() as patch:
            lose_what_the_mirror_says(m, patch)
            with pytest.raises(UserError):
                await m.sync()
        assert set(mirror(bucket)) == {"stays", "gone", "file/then/dir", "dir"}
        m.unlink("gone")
        m.unlink("dir")
        m.rename("file", "dir")
        m.write("file", b"4")
        if again == "same worker":
            await m.sync()
    async with mounter("a") as m:
        await m.sync()
    assert mirror(bucket) == {"stays": b"0", "dir/then/dir": b"2", "file": b"4"}


async def test_rows_of_a_pass_that_was_cut_off_are_not_believed(
    mounter: Mounter, bucket: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trees renamed, mirrored unnoted, and renamed back: the rows are as before, objects not."""
    async with mounter("a") as m:
        m.write("a/f", b"1")
        m.write("b/f", b"2")
        await m.sync()
        m.rename("a", "c")
        m.rename("b", "a")
        with monkeypatch.context() as patch:
            lose_what_the_mirror_says(m, patch)
            with pytest.raises(UserError):
                await m.sync()
        assert mirror(bucket) == {"c/f": b"1", "a/f": b"2"}
        m.rename("a", "b")
        m.rename("c", "a")
        await m.sync()
        assert mirror(bucket) == {"a/f": b"1", "b/f": b"2"}


async def test_a_read_waits_for_the_store_to_come_back(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead worker or a lost connection is no EIO."""
    async with mounter("a") as m:
        m.write("f", b"data")
        await m.sync()
    async with mounter("b") as m:
        ask = m.replica.worker.ask
        failures = [1, 2]

        async def failing(cmd: str, *args: object, **more: object) -> object:
            if cmd == "fetch" and failures:
                failures.pop()
                raise TransientError("fetch", "", "the transfer worker died")
            return await ask(cmd, *args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(m.replica.worker, "ask", failing)
        assert await m.read("f") == b"data"
        assert not failures


async def test_damage_beside_what_is_read_harms_no_reader(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    data = os.urandom(8 * EXTENT_BYTES)
    async with mounter("a") as m:
        m.write("f", data)
        # The segment gets so large that a restore reads its records alone.
        for number in range(3):
            m.write(f"filler{number}", os.urandom(900_000))
        await m.sync()
        with m.cache.read() as view:
            where = view.chunk(m.ino("f"), 3)
    assert where is not None
    key = layout.object_key(where.object_id)
    raw = bytearray(bucket.get(key).data)
    raw[where.offset] ^= 1
    bucket.delete(key)
    bucket.put(key, bytes(raw))
    bucket.delete("files/f")
    async with mounter("b") as m:
        got = m.fs.read(m.ino("f"), 0, 10)
        assert isinstance(got, NeedExtents)
        async with trio.open_nursery() as nursery:
            # The hydrator has all of it on one flight.
            nursery.start_soon(m.replica.hydrate)
            await trio.sleep(0)
            await m.replica.fetch(got)
        assert m.fs.read(m.ino("f"), 0, 10) == data[:10]
        for index in range(8):
            if index != 3:
                at = index * EXTENT_BYTES
                assert m.fs.read(m.ino("f"), at, EXTENT_BYTES) == data[at : at + EXTENT_BYTES]
        damaged = m.fs.read(m.ino("f"), 3 * EXTENT_BYTES, 10)
        assert isinstance(damaged, NeedExtents)
        with pytest.raises(FsError):
            await m.replica.fetch(damaged)


async def test_what_a_failed_sync_left_is_saved_without_another_change(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the simulation: the service took nothing to be due, and waited for a change."""
    async with mounter("a", run=True) as m:
        m.write("f", b"1")
        await m.sync()
        ask = m.replica.worker.ask
        failures = [1]

        async def failing(cmd: str, *args: object, **more: object) -> object:
            if cmd == "seal" and failures:
                # The service has seen the change, and that a cycle took it.
                await trio.sleep(0.5)
                failures.pop()
                raise TransientError("seal", "", "the store is away")
            return await ask(cmd, *args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(m.replica.worker, "ask", failing)
        with trio.fail_after(30):
            # The service waits, and is not just about to look: so the change is the sync's.
            while m.replica._cycle_lock.locked() or m.replica._schedule.is_awake:
                await trio.sleep(0.02)
        m.write("f", b"2")
        with pytest.raises(UserError):
            await m.sync()
        with trio.fail_after(30):
            while m.replica.status()["generation"]["sealed"] < m.cache.generation:
                await trio.sleep(0.02)
