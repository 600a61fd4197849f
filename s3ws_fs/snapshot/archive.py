"""Writes a tree as tar.gz, and its index: where each entry stands, and each piece of the gzip.

The tar is cut into pieces of MEMBER_BYTES; each is a gzip member of its own, compressed by a pool
(ISA-L releases the interpreter's lock, and takes a fifth of zlib's time at its fastest for the same
size). Any gunzip reads the series as one stream; whoever has the index reads the pieces he needs.

Index: JSON lines, gzip (docs/format.md): a head, a line for each entry and each piece, an end with
the totals and the digest of all lines before it.

Invariants
1. The archive is standard: GNU tar alone restores the tree from it.
2. A piece's line is written when the piece is; the end line is written last, when both files are
   whole: an index that was cut off never reads as a good one.
3. Memory is bounded: pieces under way, one block of a file, and the names of hard-linked files.

Called by backup.
"""

from __future__ import annotations

import gzip
import json
import stat
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import xxhash
from isal import isal_zlib

from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import InodeRec
from s3ws_fs.snapshot import tarformat
from s3ws_fs.snapshot.tree import Tree

MEMBER_BYTES: Final = 1 << 20
"""Tar bytes of one gzip member: so much is read to restore one small file."""
MEMBERS_AHEAD: Final = 4
"""Members that are being compressed, or wait to be written."""
LEVEL: Final = 2
GZIP_BITS: Final = 31
HOLES_BYTES_MIN: Final = EXTENT_BYTES
"""A file with fewer bytes of holes is stored without them."""
INDEX_FORMAT: Final = 1

_KINDS: Final = {b"0": "file", b"2": "symlink", b"3": "char", b"4": "block", b"5": "dir"} | {
    b"6": "fifo"
}

Progress = Callable[[int, int], None]


def compress(data: bytes) -> bytes:
    """One gzip member. The same bytes give the same member."""
    packed: bytes = isal_zlib.compress(data, LEVEL, GZIP_BITS)
    return packed


@dataclass(slots=True)
class Written:
    """What came out."""

    archive_bytes: int
    entries: int
    raw_bytes: int
    """Bytes of the files in it (holes do not count)."""
    skipped: list[bytes]
    """Sockets: tar has no place for them."""


class _Index:
    """The lines of an index, and their digest."""

    def __init__(self, file: BinaryIO) -> None:
        self._out = gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0)
        self._digest = xxhash.xxh3_128()

    def add(self, line: dict[str, Any]) -> None:
        """Write a line (ASCII: names that are not UTF-8 are escaped lone surrogates)."""
        raw = json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"
        self._digest.update(raw)
        self._out.write(raw)

    def end(self, line: dict[str, Any]) -> None:
        """Write the last line."""
        self.add(line | {"digest": self._digest.hexdigest()})
        self._out.close()


class _Members:
    """Cuts the tar into members, and writes them in order."""

    def __init__(self, file: BinaryIO, index: _Index, pool: Executor) -> None:
        self._file = file
        self._index = index
        self._pool = pool
        self._waiting: deque[tuple[int, int, Future[bytes]]] = deque()
        self._parts: list[bytes] = []
        self._held = 0
        self._cut_at = 0
        self.raw_bytes = 0
        self.bytes = 0

    def add(self, data: bytes) -> None:
        """Append tar bytes."""
        self._parts.append(data)
        self._held += len(data)
        self.raw_bytes += len(data)
        if self._held >= MEMBER_BYTES:
            self._cut()

    def _cut(self) -> None:
        raw = b"".join(self._parts)
        self._parts, self._held = [], 0
        self._waiting.append((self._cut_at, len(raw), self._pool.submit(compress, raw)))
        self._cut_at += len(raw)
        while len(self._waiting) > MEMBERS_AHEAD:
            self._write()

    def _write(self) -> None:
        raw_at, raw_bytes, packing = self._waiting.popleft()
        data = packing.result()
        self._file.write(data)
        line = {"piece": raw_at, "raw_bytes": raw_bytes, "at": self.bytes, "bytes": len(data)}
        self._index.add(line | {"xxh3": xxhash.xxh3_128_hexdigest(data)})
        self.bytes += len(data)

    def finish(self) -> None:
        """Write what is left."""
        if self._parts:
            self._cut()
        while self._waiting:
            self._write()
        self._file.flush()


def write(
    tree: Tree,
    head: dict[str, Any],
    archive: BinaryIO,
    index: BinaryIO,
    pool: Executor,
    progress: Progress = lambda _done, _of: None,
) -> Written:
    """Write both files. `head`: what the index begins with. Raises OSError, FormatError."""
    lines = _Index(index)
    lines.add({"format": INDEX_FORMAT, **head})
    writer = _Writer(tree, _Members(archive, lines, pool), lines)
    total = len(list(tree.inos))
    for done, (path, ino) in enumerate(tree.walk()):
        writer.add(path, ino)
        if not done % 500:
            progress(min(done, total), total)
    return writer.finish()


class _Writer:
    """Entries of one archive."""

    def __init__(self, tree: Tree, members: _Members, index: _Index) -> None:
        self._tree = tree
        self._members = members
        self._index = index
        self._first: dict[int, bytes] = {}
        self.entries = 0
        self.data_bytes = 0
        self.skipped: list[bytes] = []

    def add(self, path: bytes, ino: int) -> None:
        """One name, with its inode's bytes unless they are there already."""
        rec = self._tree.node(ino)
        kind = tarformat.type_of(rec)
        if kind is None:
            self.skipped.append(path)
            return
        at = self._members.raw_bytes
        first = self._first.get(ino)
        if first is not None:
            self._members.add(tarformat.hardlink(path, rec, first))
            self._note(path, rec, "link", at, target=first)
            return
        if rec.nlink > 1 and not rec.is_dir:
            self._first[ino] = path
        if stat.S_ISREG(rec.mode):
            self._add_file(path, rec)
        else:
            self._members.add(tarformat.entry(path, rec, self._tree.xattrs(ino)))
        self._note(path, rec, _KINDS[kind], at, target=rec.target)

    def _add_file(self, path: bytes, rec: InodeRec) -> None:
        tree, members = self._tree, self._members
        spans = tree.spans(rec.ino)
        held = sum(length for _, length in spans)
        self.data_bytes += held
        is_sparse = rec.size - held >= HOLES_BYTES_MIN
        table = b""
        if is_sparse:
            spans = tarformat.whole_blocks(spans, rec.size)
            table = tarformat.sparse_map(spans, rec.size)
        stored = len(table) + sum(length for _, length in spans) if is_sparse else rec.size
        xattrs = tree.xattrs(rec.ino)
        head = tarformat.entry(path, rec, xattrs, stored_bytes=stored, is_sparse=is_sparse)
        members.add(head + table)
        at = 0
        for offset, data in tree.blocks(rec.ino):
            # Between blocks: all of a gap, or, of a hole, what fills up its first block.
            gap = len(tarformat.padding(at)) if is_sparse else offset - at
            members.add(bytes(min(gap, offset - at)) + data)
            at = offset + len(data)
        rest = rec.size - at
        members.add(bytes(min(rest, len(tarformat.padding(at))) if is_sparse else rest))
        members.add(tarformat.padding(stored))

    def _note(self, path: bytes, rec: InodeRec, kind: str, at: int, target: bytes) -> None:
        self.entries += 1
        line: dict[str, Any] = {
            "path": path.decode("utf-8", "surrogateescape"),
            "type": kind,
            "mode": stat.S_IMODE(rec.mode),
            "uid": rec.uid,
            "gid": rec.gid,
            "mtime_ns": rec.mtime_ns,
            "at": at,
            "bytes": self._members.raw_bytes - at,
        }
        if kind == "file":
            line["size"] = rec.size
        if target:
            line["target"] = target.decode("utf-8", "surrogateescape")
        self._index.add(line)

    def finish(self) -> Written:
        """The end of both files."""
        self._members.add(tarformat.END)
        self._members.finish()
        written = Written(self._members.bytes, self.entries, self.data_bytes, self.skipped)
        self._index.end(
            {
                "end": True,
                "archive_bytes": written.archive_bytes,
                "tar_bytes": self._members.raw_bytes,
                "entries": written.entries,
                "raw_bytes": written.raw_bytes,
            }
        )
        return written
