"""A restore's plan, made in the worker: then from the bucket, now from the cache, then a file.

Invariants
1. Nothing is written but one spool file, `PLAN_FILE`: frames of the journal's codec, deletions, and
   then puts, each table's keys rising (core/rewind).
2. A plan belongs to one generation of the cache. It is made anew only when the cache has moved on;
   what the bucket said of then is kept between (a point never changes).
3. All work is done here: the daemon reads the file frame by frame.

Called by requests.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from s3ws_fs.cache.tableset import TableSet, copy_out
from s3ws_fs.core import journal, keys, rewind_records
from s3ws_fs.core.history import Snapshot
from s3ws_fs.core.policies import Policies
from s3ws_fs.core.records import decode_head
from s3ws_fs.core.rewind import Changes, Counters, IsKept, Listed, nothing_kept, select
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points, wire
from s3ws_fs.transfer.freeze import Readable
from s3ws_fs.transfer.points import Point
from s3ws_fs.transfer.spool import create

PLAN_FILE: Final = "rewind-plan"
WARM_PER_PART: Final = 4096
"""Pairs of extents named in one part of an answer."""

_TABLES: Final = (*keys.TABLE_NAMES.values(), "dirty", "meta")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to go back: the point's number, paths (none: all), and what stays."""

    number: int
    paths: tuple[bytes, ...]
    everything: bool
    """Kept names go back as well."""
    undoes: int | None
    """The generation of before, when it is a restore (of these paths) that is undone."""
    local: tuple[str, ...] = ()
    """Patterns of local paths that the person added to the defaults."""

    def is_kept(self) -> IsKept:
        """Which names stay."""
        return nothing_kept if self.everything else Policies(local=self.local).is_local


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and the generation it starts from."""

    asked: Asked
    base: int
    changes: Changes


class Rewinding:
    """What a worker remembers of the restore under way."""

    def __init__(self) -> None:
        self._then: tuple[int, TableSet] | None = None
        self._planned: Planned | None = None

    def forget(self) -> None:
        """The restore is over."""
        self._then = self._planned = None

    def load(self, store: ScopedStore, point: Point, pool: Executor) -> None:
        """Have the tables of then. Raises StoreError, FormatError, UserError."""
        if self._then is None or self._then[0] != point.number:
            self.forget()
            with _no_collecting():
                self._then = point.number, points.load(store, point.number, pool=pool)

    def plan(self, reader: Readable, asked: Asked, now_ns: int) -> Planned:
        """What has to change now. Raises UserError (a path that is nowhere), FormatError."""
        assert self._then is not None and self._then[0] == asked.number
        with reader.read() as view:
            base = view.head().generation
            planned = self._planned
            if planned is not None and (planned.asked, planned.base) == (asked, base):
                return planned
            now = copy_out(view, _TABLES)
        with _no_collecting():
            changes = _plan(now, self._then[1], _at(base, asked), now_ns)
        self._planned = Planned(asked, base, changes)
        return self._planned


def undoing(snap: Snapshot, everything: bool, local: tuple[str, ...]) -> Asked:
    """What an undo is of: what was restored, and no more than that."""
    paths = tuple(wire.paths_from(snap.paths))
    return Asked(snap.number, paths, everything or snap.everything, snap.generation, local)


def _at(base: int, asked: Asked) -> Asked:
    """An undo with nothing changed since is of all: the tree is as it was, to the last time of a
    directory above what was restored.
    """
    if asked.undoes is not None and base == asked.undoes + 1:
        return replace(asked, paths=(), everything=True)
    return asked


def _plan(now: TableSet, then: TableSet, asked: Asked, now_ns: int) -> Changes:
    assert now.head is not None
    head = decode_head(now.head)
    is_kept = asked.is_kept()
    return rewind_records.plan(
        now,
        then,
        select(asked.paths, is_kept, lenient=asked.undoes is not None),
        is_kept,
        Counters(head.next_ino, head.generation + 1, now_ns),
        warm=now.extents,
        dirty_chunks={key[1:] for key in now.dirty if key[0] == keys.T_CHUNKS} & now.extents,
    )


@contextlib.contextmanager
def _no_collecting() -> Iterator[None]:
    """Without the garbage collector, which would look at millions of records again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def write_plan(spool: Path, changes: Changes) -> Path:
    """The plan as a file, deletions first, those of names from the leaves up: the kernel forgets in
    this order, and below what it has forgotten it finds nothing any more. Raises OSError.
    """
    path = spool / PLAN_FILE
    path.unlink(missing_ok=True)
    with create(path) as file:
        for table in keys.JOURNAL_TABLES:
            for _, frame in journal.encode_tombs(table, reversed(changes.gone[table])):
                file.write(frame)
        for table in keys.JOURNAL_TABLES:
            for _, frame in journal.encode_puts(table, sorted(changes.puts[table].items())):
                file.write(frame)
    return path


def warm_parts(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """(key, new key) pairs of extents as bytes, in parts."""
    flat = list(pairs)
    for at in range(0, len(flat), WARM_PER_PART):
        yield b"".join(old + new for old, new in flat[at : at + WARM_PER_PART])


def answer(planned: Planned, point: Point) -> dict[str, Any]:
    """What the daemon is told of a plan."""
    changes, summary = planned.changes, planned.changes.summary
    return {
        "base": planned.base,
        "asked": {
            "paths": wire.paths_json(planned.asked.paths),
            "everything": planned.asked.everything,
            "undoes": planned.asked.undoes,
        },
        "is_empty": changes.is_empty,
        "next_ino": changes.next_ino,
        "new_inodes": changes.new_inodes,
        "new_bytes": changes.new_bytes,
        "orphan_inodes": len(changes.orphans),
        "orphan_bytes": changes.orphan_bytes,
        "point": {
            "number": point.number,
            "generation": point.generation,
            "created_ns": point.created_ns,
            "snapshot": None if point.snapshot is None else point.snapshot.to_json(),
        },
        "added": _listed(summary.added),
        "changed": _listed(summary.changed),
        "deleted": _listed(summary.deleted),
        "kept": _listed(summary.kept),
        "bytes_back": summary.bytes_back,
        "bytes_gone": summary.bytes_gone,
    }


def _listed(found: Listed) -> dict[str, Any]:
    return {"count": found.count, "paths": wire.paths_json(found.paths)}
