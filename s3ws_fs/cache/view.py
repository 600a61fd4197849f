"""Reading the cache: one consistent point in time, through any kind of transaction.

Invariants
1. A View lives no longer than its transaction, and no await or network call happens while it does.
2. It decodes, it does not judge: what a record means is the fs layer's business.

Called by cache, fs, transfer (read-only, in the worker), replica.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

import lmdb

from s3ws_fs.cache.tables import Tables
from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError, GoneError
from s3ws_fs.core.records import (
    Head,
    InodeRec,
    MirrorRow,
    decode_attr,
    decode_dirty,
    decode_head,
    decode_inode,
    decode_location,
    decode_mirror,
)
from s3ws_fs.core.types import ROOT_INO, Attr, DirEntry, Location

PATH_DEPTH_MAX: Final = 4096
"""More parents than this on the way to the root is a damaged tree, not a deep one."""

META_HEAD: Final = b"head"


class View:
    """Typed reads of all tables in one transaction."""

    __slots__ = ("db", "txn")

    def __init__(self, txn: lmdb.Transaction[bytes], tables: Tables) -> None:
        self.txn = txn
        self.db = tables

    def meta(self, name: bytes) -> bytes | None:
        """A meta value."""
        return self.txn.get(name, db=self.db.meta)

    def head(self) -> Head:
        """The counters at this point in time. Raises FormatError."""
        raw = self.meta(META_HEAD)
        if raw is None:
            raise FormatError("cache", "no head record")
        return decode_head(raw)

    def inode(self, ino: int) -> InodeRec | None:
        """An inode by number."""
        raw = self.txn.get(keys.pack_u64(ino), db=self.db.inodes)
        return None if raw is None else decode_inode(ino, raw)

    def attr(self, ino: int) -> Attr | None:
        """What stat(2) shows of an inode. Raises FormatError."""
        raw = self.txn.get(keys.pack_u64(ino), db=self.db.inodes)
        return None if raw is None else decode_attr(ino, raw)

    def dentry(self, parent: int, name: bytes) -> int | None:
        """The inode that `name` stands for in `parent`."""
        raw = self.txn.get(keys.dentry_key(parent, name), db=self.db.dentries)
        return None if raw is None else keys.unpack_u64(raw)

    def entries(self, parent: int, cookie: int = 0) -> Iterator[tuple[int, bytes, int]]:
        """(cookie, name, ino) of the entries of `parent` beyond `cookie`, by rising cookie."""
        prefix = keys.pack_u64(parent)
        with self.txn.cursor(db=self.db.dentries) as cursor:
            if not cursor.set_range(keys.dentry_seek(parent, cookie)):
                return
            for key, value in cursor:
                if key[:8] != prefix:
                    return
                _, found, name = keys.split_dentry_key(key)
                yield found, name, keys.unpack_u64(value)

    def listing(self, parent: int, cookie: int, limit: int) -> list[DirEntry]:
        """Up to `limit` entries of `parent` beyond `cookie`, by rising cookie, for readdir.

        Raises GoneError for a name whose inode is missing, FormatError.
        """
        prefix = keys.pack_u64(parent)
        found: list[DirEntry] = []
        with (
            self.txn.cursor(db=self.db.dentries) as names,
            self.txn.cursor(db=self.db.inodes) as inodes,
        ):
            if not names.set_range(keys.dentry_seek(parent, cookie)):
                return found
            for key, value in itertools.islice(names, limit):
                if key[:8] != prefix:
                    break
                ino = keys.unpack_u64(value)
                raw = inodes.get(value)
                if raw is None:
                    raise GoneError(ino)
                found.append(DirEntry(key[16:], keys.dentry_cookie(key), decode_attr(ino, raw)))
        return found

    def has_name(self, names: frozenset[bytes], look_max: int) -> bool:
        """Whether any directory has an entry of one of these names; True when it is not known
        after `look_max` directories. What costs is how many of these are not empty: none of the
        entries beside is looked at."""
        with self.txn.cursor(db=self.db.dentries) as cursor:
            found = cursor.first()
            count = 0
            while found:
                parent = keys.unpack_u64(cursor.key())
                if count == look_max:
                    return True
                if any(cursor.set_key(keys.dentry_key(parent, name)) for name in names):
                    return True
                count += 1
                found = cursor.set_range(keys.pack_u64(parent + 1))
        return False

    def is_empty(self, parent: int) -> bool:
        """Whether a directory has no entry."""
        return next(self.entries(parent), None) is None

    def extent(self, ino: int, index: int) -> bytes | None:
        """Warm bytes of an extent."""
        return self.txn.get(keys.chunk_key(ino, index), db=self.db.extents)

    def chunk(self, ino: int, index: int) -> Location | None:
        """Where an extent's sealed bytes stand."""
        raw = self.txn.get(keys.chunk_key(ino, index), db=self.db.chunks)
        return None if raw is None else decode_location(raw)

    def _below(
        self, table: lmdb._Database, start: bytes, prefix: bytes
    ) -> Iterator[tuple[bytes, bytes]]:
        with self.txn.cursor(db=table) as cursor:
            if not cursor.set_range(start):
                return
            for key, value in cursor:
                if not key.startswith(prefix):
                    return
                yield key, value

    def chunks(self, ino: int, first: int = 0) -> Iterator[tuple[int, Location]]:
        """(index, location) of an inode's sealed extents from `first` on."""
        for key, raw in self._below(self.db.chunks, keys.chunk_key(ino, first), keys.pack_u64(ino)):
            yield keys.split_chunk_key(key)[1], decode_location(raw)

    def extents(self, ino: int, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """(index, bytes) of an inode's warm extents from `first` on."""
        for key, raw in self._below(
            self.db.extents, keys.chunk_key(ino, first), keys.pack_u64(ino)
        ):
            yield keys.split_chunk_key(key)[1], raw

    def extent_indexes(self, ino: int) -> Iterator[int]:
        """The indexes of an inode's warm extents; their bytes are not read from the disk."""
        prefix = keys.pack_u64(ino)
        with self.txn.cursor(db=self.db.extents) as cursor:
            if not cursor.set_range(prefix):
                return
            for key in cursor.iternext(keys=True, values=False):
                if not key.startswith(prefix):
                    return
                yield keys.split_chunk_key(key)[1]

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        """Value of an extended attribute."""
        return self.txn.get(keys.xattr_key(ino, name), db=self.db.xattrs)

    def xattrs(self, ino: int) -> Iterator[tuple[bytes, bytes]]:
        """(name, value) of an inode's extended attributes."""
        prefix = keys.pack_u64(ino)
        for key, raw in self._below(self.db.xattrs, prefix, prefix):
            yield key[8:], raw

    def links(self, ino: int) -> Iterator[tuple[int, bytes]]:
        """(parent, name) of every link of an inode that has two or more."""
        prefix = keys.pack_u64(ino)
        for key, _ in self._below(self.db.links, prefix, prefix):
            _, parent, name = keys.split_link_key(key)
            yield parent, name

    def dirty(self) -> Iterator[tuple[int, bytes, int, int]]:
        """(table, key, generation, first dirt in ns) of every dirty record, by table and key."""
        with self.txn.cursor(db=self.db.dirty) as cursor:
            for key, raw in cursor:
                generation, first_ns = decode_dirty(raw)
                yield key[0], key[1:], generation, first_ns

    def dirty_count(self) -> int:
        """Number of dirty records."""
        return self.txn.stat(self.db.dirty)["entries"]

    def is_dirty(self, table: int, key: bytes) -> bool:
        """Whether a record has changes that are not sealed."""
        return self.txn.get(keys.dirty_key(table, key), db=self.db.dirty) is not None

    def mtodo(self) -> Iterator[tuple[int, int]]:
        """(ino, generation) of the inodes whose mirror objects are behind."""
        with self.txn.cursor(db=self.db.mtodo) as cursor:
            for key, raw in cursor:
                yield keys.unpack_u64(key), keys.unpack_u64(raw)

    def mtodo_count(self) -> int:
        """Number of inodes whose mirror objects are behind."""
        return self.txn.stat(self.db.mtodo)["entries"]

    def mirror_at(self, path: bytes) -> MirrorRow | None:
        """What we last put at a mirror path."""
        raw = self.txn.get(keys.mirror_key(path), db=self.db.mirror)
        return None if raw is None else decode_mirror(raw)

    def mirror_of(self, ino: int) -> Iterator[MirrorRow]:
        """What we last put for an inode."""
        prefix = keys.pack_u64(ino)
        for key, _ in self._below(self.db.mirrori, prefix, prefix):
            raw = self.txn.get(key[8:], db=self.db.mirror)
            if raw is not None:
                yield decode_mirror(raw)

    def dir_path(self, ino: int) -> bytes | None:
        """Path of a directory below the root (b"" for it); None when it is not in the tree."""
        parts: list[bytes] = []
        for _ in range(PATH_DEPTH_MAX):
            if ino == ROOT_INO:
                return b"/".join(reversed(parts))
            rec = self.inode(ino)
            if rec is None or rec.nlink == 0:
                return None
            parts.append(rec.name)
            ino = rec.parent
        raise FormatError(f"inode {ino}", f"more than {PATH_DEPTH_MAX} directories above it")

    def paths_of(self, rec: InodeRec) -> list[bytes]:
        """All paths of an inode, relative to the root, in table order; [] for an orphan."""
        if rec.ino == ROOT_INO:
            return [b""]
        if rec.nlink == 0:
            return []
        pairs = (
            [(rec.parent, rec.name)] if rec.is_dir or rec.nlink == 1 else list(self.links(rec.ino))
        )
        found = []
        for parent, name in pairs:
            above = self.dir_path(parent)
            if above is not None:
                found.append(above + b"/" + name if above else name)
        return found

    def resolve(self, path: bytes) -> int | None:
        """The inode at a path below the root, without following symlinks."""
        ino = ROOT_INO
        for part in path.split(b"/"):
            if part:
                found = self.dentry(ino, part)
                if found is None:
                    return None
                ino = found
        return ino
