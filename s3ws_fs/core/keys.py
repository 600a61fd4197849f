"""Keys of the cache's tables, and of the same records in the journal.

Key map (all integers big endian, so that keys sort by number)
    inodes    ino u64
    dentries  parent u64, hash u64, name      hash = xxh3-64(name) >> 1, at least COOKIE_FIRST
    extents   ino u64, index u32              warm bytes of one extent
    chunks    ino u64, index u32              where the extent's sealed bytes stand (Location)
    xattrs    ino u64, name
    links     ino u64, parent u64, name       every link of an inode that has two or more
    dirty     table u8, key of that table
    orphans   ino u64
    mtodo     ino u64                         inodes whose mirror objects have to be looked at
    mirror    xxh3-128(mirror path)           what we last put at that path
    mirrori   ino u64, xxh3-128(mirror path)  index of `mirror` by inode
    meta      ascii name

Invariants
1. A key is at most 511 bytes (LMDB's limit): the longest is a dentry's, 8 + 8 + 255.
2. Entries of one directory are neighbours and sort by hash: the hash is the readdir cookie, so a
   cookie means the same place whatever comes and goes, and needs no state.
3. Cookies 0 to 2 are never a hash (start, ".", ".."), and a cookie fits a signed 64-bit off_t.

Called by cache, fs, transfer, replica.
"""

from __future__ import annotations

import struct
from typing import Final

import xxhash

from s3ws_fs.core.errors import FormatError

T_INODES: Final = 1
T_DENTRIES: Final = 2
T_CHUNKS: Final = 3
T_XATTRS: Final = 4
T_LINKS: Final = 5

JOURNAL_TABLES: Final = (T_INODES, T_DENTRIES, T_CHUNKS, T_XATTRS, T_LINKS)
"""Tables whose records are shipped; the number is the table byte in dirty keys and journal."""

TABLE_NAMES: Final = {
    T_INODES: "inodes",
    T_DENTRIES: "dentries",
    T_CHUNKS: "chunks",
    T_XATTRS: "xattrs",
    T_LINKS: "links",
}

COOKIE_FIRST: Final = 3

_Q: Final = struct.Struct(">Q")
_QQ: Final = struct.Struct(">QQ")
_QI: Final = struct.Struct(">QI")

pack_u64 = _Q.pack
chunk_key = _QI.pack
"""chunk_key(ino, index): key of the tables chunks and extents."""


def unpack_u64(key: bytes | memoryview) -> int:
    """The u64 a key starts with (for most tables the inode). Raises FormatError."""
    try:
        return int(_Q.unpack_from(key)[0])
    except struct.error as exc:
        raise _too_short(key) from exc


def _too_short(key: bytes | memoryview) -> FormatError:
    return FormatError("key", f"{bytes(key).hex() or 'an empty one'} is no key of this table")


def name_cookie(name: bytes) -> int:
    """The readdir cookie of a name: 63 bits, at least COOKIE_FIRST."""
    cookie = xxhash.xxh3_64_intdigest(name) >> 1
    return cookie if cookie >= COOKIE_FIRST else cookie + COOKIE_FIRST


def dentry_key(parent: int, name: bytes) -> bytes:
    """Key of the entry `name` in directory `parent`."""
    return _QQ.pack(parent, name_cookie(name)) + name


def dentry_seek(parent: int, cookie: int) -> bytes:
    """Smallest key of `parent` that is beyond every entry with this cookie (0: the first)."""
    return _QQ.pack(parent, cookie + 1 if cookie else 0)


def dentry_cookie(key: bytes) -> int:
    """The cookie in a dentry key. Raises FormatError."""
    try:
        return int(_Q.unpack_from(key, 8)[0])
    except struct.error as exc:
        raise _too_short(key) from exc


def split_dentry_key(key: bytes) -> tuple[int, int, bytes]:
    """Parent, cookie and name of a dentry key. Raises FormatError."""
    try:
        parent, cookie = _QQ.unpack_from(key)
    except struct.error as exc:
        raise _too_short(key) from exc
    return parent, cookie, bytes(key[16:])


def split_chunk_key(key: bytes | memoryview) -> tuple[int, int]:
    """Inode and extent index of a key of chunks or extents. Raises FormatError."""
    try:
        ino, index = _QI.unpack(key)
    except struct.error as exc:
        raise _too_short(key) from exc
    return ino, index


def xattr_key(ino: int, name: bytes) -> bytes:
    """Key of an extended attribute."""
    return _Q.pack(ino) + name


def link_key(ino: int, parent: int, name: bytes) -> bytes:
    """Key of one link of an inode with two or more."""
    return _QQ.pack(ino, parent) + name


def split_link_key(key: bytes) -> tuple[int, int, bytes]:
    """Inode, parent and name of a link key."""
    try:
        ino, parent = _QQ.unpack_from(key)
    except struct.error as exc:
        raise _too_short(key) from exc
    return ino, parent, bytes(key[16:])


def dirty_key(table: int, key: bytes) -> bytes:
    """Key in the dirty table of the record `key` of `table`."""
    return bytes((table,)) + key


def mirror_key(path: bytes) -> bytes:
    """Key of a mirror path (the escaped path below files/, without that prefix)."""
    return xxhash.xxh3_128_digest(path)
