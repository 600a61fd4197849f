"""Looking at history: differences, steps and bytes of real journals, against what was done."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import keys, layout
from s3ws_fs.core.errors import ExitCode, FormatError, UserError
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import decode_location
from s3ws_fs.core.treediff import ADDED, DELETED, MODIFIED, RENAMED, Change, compare
from s3ws_fs.core.treeview import TreeView
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import looking, points
from tests.support.history import Life, Tree


@pytest.fixture
def life(cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path) -> Iterator[Life]:
    made = Life(cache, fs, store, tmp_path)
    made.begin()
    yield made


def seal(life: Life, pool: ThreadPoolExecutor, *, checkpoint: bool = False) -> None:
    frozen = life.seal(pool, checkpoint=checkpoint)
    assert frozen is not None
    frozen.close()


def a_life(life: Life, pool: ThreadPoolExecutor, seals: int = 12) -> None:
    """Files that come, change, move and go; checkpoints at 4 and 8; one file stays open."""
    rng = random.Random(11)
    for number in range(1, seals + 1):
        life.write(b"small", b"small %d" % number)
        life.write(b"of-%d" % number, rng.randbytes(rng.choice([10, 40_000, 1_500_000])))
        if number > 3:
            life.remove(b"of-%d" % (number - 2))
        if number % 3 == 0:
            life.rename(b"of-%d" % number, b"moved")
            life.write(b"of-%d" % number, b"again %d" % number)
        if number == 5:
            ino = life.write(b"open", b"o" * 40_000)
            life.fs.open(ino)
        if number == 6:
            life.fs.unlink(ROOT_INO, b"open")
            del life.tree[b"open"]
        seal(life, pool, checkpoint=number in (4, 8))


def done(before: Tree, changes: list[Change], after: Tree) -> Tree:
    """The files of `before` with the changes done to them (all is in the root)."""
    tree = dict(before)
    moved = {c.old_path: tree[c.old_path] for c in changes if c.old_path is not None}
    for change in changes:
        if change.kind in (DELETED, RENAMED):
            tree.pop(change.old_path or change.path, None)
    for change in changes:
        if change.kind in (ADDED, MODIFIED) and not change.rec.is_dir:
            tree[change.path] = after[change.path]
        elif change.kind == RENAMED and change.old_path is not None:
            is_other = "content" in change.aspects
            tree[change.path] = after[change.path] if is_other else moved[change.old_path]
    return tree


def test_any_two_points_differ_by_what_was_done_between(
    life: Life, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_life(life, pool)
    # So that there are some of both kinds.
    monkeypatch.setattr(looking, "JOINT_SEGMENTS", 3)
    survey = points.survey_points(life.store)
    for old in survey.numbers():
        for new in survey.numbers():
            found = looking.difference(life.store, survey, old, new, pool)
            assert done(life.points[old], found.changes, life.points[new]) == life.points[new]
            before, after = (points.load(life.store, n, survey, pool) for n in (old, new))
            assert found.changes == compare(before, after), (old, new)
            assert bool(found.changes) == (old != new)


def test_the_step_of_each_seal_is_the_difference_to_the_one_before(
    life: Life, pool: ThreadPoolExecutor
) -> None:
    a_life(life, pool)
    survey = points.survey_points(life.store)
    assert looking.oldest_step(survey, survey.newest) == 1
    told = list(looking.steps(life.store, survey, 1, survey.newest, pool))
    assert [step.header.number for step in told] == survey.numbers()
    for step in told[1:]:
        number = step.header.number
        before, after = (points.load(life.store, n, survey, pool) for n in (number - 1, number))
        assert step.changes == compare(before, after), number
        assert step.header.generation == life.generations[number]
        assert step.modified_ns == survey.modified_ns(number)
    assert {change.kind for change in told[0].changes} == {ADDED}
    some = list(looking.steps(life.store, survey, 6, 9, pool))
    assert [s.changes for s in some] == [s.changes for s in told[5:9]]


def gets(memory: MemoryStore) -> int:
    return memory.counters.by_op()["get"]


def test_neighbours_are_replayed_once(
    life: Life, pool: ThreadPoolExecutor, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_life(life, pool)
    survey = points.survey_points(life.store)
    before = gets(memory)
    looking.difference(life.store, survey, 11, 12, pool)
    # The checkpoint 8, segments 9 to 12, and the header of 11.
    assert gets(memory) - before <= 6
    before = gets(memory)
    looking.difference(life.store, survey, 1, 9, pool)
    # Segment 1, its header, and segments 2 to 9: no checkpoint.
    assert gets(memory) - before == 10
    # Far apart: segment 1, checkpoint 8 and segment 9.
    monkeypatch.setattr(looking, "JOINT_SEGMENTS", 7)
    before = gets(memory)
    looking.difference(life.store, survey, 1, 9, pool)
    assert gets(memory) - before <= 4


def remove(memory: MemoryStore, life: Life, *numbers: int) -> None:
    for number in numbers:
        life.store.delete(layout.seg_key(number))


def test_history_begins_where_it_can_be_rebuilt(
    life: Life, pool: ThreadPoolExecutor, memory: MemoryStore
) -> None:
    a_life(life, pool)
    remove(memory, life, 2, 3)
    survey = points.survey_points(life.store)
    # 4 stands as a checkpoint, so what 5 changed can be told; what 4 did can't.
    first = looking.oldest_step(survey, survey.newest)
    assert first == 5
    told = list(looking.steps(life.store, survey, first, survey.newest, pool))
    assert [step.header.number for step in told] == list(range(5, 13))
    # Across the gap there is no chain, but both points stand.
    found = looking.difference(life.store, survey, 1, 5, pool)
    assert done(life.points[1], found.changes, life.points[5]) == life.points[5]
    # Nothing at all can be told where not even the point before the newest stands.
    remove(memory, life, *range(4, 12))
    survey = points.survey_points(life.store)
    assert looking.oldest_step(survey, 12) == 13


def test_what_went_while_it_was_read_is_an_error_that_says_so(
    life: Life, pool: ThreadPoolExecutor, memory: MemoryStore
) -> None:
    a_life(life, pool)
    survey = points.survey_points(life.store)
    remove(memory, life, 12)
    with pytest.raises(UserError, match="is gone") as error:
        looking.difference(life.store, survey, 11, 12, pool)
    assert error.value.exit_code is ExitCode.NO_SUCH_POINT


def test_a_segment_of_another_chain_is_refused(
    life: Life, pool: ThreadPoolExecutor, memory: MemoryStore
) -> None:
    a_life(life, pool)
    survey = points.survey_points(life.store)
    survey._headers[10] = (survey.header(life.store, 10)[0], "0" * 32)
    with pytest.raises(FormatError, match="does not continue"):
        looking.difference(life.store, survey, 10, 11, pool)


def test_files_are_read_as_they_were(life: Life, pool: ThreadPoolExecutor) -> None:
    a_life(life, pool)
    survey = points.survey_points(life.store)
    for number in (3, 9, 12):
        view = TreeView(points.load(life.store, number, survey, pool))
        for path, data in life.points[number].items():
            if path != b"/":
                rec = view.find(path)
                assert looking.read_whole(life.store, view, rec, path, pool) == data


def test_holes_are_zeros(life: Life, pool: ThreadPoolExecutor, fs: FileSystem) -> None:
    ino = life.write(b"sparse", b"")
    size = 40 * EXTENT_BYTES + 5
    fs.write(ino, 3 * EXTENT_BYTES + 7, b"one")
    fs.write(ino, 20 * EXTENT_BYTES, b"two")
    fs.setattr(ino, size=size)
    whole = bytearray(size)
    whole[3 * EXTENT_BYTES + 7 : 3 * EXTENT_BYTES + 10] = b"one"
    whole[20 * EXTENT_BYTES : 20 * EXTENT_BYTES + 3] = b"two"
    seal(life, pool)
    view = TreeView(points.load(life.store, 1))
    assert looking.read_whole(life.store, view, view.find(b"sparse"), b"sparse", pool) == whole


def test_damaged_bytes_are_an_error_unless_the_mirror_has_them(
    life: Life, pool: ThreadPoolExecutor
) -> None:
    data = random.Random(1).randbytes(EXTENT_BYTES * 3)
    life.write(b"f", data)
    seal(life, pool)
    tables = points.load(life.store, 1)
    view = TreeView(tables)
    second = sorted(tables.chunks)[1]
    loc = decode_location(tables.chunks[second])
    key = layout.object_key(loc.object_id)
    raw = bytearray(life.store.get(key).data)
    raw[loc.offset + 9] ^= 1
    life.store.put(key, bytes(raw))
    with pytest.raises(FormatError, match="damaged"):
        looking.read_whole(life.store, view, view.find(b"f"), b"f", pool)
    life.store.put("files/f", data)
    assert looking.read_whole(life.store, view, view.find(b"f"), b"f", pool) == data
    life.store.put("files/f", bytes(raw))
    with pytest.raises(FormatError, match="damaged"):
        looking.read_whole(life.store, view, view.find(b"f"), b"f", pool)
    assert keys.split_chunk_key(second)[1] == 1
