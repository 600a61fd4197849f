"""A cache that follows the bucket: sealed records replace what was shown, at one instant.

Nothing here is a change of the workspace: it uses no generation of its own and marks nothing dirty.

Invariants
1. A segment is one transaction, and so is a whole rebuild: readers see one sealed point or the
   next, and after a crash the cache is at one, with the position (`sealed`) that belongs to it.
2. Warm bytes stay only where the new location has their digest; else the extent is cold again.
3. An inode that went, but is open here, stays with its bytes as an orphan (no links) until it is
   dropped (`drop_quietly`); any other without links goes at once. No later record names it:
   inode numbers are never used again, and what has no links never gets one.
4. The counters count what this cache holds; they differ from the header's by orphans only.

Called by replica (in the daemon, on the loop's thread) and fs.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import lmdb

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.tx import drop_prefix
from s3ws_fs.cache.view import META_HEAD
from s3ws_fs.core import journal, keys, layout
from s3ws_fs.core.changefeed import ATTRIBUTES, BULK, CONTENT, GONE, NAME, NEW, Noted
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.journal import Frame, Header
from s3ws_fs.core.records import Head, InodeRec, decode_inode, decode_location
from s3ws_fs.core.types import ROOT_INO, SELF_OBJECT

FOLLOWING: Final = "following"
"""Meta value: this cache is of a read-only mount."""

APPEND_RECORDS: Final = 5000
"""Records of a checkpoint handed to the engine at once."""

_SELF: Final = keys.pack_u64(SELF_OBJECT)
_EMPTY: Final = b""

IsOpen = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Sealed:
    """Records of one journal object, in order of replay; verified."""

    header: Header
    frames: Iterable[Frame]


@dataclass(slots=True)
class Applied:
    """What became of it: for open files, the kernel's pages, and the hydrator."""

    orphans: list[int] = field(default_factory=list)
    """Inodes that are open here and have no name any more."""
    rewritten: list[int] = field(default_factory=list)
    """Inodes that were there before and have other bytes now."""
    cold: list[bytes] = field(default_factory=list)
    """Keys of extents that became cold, of a segment."""


def apply_segment(cache: Cache, sealed: Sealed, position: object, is_open: IsOpen) -> Applied:
    """Move on by one segment; `position` is what `sealed` in the meta table becomes.

    Raises FormatError, FsError (ENOSPC, EIO); then nothing was changed.
    """
    with _reading(sealed.header), cache._book() as txn:
        step = _Step(cache, txn, is_open)
        step.replay(sealed)
        head = step.finish(sealed.header, position)
    cache.head = head
    cache.spent(step.put_bytes)
    step.tell(head.generation)
    return step.applied


def rebuild(
    cache: Cache, objects: Iterator[Sealed], position: object, root: InodeRec, is_open: IsOpen
) -> Applied:
    """Show what a checkpoint and later segments say, whatever was shown before.

    `root`: the root directory of a workspace in which nothing was sealed yet. Raises as
    `apply_segment`.
    """
    with cache._book() as txn, cache.env.begin() as before:
        for name in keys.TABLE_NAMES.values():
            txn.drop(getattr(cache.tables, name), delete=False)
        txn.drop(cache.tables.orphans, delete=False)
        step = _Step(cache, txn, is_open)
        step.start_empty()
        header: Header | None = None
        for sealed in objects:
            header = sealed.header
            with _reading(header):
                if header.kind == journal.KIND_CHECKPOINT:
                    step.load(sealed)
                else:
                    step.replay(sealed)
        if header is None:
            step.put_inode(keys.pack_u64(ROOT_INO), root.encode())
        step.keep_open_files(before)
        step.keep_warm(before)
        head = step.finish(header, position)
    cache.head = head
    cache.spent(step.put_bytes)
    step.note(BULK, 0)
    step.tell(head.generation)
    return step.applied


def drop_quietly(cache: Cache, inos: Iterable[int]) -> None:
    """Drop orphans that nobody has open any more. Raises FsError."""
    with cache._book() as txn:
        step = _Step(cache, txn, lambda _: False)
        for ino in inos:
            key = keys.pack_u64(ino)
            raw = txn.get(key, db=cache.tables.inodes)
            if raw is not None and decode_inode(ino, raw).nlink == 0:
                step.drop_inode(key)
        head = step.finish(None, None)
    cache.head = head


class _Step:
    """One transaction under way."""

    def __init__(self, cache: Cache, txn: lmdb.Transaction[bytes], is_open: IsOpen) -> None:
        self._db = cache.tables
        self._txn = txn
        self._is_open = is_open
        self._unnamed: set[bytes] = set()
        head = cache.head
        self._head = Head(head.generation, head.next_ino, head.used_bytes, head.inodes)
        self.applied = Applied()
        self.put_bytes = 0
        self._on_followed = cache.on_followed
        self._seen: list[Noted] = []

    # --- who looks on ------------------------------------------------------------------------

    def note(self, kind: str, ino: int, parent: int = 0, name: bytes = b"") -> None:
        """Note a change, if somebody wants to know."""
        if self._on_followed is not None:
            self._seen.append((kind, ino, parent, name))

    def tell(self, generation: int) -> None:
        """It is committed."""
        if self._on_followed is not None:
            self._on_followed(generation, self._seen)

    # --- records ---------------------------------------------------------------------------

    def start_empty(self) -> None:
        """The tables were emptied: so are the counters."""
        self._head.used_bytes = self._head.inodes = 0

    def load(self, sealed: Sealed) -> None:
        """A checkpoint into empty tables: in bulk, by rising keys."""
        own = keys.pack_u64(sealed.header.number)
        for frame in sealed.frames:
            if frame.table == journal.T_MTODO:
                continue
            if frame.table == keys.T_INODES:
                for key, raw in zip(frame.keys, frame.values, strict=True):
                    self._count(key, raw)
            values = _placed(frame, own)
            table = getattr(self._db, keys.TABLE_NAMES[frame.table])
            with self._txn.cursor(db=table) as cursor:
                for at in range(0, len(values), APPEND_RECORDS):
                    end = at + APPEND_RECORDS
                    items = zip(frame.keys[at:end], values[at:end], strict=True)
                    cursor.putmulti(items, append=True)
            self.put_bytes += sum(map(len, values))

    def replay(self, sealed: Sealed) -> None:
        """A segment, in order."""
        own = keys.pack_u64(sealed.header.number)
        for frame in sealed.frames:
            if frame.table == journal.T_MTODO:
                continue
            if frame.tombs:
                self._remove(frame)
            else:
                self._put(frame, _placed(frame, own))

    def _put(self, frame: Frame, values: list[bytes]) -> None:
        put = {keys.T_INODES: self.put_inode, keys.T_CHUNKS: self._put_chunk}.get(frame.table)
        table = getattr(self._db, keys.TABLE_NAMES[frame.table])
        for key, raw in zip(frame.keys, values, strict=True):
            if put is not None:
                put(key, raw)
            else:
                if self._on_followed is not None and frame.table == keys.T_DENTRIES:
                    self._note_name(key, raw)
                self._txn.put(key, raw, db=table)
            self.put_bytes += len(key) + len(raw)

    def _remove(self, frame: Frame) -> None:
        table = getattr(self._db, keys.TABLE_NAMES[frame.table])
        for key in frame.keys:
            if frame.table == keys.T_INODES:
                self._inode_went(key)
                continue
            if self._on_followed is not None and frame.table == keys.T_DENTRIES:
                self._note_name(key, None)
            self._txn.delete(key, db=table)
            if frame.table == keys.T_CHUNKS:
                self._txn.delete(key, db=self._db.extents)

    def _note_name(self, key: bytes, new: bytes | None) -> None:
        old = self._txn.get(key, db=self._db.dentries)
        parent, _, name = keys.split_dentry_key(key)
        if old is not None and old != new:
            self.note(GONE, keys.unpack_u64(old), parent, name)
        if new is not None and old != new:
            self.note(NAME, keys.unpack_u64(new), parent, name)

    def _count(self, key: bytes, raw: bytes) -> InodeRec:
        rec = decode_inode(keys.unpack_u64(key), raw)
        self._head.inodes += 1
        self._head.used_bytes += rec.alloc
        if rec.nlink == 0:
            self._unnamed.add(key)
        return rec

    def _uncount(self, raw: bytes) -> InodeRec:
        rec = decode_inode(0, raw)
        self._head.inodes -= 1
        self._head.used_bytes -= rec.alloc
        return rec

    def put_inode(self, key: bytes, raw: bytes) -> None:
        """An inode as it is now."""
        old = self._txn.get(key, db=self._db.inodes)
        was = None if old is None else self._uncount(old)
        now = self._count(key, raw)
        self._txn.put(key, raw, db=self._db.inodes)
        is_rewritten = was is not None and was.data_gen != now.data_gen
        if is_rewritten:
            self.applied.rewritten.append(now.ino)
        self.note(NEW if was is None else CONTENT if is_rewritten else ATTRIBUTES, now.ino)

    def _put_chunk(self, key: bytes, raw: bytes) -> None:
        old = self._txn.get(key, db=self._db.chunks)
        self._txn.put(key, raw, db=self._db.chunks)
        if old is None or not _same_bytes(old, raw):
            self._txn.delete(key, db=self._db.extents)
            self.applied.cold.append(key)

    def _inode_went(self, key: bytes) -> None:
        raw = self._txn.get(key, db=self._db.inodes)
        if raw is None:
            return
        ino = keys.unpack_u64(key)
        if not self._is_open(ino):
            self.drop_inode(key)
            return
        rec = decode_inode(ino, raw)
        self._txn.put(key, _unnamed(rec).encode(), db=self._db.inodes)
        self._unnamed.add(key)

    def drop_inode(self, key: bytes) -> None:
        """Remove an inode and all that hangs on it."""
        raw = self._txn.get(key, db=self._db.inodes)
        if raw is None:
            return
        self._uncount(raw)
        self._txn.delete(key, db=self._db.inodes)
        self._txn.delete(key, db=self._db.orphans)
        for hanging in (self._db.extents, self._db.chunks, self._db.xattrs, self._db.links):
            drop_prefix(self._txn, hanging, key)

    # --- a rebuild keeps what is still good ---------------------------------------------------

    def keep_open_files(self, before: lmdb.Transaction[bytes]) -> None:
        """Files that are open here and not in the workspace any more stay as orphans."""
        with before.cursor(db=self._db.inodes) as cursor:
            for key, raw in cursor:
                ino = keys.unpack_u64(key)
                if not self._is_open(ino) or self._txn.get(key, db=self._db.inodes) is not None:
                    continue
                rec = _unnamed(decode_inode(ino, raw))
                self._count(key, rec.encode())
                self._txn.put(key, rec.encode(), db=self._db.inodes)
                for table in (self._db.chunks, self._db.xattrs):
                    for hanging, value in _below(before, table, key):
                        self._txn.put(hanging, value, db=table)

    def keep_warm(self, before: lmdb.Transaction[bytes]) -> None:
        """Bytes whose digest is the new location's stay; all others go."""
        with self._txn.cursor(db=self._db.extents) as cursor:
            found = cursor.first()
            while found:
                key = cursor.key()
                old = before.get(key, db=self._db.chunks)
                new = self._txn.get(key, db=self._db.chunks)
                if old is not None and new is not None and _same_bytes(old, new):
                    found = cursor.next()
                else:
                    found = cursor.delete() and bool(cursor.key())

    # --- the end -----------------------------------------------------------------------------

    def finish(self, header: Header | None, position: object) -> Head:
        """Orphans, counters and position; returns the counters, to be taken over on commit."""
        for key in self._unnamed:
            ino = keys.unpack_u64(key)
            if self._is_open(ino):
                self._txn.put(key, _EMPTY, db=self._db.orphans)
                self.applied.orphans.append(ino)
            else:
                self.drop_inode(key)
        head = self._head
        if header is not None:
            head = Head(header.generation, header.next_ino, head.used_bytes, head.inodes)
        self._txn.put(META_HEAD, head.encode(), db=self._db.meta)
        if position is not None:
            self._txn.put(FOLLOWING.encode(), b"true", db=self._db.meta)
            self._txn.put(b"sealed", json.dumps(position).encode(), db=self._db.meta)
            self._txn.put(b"hydrated", b"false", db=self._db.meta)
        return head


@contextlib.contextmanager
def _reading(header: Header) -> Iterator[None]:
    """Keys and values of a wrong length are damage of the object they come from."""
    try:
        yield
    except struct.error as exc:
        where = layout.object_key(header.number)
        raise FormatError(where, f"a record can't be read: {exc}") from exc


def _placed(frame: Frame, own: bytes) -> list[bytes]:
    """Values with the object's own number where a location means "this object"."""
    if frame.table != keys.T_CHUNKS:
        return frame.values
    return [own + raw[8:] if raw[:8] == _SELF else raw for raw in frame.values]


def _same_bytes(old: bytes, new: bytes) -> bool:
    was, now = decode_location(old), decode_location(new)
    return (was.length, was.digest) == (now.length, now.digest)


def _unnamed(rec: InodeRec) -> InodeRec:
    rec.nlink, rec.parent, rec.name = 0, 0, _EMPTY
    return rec


def _below(
    txn: lmdb.Transaction[bytes], table: lmdb._Database, prefix: bytes
) -> Iterator[tuple[bytes, bytes]]:
    with txn.cursor(db=table) as cursor:
        if cursor.set_range(prefix):
            for key, value in cursor:
                if not key.startswith(prefix):
                    return
                yield key, value
