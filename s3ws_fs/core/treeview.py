"""A workspace's records as a tree: paths, links and places, looked up where they stand.

Invariants
1. Pure, and lazy: nothing is indexed that nobody asked for. Records that do not decode, and names
   that lead nowhere, raise FormatError.
2. A path is followed inside the workspace only: a symlink with an absolute target, or one that
   leads above the root, is refused with NoPathError, and so is a chain of more than LINKS_MAX.
3. Two contents are equal exactly when the bytes are, as far as digests of extents tell: an extent
   of zeros is a hole. (Zeros written behind the end of an extent's bytes do count.)

Called by core.treediff, transfer and cli.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final, Protocol

import xxhash

from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError, S3wsError
from s3ws_fs.core.extents import extent_count
from s3ws_fs.core.records import InodeRec, decode_inode, decode_location
from s3ws_fs.core.types import ROOT_INO

DEPTH_MAX: Final = 4096
"""Directories above a name; more is a cycle."""
LINKS_MAX: Final = 40
"""Symlinks on the way of one path, as in the kernel."""

Table = Mapping[bytes, bytes]


class NoPathError(S3wsError):
    """There is nothing at a path, or it leads out of the workspace: `why` says it to a person."""

    def __init__(self, path: bytes, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(path, why)


class Records(Protocol):
    """The journal's tables at one point (a TableSet is one)."""

    @property
    def inodes(self) -> Table: ...
    @property
    def dentries(self) -> Table: ...
    @property
    def chunks(self) -> Table: ...
    @property
    def xattrs(self) -> Table: ...
    @property
    def links(self) -> Table: ...


class TreeView:
    """One point: its records, and what is looked up in them."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self._paths: dict[int, bytes] = {ROOT_INO: b""}
        self._xattrs: dict[int, dict[bytes, bytes]] | None = None
        self._links: dict[int, list[tuple[int, bytes]]] | None = None
        self._children: dict[int, list[tuple[bytes, int]]] | None = None
        self._chunks: int | None = None

    def inode(self, ino: int) -> InodeRec | None:
        """An inode that has a name, or None. Raises FormatError."""
        raw = self.records.inodes.get(keys.pack_u64(ino))
        if raw is None:
            return None
        rec = decode_inode(ino, raw)
        return rec if rec.nlink else None

    def entry(self, parent: int, name: bytes) -> int | None:
        """The inode behind a name of a directory. Raises FormatError."""
        raw = self.records.dentries.get(keys.dentry_key(parent, name))
        return None if raw is None else keys.unpack_u64(raw)

    def find(self, path: bytes, *, follow: bool = True) -> InodeRec:
        """The inode at a path below the root; symlinks on the way are followed, and with `follow`
        one at its end. Raises NoPathError, FormatError.
        """
        waiting = [name for name in reversed(path.split(b"/")) if name]
        at, chain, symlinks = _required(self, ROOT_INO), list[InodeRec](), 0
        while waiting:
            name = waiting.pop()
            if name == b".":
                continue
            if not at.is_dir:
                raise NoPathError(path, "a part of it is no directory")
            if name == b"..":
                if not chain:
                    raise NoPathError(path, "it leads out of the workspace")
                at = chain.pop()
                continue
            ino = self.entry(at.ino, name)
            if ino is None:
                raise NoPathError(path, "it is not there")
            found = _required(self, ino)
            if stat.S_ISLNK(found.mode) and (follow or waiting):
                symlinks += 1
                if symlinks > LINKS_MAX:
                    raise NoPathError(path, "too many symlinks are on its way")
                if found.target.startswith(b"/"):
                    raise NoPathError(path, "a symlink on its way leads out of the workspace")
                waiting += [part for part in reversed(found.target.split(b"/")) if part]
                continue
            chain.append(at)
            at = found
        return at

    def path(self, parent: int, name: bytes) -> bytes:
        """Path of a link from the root. Raises FormatError."""
        above = self._directory(parent)
        return above + b"/" + name if above else name

    def _directory(self, ino: int) -> bytes:
        chain: list[InodeRec] = []
        at = ino
        while at not in self._paths:
            rec = self.inode(at)
            if rec is None or not rec.is_dir or len(chain) == DEPTH_MAX:
                raise FormatError(f"inode {at}", "a directory that is named is nowhere")
            chain.append(rec)
            at = rec.parent
        above = self._paths[at]
        for rec in reversed(chain):
            above = above + b"/" + rec.name if above else rec.name
            self._paths[rec.ino] = above
        return above

    def below(self, ino: int, path: bytes) -> Iterator[tuple[bytes, InodeRec]]:
        """(path, inode) of everything below a directory that stands at `path`."""
        if self._children is None:
            self._children = {}
            for key, raw in self.records.dentries.items():
                parent, _, name = keys.split_dentry_key(key)
                self._children.setdefault(parent, []).append((name, keys.unpack_u64(raw)))
        pending = [(path, ino, 0)]
        while pending:
            above, at, depth = pending.pop()
            if depth > DEPTH_MAX:
                raise FormatError(f"inode {at}", "directories lead into each other")
            for name, number in self._children.get(at, ()):
                rec = _required(self, number)
                found = above + b"/" + name if above else name
                yield found, rec
                if rec.is_dir:
                    pending.append((found, number, depth + 1))

    def links(self, rec: InodeRec) -> list[tuple[int, bytes]]:
        """(directory, name) of all links of an inode; none of the root's."""
        if rec.ino == ROOT_INO:
            return []
        if rec.is_dir or rec.nlink == 1:
            return [(rec.parent, rec.name)]
        if self._links is None:
            self._links = {}
            for key in self.records.links:
                ino, parent, name = keys.split_link_key(key)
                self._links.setdefault(ino, []).append((parent, name))
        return sorted(self._links.get(rec.ino, []))

    def xattrs(self, ino: int) -> dict[bytes, bytes]:
        """Extended attributes of an inode."""
        if self._xattrs is None:
            self._xattrs = {}
            for key, value in self.records.xattrs.items():
                self._xattrs.setdefault(keys.unpack_u64(key), {})[key[8:]] = value
        return self._xattrs.get(ino, {})

    def places(self, rec: InodeRec) -> Iterator[tuple[int, bytes]]:
        """(extent index, chunk record) of all extents of a file, in order."""
        count, chunks = extent_count(rec.size), self.records.chunks
        if self._chunks is None:
            # Counted once: a table as it was (transfer.looking) counts by going through all of it.
            self._chunks = len(chunks)
        if count > self._chunks:
            prefix = keys.pack_u64(rec.ino)
            own = sorted(key for key in chunks if key[:8] == prefix)
        else:
            own = [keys.chunk_key(rec.ino, index) for index in range(count)]
        for key in own:
            raw = chunks.get(key)
            if raw is not None:
                yield keys.split_chunk_key(key)[1], raw

    def content(self, rec: InodeRec) -> tuple[object, ...]:
        """What two files of equal bytes have in common, and no others."""
        if not stat.S_ISREG(rec.mode):
            return (rec.target, rec.rdev)
        found = ((index, bytes_of(raw)) for index, raw in self.places(rec))
        return (rec.size, *(item for item in found if item[1] is not None))


def _required(view: TreeView, ino: int) -> InodeRec:
    rec = view.inode(ino)
    if rec is None:
        raise FormatError(f"inode {ino}", "a name stands for it, but it is not there")
    return rec


def bytes_of(raw: bytes | None) -> tuple[int, bytes] | None:
    """Length and digest of an extent's bytes; None for zeros."""
    if raw is None:
        return None
    loc = decode_location(raw)
    return None if loc.digest == _zeros(loc.length) else (loc.length, loc.digest)


@lru_cache(maxsize=64)
def _zeros(length: int) -> bytes:
    return xxhash.xxh3_128_digest(bytes(length))
