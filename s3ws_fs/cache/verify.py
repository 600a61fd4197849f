"""Judges the records of one point in time: does every invariant of the tables hold?

Pure: a TableSet in, findings out; the same for a cache and for what a journal's replay gives.
Checked here is the tree: inodes, entries, links, counters. Its neighbour verify_data has the rest.

Invariants
1. A set of records that the filesystem made is clean. Any single record lost, added or altered,
   where another one depends on it, is found.
2. Nothing raises, whatever the bytes are; each record is judged alone first ("record"), and what
   does not decode counts as missing after that.
3. Time and memory are linear in the records.

Called by cache.checking and transfer.audit.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from s3ws_fs.cache.tableset import PathFinder, TableSet
from s3ws_fs.cache.view import PATH_DEPTH_MAX
from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.findings import Finding, damage
from s3ws_fs.core.limits import FILE_BYTES_MAX, LINKS_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX
from s3ws_fs.core.records import Head, InodeRec, decode_head, decode_inode
from s3ws_fs.core.types import ROOT_INO

_TYPES: Final = frozenset(
    {
        stat.S_IFREG,
        stat.S_IFDIR,
        stat.S_IFLNK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFCHR,
        stat.S_IFBLK,
    }
)
_MODE_MAX: Final = 0o177777
_DENTRY_KEY_MIN: Final = 17


def name_fault(name: bytes) -> str:
    """Why no directory can hold this name; empty when one can."""
    if not name or name in (b".", b".."):
        return "it is empty, '.' or '..'"
    if len(name) > NAME_BYTES_MAX:
        return f"it has {len(name)} bytes, {NAME_BYTES_MAX} are the limit"
    return "it holds a slash or a NUL" if b"/" in name or b"\0" in name else ""


@dataclass(slots=True)
class Node:
    """What the checks need of an inode, and what they count for it."""

    rec: InodeRec
    entries: int = 0
    subdirs: int = 0
    alloc: int = 0
    is_alloc_known: bool = True
    """False: some of its extents are dirty, so that only their bytes say how long they are."""


class TreeCheck:
    """Inodes, entries, links and counters of a TableSet. `nodes` serve the other checks."""

    def __init__(self, tables: TableSet) -> None:
        self.tables = tables
        self.paths = PathFinder(tables)
        self.nodes: dict[int, Node] = {}
        self.head: Head | None = None

    def run(self) -> Iterator[Finding]:
        """All findings about the tree, save those that need the extents (see `totals`)."""
        yield from self._head()
        yield from self._inodes()
        if not self.nodes and not self.tables.dentries:
            # A cache that was never mounted: not even the root is made.
            return
        yield from self._root()
        yield from self._dentries()
        yield from self._links()
        for node in self.nodes.values():
            yield from self._link_count(node)
        yield from self._reachable()
        yield from self._orphans()

    def name_of(self, ino: int) -> tuple[bytes, ...]:
        """Paths of an inode, for a finding."""
        return tuple(self.paths.of(ino))

    def _wrong(self, code: str, ino: int, message: str, **more: Any) -> Finding:
        return damage(code, f"inode {ino}", message, self.name_of(ino), ino=ino, **more)

    def _head(self) -> Iterator[Finding]:
        raw = self.tables.head
        try:
            if raw is None:
                yield damage("head", "meta", "the record of the counters is missing")
            else:
                self.head = decode_head(raw)
        except FormatError as exc:
            yield damage("head", "meta", str(exc))

    def _inodes(self) -> Iterator[Finding]:
        for key, raw in self.tables.inodes.items():
            try:
                if len(key) != 8:
                    raise FormatError(f"inodes {key.hex()}", "the key is not 8 bytes long")
                rec = decode_inode(keys.unpack_u64(key), raw)
            except FormatError as exc:
                yield damage("record", f"inodes {key.hex()}", str(exc), key=key)
                continue
            self.nodes[rec.ino] = Node(rec)
            yield from self._inode(rec)

    def _inode(self, rec: InodeRec) -> Iterator[Finding]:
        if stat.S_IFMT(rec.mode) not in _TYPES or rec.mode > _MODE_MAX:
            yield self._wrong("inode-type", rec.ino, f"its mode is {rec.mode:o}")
        if why := _size_fault(rec):
            yield self._wrong("inode-size", rec.ino, why)
        head = self.head
        if head is None:
            return
        if rec.ino >= head.next_ino or rec.ino == 0:
            yield self._wrong(
                "next-ino",
                rec.ino,
                f"the next number to give out is {head.next_ino}",
                repairable=rec.ino > 0,
            )
        if rec.data_gen > head.generation:
            message = f"its data is of generation {rec.data_gen}, the head is {head.generation}"
            yield self._wrong("data-gen", rec.ino, message)

    def _root(self) -> Iterator[Finding]:
        node = self.nodes.get(ROOT_INO)
        if node is None:
            yield damage("root", f"inode {ROOT_INO}", "it is missing")
        elif not node.rec.is_dir or node.rec.parent != ROOT_INO or node.rec.name:
            yield damage("root", f"inode {ROOT_INO}", "it is no directory that is its own parent")

    def _dentries(self) -> Iterator[Finding]:
        for key, raw in self.tables.dentries.items():
            where = f"dentries {key.hex()}"
            if len(key) < _DENTRY_KEY_MIN or len(raw) != 8:
                yield damage("record", where, "key or value has a wrong length", key=key)
                continue
            parent, cookie, name = keys.split_dentry_key(key)
            ino = keys.unpack_u64(raw)
            if why := name_fault(name):
                yield damage("name", where, f"{name!r} can't be a name: {why}", key=key)
            if cookie != keys.name_cookie(name):
                yield damage("dentry-hash", where, f"{name!r} has another hash", key=key)
            yield from self._entry(where, key, parent, name, ino)

    def _entry(
        self, where: str, key: bytes, parent: int, name: bytes, ino: int
    ) -> Iterator[Finding]:
        above, child = self.nodes.get(parent), self.nodes.get(ino)
        base = self.paths.directory(parent)
        path = name if not base else base + b"/" + name
        if above is None or not above.rec.is_dir or above.rec.nlink == 0:
            message = f"{name!r} stands in inode {parent}, which is no directory of this tree"
            yield damage("dentry-parent", where, message, key=key)
        if child is None:
            message = f"it names inode {ino}, which does not exist"
            yield damage("dentry-target", where, message, key=key, paths=(path,))
            return
        child.entries += 1
        if child.rec.is_dir and above is not None:
            above.subdirs += 1
        if not self._notes(child.rec, parent, name) or ino == ROOT_INO:
            message = f"inode {ino} does not note this link"
            yield damage(
                "link", where, message, key=key, ino=ino, paths=(path,),
                repairable=not child.rec.is_dir,
            )  # fmt: skip

    def _notes(self, rec: InodeRec, parent: int, name: bytes) -> bool:
        if rec.is_dir or rec.nlink == 1:
            return (rec.parent, rec.name) == (parent, name)
        return keys.link_key(rec.ino, parent, name) in self.tables.links

    def _stands(self, ino: int, parent: int, name: bytes) -> bool:
        return self.tables.dentries.get(keys.dentry_key(parent, name)) == keys.pack_u64(ino)

    def _links(self) -> Iterator[Finding]:
        for key in self.tables.links:
            where = f"links {key.hex()}"
            if len(key) < _DENTRY_KEY_MIN:
                yield damage("record", where, "the key is too short", key=key)
                continue
            ino, parent, name = keys.split_link_key(key)
            node = self.nodes.get(ino)
            if node is None or node.rec.is_dir or node.rec.nlink < 2:
                message = f"inode {ino} is none that has several links"
                yield damage(
                    "link", where, message, key=key, ino=ino, paths=self.name_of(ino),
                    repairable=node is not None and not node.rec.is_dir,
                )  # fmt: skip
            elif not self._stands(ino, parent, name):
                message = f"there is no such entry: {name!r} in inode {parent}"
                yield self._wrong("link", ino, message, key=key, repairable=node.entries > 0)

    def _link_count(self, node: Node) -> Iterator[Finding]:
        rec = node.rec
        if rec.is_dir:
            # One that was removed and is still open has none.
            wanted = 0 if rec.nlink == 0 and not node.entries else 2 + node.subdirs
        else:
            wanted = node.entries
        if rec.nlink != wanted and (node.entries or rec.ino == ROOT_INO):
            message = f"its link count is {rec.nlink}, it has {wanted}"
            yield self._wrong("nlink", rec.ino, message, repairable=rec.nlink > 0)
        if rec.nlink > LINKS_MAX:
            yield self._wrong("nlink", rec.ino, f"its link count is {rec.nlink}")
        if rec.ino == ROOT_INO:
            return
        has_own = rec.is_dir or rec.nlink == 1
        if rec.nlink == 0 or not has_own:
            if rec.parent or rec.name:
                message = f"with {rec.nlink} links it notes one of its own"
                yield self._wrong("link", rec.ino, message, repairable=node.entries > 0)
        elif not self._stands(rec.ino, rec.parent, rec.name):
            message = f"there is no entry {rec.name!r} in inode {rec.parent} for it"
            fixable = node.entries > 0 and not rec.is_dir
            yield self._wrong("link", rec.ino, message, repairable=fixable)
        if rec.nlink and not node.entries:
            yield self._wrong("unreachable", rec.ino, "no entry of any directory names it")

    def _reachable(self) -> Iterator[Finding]:
        """Follow the parents of each directory; those already known end the way."""
        rooted: dict[int, str] = {ROOT_INO: ""}
        for ino, node in self.nodes.items():
            if not node.rec.is_dir or node.rec.nlink == 0:
                continue
            chain: list[int] = []
            seen: set[int] = set()
            at = ino
            while at not in rooted and at not in seen:
                chain.append(at)
                seen.add(at)
                above = self.nodes.get(at)
                if above is None or not above.rec.is_dir:
                    rooted[at] = "unreachable"
                    break
                at = above.rec.parent
            verdict = rooted.get(at, "cycle")
            if verdict == "" and len(chain) > PATH_DEPTH_MAX:
                verdict = "unreachable"
            rooted.update(dict.fromkeys(chain, verdict))
            if verdict and node.entries:
                yield self._wrong(verdict, ino, "its parents do not lead to the root")

    def _orphans(self) -> Iterator[Finding]:
        if not self.tables.is_local:
            return
        for key in self.tables.orphans:
            if len(key) != 8:
                yield damage("record", f"orphans {key.hex()}", "the key is not 8 bytes long")
                continue
            node = self.nodes.get(keys.unpack_u64(key))
            if node is None or node.rec.nlink:
                ino = keys.unpack_u64(key)
                message = "it is in the table of orphans, but " + (
                    "does not exist" if node is None else f"has {node.rec.nlink} links"
                )
                yield self._wrong("orphan", ino, message, key=key, repairable=True)
        for ino, node in self.nodes.items():
            if node.rec.nlink == 0 and keys.pack_u64(ino) not in self.tables.orphans:
                message = "it has no links, and is not in the table of orphans"
                yield self._wrong("orphan", ino, message, repairable=node.entries == 0)

    def alloc(self, node: Node, held_bytes: int) -> Iterator[Finding]:
        """An inode's count of bytes held, against what its extents hold."""
        if node.rec.alloc != held_bytes:
            message = f"it counts {node.rec.alloc} bytes held, its extents {held_bytes}"
            yield self._wrong("alloc", node.rec.ino, message, repairable=True)

    def totals(self) -> Iterator[Finding]:
        """Counters against sums; after verify_data has counted each inode's extents."""
        used = 0
        for node in self.nodes.values():
            used += node.rec.alloc
            # What an orphan holds is never shipped: a journal does not know it.
            is_known = self.tables.is_local or node.rec.nlink > 0
            if node.is_alloc_known and is_known:
                yield from self.alloc(node, node.alloc)
        head = self.head
        if head is None:
            return
        if head.used_bytes != used:
            message = f"{head.used_bytes} bytes counted, {used} held"
            yield damage("used-bytes", "meta head", message, repairable=True)
        if head.inodes != len(self.nodes):
            message = f"{head.inodes} inodes counted, {len(self.nodes)} there"
            yield damage("inode-count", "meta head", message, repairable=True)


def _size_fault(rec: InodeRec) -> str:
    if stat.S_ISREG(rec.mode):
        fault = rec.size > FILE_BYTES_MAX
    elif stat.S_ISLNK(rec.mode):
        fault = rec.size != len(rec.target) or rec.size > SYMLINK_BYTES_MAX
    else:
        fault = rec.size != 0
    if fault:
        return f"a size of {rec.size} is not possible for it"
    return "" if not rec.target or stat.S_ISLNK(rec.mode) else "it is no symlink, but has a target"


def counted(tables: TableSet) -> Counter[str]:
    """How many records a check looked at, by table."""
    names = ("inodes", "dentries", "chunks", "xattrs", "links", "extents", "dirty", "mirror")
    return Counter({name: len(getattr(tables, name)) for name in names})
