"""A restore between daemon, worker and bucket: what it waits for, refuses, retries, and leaves."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import trio
from trio.testing import MockClock

from s3ws_fs.core import failpoints, history
from s3ws_fs.core.errors import (
    ExitCode,
    FsError,
    PermanentError,
    TransientError,
    UserError,
)
from s3ws_fs.core.history import BEFORE_RESTORE, BEFORE_UNDO, NAMED
from s3ws_fs.core.types import Outdated
from s3ws_fs.replica import rewind
from s3ws_fs.replica.rewind import TRIES_MAX, RewindAsk
from s3ws_fs.store.memory import Fault, MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points
from tests.replica.conftest import Mount
from tests.support.armed import listening
from tests.support.inline import Ticks, inline_config, inline_mount


def quiet(_: object) -> None:
    """A progress sink."""


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


Test = Callable[[Mount, ScopedStore, MemoryStore], Awaitable[None]]


def inline(test: Test) -> Callable[[MemoryStore, Path], None]:
    """Run a test with a mount of its own over a store in memory."""

    def run(memory: MemoryStore, tmp_path: Path) -> None:
        config = replace(
            inline_config(tmp_path), max_size_bytes=4 << 20, local_patterns="/stays/;!*.temp"
        )

        async def main() -> None:
            async with inline_mount(config, memory, now_ns=Ticks()) as mount:
                await test(mount, ScopedStore(memory, config.workspace.prefix), memory)

        trio.run(main, clock=MockClock(autojump_threshold=0))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def restored(m: Mount, ref: str, *paths: bytes, **more: Any) -> dict[str, Any]:
    return await m.replica.rewind(RewindAsk(ref, paths, **more), quiet)


def kinds(store: ScopedStore) -> list[str]:
    """What is kept in the bucket, by kind, the oldest first."""
    return [snap.kind for snap in points.list_snaps(store)]


@inline
async def test_there_and_back_again(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
    m.write("d/a", b"then")
    m.write("same", b"s" * 100_000)
    await m.replica.snapshot(NAMED, "one")
    same = m.ino("same")
    m.write("d/a", b"now!")
    m.write("new", b"untracked")
    result = await restored(m, "one")
    assert result["restored"] and result["snapshot"]["kind"] == BEFORE_RESTORE
    assert await m.files() == {"d/a": b"then", "same": b"s" * 100_000}
    assert m.ino("same") == same
    undone = await restored(m, history.UNDO)
    assert undone["snapshot"]["kind"] == BEFORE_UNDO
    assert await m.files() == {"d/a": b"now!", "same": b"s" * 100_000, "new": b"untracked"}
    await restored(m, history.UNDO)
    assert await m.files() == {"d/a": b"then", "same": b"s" * 100_000}
    assert kinds(store) == [NAMED, BEFORE_RESTORE, BEFORE_UNDO, BEFORE_UNDO]
    await m.sync()
    assert await m.files() == {"d/a": b"then", "same": b"s" * 100_000}


@inline
async def test_an_undo_of_some_paths_leaves_other_work_alone(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("d/a", b"then")
    m.write("e/b", b"then")
    await m.replica.snapshot(NAMED, "one")
    m.write("d/a", b"mine")
    m.write("d/new", b"mine")
    m.write("e/b", b"mine")
    await restored(m, "one", b"d")
    assert await m.files() == {"d/a": b"then", "e/b": b"mine"}
    m.write("e/later", b"work")
    m.write("e/b", b"more")
    after = {"e/b": b"more", "e/later": b"work"}
    result = await restored(m, history.UNDO)
    assert await m.files() == {"d/a": b"mine", "d/new": b"mine", **after}
    assert result["deleted"]["count"] == 0
    m.write("e/last", b"work")
    await restored(m, history.UNDO)
    assert await m.files() == {"d/a": b"then", "e/last": b"work", **after}


@inline
async def test_an_undo_at_once_is_exact(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
    """Also of a path below a directory whose own times the restore changed."""
    m.write("d/a", b"then")
    await m.replica.snapshot(NAMED, "one")
    m.unlink("d/a")
    m.write("d/b", b"mine")
    before = m.tree()
    await restored(m, "one", b"d/a")
    assert m.tree() != before
    await restored(m, history.UNDO)
    assert m.tree() == before


@inline
async def test_an_undo_is_of_local_paths_when_the_restore_was(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("stays/a", b"then")
    await m.replica.snapshot(NAMED, "one")
    m.write("stays/a", b"mine")
    for paths, more in (((), {"everything": True}), ((b"stays",), {})):
        await restored(m, "one", *paths, **more)
        assert await m.files() == {"stays/a": b"then"}
        m.write("other", b"work")
        await restored(m, history.UNDO)
        assert (await m.files())["stays/a"] == b"mine"
        m.write("stays/a", b"mine")


@inline
async def test_an_undo_goes_past_a_snapshot_whose_answer_was_lost(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    """It stands, and nothing was restored: undo is of the restore before."""
    m.write("a", b"then")
    await m.replica.snapshot(NAMED, "one")
    m.write("a", b"mine")
    await restored(m, "one")
    for keeps in (True, False):

        def fault(op: str, key: str, keeps: bool = keeps) -> Fault:
            if op == "put" and "/snap/" in key:
                return Fault.LOST
            return Fault.TRANSIENT if keeps and op == "delete" and "/snap/" in key else Fault.NONE

        memory.fault = fault
        before = kinds(store)
        with pytest.raises(UserError, match="no snapshot was taken"):
            await restored(m, history.UNDO)
        memory.fault = None
        assert kinds(store) == [*before, BEFORE_UNDO] if keeps else before
        assert await m.files() == {"a": b"then"}
    await restored(m, history.UNDO)
    assert await m.files() == {"a": b"mine"}


@inline
async def test_an_undo_of_a_path_that_is_gone_by_now(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("a", b"then")
    m.write("d/e/b", b"then")
    m.write("d/c", b"stays")
    await m.replica.snapshot(NAMED, "one")
    m.unlink("a")
    m.unlink("d/e/b")
    await restored(m, "one", b"a", b"d/e/b")
    m.unlink("a")
    m.unlink("d/e/b")
    m.write("other", b"work")
    result = await restored(m, history.UNDO)
    assert result["is_nothing"]
    assert await m.files() == {"d/c": b"stays", "other": b"work"}
    with pytest.raises(UserError, match="nothing at"):
        await restored(m, "one", b"never there")


@inline
async def test_an_undo_of_more_paths_than_a_snapshot_names(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    """It is of the whole tree then, and says so before."""
    count = history.SNAP_PATHS_BYTES_MAX // 8
    names = [f"{number:04}" for number in range(count + 1)]
    m.write("other", b"then")
    for name in names:
        m.write(name, b"then")
    await m.replica.snapshot(NAMED, "one")
    for paths, kept in ((names[:-1], b"work"), (names, b"mine")):
        m.write(names[0], b"mine")
        m.write("other", b"mine")
        await restored(m, "one", *(path.encode() for path in paths))
        m.write("other", b"work")
        await restored(m, history.UNDO)
        assert await m.read(names[0]) == b"mine"
        assert await m.read("other") == kept


@inline
async def test_local_paths_that_a_setting_names_stay(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("a", b"then")
    await m.replica.snapshot(NAMED, "one")
    m.write("a", b"now!")
    m.write("stays/b", b"mine")
    m.write("c.tmp", b"local by default")
    m.write("d.temp", b"taken back")
    await restored(m, "one")
    assert await m.files() == {"a": b"then", "stays/b": b"mine", "c.tmp": b"local by default"}


@inline
async def test_nothing_is_sent_twice(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
    """What comes back is named where it stands, also when it was read before the next seal."""
    data = os.urandom(900_000)
    m.write("large", data)
    await m.replica.snapshot(NAMED, "one")
    m.unlink("large")
    await m.sync()
    await restored(m, "one")
    assert await m.read("large") == data
    await m.sync()
    survey = points.survey_points(store)
    assert survey.segments[survey.newest].size_bytes < 10_000
    assert await m.read("large") == data


@inline
async def test_looking_leaves_nothing(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
    m.write("a", b"then")
    await m.replica.snapshot(NAMED, "one")
    assert (await restored(m, "one"))["is_nothing"]
    m.write("a", b"now!")
    before = m.cache.generation
    shown = await restored(m, "one", dry_run=True)
    assert not shown["restored"] and shown["changed"] == {"count": 1, "paths": ["a"]}
    assert m.cache.generation == before
    assert kinds(store) == [NAMED]


@inline
async def test_what_is_refused_leaves_nothing(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("large", bytes(3 << 20))
    await m.replica.snapshot(NAMED, "one")
    m.unlink("large")
    m.write("now", b"n" * (2 << 20))
    await m.sync()
    m.fs.quota_bytes = 2 << 20
    for ask, code in (
        (RewindAsk("one"), ExitCode.USAGE),
        (RewindAsk("two"), ExitCode.NO_SUCH_POINT),
        (RewindAsk("#99"), ExitCode.NO_SUCH_POINT),
        (RewindAsk(history.UNDO), ExitCode.NO_SUCH_POINT),
        (RewindAsk("one", (b"nowhere",)), ExitCode.USAGE),
        (RewindAsk("one", (b"..",)), ExitCode.USAGE),
    ):
        before = m.cache.generation
        with pytest.raises(UserError) as refused:
            await m.replica.rewind(ask, quiet)
        assert refused.value.exit_code == code, ask
        assert m.cache.generation == before
        assert kinds(store) == [NAMED]
    assert await m.files() == {"now": b"n" * (2 << 20)}


@contextlib.contextmanager
def at(point: str, work: Callable[[], None]) -> Iterator[None]:
    """Do something each time a point is passed."""

    def passed(name: str) -> None:
        if name == point:
            work()

    with listening(passed):
        yield


@inline
async def test_a_change_in_between_is_in_the_snapshot(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    """It comes right after the state before was sealed: it is not overwritten unseen."""
    m.write("a", b"then")
    await m.replica.snapshot(NAMED, "one")
    m.write("a", b"now!")
    entered: list[str] = []

    @contextlib.contextmanager
    def stopped() -> Iterator[None]:
        entered.append("stopped")
        yield
        entered.append("on again")

    assert m.replica.rewinder is not None
    m.replica.rewinder.means.stopped = stopped

    def write_once() -> None:
        if not entered:
            m.write("late", b"written meanwhile")

    with at(failpoints.REWIND_SNAPPED, write_once):
        await restored(m, "one")
    assert entered == ["stopped", "on again"]
    assert await m.files() == {"a": b"then"}
    # That of the first try was for nothing, and is gone.
    assert kinds(store) == [NAMED, BEFORE_RESTORE]
    await restored(m, history.UNDO)
    assert await m.files() == {"a": b"now!", "late": b"written meanwhile"}


@inline
async def test_changes_without_end(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
    m.write("a", b"then")
    await m.replica.snapshot(NAMED, "one")
    m.write("a", b"now!")
    tries: list[int] = []

    def write_again() -> None:
        tries.append(len(tries))
        m.write("late", b"%d" % len(tries))

    with (
        at(failpoints.REWIND_SNAPPED, write_again),
        pytest.raises(UserError, match="kept changing") as refused,
    ):
        await restored(m, "one")
    assert refused.value.exit_code == ExitCode.BUSY
    assert len(tries) == TRIES_MAX
    assert (await m.files())["a"] == b"now!"
    assert kinds(store) == [NAMED]


@inline
async def test_a_store_that_is_slow_while_programs_wait(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("a", b"then")
    await m.replica.snapshot(NAMED, "one")
    m.write("a", b"now!")
    assert m.replica.rewinder is not None
    means = m.replica.rewinder.means
    take, calls = means.snapshot, []

    async def slow(kind: str, name: str, said: dict[str, Any]) -> dict[str, Any]:
        calls.append(kind)
        if len(calls) > 1:
            await trio.sleep(rewind.STOPPED_S_MAX + 1)
        return await take(kind, name, said)

    means.snapshot = slow

    def write_once() -> None:
        if len(calls) == 1:
            m.write("late", b"x")

    with (
        at(failpoints.REWIND_SNAPPED, write_once),
        pytest.raises(UserError, match="could not be saved within") as refused,
    ):
        await restored(m, "one")
    assert refused.value.exit_code == ExitCode.STORE
    assert await m.files() == {"a": b"now!", "late": b"x"}
    assert kinds(store) == [NAMED]


@inline
async def test_the_kernel_is_told_of_what_changed(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("d/gone", b"then")
    m.write("d/e/kept", b"same")
    await m.replica.snapshot(NAMED, "one")
    m.unlink("d/gone")
    m.write("x/y/new", b"new")
    told: list[Outdated] = []

    async def forget(outdated: Outdated) -> None:
        told.append(outdated)

    m.replica.kernel_forget = forget
    x, y, d = m.ino("x"), m.ino("x/y"), m.ino("d")
    await restored(m, "one")
    names = [name for each in told for name in each.names]
    assert set(names) == {(1, b"x"), (x, b"y"), (y, b"new"), (d, b"gone")}
    # From the leaves up: below a name that was forgotten the kernel finds nothing.
    assert names.index((y, b"new")) < names.index((x, b"y")) < names.index((1, b"x"))
    inodes = {ino for each in told for ino in (*each.inodes, *each.attributes)}
    assert {1, d, x, y} <= inodes and m.ino("d/e/kept") not in inodes
    assert m.ino("d/gone") not in inodes


@inline
async def test_a_restore_that_the_kernel_was_not_told_of(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    """The restore is made all the same. The next daemon tells it, before it seals anything."""
    m.write("d/gone", b"then")
    await m.replica.snapshot(NAMED, "one")
    m.unlink("d/gone")
    told: list[Outdated] = []

    async def fail(_: Outdated) -> None:
        raise FsError(5)

    async def forget(outdated: Outdated) -> None:
        told.append(outdated)

    m.replica.kernel_forget = fail
    assert (await restored(m, "one"))["is_shown"] is False
    assert await m.files() == {"d/gone": b"then"}
    rewinder = m.replica.rewinder
    assert rewinder is not None and rewinder.forgotten.is_set()
    m.replica.kernel_forget = forget
    rewinder.take_over()
    assert not rewinder.forgotten.is_set()
    await rewinder.finish()
    assert rewinder.forgotten.is_set()
    assert (m.ino("d"), b"gone") in {name for each in told for name in each.names}
    told.clear()
    rewinder.take_over()
    await rewinder.finish()
    assert not told


@inline
async def test_without_the_store(m: Mount, store: ScopedStore, memory: MemoryStore) -> None:
    m.write("a", b"then")
    await m.replica.snapshot(NAMED, "one")
    m.write("a", b"now!")
    with (
        mock.patch.object(MemoryStore, "get", side_effect=TransientError("get", "", "away")),
        pytest.raises(UserError) as refused,
    ):
        await restored(m, "one")
    assert refused.value.exit_code == ExitCode.STORE
    assert await m.files() == {"a": b"now!"}
    await restored(m, "one")
    assert await m.files() == {"a": b"then"}


@inline
async def test_a_snapshot_that_can_not_be_put(
    m: Mount, store: ScopedStore, memory: MemoryStore
) -> None:
    m.write("a", b"then")
    await m.replica.snapshot(NAMED, "one")
    m.write("a", b"now!")
    put = MemoryStore.put

    def no_snapshot(self: MemoryStore, key: str, *args: Any, **more: Any) -> Any:
        if "/snap/" in key:
            raise PermanentError("put", key, "refused")
        return put(self, key, *args, **more)

    with mock.patch.object(MemoryStore, "put", no_snapshot), pytest.raises(UserError):
        await restored(m, "one")
    assert await m.files() == {"a": b"now!"}
