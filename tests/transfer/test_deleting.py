"""Deletions: whole, repeatable, and at no moment anything that mounts as less than it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import failpoints, layout
from s3ws_fs.core.errors import ExitCode, PermanentError, TransientError, UserError
from s3ws_fs.core.lease import LAPSE_SLACK_S, fence_s
from s3ws_fs.core.tombstone import decode_tombstone
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.base import DELETE_BATCH, DeleteFailure
from s3ws_fs.store.memory import Fault, MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import deleting, journaling, points
from s3ws_fs.transfer.audit import audit
from s3ws_fs.transfer.deleting import FAILURES_MAX, ROUNDS_MAX, Deleted, Deleter
from s3ws_fs.transfer.forking import Forker, Who
from s3ws_fs.transfer.gate import Gate
from s3ws_fs.transfer.leasing import Claim
from s3ws_fs.transfer.wire import FencedError
from tests.support.history import Life, tree_of

LEASE_S = 30.0
OTHERS = ("compressed/backup-20260101T000000Z.tar.gz", "git/workspace.bundle", "files/a/b", "odd")
POINTS = [name for name in failpoints.POINTS if name.startswith("delete.")]
SIBLINGS = ("conversations/u/c/events/1", "conversations/u/c2/workspace/files/x")


@pytest.fixture
def life(
    cache: Cache, fs: FileSystem, store: ScopedStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> Iterator[Life]:
    """A workspace with a history, beside which others stand."""
    made = Life(cache, fs, store, tmp_path)
    made.begin()
    for number in range(1, 5):
        made.write(b"f%d" % number, os.urandom(40_000))
        frozen = made.seal(pool, checkpoint=number == 2)
        assert frozen is not None
        frozen.close()
    for key in OTHERS:
        store.put(key, b"x")
    for key in SIBLINGS:
        store._inner.put(key, b"theirs")
    yield made
    assert all(store._inner.get(key).data == b"theirs" for key in SIBLINGS)


def delete(
    store: ScopedStore,
    *,
    take_over: bool = False,
    gate: Gate | None = None,
    sleep: Callable[[float], None] = lambda _: None,
) -> Deleted:
    deleter = Deleter(
        store, Who("here", 1, 7, LEASE_S), take_over=take_over, gate=gate, sleep=sleep
    )
    return deleter.run(lambda _: None)


def standing(store: ScopedStore) -> set[str]:
    return {entry.key for entry in store.everything()}


def no_workspace(store: ScopedStore) -> None:
    """Nobody takes what stands there for a workspace, nor makes one of it."""
    assert journaling.read_workspace(store) is None
    with pytest.raises(UserError, match="deleted") as error:
        journaling.survey(store)
    assert error.value.exit_code is ExitCode.STORE and "s3ws delete" in error.value.remedy
    with pytest.raises(UserError, match="no workspace"):
        points.survey_points(store)
    forker = Forker(store, store, Who("there", 2, 8))
    with pytest.raises(UserError, match="not free"):
        forker.require_free()


def test_all_of_it_goes_and_nothing_beside_it(life: Life, store: ScopedStore) -> None:
    count = len(standing(store))
    done = delete(store)
    assert standing(store) == set()
    # All but the lease, which the deletion itself took, and the tombstone.
    assert (done.objects, done.failures) == (count - 1, [])
    state = journaling.survey(store)
    assert (state.workspace, state.newest) == (None, 0)


def test_again_where_nothing_is_left_is_nothing(life: Life, store: ScopedStore) -> None:
    delete(store)
    assert delete(store) == Deleted()
    assert standing(store) == set()


@pytest.mark.parametrize("point", POINTS)
def test_a_failure_anywhere_leaves_it_whole_or_none_and_is_done_again(
    life: Life, store: ScopedStore, pool: ThreadPoolExecutor, point: str
) -> None:
    def fail(name: str) -> None:
        if name == point:
            raise TransientError("delete", "x", "injected")

    with mock.patch.object(failpoints, "hook", fail), pytest.raises(TransientError):
        delete(store)
    if point == failpoints.DELETE_MARKED:
        assert tree_of(points.load(store, life.number), store) == life.points[life.number]
        mark = decode_tombstone(store.get(layout.DELETED_KEY).data)
        assert (mark.workspace, mark.host, mark.created_ns) == ("w" * 32, "here", 7)
        found = audit(store, pool, lambda _: None).report
        assert not found.has_damage, found.findings
    elif point == failpoints.DELETE_LEASE:
        assert standing(store) == {layout.LEASE_KEY}
        assert journaling.survey(store).newest == 0
    else:
        no_workspace(store)
    delete(store)
    assert standing(store) == set()


def test_after_every_single_request_it_is_whole_or_none(
    life: Life, store: ScopedStore, memory: MemoryStore
) -> None:
    """The store stops answering after n changes, for each n; and then answers again."""
    wanted = life.points[life.number]
    after = 0
    while True:
        copy = memory.fork()
        there = ScopedStore(copy, store.prefix)
        left = [after]

        def stop(op: str, key: str, left: list[int] = left) -> Fault:
            if op in ("put", "delete"):
                left[0] -= 1
            return Fault.TRANSIENT if left[0] < 0 else Fault.NONE

        copy.fault = stop
        try:
            delete(there)
            break
        except TransientError:
            copy.fault = None
        except PermanentError:
            copy.fault = None
        if journaling.read_workspace(there) is not None:
            assert tree_of(points.load(there, life.number), there) == wanted
        elif standing(there) - {layout.LEASE_KEY}:
            no_workspace(there)
            others = standing(there) - {layout.LEASE_KEY, layout.DELETED_KEY}
            # To a program that knows no tombstone it is a journal without workspace.json.
            assert not others or any(key.startswith(layout.SEG_PREFIX) for key in others)
        delete(there, take_over=True)
        assert standing(there) == set()
        after += 1
    assert after > len(OTHERS) + 5


def test_what_is_mounted_is_refused_unless_told(life: Life, store: ScopedStore) -> None:
    gate = Gate(store)
    gate.take(Claim("m" * 32, "elsewhere", 2, 1, LEASE_S, 0))
    before = standing(store)
    with pytest.raises(UserError, match="elsewhere") as error:
        delete(store)
    assert error.value.exit_code is ExitCode.HELD
    assert standing(store) == before
    slept: list[float] = []
    delete(store, take_over=True, sleep=slept.append)
    assert slept == [fence_s(LEASE_S) + LAPSE_SLACK_S]
    assert standing(store) == set()
    # Who had it does not come back, also when nothing is left that would tell.
    with pytest.raises(PermanentError, match="holds none"):
        gate.renew()
    assert standing(store) == set()


def test_what_the_writer_before_puts_in_its_last_moments_goes_too(
    life: Life, store: ScopedStore
) -> None:
    Gate(store).take(Claim("m" * 32, "elsewhere", 2, 1, LEASE_S, 0))

    def meanwhile(_: float) -> None:
        store.put("files/late", b"1")
        store.put(layout.seg_key(99), b"1")

    delete(store, take_over=True, sleep=meanwhile)
    assert standing(store) == set()


def test_who_loses_the_lease_deletes_nothing_more(life: Life, store: ScopedStore) -> None:
    now_s = 100.0
    gate = Gate(store, boot=lambda: now_s)

    def lose(name: str) -> None:
        nonlocal now_s
        if name == failpoints.DELETE_BEGUN:
            Gate(store).take(Claim("o" * 32, "elsewhere", 2, 1, 60.0, 0, take_over=True))
            now_s += 60

    before = standing(store) | {layout.DELETED_KEY, layout.LEASE_KEY}
    with mock.patch.object(failpoints, "hook", lose), pytest.raises(FencedError):
        delete(store, gate=gate)
    assert standing(store) == before - {layout.WORKSPACE_KEY}
    no_workspace(store)


def test_a_damaged_workspace_is_deleted_all_the_same(life: Life, store: ScopedStore) -> None:
    store.put(layout.WORKSPACE_KEY, b"?")
    store.delete(layout.seg_key(3))
    delete(store)
    assert standing(store) == set()


def test_what_cant_be_deleted_is_told_and_the_tombstone_stays(
    life: Life, store: ScopedStore, memory: MemoryStore
) -> None:
    def refuse(op: str, key: str) -> Fault:
        return Fault.PERMANENT if op == "delete" and key.endswith("files/a/b") else Fault.NONE

    memory.fault = refuse
    done = delete(store)
    assert [failure.key for failure in done.failures] == ["files/a/b"] and done.failed == 1
    assert standing(store) == {"files/a/b", layout.DELETED_KEY, layout.LEASE_KEY}
    no_workspace(store)
    memory.fault = None
    assert delete(store).objects == 1
    assert standing(store) == set()


def test_too_many_failures_end_it(store: ScopedStore, memory: MemoryStore) -> None:
    for number in range(FAILURES_MAX + 1):
        memory.put(f"{store.prefix}files/{number}", b"")

    def refuse(op: str, key: str) -> Fault:
        return Fault.PERMANENT if op == "delete" and "/files/" in key else Fault.NONE

    memory.fault = refuse
    with pytest.raises(PermanentError, match="injected"):
        delete(store)
    memory.fault = None
    memory.delete(f"{store.prefix}files/0")
    memory.fault = refuse
    assert delete(store).failed == FAILURES_MAX


def test_somebody_who_writes_on_and_on_ends_it(life: Life, store: ScopedStore) -> None:
    written = [0]

    def write(name: str) -> None:
        if name == failpoints.DELETE_BATCH:
            written[0] += 1
            store.put(f"files/new-{written[0]}", b"")

    with (
        mock.patch.object(failpoints, "hook", write),
        pytest.raises(TransientError, match="goes on writing"),
    ):
        delete(store)
    assert written[0] >= ROUNDS_MAX
    no_workspace(store)


def test_more_than_a_batch_is_one_request_a_thousand(
    store: ScopedStore, memory: MemoryStore
) -> None:
    for number in range(2 * DELETE_BATCH + 1):
        memory.put(f"{store.prefix}files/{number:05}", b"12")
    asked: list[int] = []
    purge = ScopedStore.purge

    def count(self: ScopedStore, keys: object) -> list[DeleteFailure]:
        listed = list(keys)  # type: ignore[call-overload]
        asked.append(len(listed))
        return purge(self, listed)

    with mock.patch.object(ScopedStore, "purge", count):
        done = delete(store)
    assert sorted(asked) == [1, DELETE_BATCH, DELETE_BATCH]
    assert (done.objects, done.bytes) == (2 * DELETE_BATCH + 1, 2 * (2 * DELETE_BATCH + 1))


def test_uploads_that_can_not_be_listed_are_no_failure(life: Life, store: ScopedStore) -> None:
    def refuse(*_: object) -> int:
        raise PermanentError("list", "?uploads", "AccessDenied")

    with mock.patch.object(ScopedStore, "abort_uploads", refuse):
        delete(store)
    assert standing(store) == set()
    assert deleting.WINDOW * DELETE_BATCH <= 10_000
