"""Snapshots of a mount: what they hold, what they wait for, and what becomes of them."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
from trio.testing import MockClock

from s3ws_fs.core import history, layout
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.history import BEFORE_RESTORE, NAMED, TURN_BEGIN, TURN_END
from s3ws_fs.replica import flusher
from s3ws_fs.replica.snapshots import list_snapshots
from s3ws_fs.store.memory import Fault, MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points, snaps
from tests.replica.conftest import Mount, Mounter
from tests.support.history import tree_of
from tests.support.inline import Ticks, inline_config, inline_mount

HOUR_NS = 3_600_000_000_000


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


def scoped(memory: MemoryStore, config: MountConfig) -> ScopedStore:
    return ScopedStore(memory, config.workspace.prefix)


def files_at(store: ScopedStore, ref: str) -> dict[str, bytes]:
    point = points.resolve(store, ref, 0)
    tree = tree_of(points.load(store, point.number), store)
    return {os.fsdecode(path): data for path, data in tree.items() if not path.endswith(b"/")}


def inline(test: Any) -> Any:
    """Run a test with a mount of its own over a store in memory."""

    def run(memory: MemoryStore, tmp_path: Path) -> None:
        config = replace(inline_config(tmp_path), history_hours=0.0)

        async def main() -> None:
            async with inline_mount(config, memory, now_ns=Ticks()) as mount:
                await test(mount, scoped(memory, config), memory)

        trio.run(main, clock=MockClock(autojump_threshold=0))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@inline
async def test_the_mirror_is_not_planned_while_somebody_waits(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    """After a large change that takes longer than all else."""
    m.write("a", b"1")
    with m.replica._schedule.hurrying():
        assert await m.replica._cycle.run(None) is None
    assert m.replica.sealed_generation == m.cache.generation
    assert files_at(store, "head") == {"a": b"1"}
    assert list(store.list(layout.FILES_PREFIX)) == []
    assert m.replica._cycle.is_mirror_behind()
    await m.sync()
    assert [entry.key for entry in store.list(layout.FILES_PREFIX)] == ["files/a"]


@inline
async def test_a_snapshot_holds_what_was_there(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("a", b"first")
    m.write("d/b", b"b" * 100_000)
    taken = await m.replica.snapshot(NAMED, "one")
    assert taken["is_new"] and taken["ref"] == "one"
    m.write("a", b"second")
    m.unlink("d/b")
    await m.sync()
    assert files_at(store, "one") == {"a": b"first", "d/b": b"b" * 100_000}
    assert files_at(store, "head") == {"a": b"second"}
    point = points.resolve(store, "one", 0)
    assert (point.number, point.generation) == (taken["number"], taken["generation"])
    listed = await list_snapshots(m.replica.worker)
    assert [each["ref"] for each in listed["snapshots"]] == ["one"]
    assert listed["damaged"] == []


@inline
async def test_with_nothing_to_seal_it_is_three_requests(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("a", b"x")
    await m.sync()
    await m.replica.snapshot(NAMED, "warm-up")
    before = memory.counters.by_op()
    freezes = mock.Mock(side_effect=AssertionError("nothing is dirty"))
    with mock.patch.object(m.replica._flusher, "flush", freezes):
        taken = await m.replica.snapshot(NAMED, "one")
    after = memory.counters.by_op()
    assert {op: after[op] - before[op] for op in after if after[op] != before[op]} == {
        "list": 1, "head": 1, "put": 1,
    }  # fmt: skip
    assert taken["number"] == points.survey_points(store).newest


@inline
async def test_the_mirror_is_left_for_later_and_comes(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    await m.sync()
    m.write("a", b"x")
    await m.replica.snapshot(NAMED, "one")
    assert [entry.key for entry in store.list("files/")] == []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(m.replica.run)
        while not list(store.list("files/")):
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert store.get("files/a").data == b"x"


@inline
async def test_a_name_is_given_once(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
    m.write("a", b"x")
    first = await m.replica.snapshot(NAMED, "one")
    again = await m.replica.snapshot(NAMED, "one")
    assert not again["is_new"]
    assert again["number"] == first["number"]
    m.write("a", b"y")
    with pytest.raises(UserError, match=f"called 'one' already, at #{first['number']}") as caught:
        await m.replica.snapshot(NAMED, "one")
    assert caught.value.exit_code is ExitCode.USAGE
    assert "--delete one" in caught.value.remedy
    # The same name of another kind is another name.
    await m.replica.snapshot(TURN_BEGIN, "one")
    with pytest.raises(UserError, match="can't be the name"):
        await m.replica.snapshot(NAMED, "head")
    assert (await m.replica.history.drop("one"))["removed"] == [
        {"number": first["number"], "kind": NAMED}
    ]
    assert (await m.replica.snapshot(NAMED, "one"))["is_new"]
    named = await m.replica.snapshot(NAMED, "")
    assert named["ref"].startswith("snapshot-2023")
    assert history.check_name(named["ref"])


@inline
async def test_turns(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
    m.write("a", b"x")
    with pytest.raises(UserError, match="No turn 't' has begun") as caught:
        await m.replica.snapshot(TURN_END, "t")
    assert caught.value.exit_code is ExitCode.NO_SUCH_POINT
    begun = await m.replica.snapshot(TURN_BEGIN, "t")
    m.write("a", b"y")
    ended = await m.replica.snapshot(TURN_END, "t")
    assert begun["ref"] == "turn:t:begin"
    assert ended["number"] > begun["number"]
    assert files_at(store, "turn:t:begin") == {"a": b"x"}
    assert files_at(store, "turn:t") == {"a": b"y"}
    gone = await m.replica.history.drop("turn:t")
    assert [each["kind"] for each in gone["removed"]] == [TURN_BEGIN, TURN_END]
    for ref in ("t", "turn:t", "#1", "15m"):
        with pytest.raises(UserError):
            await m.replica.history.drop(ref)


@inline
async def test_without_the_store_there_is_none(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("a", b"x")
    await m.sync()
    m.write("a", b"y")
    memory.fault = lambda op, key: Fault.TRANSIENT
    with pytest.raises(UserError, match="could not be sealed") as caught:
        await m.replica.snapshot(NAMED, "one")
    assert caught.value.exit_code is ExitCode.STORE
    assert "again" in caught.value.remedy
    assert m.replica.status()["health"]["state"] == "degraded"
    assert await m.read("a") == b"y"
    memory.fault = None
    await m.sync()
    memory.fault = lambda op, key: Fault.TRANSIENT if layout.SNAP_PREFIX in key else Fault.NONE
    with pytest.raises(UserError, match="no snapshot was taken") as caught:
        await m.replica.snapshot(NAMED, "one")
    assert caught.value.exit_code is ExitCode.STORE
    memory.fault = None
    assert points.list_snaps(store) == []


@inline
async def test_an_answer_that_was_lost_may_be_asked_for_again(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("a", b"x")
    memory.fault = lambda op, key: (
        Fault.LOST if op == "put" and layout.SNAP_PREFIX in key else Fault.NONE
    )
    with pytest.raises(UserError, match="no snapshot was taken"):
        await m.replica.snapshot(NAMED, "one")
    memory.fault = None
    again = await m.replica.snapshot(NAMED, "one")
    assert not again["is_new"]
    assert len(points.list_snaps(store)) == 1


@inline
async def test_an_emptied_bucket_gets_no_snapshot(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("a", b"x")
    await m.sync()
    for entry in list(store.list(layout.SEG_PREFIX)):
        store.delete(entry.key)
    with pytest.raises(UserError, match="emptied or replaced"):
        await m.replica.snapshot(NAMED, "one")
    assert points.list_snaps(store) == []


@inline
async def test_one_more_than_may_be(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
    with mock.patch.object(snaps, "SNAPSHOTS_MAX", 3):
        await m.replica.snapshot(TURN_BEGIN, "t")
        await m.replica.snapshot(NAMED, "a")
        await m.replica.snapshot(NAMED, "b")
        # The oldest automatic one gives its place.
        await m.replica.snapshot(NAMED, "c")
        left = {each["ref"] for each in (await list_snapshots(m.replica.worker))["snapshots"]}
        assert left == {"a", "b", "c"}
        for kind, name in ((NAMED, "d"), (TURN_BEGIN, "u"), (BEFORE_RESTORE, "")):
            with pytest.raises(UserError, match="There are 3 named snapshots") as caught:
                await m.replica.snapshot(kind, name)
            assert caught.value.exit_code is ExitCode.USAGE


async def live_on(m: Mount, memory: MemoryStore, flushes: int, *, hours: float = 2) -> None:
    """So many flushes, an hour or two apart, each a checkpoint."""
    for number in range(flushes):
        memory._now_ns = _later(memory, hours)
        m.write("churn", os.urandom(2000 + number))
        await m.sync()


def _later(memory: MemoryStore, hours: float) -> Any:
    now_ns = memory._now_ns() if memory._now_ns is not None else 10**18
    now_ns += int(hours * HOUR_NS)
    return lambda: now_ns


@inline
async def test_what_is_kept_and_what_goes(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    memory._now_ns = _later(memory, 0)
    with mock.patch.object(flusher, "CHECKPOINT_EVERY_SEGMENTS", 1):
        m.write("a", b"kept")
        await m.replica.snapshot(NAMED, "kept")
        m.write("a", b"turn")
        await m.replica.snapshot(TURN_BEGIN, "t")
        m.write("a", b"neither")
        await m.sync()
        await live_on(m, memory, 5)
        assert m.replica.status()["flush"]["garbage_error"] is None
        survey = points.survey_points(store)
        first = points.resolve(store, "turn:t:begin", 0).number
        assert survey.numbers() == [1, first, survey.newest]
        assert files_at(store, "kept") == {"a": b"kept"}
        assert files_at(store, "turn:t:begin") == {"a": b"turn"}
        # The days of a turn's mark are over; the named one stays until it is removed.
        await live_on(m, memory, 2, hours=31 * 24)
        assert points.survey_points(store).numbers() == [1, points.survey_points(store).newest]
        assert files_at(store, "kept") == {"a": b"kept"}
        await m.replica.history.drop("kept")
        await live_on(m, memory, 2)
        survey = points.survey_points(store)
        assert survey.numbers() == [survey.newest]
        assert len(survey.segments) + len(survey.checkpoints) < 6
        assert files_at(store, "head")["a"] == b"neither"


@inline
async def test_the_seal_before_a_restore_collects_nothing(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    """Else the point that is to come back could go by the very restore."""
    memory._now_ns = _later(memory, 0)
    m.write("a", b"then")
    await m.replica.snapshot(TURN_BEGIN, "t")
    m.write("a", b"next")
    await m.sync()
    # The mark's days are over: the next collection takes it.
    memory._now_ns = _later(memory, 31 * 24)
    with mock.patch.object(flusher, "CHECKPOINT_EVERY_SEGMENTS", 1):
        m.write("a", b"last")
        async with m.replica.history.still():
            await m.replica.history.take(BEFORE_RESTORE, "")
            assert files_at(store, "turn:t:begin") == {"a": b"then"}
            assert list(store.list(layout.CKPT_PREFIX)) == []
        m.write("a", b"more")
        await m.sync()
    assert len(list(store.list(layout.CKPT_PREFIX))) == 1
    with pytest.raises(UserError, match="no mark"):
        points.resolve(store, "turn:t:begin", 0)
    # What was before the restore is there, though it is large and nothing else is kept.
    assert files_at(store, "undo") == {"a": b"last"}


@inline
async def test_garbage_that_can_not_be_judged_stays_and_is_told(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    memory._now_ns = _later(memory, 0)
    with mock.patch.object(flusher, "CHECKPOINT_EVERY_SEGMENTS", 1):
        m.write("a", b"x")
        await m.sync()
        store.put(layout.HISTORY_KEY, b"{}")
        await live_on(m, memory, 3)
        error = m.replica.status()["flush"]["garbage_error"]
        assert layout.HISTORY_KEY in error
        assert len(list(store.list(layout.SEG_PREFIX))) == 4
        assert m.replica.status()["flush"]["checkpoint_error"] is None
        store.delete(layout.HISTORY_KEY)
        await live_on(m, memory, 1)
        assert m.replica.status()["flush"]["garbage_error"] is None
        assert len(list(store.list(layout.SEG_PREFIX))) < 4


async def test_a_snapshot_ends_a_mirror_pass_early(mounter: Mounter, bucket: ScopedStore) -> None:
    """Over a real worker: the pass goes on afterwards, and the snapshot has not waited for it."""
    async with mounter() as m:
        for number in range(300):
            m.write(f"d{number % 7}/f{number}", b"%d" % number)
        passed = trio.Event()

        async with trio.open_nursery() as nursery:

            async def flush() -> None:
                await m.sync()
                passed.set()

            nursery.start_soon(flush)
            while m.replica.status()["flush"]["state"] != "mirroring":
                assert not passed.is_set(), "the pass was over before it was seen"
                await trio.sleep(0)
            taken = await m.replica.snapshot(NAMED, "early")
            assert not passed.is_set()
            await passed.wait()
        assert taken["generation"] <= m.replica.status()["generation"]["mirrored"]
        keys = [entry.key for entry in bucket.list("files/")]
        assert len(keys) == 300
        assert files_at(bucket, "early").keys() == {key.removeprefix("files/") for key in keys}


async def test_the_next_mount_and_a_fresh_cache_see_it(
    mounter: Mounter, bucket: ScopedStore
) -> None:
    async with mounter() as m:
        m.write("a", b"x")
        await m.replica.snapshot(NAMED, "one")
        m.write("a", b"y")
        await m.sync()
    async with mounter("b") as m:
        listed = (await list_snapshots(m.replica.worker))["snapshots"]
        assert [each["name"] for each in listed] == ["one"]
        assert not stat.S_ISDIR(m.fs.getattr(m.ino("a")).mode)
        before = points.resolve(bucket, "one", 0)
        # Nothing was sealed since: it is the same point.
        again = await m.replica.snapshot(NAMED, "two")
        assert again["number"] == before.number + 1
