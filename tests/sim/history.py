"""Snapshots and restores: what each of them must hold, by the model.

Invariants
1. A snapshot that was answered is of everything that was answered before it was asked for, and
   stands, with every byte, until somebody removes it: whatever is collected as garbage meanwhile.
2. A restore makes the tree, path by path, that of the point; numbers of inodes are the program's.
   Names that are one file there are one file here, and no others. What was there is sealed before.

Called by world; told by the filesystem of the simulation and by people.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import xxhash

from s3ws_fs.cache.tableset import TableSet
from s3ws_fs.core import keys, layout
from s3ws_fs.core.errors import S3wsError
from s3ws_fs.core.extents import extent_count
from s3ws_fs.core.history import UNDOABLE, kind_of
from s3ws_fs.core.journal import Frame
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import decode_inode, decode_location
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points
from tests.sim.tree import Node, Nodes, Wrong

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from tests.sim.world import Frozen, World

HISTORY_CHANCE: Final = 0.5
"""Of runs, so many take snapshots and restore."""
SNAPS_MAX: Final = 6
"""Named snapshots at once."""


class History:
    """The snapshots that people know of. `limits`: of the configuration of this run."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self.limits: dict[str, Any] = {
            "history_hours": rng.choice([0.0, 0.1, 1.0, 24.0]),
            "history_max_bytes": rng.choice([0, 300_000, 2 << 30]),
            "snapshot_days": rng.choice([0.0, 0.02, 30.0]),
        }
        self.states: dict[int, Nodes] = {}
        """What each segment sealed."""
        self.snaps: dict[str, int] = {}
        """Name and number of those that stand for sure."""
        self._named = 0
        self._undoable: set[int] = set()

    def new_name(self) -> str:
        self._named += 1
        return f"point-{self._named}"

    def took(self, name: str, number: int, wanted: int) -> None:
        """A snapshot was answered, which was asked for at the generation `wanted`."""
        sealed: Frozen | None = self._world.newest
        if number not in self.states or sealed is None or sealed.generation < wanted:
            raise Wrong(f"snapshot {name} of {number}, asked for at generation {wanted}")
        self.snaps[name] = number
        self._world.note("snapshot", name, number)

    def went_back(self, ref: str, number: int) -> None:
        """A restore of that was answered to be of this point."""
        self._world.note("went back", ref, number)
        if ref in self.snaps:
            if number != self.snaps[ref]:
                raise Wrong(f"snapshot {ref} is of {self.snaps[ref]}, {number} came back")
            return
        if number not in self._undoable:
            raise Wrong(f"{ref} was of {number}, of which there was no snapshot to undo to")

    def was_put(self, relative: str) -> None:
        """An object was put at this key below the prefix."""
        number, _, ident = relative.removeprefix(layout.SNAP_PREFIX).partition("-")
        if relative.startswith(layout.SNAP_PREFIX) and kind_of(ident) in UNDOABLE:
            self._undoable.add(int(number, 16))

    def check(self, pool: Executor) -> None:
        """Invariant 1."""
        store = ScopedStore(self._world.bucket, self._world.prefix)
        for name, number in self.snaps.items():
            try:
                tables = points.load(store, number, pool=pool)
            except S3wsError as exc:
                raise Wrong(f"snapshot {name} of {number} is lost: {exc}") from exc
            found = self._differences(tables, self.states[number])
            if found:
                raise Wrong(f"snapshot {name} of {number}: " + "; ".join(found[:5]))

    def _differences(self, tables: TableSet, nodes: Nodes) -> list[str]:
        found: list[str] = []
        numbers = {keys.unpack_u64(key) for key in tables.inodes}
        if numbers != nodes.keys():
            found.append(f"inodes {sorted(numbers ^ nodes.keys())} are there, or are not")
        entries: dict[int, dict[bytes, int]] = {}
        for key, raw in tables.dentries.items():
            parent, _, name = keys.split_dentry_key(key)
            entries.setdefault(parent, {})[name] = keys.unpack_u64(raw)
        for ino in sorted(numbers & nodes.keys()):
            rec, node = decode_inode(ino, tables.inodes[keys.pack_u64(ino)]), nodes[ino]
            if (rec.mode, rec.nlink, rec.mtime_ns) != (node.mode, node.nlink, node.mtime_ns):
                found.append(f"inode {ino} is {rec}, not {node.mode} {node.nlink} {node.mtime_ns}")
            if entries.get(ino, {}) != dict(node.entries):
                found.append(f"directory {ino} holds {entries.get(ino)}")
            own = {key[8:]: value for key, value in tables.xattrs.items() if key[:8] == key8(ino)}
            if own != dict(node.xattrs):
                found.append(f"inode {ino} has the attributes {own}")
            held = rec.target if rec.target or not node.is_file else None
            if held is not None and not (node.is_dir or node.is_special) and held != node.data:
                found.append(f"link {ino} leads to {held!r}")
            if node.is_file and self._bytes(tables, ino, rec.size) != node.data:
                found.append(f"file {ino} has other bytes")
        return found

    def _bytes(self, tables: TableSet, ino: int, size: int) -> bytes:
        """A file of the point, read from the objects that its records name."""
        data = bytearray(size)
        for index in range(extent_count(size)):
            raw = tables.chunks.get(key8(ino) + index.to_bytes(4, "big"))
            if raw is None:
                continue
            where = decode_location(raw)
            key = self._world.prefix + layout.object_key(where.object_id)
            found = self._world.bucket._objects.get(key)
            piece = b"" if found is None else found.data[where.offset :][: where.length]
            if xxhash.xxh3_128_digest(piece) != where.digest:
                return b"\0lost"
            at = index * EXTENT_BYTES
            data[at : at + len(piece)] = piece
        return bytes(data)


def key8(ino: int) -> bytes:
    return keys.pack_u64(ino)


def rewound(nodes: Nodes, then: Nodes, frames: Iterable[Frame]) -> Nodes:
    """What the model is after a restore of everything to `then`, by these changes. Raises Wrong."""
    entries = {ino: dict(node.entries) for ino, node in nodes.items() if node.is_dir}
    times: dict[int, int] = {}
    for frame in frames:
        if frame.table == keys.T_INODES:
            for key, raw in zip(frame.keys, frame.values, strict=True):
                times[keys.unpack_u64(key)] = decode_inode(0, raw).mtime_ns
        if frame.table != keys.T_DENTRIES:
            continue
        for number, key in enumerate(frame.keys):
            parent, _, name = keys.split_dentry_key(key)
            if frame.tombs:
                del entries[parent][name]
            else:
                ino = keys.unpack_u64(frame.values[number])
                entries.setdefault(parent, {})[name] = ino
    found: Nodes = {}
    numbers = {ROOT_INO: ROOT_INO}
    todo = [(ROOT_INO, ROOT_INO, ROOT_INO)]
    while todo:
        was, ino, parent = todo.pop()
        node = then[was]
        if not node.is_dir:
            found[ino] = node
            continue
        names = entries.get(ino, {})
        if names.keys() != node.entries.keys():
            raise Wrong(f"directory {was} came back with {sorted(names)}, not {node.entries}")
        found[ino] = replace(node, entries=dict(names), parent=parent)
        for name, child in node.entries.items():
            if numbers.setdefault(child, names[name]) != names[name]:
                raise Wrong(f"inode {child} came back as two files")
            todo.append((child, names[name], ino))
    if len(set(numbers.values())) != len(numbers):
        raise Wrong("two files came back as one")
    for ino in nodes.keys() - found.keys():
        old: Node = nodes[ino]
        found[ino] = replace(old, nlink=0, entries={}, mtime_ns=times.get(ino, old.mtime_ns))
    return found
