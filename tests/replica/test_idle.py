"""A workspace that nobody changes any more: what is too old of its history goes, and then all is
quiet."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from s3ws_fs.core import layout
from s3ws_fs.core.findings import Severity
from s3ws_fs.core.history import NAMED, TURN_BEGIN
from s3ws_fs.core.retention import LOOK_LATER_HOURS
from s3ws_fs.store.memory import Fault, MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points
from s3ws_fs.transfer.audit import audit
from s3ws_fs.transfer.garbage import GC_GRACE_S
from tests.replica.conftest import Mount
from tests.replica.test_snapshots import files_at, scoped
from tests.support.inline import START_NS, at_once, inline_config, inline_mount

HOUR_S: Final = 3600.0
LOOK_H: Final = 24 + LOOK_LATER_HOURS
"""Hours from a change to the first look, and from that to the second."""

Test = Callable[[Mount, ScopedStore, MemoryStore], Awaitable[None]]


def lived(
    tmp_path: Path, test: Test, memory: MemoryStore | None = None, *, later_h: float = 0
) -> None:
    """Run a test with a mount that flushes by itself; one clock for mount, host and store."""

    def now_ns() -> int:
        return START_NS + int((trio.current_time() + later_h * HOUR_S) * 1e9)

    memory = MemoryStore() if memory is None else memory
    memory._now_ns = now_ns
    config = inline_config(tmp_path)

    async def main() -> None:
        async with (
            inline_mount(config, memory, now_ns=now_ns) as mount,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(mount.replica.run)
            await test(mount, scoped(memory, config), memory)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def a_busy_day(m: Mount) -> bytes:
    """Ten seals of new bytes in one file; the last of them."""
    data = b""
    for _ in range(10):
        data = os.urandom(200_000)
        m.write("a", data)
        await m.sync()
        await trio.sleep(60)
    return data


def names(store: ScopedStore) -> list[str]:
    return sorted(entry.key for entry in store.list("journal/"))


def held_bytes(store: ScopedStore) -> int:
    return sum(entry.size_bytes for entry in store.list("journal/"))


def test_a_busy_days_history_goes_while_nobody_changes_anything(tmp_path: Path) -> None:
    async def test(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
        data = await a_busy_day(m)
        before = names(store)
        await trio.sleep((LOOK_H - 1) * HOUR_S)
        assert names(store) == before
        assert points.survey_points(store).numbers() == list(range(1, 11))
        await trio.sleep(2 * HOUR_S)
        # The day's points are too old, but for the last, which is made of what they left.
        assert points.survey_points(store).newest == 11
        assert held_bytes(store) > 10 * 200_000
        await trio.sleep(LOOK_H * HOUR_S)
        assert points.survey_points(store).numbers() == [11, 12]
        assert held_bytes(store) < 2 * 200_000
        assert files_at(store, "head") == {"a": data} == files_at(store, "#11")
        assert not damage(store)
        assert m.replica.health()["state"] == "ok"

    lived(tmp_path, test)


def test_then_nothing_is_asked_of_the_store(tmp_path: Path) -> None:
    async def test(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
        await a_busy_day(m)
        await trio.sleep(3 * LOOK_H * HOUR_S)
        asked = requests(memory)
        await trio.sleep(20 * 24 * HOUR_S)
        assert requests(memory) == asked
        # Automatic snapshots would be too old by now.
        await trio.sleep(20 * 24 * HOUR_S)
        assert points.survey_points(store).newest == 13
        asked = requests(memory)
        await trio.sleep(1000 * 24 * HOUR_S)
        assert requests(memory) == asked

    lived(tmp_path, test)


def test_snapshots_stay_as_long_as_they_are_said_to(tmp_path: Path) -> None:
    async def test(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
        m.write("a", b"kept")
        await m.replica.snapshot(NAMED, "kept")
        m.write("a", b"turn")
        await m.replica.snapshot(TURN_BEGIN, "t")
        await a_busy_day(m)
        await trio.sleep(29 * 24 * HOUR_S)
        assert files_at(store, "turn:t:begin") == {"a": b"turn"}
        await trio.sleep(2 * 24 * HOUR_S)
        assert [snap.kind for snap in points.list_snaps(store)] == [NAMED]
        assert files_at(store, "kept") == {"a": b"kept"}
        assert not damage(store)

    lived(tmp_path, test)


def test_the_next_mount_goes_on_where_this_one_was(tmp_path: Path) -> None:
    """Time is that of all mounts together; none of them lasts as long as a look takes to be due."""
    memory = MemoryStore()
    mounts: list[int] = []

    async def test(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
        if not mounts:
            await a_busy_day(m)
        await trio.sleep(LOOK_H / 2 * HOUR_S)
        mounts.append(points.survey_points(store).newest)

    for number in range(6):
        lived(tmp_path, test, memory, later_h=number * LOOK_H / 2 + 0.2 * bool(number))
    assert mounts == [10, 11, 11, 12, 12, 12]


def test_nobody_who_waits_waits_for_it(tmp_path: Path) -> None:
    async def test(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
        await a_busy_day(m)
        await m.replica.pause()
        await trio.sleep(2 * LOOK_H * HOUR_S)
        await m.sync()
        await m.replica.final_flush(lambda _: None)
        assert points.survey_points(store).newest == 10

    lived(tmp_path, test)


def test_a_store_that_is_away_is_asked_again(tmp_path: Path) -> None:
    async def test(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
        await a_busy_day(m)
        failed: list[str] = []

        def away(op: str, key: str) -> Fault:
            is_seal = op == "put" and layout.SEG_PREFIX in key
            if not is_seal or len(failed) == 3:
                return Fault.NONE
            failed.append(key)
            return Fault.TRANSIENT

        memory.fault = away
        await trio.sleep((LOOK_H + 1) * HOUR_S)
        assert len(failed) == 3
        assert points.survey_points(store).newest == 11
        assert m.replica.health()["state"] == "ok"

    lived(tmp_path, test)


@pytest.mark.parametrize("note", [b"{}", b"[]", b"3", b'{"number": 10, "sealed_ns": "x"}'])
def test_a_note_that_is_none_counts_from_now(tmp_path: Path, note: bytes) -> None:
    async def test(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
        await a_busy_day(m)
        with m.cache.env.begin(write=True) as txn:
            txn.put(b"idle", note, db=m.cache.tables.meta)
        m.replica._flusher.idle.load(10)
        due_s = m.replica._flusher.idle.due_s(trio.current_time())
        assert due_s == pytest.approx(trio.current_time() + LOOK_H * HOUR_S)

    lived(tmp_path, test)


def test_what_may_go_is_old_enough_for_the_collector() -> None:
    assert LOOK_LATER_HOURS * HOUR_S > GC_GRACE_S


def requests(memory: MemoryStore) -> Any:
    return memory.counters.by_op()


def damage(store: ScopedStore) -> list[Any]:
    """What `s3ws check --bucket` calls wrong."""
    found = audit(store, at_once(), lambda _: None).report.findings
    return [finding for finding in found if finding.severity is not Severity.NOTE]
