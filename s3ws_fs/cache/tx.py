"""Changing the cache: one write transaction, its generation, and what it made dirty.

Invariants
1. One operation is one transaction, committed before anything answers; it carries generation + 1.
2. Every put or delete of a shipped record marks it dirty in the same transaction, with this
   generation and the time of its first dirt: what is dirty can't be forgotten by a crash.
3. A transaction is a plain `with` and spans no await: it is one step of the loop.
4. The head record moves once, at the commit. Nothing changed: no generation is used.
5. Where operations share a transaction of the engine, a value that may have pages of its own is
   removed before a smaller one takes its place: the engine would keep all of the pages, which is
   no harm, but damage by the word of the offline verifier.

Called by fs (through Cache.write) and by cache.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import lmdb

from s3ws_fs.cache.redo import TABLE_NUMBERS, Record
from s3ws_fs.cache.tables import Tables
from s3ws_fs.cache.view import META_HEAD, View
from s3ws_fs.core import keys
from s3ws_fs.core.extents import alloc_bytes
from s3ws_fs.core.gitkeys import TRACES
from s3ws_fs.core.records import (
    Head,
    InodeRec,
    MirrorRow,
    decode_dirty,
    decode_location,
    decode_mirror,
    encode_dirty,
)

_EMPTY = b""
_T_EXTENTS: Final = TABLE_NUMBERS["extents"]
PATCH_SHARE: Final = 2
"""The log gets of an extent what was written, when that is less than this share of it."""


def drop_prefix(txn: lmdb.Transaction[bytes], table: lmdb._Database, prefix: bytes) -> list[bytes]:
    """Delete every record of a table whose key starts with `prefix` (not empty): their keys."""
    gone = []
    with txn.cursor(db=table) as cursor:
        found = cursor.set_range(prefix)
        while found and (key := cursor.key()).startswith(prefix):
            gone.append(key)
            found = cursor.delete()
    return gone


def put_mirror_row(txn: lmdb.Transaction[bytes], tables: Tables, row: MirrorRow) -> None:
    """Note what stands at a mirror path, in place of what was noted."""
    key = keys.mirror_key(row.path)
    drop_mirror_row(txn, tables, key)
    txn.put(key, row.encode(), db=tables.mirror)
    txn.put(keys.pack_u64(row.ino) + key, b"", db=tables.mirrori)


def drop_mirror_row(txn: lmdb.Transaction[bytes], tables: Tables, key: bytes) -> None:
    """Nothing of ours stands at the mirror path with this key."""
    raw = txn.get(key, db=tables.mirror)
    if raw is not None:
        txn.delete(keys.pack_u64(decode_mirror(raw).ino) + key, db=tables.mirrori)
        txn.delete(key, db=tables.mirror)


class Tx(View):
    """A View that also writes. `generation` is the number this change will have."""

    __slots__ = (
        "answer",
        "changed",
        "generation",
        "head_rec",
        "is_freeing",
        "is_housekeeping",
        "is_tracing",
        "is_unlogged",
        "log",
        "now_ns",
        "put_bytes",
    )

    def __init__(
        self, txn: lmdb.Transaction[bytes], tables: Tables, head: Head, now_ns: int
    ) -> None:
        super().__init__(txn, tables)
        self.head_rec = Head(head.generation, head.next_ino, head.used_bytes, head.inodes)
        self.generation = head.generation + 1
        self.now_ns = now_ns
        self.changed = False
        self.is_freeing = False
        self.is_unlogged = False
        """Something is put or deleted that `log` does not tell."""
        self.log: list[Record] | None = None
        """What was put and deleted, for the redo log, if there is one."""
        self.put_bytes = 0
        self.answer = 0
        """What the caller is answered, where a number is (see fuse.once)."""
        self.is_tracing = False
        """There may be a git repository where there was none."""
        self.is_housekeeping = False
        """Nobody asked for this change."""

    def finish(self) -> None:
        """Write the head record: called once, just before the commit."""
        self.head_rec.generation = self.generation
        self.txn.put(META_HEAD, self.head_rec.encode(), db=self.db.meta)

    def mark(self, table: int, key: bytes) -> None:
        """Mark a record dirty at this generation, keeping the time of its first dirt."""
        self.changed = True
        full = keys.dirty_key(table, key)
        raw = self.txn.get(full, db=self.db.dirty)
        first_ns = self.now_ns if raw is None else decode_dirty(raw)[1]
        self.txn.put(full, encode_dirty(self.generation, first_ns), db=self.db.dirty)

    def new_ino(self) -> int:
        """A number no inode of this workspace ever had."""
        ino = self.head_rec.next_ino
        self.head_rec.next_ino = ino + 1
        return ino

    def add_inode(self, rec: InodeRec) -> None:
        """Store a new inode, which counts."""
        self.head_rec.inodes += 1
        self.put_inode(rec)

    def put_inode(self, rec: InodeRec) -> None:
        """Store an inode."""
        key = keys.pack_u64(rec.ino)
        raw = rec.encode()
        self.txn.put(key, raw, db=self.db.inodes)
        self.put_bytes += len(raw)
        self.mark(keys.T_INODES, key)

    def drop_inode(self, rec: InodeRec) -> None:
        """Remove an inode and all that hangs on it; in the journal its tombstone says it all."""
        self.is_freeing = True
        key = keys.pack_u64(rec.ino)
        self.txn.delete(key, db=self.db.inodes)
        self.txn.delete(key, db=self.db.orphans)
        for hanging in ("extents", "chunks", "xattrs"):
            self._drop_below(hanging, key)
        for table in (keys.T_CHUNKS, keys.T_XATTRS):
            self._drop_below("dirty", keys.dirty_key(table, key))
        self.head_rec.used_bytes -= rec.alloc
        self.head_rec.inodes -= 1
        self.mark(keys.T_INODES, key)

    def _drop_below(self, table: str, prefix: bytes) -> None:
        gone = drop_prefix(self.txn, getattr(self.db, table), prefix)
        if gone:
            self._log_gone(table, gone)

    def _log_gone(self, table: str, gone: Iterable[bytes]) -> None:
        if self.log is not None:
            number = TABLE_NUMBERS[table]
            self.log += [(number, key, None, -1) for key in gone]

    def put_dentry(self, parent: int, name: bytes, ino: int) -> None:
        """Let `name` in `parent` stand for an inode."""
        if name in TRACES:
            self.is_tracing = True
        key = keys.dentry_key(parent, name)
        self.txn.put(key, keys.pack_u64(ino), db=self.db.dentries)
        self.mark(keys.T_DENTRIES, key)

    def drop_dentry(self, parent: int, name: bytes) -> None:
        """Remove a name from a directory."""
        key = keys.dentry_key(parent, name)
        self.txn.delete(key, db=self.db.dentries)
        self.mark(keys.T_DENTRIES, key)

    def add_link(self, rec: InodeRec, parent: int, name: bytes) -> None:
        """Note one more link in the record (nlink is raised here; the caller stores the record)."""
        if rec.nlink == 0:
            rec.parent, rec.name = parent, name
        else:
            if rec.nlink == 1:
                self._put_link(rec.ino, rec.parent, rec.name)
                rec.parent, rec.name = 0, _EMPTY
            self._put_link(rec.ino, parent, name)
        rec.nlink += 1

    def remove_link(self, rec: InodeRec, parent: int, name: bytes) -> None:
        """Take one link off the record (nlink is lowered here; the caller stores the record)."""
        self.is_freeing = True
        rec.nlink -= 1
        if rec.nlink == 0:
            rec.parent, rec.name = 0, _EMPTY
            self.txn.put(keys.pack_u64(rec.ino), _EMPTY, db=self.db.orphans)
            self.changed = True
            return
        self._drop_link(rec.ino, parent, name)
        if rec.nlink == 1:
            rec.parent, rec.name = next(self.links(rec.ino))
            self._drop_link(rec.ino, rec.parent, rec.name)

    def move_link(self, rec: InodeRec, old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        """Replace the link (parent, name) `old` by `new` in the record."""
        if rec.is_dir or rec.nlink == 1:
            rec.parent, rec.name = new
        else:
            self._drop_link(rec.ino, *old)
            self._put_link(rec.ino, *new)

    def _put_link(self, ino: int, parent: int, name: bytes) -> None:
        key = keys.link_key(ino, parent, name)
        self.txn.put(key, _EMPTY, db=self.db.links)
        self.mark(keys.T_LINKS, key)

    def _drop_link(self, ino: int, parent: int, name: bytes) -> None:
        key = keys.link_key(ino, parent, name)
        self.txn.delete(key, db=self.db.links)
        self.mark(keys.T_LINKS, key)

    def put_extent(
        self,
        rec: InodeRec,
        index: int,
        data: bytes,
        old_length: int,
        patch: tuple[int, memoryview] | None = None,
    ) -> None:
        """Store an extent; `old_length` is what it held before (warm or cold), 0 for a hole.

        patch: (start, bytes) which, laid over the warm bytes before, give `data`.
        """
        key = keys.chunk_key(rec.ino, index)
        if len(data) < old_length:
            self._clear_for(key, self.db.extents)
            patch = None
        self.txn.put(key, data, db=self.db.extents)
        if patch is not None and self.log is not None and len(data) > PATCH_SHARE * len(patch[1]):
            self.log[-1] = (_T_EXTENTS, key, bytes(patch[1]), patch[0])
        self.put_bytes += len(data)
        delta = alloc_bytes(len(data)) - alloc_bytes(old_length)
        rec.alloc += delta
        self.head_rec.used_bytes += delta
        self.mark(keys.T_CHUNKS, key)

    def _clear_for(self, key: bytes, table: lmdb._Database) -> None:
        """Remove a value that a smaller one replaces (invariant 5)."""
        if self.log is not None:
            self.txn.delete(key, db=table)

    def drop_extents(self, rec: InodeRec, first: int) -> None:
        """Remove an inode's extents from index `first` on, warm and cold."""
        prefix = keys.pack_u64(rec.ino)
        start = keys.chunk_key(rec.ino, first)
        held: dict[bytes, int] = {}
        with self.txn.cursor(db=self.db.chunks) as cursor:
            found = cursor.set_range(start)
            while found and cursor.key().startswith(prefix):
                key = cursor.key()
                held[key] = decode_location(cursor.value()).length
                found = cursor.delete()
        if held:
            self._log_gone("chunks", held)
        warm: dict[bytes, int] = {}
        with self.txn.cursor(db=self.db.extents) as cursor:
            found = cursor.set_range(start)
            while found and cursor.key().startswith(prefix):
                key = cursor.key()
                warm[key] = len(cursor.value())
                found = cursor.delete()
        if warm:
            self._log_gone("extents", warm)
            held.update(warm)
        self.is_freeing = self.is_freeing or bool(held)
        for key, length in held.items():
            freed = alloc_bytes(length)
            rec.alloc -= freed
            self.head_rec.used_bytes -= freed
            self.mark(keys.T_CHUNKS, key)

    def put_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        """Set an extended attribute."""
        key = keys.xattr_key(ino, name)
        self._clear_for(key, self.db.xattrs)
        self.txn.put(key, value, db=self.db.xattrs)
        self.put_bytes += len(value)
        self.mark(keys.T_XATTRS, key)

    def drop_xattr(self, ino: int, name: bytes) -> None:
        """Remove an extended attribute."""
        key = keys.xattr_key(ino, name)
        self.txn.delete(key, db=self.db.xattrs)
        self.is_freeing = True
        self.mark(keys.T_XATTRS, key)

    def add_orphan(self, rec: InodeRec) -> None:
        """Store a new inode that no name leads to yet: it goes when nobody gives it one."""
        self.add_inode(rec)
        self.txn.put(keys.pack_u64(rec.ino), _EMPTY, db=self.db.orphans)

    def keep_orphan(self, ino: int) -> None:
        """It is going to get a name."""
        self.txn.delete(keys.pack_u64(ino), db=self.db.orphans)

    def note_mirror(self, row: MirrorRow) -> None:
        """Note what stands at a mirror path, and have its inode looked at by the mirror."""
        put_mirror_row(self.txn, self.db, row)
        key = keys.pack_u64(row.ino)
        self.txn.put(key, keys.pack_u64(self.generation), db=self.db.mtodo)

    def bulk(self) -> None:
        """Records are going to be put and deleted past this class, in bulk."""
        self.is_unlogged = True

    def put_meta(self, name: bytes, raw: bytes) -> None:
        """Keep a meta value together with this change."""
        self._clear_for(name, self.db.meta)
        self.txn.put(name, raw, db=self.db.meta)
