"""Binary records of the cache's tables, and of the same records in the journal.

Formats (big endian; docs/format.md has the field tables)
    inode   mode u32, uid u32, gid u32, nlink u32, rdev u64, size u64, alloc u64, atime i64,
            mtime i64, ctime i64, data_gen u64, parent u64, name_len u16, name, symlink target
    chunk   object u64, offset u64, length u32, digest 16 bytes
    dirty   generation u64, first dirt i64 (ns since the epoch)
    head    generation u64, next_ino u64, used_bytes u64, inodes u64
    mirror  ino u64, generation u64, data_gen u64, etag_len u16, etag (ascii), hash 16 bytes, path

Invariants
1. decode(encode(x)) == x. 2. Bytes that are no such record raise FormatError, nothing else.
3. An inode with one link names it (parent, name); with two or more, parent is 0 and the table
   `links` has them all; the root has parent = itself and an empty name.

Called by cache, fs, transfer, replica.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import Final

from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.types import Attr, Location

DIR_SIZE_SHOWN_BYTES: Final = 4096

_INODE: Final = struct.Struct(">IIIIQQQqqqQQH")
_CHUNK: Final = struct.Struct(">QQI16s")
_DIRTY: Final = struct.Struct(">Qq")
_HEAD: Final = struct.Struct(">QQQQ")
_MIRROR: Final = struct.Struct(">QQQH")
_DIGEST_BYTES: Final = 16

CHUNK_RECORD_BYTES: Final = _CHUNK.size
INODE_RECORD_BYTES_MIN: Final = _INODE.size


@dataclass(slots=True)
class InodeRec:
    """An inode as stored. `alloc` is bytes held; `data_gen` the generation of its last data change.

    `parent` and `name` are its only link (see invariant 3); `target` is a symlink's.
    """

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    alloc: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    data_gen: int
    parent: int
    name: bytes
    target: bytes

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    def attr(self) -> Attr:
        """What stat(2) shows."""
        is_dir = (self.mode & 0o170000) == 0o040000
        return Attr(
            self.ino,
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.rdev,
            DIR_SIZE_SHOWN_BYTES if is_dir else self.size,
            DIR_SIZE_SHOWN_BYTES // 512 if is_dir else self.alloc // 512,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
        )

    def encode(self) -> bytes:
        """The record's bytes (without the inode number, which is the key).

        Raises FormatError when a number does not fit: it was damaged before.
        """
        try:
            fixed = _INODE.pack(
                self.mode,
                self.uid,
                self.gid,
                self.nlink,
                self.rdev,
                self.size,
                self.alloc,
                self.atime_ns,
                self.mtime_ns,
                self.ctime_ns,
                self.data_gen,
                self.parent,
                len(self.name),
            )
        except struct.error as exc:
            raise FormatError(f"inode {self.ino}", f"its record does not add up: {exc}") from exc
        return fixed + self.name + self.target


def decode_inode(ino: int, raw: bytes) -> InodeRec:
    """Decode an inode record. Raises FormatError."""
    try:
        fields = _INODE.unpack_from(raw)
    except struct.error as exc:
        raise _too_short(ino, raw) from exc
    end = _INODE.size + fields[12]
    if end > len(raw):
        raise _name_too_long(ino)
    name, target = bytes(raw[_INODE.size : end]), bytes(raw[end:])
    mode, uid, gid, nlink, rdev, size, alloc, atime, mtime, ctime, data_gen, parent, _ = fields
    return InodeRec(
        ino,
        mode,
        uid,
        gid,
        nlink,
        rdev,
        size,
        alloc,
        atime,
        mtime,
        ctime,
        data_gen,
        parent,
        name,
        target,
    )


def decode_attr(ino: int, raw: bytes) -> Attr:
    """What stat(2) shows of an inode record: decode_inode(ino, raw).attr() at half the price.

    Raises FormatError.
    """
    try:
        fields = _INODE.unpack_from(raw)
    except struct.error as exc:
        raise _too_short(ino, raw) from exc
    mode, uid, gid, nlink, rdev, size, alloc, atime_ns, mtime_ns, ctime_ns, _, _, name_len = fields
    if _INODE.size + name_len > len(raw):
        raise _name_too_long(ino)
    if (mode & 0o170000) == 0o040000:
        size = alloc = DIR_SIZE_SHOWN_BYTES
    return Attr(ino, mode, uid, gid, nlink, rdev, size, alloc // 512, atime_ns, mtime_ns, ctime_ns)


def _too_short(ino: int, raw: bytes) -> FormatError:
    return FormatError(f"inode {ino}", f"record of {len(raw)} bytes is too short")


def _name_too_long(ino: int) -> FormatError:
    return FormatError(f"inode {ino}", "name runs beyond the record")


def relinked(
    raw: bytes, nlink: int, parent: int, name: bytes, *, ctime_ns: int, data_gen: int
) -> bytes:
    """An inode record with other links, ctime and data generation. Raises FormatError."""
    try:
        old = _INODE.unpack_from(raw)
        fixed = _INODE.pack(*old[:3], nlink, *old[4:9], ctime_ns, data_gen, parent, len(name))
    except struct.error as exc:
        raise FormatError("inode", f"its record does not add up: {exc}") from exc
    return fixed + name + raw[_INODE.size + old[12] :]


def encode_location(loc: Location) -> bytes:
    """The bytes of a chunk record."""
    return _CHUNK.pack(loc.object_id, loc.offset, loc.length, loc.digest)


def decode_location(raw: bytes | memoryview) -> Location:
    """Decode a chunk record. Raises FormatError."""
    try:
        return Location(*_CHUNK.unpack(raw))
    except struct.error as exc:
        raise FormatError("chunk record", f"{len(raw)} bytes instead of {_CHUNK.size}") from exc


encode_dirty = _DIRTY.pack
"""encode_dirty(generation, first_dirt_ns)."""


def decode_dirty(raw: bytes | memoryview) -> tuple[int, int]:
    """Generation and first dirt (ns) of a dirty record. Raises FormatError."""
    try:
        generation, first_ns = _DIRTY.unpack(raw)
    except struct.error as exc:
        raise FormatError("dirty record", f"{len(raw)} bytes instead of {_DIRTY.size}") from exc
    return generation, first_ns


@dataclass(slots=True)
class Head:
    """The counters that every change moves: one record, written once a transaction."""

    generation: int
    next_ino: int
    used_bytes: int
    inodes: int

    def encode(self) -> bytes:
        """The record's bytes. Raises FormatError when a number does not fit: it was damaged."""
        try:
            return _HEAD.pack(self.generation, self.next_ino, self.used_bytes, self.inodes)
        except struct.error as exc:
            raise FormatError("head record", f"it does not add up: {exc}") from exc


def decode_head(raw: bytes | memoryview) -> Head:
    """Decode the head record. Raises FormatError."""
    try:
        return Head(*_HEAD.unpack(raw))
    except struct.error as exc:
        raise FormatError("head record", f"{len(raw)} bytes instead of {_HEAD.size}") from exc


@dataclass(frozen=True, slots=True)
class MirrorRow:
    """What stands at one mirror path: whose (`ino`), of which generations, and its ETag and hash.

    `generation` is that of the inode record it shows (attributes), `data_gen` that of the bytes;
    `hash` the xxh3-128 of the whole content.
    """

    path: bytes
    ino: int
    generation: int
    data_gen: int
    etag: str
    hash: bytes

    def encode(self) -> bytes:
        """The record's bytes."""
        etag = self.etag.encode("ascii", "replace")
        head = _MIRROR.pack(self.ino, self.generation, self.data_gen, len(etag))
        return head + etag + self.hash + self.path


def decode_mirror(raw: bytes) -> MirrorRow:
    """Decode a mirror record. Raises FormatError."""
    try:
        ino, generation, data_gen, etag_len = _MIRROR.unpack_from(raw)
    except struct.error as exc:
        raise FormatError("mirror record", f"{len(raw)} bytes are too few") from exc
    mid = _MIRROR.size + etag_len
    end = mid + _DIGEST_BYTES
    if end > len(raw):
        raise FormatError("mirror record", "etag or hash runs beyond the record")
    try:
        etag = bytes(raw[_MIRROR.size : mid]).decode("ascii")
    except UnicodeDecodeError as exc:
        raise FormatError("mirror record", "etag is not ascii") from exc
    return MirrorRow(bytes(raw[end:]), ino, generation, data_gen, etag, bytes(raw[mid:end]))
