"""What the mirror has to look at, collected in the freeze's read transaction.

Invariants
1. Paths, attributes and places of bytes are those of the freeze, so that the mirror shows exactly
   the sealed point whatever changes meanwhile.
2. A directory has a row of its own (path ending in "/", no object): when its path differs from the
   row, or there is none, all below it is looked at. So renaming a tree is found by one record.
3. A plan that somebody did not wait for is no plan: nothing of it is carried out.
4. Directory rows are written only after everything below stands, and taken away before anything
   below is touched (mirror.py).

Called by freeze; read by mirror.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from s3ws_fs.cache.view import View
from s3ws_fs.core import content, keys, mirrorplan
from s3ws_fs.core.layout import mirror_path
from s3ws_fs.core.mirrorplan import Plan, Target
from s3ws_fs.core.records import InodeRec, MirrorRow, decode_location, encode_location
from s3ws_fs.core.types import ROOT_INO, Location

MIRROR_HOLES_BYTES_MAX: Final = 1 << 30
"""A file with more holes than this is kept in the journal only: an object has no holes."""

_ITEM: Final = struct.Struct(">I36s")


@dataclass(slots=True)
class TodoFile:
    """One inode to look at: its record (None: gone), and packed places of its bytes."""

    ino: int
    rec: InodeRec | None
    generation: int
    places: bytes = b""

    def extents(self) -> Iterator[tuple[int, Location]]:
        """(extent index, location), by rising index."""
        for index, raw in _ITEM.iter_unpack(self.places):
            yield index, decode_location(raw)


@dataclass(slots=True)
class MirrorTodo:
    """The mirror's work of one freeze. `unmirrored` are (ino, path, reason)."""

    generation: int
    files: dict[int, TodoFile] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    dir_rows: list[MirrorRow] = field(default_factory=list)
    old_dir_rows: list[bytes] = field(default_factory=list)
    unmirrored: list[tuple[int, bytes, str]] = field(default_factory=list)
    is_cut_off: bool = False
    """Not everything was looked at (invariant 3)."""


class _StoppedError(Exception):
    """Whoever waits would rather have no plan."""


def never() -> bool:
    """Nobody waits."""
    return False


class _Collector:
    def __init__(
        self, view: View, generation: int, prefix_bytes: int, stopped: Callable[[], bool]
    ) -> None:
        self.view = view
        self._stopped = stopped
        self.todo = MirrorTodo(generation)
        self.prefix_bytes = prefix_bytes
        self.targets: list[Target] = []
        self.rows: dict[bytes, MirrorRow] = {}
        self._below_dirs: list[int] = []
        self._asked: set[str] = set()

    def look_at(self, ino: int, generation: int) -> None:
        """An inode whose record changed at `generation`, at the latest."""
        self._may_stop()
        known = self.todo.files.get(ino)
        if known is not None:
            known.generation = max(known.generation, generation)
            return
        rec = self.view.inode(ino)
        self.todo.files[ino] = TodoFile(ino, rec, generation)
        if ino == ROOT_INO:
            return
        if rec is not None and rec.is_dir:
            self._look_at_dir(rec)
        else:
            for row in self.view.mirror_of(ino):
                if row.path.endswith(b"/"):
                    self.todo.old_dir_rows.append(row.path)
                else:
                    self.rows[row.path] = row

    def _may_stop(self) -> None:
        if self._stopped():
            raise _StoppedError

    def _look_at_dir(self, rec: InodeRec) -> None:
        paths = self.view.paths_of(rec)
        rows = list(self.view.mirror_of(rec.ino))
        path = paths[0] + b"/" if paths else b""
        if [row.path for row in rows] == [path]:
            return
        self.todo.old_dir_rows += [row.path for row in rows]
        if path:
            generation = self.todo.generation
            empty = mirrorplan.NO_HASH
            self.todo.dir_rows.append(MirrorRow(path, rec.ino, generation, 0, "", empty))
            for _, _, child in self.view.entries(rec.ino):
                self._below_dirs.append(child)

    def walk(self) -> None:
        """Look at everything below moved and new directories."""
        while self._below_dirs:
            self.look_at(self._below_dirs.pop(), 0)

    def find_targets(self) -> None:
        """The mirror paths of all inodes looked at, and the rows that stand there or above."""
        for file in self.todo.files.values():
            self._may_stop()
            rec = file.rec
            if rec is None or not content.is_mirrored_kind(rec):
                continue
            for path in self.view.paths_of(rec):
                self._target(file, rec, path)

    def _target(self, file: TodoFile, rec: InodeRec, path: bytes) -> None:
        text, reason = mirror_path(path, self.prefix_bytes)
        if rec.size - rec.alloc > MIRROR_HOLES_BYTES_MAX:
            reason = f"sparse: {rec.alloc} bytes of data in a file of {rec.size}"
        if reason:
            self.todo.unmirrored.append((rec.ino, path, reason))
            return
        self.targets.append(Target(text, rec.ino, file.generation, rec.data_gen))
        for place in (text, *mirrorplan.parents(text)):
            if place in self._asked:
                break
            self._asked.add(place)
            row = self.view.mirror_at(place.encode())
            if row is not None:
                self.rows[row.path] = row

    def find_places(self, located: Mapping[int, list[tuple[int, bytes]]]) -> None:
        """Note where the bytes stand of each file that has to be put."""
        for op in self.todo.plan.ops:
            self._may_stop()
            file = self.todo.files.get(op.target.ino)
            if file is None or file.places or op.kind == mirrorplan.COPY:
                continue
            places = {index: encode_location(loc) for index, loc in self.view.chunks(file.ino)}
            places.update(located.get(file.ino, ()))
            file.places = b"".join(_ITEM.pack(index, raw) for index, raw in sorted(places.items()))


def collect_todo(
    view: View,
    changed: Iterable[int],
    generation: int,
    prefix_bytes: int,
    located: Mapping[bytes, bytes],
    blobs: Mapping[int, int],
    *,
    stopped: Callable[[], bool] = never,
) -> MirrorTodo:
    """Everything the mirror needs for this freeze.

    `changed` are the inodes of this freeze, `located` its new chunk records, `blobs` maps an inode
    to a blob of this freeze that holds exactly its bytes. Once `stopped`, what was found is given
    up (`is_cut_off`).
    """
    collector = _Collector(view, generation, prefix_bytes, stopped)
    try:
        return _collect(collector, changed, located, blobs)
    except _StoppedError:
        return MirrorTodo(generation, is_cut_off=True)


def _collect(
    collector: _Collector,
    changed: Iterable[int],
    located: Mapping[bytes, bytes],
    blobs: Mapping[int, int],
) -> MirrorTodo:
    view, generation = collector.view, collector.todo.generation
    for ino in changed:
        collector.look_at(ino, generation)
    for ino, noted in view.mtodo():
        collector.look_at(ino, noted)
    collector.walk()
    collector.find_targets()
    todo = collector.todo
    todo.plan = mirrorplan.make_plan(todo.files, collector.targets, collector.rows.values(), blobs)
    by_ino: dict[int, list[tuple[int, bytes]]] = {}
    for key, raw in located.items():
        ino, index = keys.split_chunk_key(key)
        by_ino.setdefault(ino, []).append((index, raw))
    collector.find_places(by_ino)
    return todo
