"""The model: what the workspace must hold, in plain Python, and how a cache differs from it.

Invariants
1. A Node is never changed, only replaced: a copy of `nodes` is the whole state at that moment.
2. `generation` is the cache's after each change; a change that may or may not have been made, since
   the process was killed in it, is `maybe`.

Called by the modules of sim only.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import xxhash

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.view import View
from s3ws_fs.core import keys
from s3ws_fs.core.extents import extent_count
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import InodeRec, decode_inode
from s3ws_fs.core.types import ROOT_INO


class Wrong(BaseException):
    """Something that must hold does not. No error of the program's: nobody may handle it."""


@dataclass(frozen=True, slots=True)
class Node:
    """An inode. `parent` is a directory's; a symlink's `data` is its target."""

    mode: int
    nlink: int
    mtime_ns: int
    data: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    entries: Mapping[bytes, int] = field(default_factory=dict)
    parent: int = 0

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_special(self) -> bool:
        return not (self.is_dir or self.is_file or stat.S_ISLNK(self.mode))


Nodes = dict[int, Node]
Change = Callable[["Branch"], None]


class Branch:
    """The state of one cache as it goes on."""

    def __init__(self, nodes: Nodes, generation: int) -> None:
        self.nodes = nodes
        self.generation = generation
        self.maybe: Change | None = None
        self.arriving: set[int] = set()
        """Files on their way in, without a name."""

    def copy(self) -> Nodes:
        """The state now."""
        return dict(self.nodes)

    def put(self, ino: int, node: Node) -> None:
        self.nodes[ino] = node

    def link(self, parent: int, name: bytes, ino: int, now_ns: int) -> None:
        """A name stands for an inode from now on; link counts are the caller's."""
        above = self.nodes[parent]
        entries = {**above.entries, name: ino}
        self.nodes[parent] = replace(above, entries=entries, mtime_ns=now_ns)

    def unlink(self, parent: int, name: bytes, now_ns: int) -> None:
        """A name is gone."""
        above = self.nodes[parent]
        entries = {other: ino for other, ino in above.entries.items() if other != name}
        self.nodes[parent] = replace(above, entries=entries, mtime_ns=now_ns)

    def count(self, ino: int, step: int) -> None:
        """Change a link count."""
        node = self.nodes[ino]
        self.nodes[ino] = replace(node, nlink=node.nlink + step)

    def drop_orphans(self) -> None:
        """Nobody holds anything open any more."""
        for ino in [ino for ino, node in self.nodes.items() if node.nlink == 0]:
            del self.nodes[ino]


def without_orphans(nodes: Nodes) -> Nodes:
    """What another host gets to see."""
    return {ino: node for ino, node in nodes.items() if node.nlink}


def paths(nodes: Nodes) -> Iterator[tuple[bytes, int]]:
    """Every path below the root, and the inode behind it."""
    todo = [(b"", ROOT_INO)]
    while todo:
        above, ino = todo.pop()
        for name, child in nodes[ino].entries.items():
            path = above + name
            yield path, child
            if nodes[child].is_dir:
                todo.append((path + b"/", child))


def path_of(nodes: Nodes, parent: int, name: bytes) -> bytes:
    """The path of a name in a directory."""
    names = [name]
    while parent != ROOT_INO:
        above = nodes[parent].parent
        names.append(next(n for n, ino in nodes[above].entries.items() if ino == parent))
        parent = above
    return b"/".join(reversed(names))


def differences(cache: Cache, nodes: Nodes) -> list[str]:
    """Where a cache holds something else than the model. Cold bytes are told by their digest."""
    found: list[str] = []
    with cache.read() as view:
        records = {
            keys.unpack_u64(key): decode_inode(keys.unpack_u64(key), raw)
            for key, raw in view.txn.cursor(db=view.db.inodes)
        }
        for ino in sorted(nodes.keys() - records.keys()):
            found.append(f"inode {ino} is missing, it was {_short(nodes[ino])}")
        for ino in sorted(records.keys() - nodes.keys()):
            found.append(f"inode {ino} should not be there: {records[ino]}")
        for ino, rec in records.items():
            node = nodes.get(ino)
            if node is not None:
                found += [f"inode {ino}: {text}" for text in _unlike(view, rec, node)]
    return found


def _short(node: Node) -> str:
    return f"{node.mode:o} nlink {node.nlink}, {len(node.data)} bytes, {dict(node.entries)}"


def _unlike(view: View, rec: InodeRec, node: Node) -> Iterator[str]:
    ino = rec.ino
    for name, got, want in (
        ("mode", rec.mode, node.mode),
        ("nlink", rec.nlink, node.nlink),
        ("mtime", rec.mtime_ns, node.mtime_ns),
        ("xattrs", tuple(view.xattrs(ino)), node.xattrs),
    ):
        if got != want:
            yield f"{name} is {got}, not {want}"
    if node.is_dir:
        entries = {name: child for _, name, child in view.entries(ino)}
        if entries != node.entries:
            yield f"entries are {entries}, not {dict(node.entries)}"
    elif stat.S_ISLNK(node.mode):
        if rec.target != node.data:
            yield f"target is {rec.target!r}, not {node.data!r}"
    elif rec.size != len(node.data):
        yield f"size is {rec.size}, not {len(node.data)}"
    else:
        yield from _unlike_bytes(view, ino, node.data)


def _unlike_bytes(view: View, ino: int, data: bytes) -> Iterator[str]:
    warm = dict(view.extents(ino))
    cold = dict(view.chunks(ino)) if len(warm) < extent_count(len(data)) else {}
    for index in range(extent_count(len(data))):
        want = data[index * EXTENT_BYTES : (index + 1) * EXTENT_BYTES]
        got = warm.pop(index, None)
        if got is not None:
            if got.ljust(len(want), b"\0") != want:
                yield f"extent {index} holds other bytes"
            continue
        place = cold.get(index)
        held = 0 if place is None else place.length
        if place is not None and xxhash.xxh3_128_digest(want[:held]) != place.digest:
            yield f"extent {index} is cold, and stands for other bytes at {place}"
        elif want[held:].strip(b"\0"):
            yield f"extent {index} is a hole where bytes should be"
    if warm:
        yield f"extents {sorted(warm)} are beyond its end"
