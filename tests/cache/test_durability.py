"""Sharing sync points: who waits for what, and what a failure does."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
import trio

from s3ws_fs.cache import durability as durability_module
from s3ws_fs.cache.cache import COMMIT_PAGES_BYTES, Cache, Identity, open_cache
from s3ws_fs.cache.durability import BYTES_BETWEEN_MAX, UNCOVERED_BYTES_MAX, Durability
from s3ws_fs.cache.redo import LOG_BYTES_MAX, SYNC_SHARE
from s3ws_fs.cache.syncpoint import Pending, SyncPoints
from s3ws_fs.core.errors import CacheError, FsError
from s3ws_fs.core.records import InodeRec


def change(cache: Cache, ino: int = 2, data: bytes = b"") -> int:
    with cache.write() as tx:
        rec = InodeRec(ino, 0o100644, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, b"n", b"")
        (tx.add_inode if tx.inode(ino) is None else tx.put_inode)(rec)
        if data:
            tx.put_extent(rec, 0, data, 0)
    return cache.generation


class Gate:
    """Holds back the helper thread's write until it is opened, and counts the writes."""

    def __init__(self, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes = 0
        self.opened = threading.Event()
        self.began = threading.Event()
        original = cache.points.write

        def write(pending: Pending) -> None:
            self.writes += 1
            self.began.set()
            assert self.opened.wait(30)
            original(pending)

        monkeypatch.setattr(cache.points, "write", write)


async def test_ensure_covers_the_newest_change(cache: Cache) -> None:
    durability = Durability(cache)
    generation = change(cache)
    assert cache.points.durable_generation < generation
    await durability.ensure()
    assert cache.points.durable_generation == generation


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Cache]:
    """A cache with a redo log."""
    with open_cache(
        tmp_path / "logged", Identity("p/", "s"), quota_bytes=64 << 20, now_ns=lambda: 1,
        with_log=True,
    ) as opened:  # fmt: skip
        yield opened


async def test_a_flush_of_the_log_is_enough(logged: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    durability = Durability(logged)
    gate = Gate(logged, monkeypatch)
    logged.begin_batch()
    generation = change(logged)
    await durability.ensure()
    assert gate.writes == 0
    assert logged.redo is not None
    assert logged.redo.durable_generation == generation
    # Who waits lets others run: the database has it.
    assert logged.committed_generation == generation


async def test_many_waiters_share_a_flush_of_the_log(
    logged: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, opened = threading.Event(), threading.Event()
    flushes = []

    def slow(descriptors: list[int]) -> None:
        flushes.append(descriptors)
        began.set()
        assert opened.wait(30)

    monkeypatch.setattr(durability_module, "flush", slow)
    durability = Durability(logged)
    change(logged)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(durability.ensure)
        await trio.to_thread.run_sync(began.wait)
        for _ in range(20):
            nursery.start_soon(durability.ensure, change(logged))
        await trio.testing.wait_all_tasks_blocked()
        opened.set()
    assert len(flushes) == 2


async def test_after_bookkeeping_it_takes_a_sync_point(
    logged: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    durability = Durability(logged)
    gate = Gate(logged, monkeypatch)
    gate.opened.set()
    change(logged)
    logged.put_json("note", 1)
    await durability.ensure()
    assert gate.writes == 1
    # And then the log does again.
    change(logged)
    await durability.ensure()
    assert gate.writes == 1


async def test_a_full_log_makes_a_sync_point_due(
    logged: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(logged, monkeypatch)
    gate.opened.set()
    durability = Durability(logged)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(durability.run, 3600)
        await trio.testing.wait_all_tasks_blocked()
        logged.begin_batch()
        for number in range(LOG_BYTES_MAX // SYNC_SHARE // 30_000 + 1):
            change(logged, 2 + number, bytes(30_000))
        logged.settle()
        await trio.to_thread.run_sync(gate.began.wait)
        nursery.cancel_scope.cancel()
    assert gate.writes == 1


async def test_a_flush_of_the_log_that_fails_spoils_the_cache(
    logged: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(descriptors: list[int]) -> None:
        raise OSError(errno.EIO, "bad disk")

    monkeypatch.setattr(durability_module, "flush", failing)
    durability = Durability(logged)
    change(logged)
    with pytest.raises(FsError) as caught:
        await durability.ensure()
    assert caught.value.errno == errno.EIO
    assert logged.points.spoilt
    assert logged.redo is None
    assert durability.last_error is not None
    monkeypatch.undo()
    # No later flush proves anything; work goes on.
    change(logged)
    with pytest.raises(FsError):
        await durability.ensure()
    await durability.cover()


async def test_covered_already_makes_no_sync_point(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    durability = Durability(cache)
    gate = Gate(cache, monkeypatch)
    gate.opened.set()
    change(cache)
    await durability.ensure()
    await durability.ensure()
    assert gate.writes == 1


async def test_many_waiters_share_one(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sync point is under way; twenty who come meanwhile share the next one."""
    durability = Durability(cache)
    gate = Gate(cache, monkeypatch)
    change(cache)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(durability.ensure)
        await trio.to_thread.run_sync(gate.began.wait)
        for _ in range(20):
            nursery.start_soon(durability.ensure, change(cache))
        await trio.testing.wait_all_tasks_blocked()
        gate.opened.set()
    assert gate.writes == 2
    assert cache.points.durable_generation == cache.generation


async def test_changes_during_the_write_are_not_covered(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    durability = Durability(cache)
    gate = Gate(cache, monkeypatch)
    first = change(cache)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(durability.ensure)
        await trio.to_thread.run_sync(gate.began.wait)
        change(cache)
        gate.opened.set()
    assert cache.points.durable_generation == first


async def test_a_failure_reaches_the_waiter_and_the_next_try_works(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    durability = Durability(cache)
    generation = change(cache)

    def failing(_: Pending) -> None:
        raise OSError(5, "disk gone")

    with monkeypatch.context() as patched:
        patched.setattr(cache.points, "write", failing)
        with pytest.raises(FsError, match="disk gone"):
            await durability.ensure()
    assert cache.points.durable_generation < generation
    assert durability.last_error is not None
    await durability.ensure()
    assert cache.points.durable_generation == generation
    assert durability.last_error is None


async def test_the_timer_covers_changes(cache: Cache) -> None:
    durability = Durability(cache)
    generation = change(cache)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(durability.run, 0.01)
        with trio.fail_after(20):
            while cache.points.durable_generation < generation:
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()


async def test_many_bytes_make_one_early(cache: Cache) -> None:
    durability = Durability(cache)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(durability.run, 10_000.0)
        await trio.testing.wait_all_tasks_blocked()
        data = bytes(32768)
        for _ in range(BYTES_BETWEEN_MAX // (len(data) + COMMIT_PAGES_BYTES) - 2):
            change(cache, data=data)
        before = cache.points.durable_generation
        await trio.testing.wait_all_tasks_blocked()
        assert cache.points.durable_generation == before
        for _ in range(4):
            change(cache, data=data)
        with trio.fail_after(20):
            while cache.points.durable_generation == before:
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()


async def test_writers_are_held_while_the_disk_is_behind(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    durability = Durability(cache)
    gate = Gate(cache, monkeypatch)
    await durability.hold()
    assert gate.writes == 0
    cache.uncovered_bytes = UNCOVERED_BYTES_MAX
    await durability.hold()
    assert gate.writes == 0
    change(cache)
    passed = trio.Event()

    async def writer() -> None:
        await durability.hold()
        passed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer)
        await trio.to_thread.run_sync(gate.began.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not passed.is_set()
        gate.opened.set()
        with trio.fail_after(20):
            await passed.wait()


async def test_a_failing_disk_holds_nobody(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    durability = Durability(cache)
    change(cache)

    def failing(_: Pending) -> None:
        raise OSError(5, "disk gone")

    monkeypatch.setattr(cache.points, "write", failing)
    cache.uncovered_bytes = UNCOVERED_BYTES_MAX + 1
    with trio.fail_after(20):
        await durability.hold()
    assert durability.last_error is not None
    assert cache.uncovered_bytes > UNCOVERED_BYTES_MAX


# --- a flush that failed -------------------------------------------------------------------------


def _flush_fails_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does it: the pages are dropped, told once, and the next flush succeeds."""
    flush = cache.points._flush
    told: list[bool] = []

    def once() -> None:
        if not told:
            told.append(True)
            raise lmdb.DiskError("injected: Input/output error")
        flush()

    monkeypatch.setattr(cache.points, "_flush", once)


async def test_after_a_failed_flush_no_later_one_proves_anything(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    durability = Durability(cache)
    before = change(cache)
    await durability.ensure()
    _flush_fails_once(cache, monkeypatch)
    change(cache)
    for _ in range(3):
        with pytest.raises(FsError) as caught:
            await durability.ensure()
        assert caught.value.errno == errno.EIO
    assert cache.points.durable_generation == before
    await durability.ensure(before)
    change(cache)
    with pytest.raises(FsError):
        await durability.ensure()
    await durability.cover()  # a seal goes on
    health = durability.health()
    assert health["state"] == "degraded" and health["since_s"] >= 0
    assert "mount again" in health["error"]


async def test_only_a_flush_spoils_the_cache(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The side file's slot is written anew each time: its failure leaves nothing doubtful."""
    durability = Durability(cache)
    generation = change(cache)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", _refuse)
        with pytest.raises(FsError):
            await durability.cover()
    await durability.ensure()
    assert cache.points.durable_generation == generation


def _refuse(_: int) -> None:
    raise OSError(errno.EIO, "injected")


async def test_a_failed_flush_is_nothing_that_a_new_process_forgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = _opened(tmp_path)
    change(cache)
    _flush_fails_once(cache, monkeypatch)
    with pytest.raises(FsError):
        await Durability(cache).ensure()
    cache.close()
    for may_renew in (False, True):
        # With unsealed changes it is kept, whoever opens it.
        kept = _opened(tmp_path, may_renew=may_renew)
        assert kept.recovery == "kept" and "mount again" in kept.recovered.told()
        assert kept.generation == 1
        durability = Durability(kept)
        assert durability.last_error == kept.recovered.told()
        with pytest.raises(FsError):
            await durability.ensure()
        if may_renew:
            kept.forget(kept.generation, 1 << 62, b"")
            assert durability.health()["since_s"] >= 0
        kept.close()
    adopted = _opened(tmp_path, may_renew=False)
    assert adopted.recovery == "kept", "a mount stands on it"
    adopted.close()
    with _opened(tmp_path) as renewed:
        assert renewed.recovery == "renewed" and renewed.generation == 0
        assert renewed.recovered.aside is not None and renewed.recovered.aside.exists()
        assert str(renewed.recovered.aside) in renewed.recovered.told()
        change(renewed)
        await Durability(renewed).ensure()
    with _opened(tmp_path) as again:
        assert again.recovery == "kept" and not again.recovered.told()


async def test_a_flush_that_fails_while_a_cache_is_opened_is_noted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _opened(tmp_path) as cache:
        change(cache)

    def fails(_: SyncPoints) -> None:
        raise lmdb.DiskError("injected: Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(SyncPoints, "_flush", fails)
        with pytest.raises(CacheError, match="Input/output"):
            _opened(tmp_path)
    with _opened(tmp_path) as kept:
        assert kept.points.spoilt and kept.generation == 1
        with pytest.raises(FsError):
            await Durability(kept).ensure()


async def test_after_a_failed_flush_a_power_cut_leaves_the_sync_point_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = _opened(tmp_path)
    durability = Durability(cache)
    before = change(cache)
    await durability.ensure()
    _flush_fails_once(cache, monkeypatch)
    change(cache)
    with pytest.raises(FsError):
        await durability.ensure()
    cache.close()
    with _opened(tmp_path, boot_id="another") as recovered:
        assert (recovered.recovery, recovered.generation) == ("sync-point", before)
        change(recovered)
        await Durability(recovered).ensure()


def _opened(directory: Path, *, boot_id: str = "boot", may_renew: bool = True) -> Cache:
    return open_cache(
        directory / "spoilt",
        Identity("test/", "test"),
        quota_bytes=100 << 20,
        now_ns=lambda: 1_000_000_000,
        boot_id=boot_id,
        may_renew=may_renew,
    )


async def test_who_is_stopped_waits_until_it_is_over(
    cache: Cache, autojump_clock: trio.testing.MockClock
) -> None:
    durability = Durability(cache)
    went: list[float] = []

    async def hold() -> None:
        await durability.hold()
        went.append(trio.current_time())

    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        with durability.stopped():
            nursery.start_soon(hold)
            nursery.start_soon(hold)
            await trio.sleep(7)
            assert not went
    assert [at_s - began_s for at_s in went] == [7, 7]
    with pytest.raises(ValueError, match="in the block"), durability.stopped():
        raise ValueError("in the block")
    await durability.hold()
