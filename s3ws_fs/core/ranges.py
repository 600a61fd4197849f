"""Which object has each byte of a file, and what of it an older version has at the same place.

Invariants
1. The runs of a file cover it from its first byte to its last, rise, and don't overlap; holes are
   runs of no object (HOLE).
2. An object of the journal is written once: the same object and shift are the same bytes, in
   whatever version of whatever file.

Called by transfer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.types import Location

HOLE: Final = 0
"""No object: zeros that were never written."""


class Run(NamedTuple):
    """Bytes `start` to `end` of a file are those of an object, `shift` bytes further on in it."""

    start: int
    end: int
    object_id: int
    shift: int


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes `start` to `end` stand in one place: in this run's object, or (None) in the older
    version of the file, at the same offset.
    """

    start: int
    end: int
    run: Run | None = None


def runs_of(extents: Iterable[tuple[int, Location]], number: int, size_bytes: int) -> list[Run]:
    """The runs of a file of these extents (by rising index); object 0 is segment `number`."""
    found: list[Run] = []
    at = 0

    def add(end: int, object_id: int, shift: int) -> None:
        nonlocal at
        end = min(end, size_bytes)
        if end <= at:
            return
        last = found[-1] if found else None
        if last is not None and (last.object_id, last.shift) == (object_id, shift):
            found[-1] = last._replace(end=end)
        else:
            found.append(Run(at, end, object_id, shift))
        at = end

    for index, location in extents:
        start = index * EXTENT_BYTES
        add(start, HOLE, 0)
        add(start + location.length, location.object_id or number, location.offset - start)
    add(size_bytes, HOLE, 0)
    return found


def unchanged(old: Sequence[Run], new: Sequence[Run]) -> list[tuple[int, int]]:
    """The ranges (start, end) that two versions of a file have in common, rising and apart."""
    found: list[tuple[int, int]] = []
    before, after = 0, 0
    while before < len(old) and after < len(new):
        one, other = old[before], new[after]
        start, end = max(one.start, other.start), min(one.end, other.end)
        if start < end and one[2:] == other[2:]:
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], end)
            else:
                found.append((start, end))
        if one.end <= other.end:
            before += 1
        else:
            after += 1
    return found


def standing(new: Sequence[Run], kept: Sequence[tuple[int, int]], least_bytes: int) -> list[Range]:
    """What need not be sent of a file: what its older version has (`kept`) where that is
    `least_bytes` or more, and such ranges of one object in between. A range at the file's end may
    be shorter: it can be the last part of an upload.
    """
    size_bytes = new[-1].end if new else 0

    def is_long(start: int, end: int) -> bool:
        return end - start >= least_bytes or (start < end == size_bytes)

    found = [Range(start, end) for start, end in kept if is_long(start, end)]
    taken = [(item.start, item.end) for item in found]
    upcoming = 0
    for run in new:
        if run.object_id == HOLE:
            continue
        at = run.start
        while upcoming < len(taken) and taken[upcoming][1] <= at:
            upcoming += 1
        for start, end in (*taken[upcoming:], (run.end, run.end)):
            stop = min(start, run.end)
            if is_long(at, stop):
                found.append(Range(at, stop, run))
            at = max(at, end)
            if start >= run.end:
                break
    return sorted(found, key=lambda item: item.start)
