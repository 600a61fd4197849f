"""Runs of a file, and what two versions of it have in common: beside a model, byte by byte."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.ranges import HOLE, Range, Run, runs_of, standing, unchanged
from s3ws_fs.core.types import Location

DIGEST = bytes(16)


def full(object_id: int, offset: int, length: int = EXTENT_BYTES) -> Location:
    return Location(object_id, offset, length, DIGEST)


def test_neighbours_in_one_object_are_one_run() -> None:
    extents = [(0, full(9, 100)), (1, full(9, 100 + EXTENT_BYTES)), (2, full(0, 5, 10))]
    size = 2 * EXTENT_BYTES + 10
    assert runs_of(extents, 4, size) == [
        Run(0, 2 * EXTENT_BYTES, 9, 100),
        Run(2 * EXTENT_BYTES, size, 4, 5 - 2 * EXTENT_BYTES),
    ]


def test_holes_and_short_extents_are_runs_of_nothing() -> None:
    extents = [(1, full(9, 7, 10)), (3, full(9, 500))]
    end = 3 * EXTENT_BYTES + 1
    assert runs_of(extents, 4, end) == [
        Run(0, EXTENT_BYTES, HOLE, 0),
        Run(EXTENT_BYTES, EXTENT_BYTES + 10, 9, 7 - EXTENT_BYTES),
        Run(EXTENT_BYTES + 10, 3 * EXTENT_BYTES, HOLE, 0),
        Run(3 * EXTENT_BYTES, end, 9, 500 - 3 * EXTENT_BYTES),
    ]
    assert runs_of([], 4, 0) == []
    assert runs_of([], 4, 5) == [Run(0, 5, HOLE, 0)]


@st.composite
def versions(draw: st.DrawFn) -> list[Run]:
    """The runs of a file of up to 60 bytes, of few objects, so that versions agree at times."""
    ends = sorted(draw(st.sets(st.integers(1, 60), max_size=8)))
    found = []
    for start, end in pairwise([0, *ends]):
        object_id = draw(st.integers(0, 2))
        shift = 0 if object_id == HOLE else draw(st.integers(-1, 1)) + 100
        found.append(Run(start, end, object_id, shift))
    return found


def at_each_byte(runs: list[Run]) -> list[tuple[int, int]]:
    return [run[2:] for run in runs for _ in range(run.start, run.end)]


@given(versions(), versions())
def test_what_is_common_is_what_agrees_at_each_byte(old: list[Run], new: list[Run]) -> None:
    common = unchanged(old, new)
    found = {at for start, end in common for at in range(start, end)}
    pairs = enumerate(zip(at_each_byte(old), at_each_byte(new), strict=False))
    assert found == {at for at, (one, other) in pairs if one == other}
    assert all(one[1] < other[0] for one, other in pairwise(common))
    assert all(start < end for start, end in common)


@given(versions(), versions(), st.integers(1, 20))
def test_what_stands_is_true_long_and_apart(old: list[Run], new: list[Run], least: int) -> None:
    kept = unchanged(old, new)
    found = standing(new, kept, least)
    size = new[-1].end if new else 0
    shown = at_each_byte(new)
    before = at_each_byte(old)
    at = 0
    for item in found:
        assert at <= item.start < item.end <= size
        assert item.end - item.start >= least or item.end == size
        for byte in range(item.start, item.end):
            if item.run is None:
                assert before[byte] == shown[byte]
            else:
                assert item.run[2:] == shown[byte] != (HOLE, 0)
        at = item.end
    # Nothing that is long enough is left out.
    covered = {byte for item in found for byte in range(item.start, item.end)}
    for start, end in kept:
        if end - start >= least or end == size:
            assert covered.issuperset(range(start, end))
    for run in new:
        free = [byte for byte in range(run.start, run.end) if byte not in covered]
        if run.object_id != HOLE and free:
            longest = max(_stretches(free))
            assert longest < least
            assert size - 1 not in free


def _stretches(numbers: list[int]) -> list[int]:
    found, length = [], 0
    for before, number in zip([None, *numbers], numbers, strict=False):
        length = length + 1 if before is not None and number == before + 1 else 1
        found.append(length)
    return found


def test_the_older_version_comes_first_and_the_end_may_be_short() -> None:
    new = [Run(0, 100, 8, 0), Run(100, 103, 5, 40)]
    assert standing(new, [(0, 100)], 50) == [Range(0, 100), Range(100, 103, new[1])]
    assert standing(new, [(0, 49), (60, 103)], 50) == [
        Range(0, 60, new[0]),
        Range(60, 103),
    ]
    assert standing(new, [], 101) == [Range(100, 103, new[1])]
    assert standing([], [], 1) == []
