"""Forks: equal to their point, alone in the bucket, whole or no workspace at all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.tableset import TableSet
from s3ws_fs.core import failpoints, layout
from s3ws_fs.core.errors import (
    ConflictError,
    ExitCode,
    FormatError,
    PermanentError,
    TransientError,
    UserError,
)
from s3ws_fs.core.forks import Origin, decode_mark
from s3ws_fs.core.treediff import compare
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import journaling, points
from s3ws_fs.transfer.audit import audit
from s3ws_fs.transfer.forking import Forked, Forker, Who
from s3ws_fs.transfer.gate import Gate
from s3ws_fs.transfer.leasing import Claim
from s3ws_fs.transfer.wire import FencedError
from tests.support.history import WORKSPACE, Life, tree_of
from tests.transfer.conftest import PREFIX

NEW = "conversations/u/d/workspace/"
FORK_POINTS = [name for name in failpoints.POINTS if name.startswith("fork.")]
FIXED_REQUESTS = 30
"""What a fork asks for besides one copy for each object, at most."""


@pytest.fixture
def life(cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path) -> Iterator[Life]:
    made = Life(cache, fs, store, tmp_path)
    made.begin()
    yield made


@pytest.fixture
def new(memory: MemoryStore) -> ScopedStore:
    return ScopedStore(memory, NEW)


def a_life(life: Life, pool: ThreadPoolExecutor, seals: int = 6) -> None:
    rng = random.Random(3)
    for number in range(1, seals + 1):
        life.write(b"small", b"small %d" % number)
        ino = life.write(b"of-%d" % number, rng.randbytes(rng.choice([10, 40_000, 1_500_000])))
        life.fs.setxattr(ino, b"user.n", b"%d" % number)
        if number > 2:
            life.remove(b"of-%d" % (number - 1))
        if number == 4:
            life.rename(b"of-4", b"moved")
            life.write(b"of-4", b"again")
        frozen = life.seal(pool, checkpoint=number == 3)
        assert frozen is not None
        frozen.close()


def make(
    life: Life, new: ScopedStore, tmp_path: Path, number: int = 0, *, gate: Gate | None = None
) -> Forked:
    """A fork of a point, as the command makes it."""
    source = ScopedStore(new._inner, PREFIX, read_only=True)
    number = number or life.number
    origin = Origin(PREFIX, WORKSPACE, number, life.generations[number])
    forker = Forker(source, new, Who("host", 1, 7), gate=gate)
    spool = tmp_path / "spool"
    spool.mkdir(exist_ok=True)
    done = forker.run(origin, points.load(source, number), spool, lambda _: None)
    assert not list(spool.iterdir())
    return done


def an_object(life: Life, number: int) -> str:
    """Key of an object that a point names."""
    named = points.load(life.store, number).chunks.values()
    return layout.object_key(max(int.from_bytes(raw[:8], "big") for raw in named))


def shown(store: ScopedStore) -> TableSet:
    return points.load(store, 1)


def require_whole(store: ScopedStore, pool: ThreadPoolExecutor) -> None:
    """The audit finds nothing but a mirror that has not been made yet."""
    found = audit(store, pool, quick=False, local=None, progress=lambda _: None).report
    assert not found.has_damage, found.findings
    assert {each.code for each in found.findings} <= {"mirror-missing"}, found.findings


def no_workspace(new: ScopedStore) -> None:
    """Nobody takes what stands there for a workspace."""
    assert journaling.read_workspace(new) is None
    with pytest.raises(UserError, match="fork") as error:
        journaling.survey(new)
    assert error.value.exit_code is ExitCode.STORE and "again" in error.value.remedy
    with pytest.raises(UserError, match="no workspace"):
        points.survey_points(new)


def test_it_is_the_point_and_outlives_the_source(
    life: Life, new: ScopedStore, memory: MemoryStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    a_life(life, pool)
    for number in life.points:
        target = ScopedStore(memory, f"conversations/u/of-{number}/workspace/")
        before = points.load(life.store, number)
        keys = {key for key in _keys(memory) if key.startswith(PREFIX)}
        done = make(life, target, tmp_path, number)
        assert {key for key in _keys(memory) if key.startswith(PREFIX)} == keys
        # The same records, but for where the bytes stand.
        after = shown(target)
        assert compare(before, after) == []
        assert (after.inodes, after.dentries) == (before.inodes, before.dentries)
        assert (after.xattrs, after.links, after.head) == (before.xattrs, before.links, before.head)
        assert done.workspace == journaling.read_workspace(target) != WORKSPACE
        state = journaling.survey(target)
        assert state.header is not None and state.header.generation == life.generations[number]
    for key in list(_keys(memory)):
        if key.startswith(PREFIX):
            memory.delete(key)
    for number, tree in life.points.items():
        target = ScopedStore(memory, f"conversations/u/of-{number}/workspace/")
        assert tree_of(shown(target), target) == tree
        require_whole(target, pool)


def _keys(memory: MemoryStore) -> set[str]:
    return {entry.key for entry in memory.list()}


def test_it_costs_one_request_an_object(
    life: Life, new: ScopedStore, memory: MemoryStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    a_life(life, pool)
    before = memory.counters.by_op()
    done = make(life, new, tmp_path)
    spent = {op: count - before[op] for op, count in memory.counters.by_op().items()}
    assert spent["copy"] == done.objects > 1
    assert sum(spent.values()) <= done.objects + FIXED_REQUESTS
    # What the point does not name is not copied.
    standing = [entry.key for entry in life.store.list("journal/")]
    assert done.objects < sum(key.startswith(("journal/seg/", "journal/blob/")) for key in standing)
    assert {entry.key for entry in new.list()} == {
        layout.WORKSPACE_KEY,
        layout.LEASE_KEY,
        layout.seg_key(1),
        *(entry.key for entry in new.list(layout.BLOB_PREFIX)),
    }


def test_an_empty_workspace_is_forked(
    life: Life, new: ScopedStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    frozen = life.seal(pool)
    assert frozen is not None
    frozen.close()
    assert make(life, new, tmp_path).objects == 0
    assert tree_of(shown(new), new) == {b"/": b""}


@pytest.mark.parametrize(
    ("key", "body"),
    [
        (layout.WORKSPACE_KEY, journaling.workspace_body("x" * 32, 1)),
        (layout.seg_key(1), b"?"),
        (layout.seg_key(2), b"?"),
        (layout.ckpt_key(1), b"?"),
        (layout.blob_key(1 << 63), b"?"),
        (layout.MIRRORED_KEY, b"?"),
        (layout.FORK_KEY, b"?"),
        ("files/by-hand", b"?"),
        ("compressed/backup", b"?"),
        ("journal/seg/notes", b"?"),
        ("other", b"?"),
    ],
)
def test_whatever_stands_there_is_left_alone(
    life: Life, new: ScopedStore, pool: ThreadPoolExecutor, tmp_path: Path, key: str, body: bytes
) -> None:
    a_life(life, pool, 2)
    new.put(key, body)
    with pytest.raises(UserError, match="not free") as error:
        make(life, new, tmp_path)
    assert error.value.exit_code is ExitCode.EXISTS
    assert [(entry.key, new.get(entry.key).data) for entry in new.list()] == [(key, body)]


def test_a_mount_that_begins_there_has_it(
    life: Life, new: ScopedStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    a_life(life, pool, 2)
    Gate(new).take(Claim("w" * 32, "elsewhere", 2, 1, 60.0, 0))
    with pytest.raises(UserError, match="elsewhere") as error:
        make(life, new, tmp_path)
    assert error.value.exit_code is ExitCode.HELD
    assert {entry.key for entry in new.list()} == {layout.LEASE_KEY}


@pytest.mark.parametrize("point", FORK_POINTS)
def test_an_error_leaves_no_workspace_and_it_is_made_by_a_second_try(
    life: Life, new: ScopedStore, pool: ThreadPoolExecutor, tmp_path: Path, point: str
) -> None:
    a_life(life, pool)

    def fail(name: str) -> None:
        if name == point:
            raise TransientError("put", "x", "injected")

    with mock.patch.object(failpoints, "hook", fail), pytest.raises(TransientError):
        make(life, new, tmp_path)
    if point == failpoints.FORK_MADE:
        assert tree_of(shown(new), new) == life.points[life.number]
    else:
        no_workspace(new)
        said = [each.message for each in audit(new, pool, lambda _: None).report.findings]
        assert point == failpoints.FORK_BEGUN or any("not finished" in each for each in said)
    done = make(life, new, tmp_path)
    assert tree_of(shown(new), new) == life.points[life.number]
    assert done.workspace == journaling.read_workspace(new)
    require_whole(new, pool)
    # Nothing of the first try is left, not even garbage.
    assert len(list(new.list(layout.BLOB_PREFIX))) == done.objects
    assert not [entry for entry in new.list() if entry.key == layout.FORK_KEY]


def test_a_second_try_may_begin_with_another_point(
    life: Life, new: ScopedStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    a_life(life, pool)

    def fail(name: str) -> None:
        if name == failpoints.FORK_SEALED:
            raise TransientError("put", "x", "injected")

    with mock.patch.object(failpoints, "hook", fail), pytest.raises(TransientError):
        make(life, new, tmp_path, 2)
    assert decode_mark(new.get(layout.FORK_KEY).data).origin.number == 2
    make(life, new, tmp_path, 5)
    assert tree_of(shown(new), new) == life.points[5]


def test_a_whole_fork_whose_mark_was_left_is_finished_only_by_its_own_command(
    life: Life, new: ScopedStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    a_life(life, pool)

    def fail(name: str) -> None:
        if name == failpoints.FORK_MADE:
            raise TransientError("put", "x", "injected")

    with mock.patch.object(failpoints, "hook", fail), pytest.raises(TransientError):
        make(life, new, tmp_path, 2)
    with pytest.raises(UserError, match="has a workspace") as error:
        make(life, new, tmp_path, 3)
    assert error.value.exit_code is ExitCode.EXISTS
    assert tree_of(shown(new), new) == life.points[2]
    make(life, new, tmp_path, 2)
    with pytest.raises(UserError, match="has a workspace"):
        make(life, new, tmp_path, 2)


def test_a_lost_answer_of_the_commit_is_no_loss(
    life: Life, new: ScopedStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    a_life(life, pool, 2)
    put = ScopedStore.put

    def lose(self: ScopedStore, key: str, body: object, **more: object) -> str:
        etag = put(self, key, body, **more)  # type: ignore[arg-type]
        if key == layout.WORKSPACE_KEY:
            raise TransientError("put", key, "the answer was lost")
        return etag

    with mock.patch.object(ScopedStore, "put", lose):
        make(life, new, tmp_path)
    assert tree_of(shown(new), new) == life.points[2]


def test_somebody_else_who_makes_a_workspace_meanwhile_wins(
    life: Life, new: ScopedStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    a_life(life, pool, 2)

    def meanwhile(name: str) -> None:
        if name == failpoints.FORK_SEALED:
            journaling.make_workspace(new, "y" * 32, 1)

    with mock.patch.object(failpoints, "hook", meanwhile), pytest.raises(ConflictError):
        make(life, new, tmp_path)
    assert journaling.read_workspace(new) == "y" * 32


@pytest.mark.parametrize("left", [None, 1025])
def test_what_is_missing_in_the_source_is_found_before_anything_is_put(
    life: Life, new: ScopedStore, pool: ThreadPoolExecutor, tmp_path: Path, left: int | None
) -> None:
    a_life(life, pool)
    key = an_object(life, 3)
    data = life.store.get(key).data
    life.store.delete(key)
    if left is not None:
        life.store.put(key, data[:left])
    with pytest.raises(FormatError, match="is missing" if left is None else "are named") as error:
        make(life, new, tmp_path, 3)
    assert error.value.where == key
    assert list(new.list()) == []


def test_what_goes_while_it_is_copied_is_an_error(
    life: Life, new: ScopedStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    a_life(life, pool)

    def remove(name: str) -> None:
        if name == failpoints.FORK_BEGUN:
            life.store.delete(an_object(life, 3))

    with mock.patch.object(failpoints, "hook", remove), pytest.raises(FormatError, match="went"):
        make(life, new, tmp_path, 3)
    no_workspace(new)


def test_who_lost_the_lease_puts_nothing_more(
    life: Life, new: ScopedStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    a_life(life, pool)
    now_s = 100.0
    gate = Gate(new, boot=lambda: now_s)

    def lose(name: str) -> None:
        nonlocal now_s
        if name == failpoints.FORK_COPIED:
            claim = Claim("w" * 32, "elsewhere", 2, 1, 60.0, 0, take_over=True)
            Gate(new).take(claim)
            now_s += 60

    with mock.patch.object(failpoints, "hook", lose), pytest.raises(FencedError):
        make(life, new, tmp_path, gate=gate)
    assert layout.seg_key(1) not in {entry.key for entry in new.list()}
    no_workspace(new)


def test_no_copy_comes_from_another_store(new: ScopedStore) -> None:
    other = ScopedStore(MemoryStore(), PREFIX)
    other.put("x", b"x")
    with pytest.raises(PermanentError, match="another store"):
        new.copy_from(other, "x", "x")
    reading = ScopedStore(new._inner, NEW, read_only=True)
    with pytest.raises(PermanentError, match="reading only"):
        reading.copy_from(ScopedStore(new._inner, PREFIX), "x", "x")
    for src, dst in (("../../x", "y"), ("x", "../y"), ("/x", "y"), ("x", "/y")):
        with pytest.raises(PermanentError):
            new.copy_from(ScopedStore(new._inner, PREFIX), src, dst)
