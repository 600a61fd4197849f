"""Points: every one that is kept shows its tree, byte for byte, and what names one finds it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.checking import judge
from s3ws_fs.core import history, journal, layout
from s3ws_fs.core.errors import ExitCode, FormatError, NotFoundError, TransientError, UserError
from s3ws_fs.core.findings import Report
from s3ws_fs.core.history import Snapshot
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.memory import Fault, MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points
from tests.support.history import WORKSPACE, Life, tree_of

S = 1_000_000_000


@pytest.fixture
def life(cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path) -> Iterator[Life]:
    made = Life(cache, fs, store, tmp_path)
    made.begin()
    yield made


def seal(life: Life, pool: ThreadPoolExecutor, *, checkpoint: bool = False) -> None:
    frozen = life.seal(pool, checkpoint=checkpoint)
    assert frozen is not None
    frozen.close()


def a_life(life: Life, pool: ThreadPoolExecutor) -> None:
    """Nine points, checkpoints at 3 and 6."""
    rng = random.Random(5)
    for number in range(1, 10):
        life.write(b"small", b"small %d" % number)
        life.write(b"of-%d" % number, rng.randbytes(rng.choice([10, 40_000, 1_500_000])))
        if number > 2:
            life.remove(b"of-%d" % (number - 1))
        if number == 5:
            life.rename(b"of-5", b"of-1")
            life.write(b"of-5", b"again")
        seal(life, pool, checkpoint=number in (3, 6))


def put(life: Life, name: str, number: int, kind: str = history.NAMED) -> Snapshot:
    snap = Snapshot(
        workspace=WORKSPACE,
        number=number,
        header_hash=life.hashes[number],
        generation=life.generations[number],
        id=history.snap_id(kind, name, number),
        name=name,
        kind=kind,
        created_ns=number,
    )
    life.store.put(snap.key, snap.encode())
    return snap


def code(error: pytest.ExceptionInfo[UserError]) -> ExitCode:
    assert error.value.remedy
    return error.value.exit_code


def test_every_point_shows_its_tree(life: Life, pool: ThreadPoolExecutor) -> None:
    a_life(life, pool)
    survey = points.survey_points(life.store)
    assert survey.numbers() == list(range(1, 10))
    for number, tree in life.points.items():
        tables = points.load(life.store, number, survey, pool)
        assert tree_of(tables, life.store) == tree, number
        report = Report()
        judge(tables, report)
        assert report.ok, report.findings
    # Without a survey and a pool of the caller's.
    assert tree_of(points.load(life.store, 4), life.store) == life.points[4]
    assert [next(survey.bases(n)) for n in range(1, 10)] == [0, 0, 3, 3, 3, 6, 6, 6, 6]
    assert list(survey.bases(7)) == [6, 3, 0]


def test_what_was_open_without_a_name_is_no_part_of_a_point(
    life: Life, pool: ThreadPoolExecutor
) -> None:
    life.write(b"kept", b"kept")
    seal(life, pool)
    ino = life.write(b"open", b"x" * 50_000)
    life.fs.setxattr(ino, b"user.a", b"b")
    life.fs.open(ino)
    seal(life, pool)
    life.fs.unlink(ROOT_INO, b"open")
    del life.tree[b"open"]
    seal(life, pool, checkpoint=True)
    for number in (3,):
        tables = points.load(life.store, number)
        assert tree_of(tables, life.store) == {b"/": b"", b"kept": b"kept"}
        assert not tables.xattrs
        report = Report()
        judge(tables, report)
        assert report.ok, report.findings


def test_references(life: Life, pool: ThreadPoolExecutor, memory: MemoryStore) -> None:
    now = 100 * S
    memory._now_ns = lambda: now
    for number in range(1, 6):
        now += 100 * S
        life.write(b"f", b"%d" % number)
        seal(life, pool, checkpoint=number == 3)
    for name, number in (("first", 2), ("second", 4)):
        put(life, name, number)
    put(life, "t", 2, history.TURN_BEGIN)
    put(life, "t", 3, history.TURN_END)
    put(life, "open", 3, history.TURN_BEGIN)
    put(life, "", 1, history.BEFORE_RESTORE)
    put(life, "", 2, history.BEFORE_UNDO)

    def at(ref: str) -> int:
        point = points.resolve(life.store, ref, 700 * S)
        assert point.header_hash == life.hashes[point.number]
        assert point.generation == life.generations[point.number]
        return point.number

    assert [at(ref) for ref in ("head", "#1", "#5", "undo")] == [5, 1, 5, 2]
    assert [at(ref) for ref in ("first", "second")] == [2, 4]
    assert [at(ref) for ref in ("turn:t", "turn:t:end", "turn:t:begin")] == [3, 3, 2]
    assert [at(ref) for ref in ("1m", "200s", "201s", "400s")] == [5, 4, 3, 2]
    assert at("1970-01-01T00:05:00") == 2
    for number, generation in life.generations.items():
        assert at(f"gen:{generation}") == number
        later = life.generations.get(number + 1, generation + 100)
        assert at(f"gen:{later - 1}") == number
    snap = points.resolve(life.store, "first", 0).snapshot
    assert snap is not None and snap.name == "first"
    assert points.resolve(life.store, "#2", 0).snapshot is None

    for ref, words, remedy in (
        ("#6", "newest is #5", "goes back to #1"),
        ("600s", "sealed then", "goes back to #1, of 1970-01-01 00:03:20 UTC"),
        ("gen:1", "that generation", "goes back"),
        ("frist", "no snapshot", "There is first."),
        ("turn:open", "no mark turn-end", "s3ws snapshots"),
        ("turn:x:begin", "no mark turn-begin", "s3ws snapshots"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            at(ref)
        assert code(caught) is ExitCode.NO_SUCH_POINT, ref
        assert remedy in caught.value.remedy, ref
    with pytest.raises(UserError, match="several"):
        put(life, "first", 5)
        at("first")


def test_only_what_is_kept_is_found(life: Life, pool: ThreadPoolExecutor) -> None:
    a_life(life, pool)
    put(life, "old", 2)
    life.store.put(layout.HISTORY_KEY, history.encode_kept_from(WORKSPACE, 7))
    survey = points.survey_points(life.store)
    assert survey.numbers() == [2, 7, 8, 9]
    for number in (2, 7, 8, 9):
        assert tree_of(points.load(life.store, number), life.store) == life.points[number]
        assert points.resolve(life.store, f"#{number}", 0).number == number
    for number in (1, 3, 6):
        with pytest.raises(UserError, match="not kept") as caught:
            points.resolve(life.store, f"#{number}", 0)
        assert code(caught) is ExitCode.NO_SUCH_POINT
        with pytest.raises(UserError, match="not kept"):
            points.load(life.store, number)
    with pytest.raises(UserError, match="newest is"):
        points.load(life.store, 10)
    generation = life.generations[5]
    assert points.resolve(life.store, f"gen:{generation}", 0).number == 2


def test_a_checkpoint_alone_is_a_point(life: Life, pool: ThreadPoolExecutor) -> None:
    """Its segment may have gone."""
    life.write(b"f", b"x" * 2_000_000)
    seal(life, pool)
    life.write(b"f", b"x" * 2_000_001)
    seal(life, pool, checkpoint=True)
    life.store.delete(layout.seg_key(1))
    life.store.delete(layout.seg_key(2))
    point = points.resolve(life.store, "head", 0)
    assert (point.number, point.header_hash) == (2, life.hashes[2])
    assert tree_of(points.load(life.store, 2), life.store) == life.points[2]
    with pytest.raises(UserError, match="not kept"):
        points.load(life.store, 1)


def test_a_damaged_checkpoint_is_done_without(life: Life, pool: ThreadPoolExecutor) -> None:
    a_life(life, pool)
    for number in (6, 3):
        raw = bytearray(life.store.get(layout.ckpt_key(number)).data)
        raw[-40] ^= 1
        life.store.put(layout.ckpt_key(number), bytes(raw))
        assert tree_of(points.load(life.store, 8), life.store) == life.points[8]
    life.store.delete(layout.seg_key(2))
    with pytest.raises(FormatError, match=layout.ckpt_key(3)):
        points.load(life.store, 8)


def test_damage_is_never_a_tree(life: Life, pool: ThreadPoolExecutor) -> None:
    a_life(life, pool)
    key = layout.seg_key(8)
    good = life.store.get(key).data
    header = journal.decode_header(good, key)
    for at in (20, header.records_offset + 3):
        raw = bytearray(good)
        raw[at] ^= 1
        life.store.put(key, bytes(raw))
        with pytest.raises(FormatError, match=key):
            points.load(life.store, 9)
    life.store.put(key, life.store.get(layout.seg_key(7)).data)
    with pytest.raises(FormatError, match=key):
        points.load(life.store, 9)
    life.store.put(key, good)
    assert tree_of(points.load(life.store, 9), life.store) == life.points[9]


def test_what_goes_while_it_is_read_is_said(
    life: Life, pool: ThreadPoolExecutor, memory: MemoryStore
) -> None:
    a_life(life, pool)
    survey = points.survey_points(life.store)
    life.store.delete(layout.seg_key(8))
    with pytest.raises(UserError, match="went while it was read") as caught:
        points.load(life.store, 9, survey)
    assert code(caught) is ExitCode.NO_SUCH_POINT
    snap = put(life, "gone", 9)
    survey = points.survey_points(life.store)
    life.store.delete(snap.key)
    assert list(survey.snapshots(life.store)) == []
    with pytest.raises(NotFoundError):
        points.resolve(life.store, "gone", 0, survey)
    memory.fault = lambda op, key: Fault.TRANSIENT
    with pytest.raises(TransientError):
        points.survey_points(life.store)


def test_a_snapshot_of_another_history_counts_for_nothing(
    life: Life, pool: ThreadPoolExecutor
) -> None:
    a_life(life, pool)
    life.hashes[4] = "0" * 32
    put(life, "other", 4)
    with pytest.raises(FormatError, match="another segment"):
        points.resolve(life.store, "other", 0)
    snap = put(life, "moved", 5)
    life.store.delete(snap.key)
    life.store.put(history.snap_key(6, snap.id), snap.encode())
    with pytest.raises(FormatError, match="its key"):
        points.resolve(life.store, "moved", 0)
    found = list(points.survey_points(life.store).snapshots(life.store))
    assert [type(each).__name__ for each in found] == ["Snapshot", "FormatError"]
    life.store.put(layout.SNAP_PREFIX + "scratch", b"not one of ours")
    assert len(points.survey_points(life.store).snaps) == 2


def test_no_workspace_and_nothing_sealed(store: ScopedStore, life: Life) -> None:
    with pytest.raises(UserError, match="sealed yet") as caught:
        points.resolve(store, "head", 0)
    assert code(caught) is ExitCode.NO_SUCH_POINT
    store.delete(layout.WORKSPACE_KEY)
    with pytest.raises(UserError, match="no workspace") as caught:
        points.survey_points(store)
    assert code(caught) is ExitCode.NO_SUCH_POINT


def test_headers_of_many(life: Life, pool: ThreadPoolExecutor) -> None:
    a_life(life, pool)
    survey = points.survey_points(life.store)
    found = dict(survey.headers(life.store, [9, 1, 4]))
    assert list(found) == [9, 1, 4]
    assert {n: header.generation for n, header in found.items()} == {
        n: life.generations[n] for n in (9, 1, 4)
    }
