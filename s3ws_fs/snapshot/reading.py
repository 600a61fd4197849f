"""Reads a backup by its index: its list, and the bytes of some entries or of all, verified.

Invariants
1. An index counts only whole: its digest is right, its pieces join without a gap, and every entry
   lies within the tar. Anything else is a FormatError that names it.
2. Bytes of the archive come out only if their piece's digest is right; read once more before that
   is an error. No more comes out of a piece than its index says.
3. Limits: an index of INDEX_BYTES_MAX, a line of LINE_BYTES_MAX, GETs of FETCH_BYTES_MAX.

Called by cli, and by snapshot.service for an archive that is still here.
"""

from __future__ import annotations

import bisect
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import xxhash

from s3ws_fs.core import backups, jsontext
from s3ws_fs.core.backups import Backup
from s3ws_fs.core.errors import ExitCode, FormatError, NotFoundError, UserError
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.fetch import read_twice
from s3ws_fs.transfer.windowed import windowed

INDEX_FORMAT: Final = 1
INDEX_BYTES_MAX: Final = 2 << 30
"""Of an index's lines; its object is much smaller."""
LINE_BYTES_MAX: Final = 1 << 20
FETCH_BYTES_MAX: Final = 8 << 20
GETS_AHEAD: Final = 4
GZIP_BITS: Final = 31
TYPES: Final = frozenset({"file", "dir", "symlink", "link", "fifo", "char", "block"})

Range = tuple[int, int]
"""Offset and length within the tar."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a backup. `target`: of a symlink, or of a link to what stands earlier."""

    path: bytes
    type: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    at: int
    length: int
    size: int = 0
    target: bytes = b""

    def to_json(self) -> dict[str, Any]:
        """For a program; names as text (what is not UTF-8 as escaped surrogates)."""
        found: dict[str, Any] = {
            "path": os.fsdecode(self.path),
            "type": self.type,
            "mode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
            "mtime_ns": self.mtime_ns,
            "size": self.size,
        }
        return found | ({"target": os.fsdecode(self.target)} if self.target else {})


@dataclass(frozen=True, slots=True)
class Piece:
    """One gzip member: where its bytes stand in the archive, and in the tar."""

    raw_at: int
    raw_bytes: int
    at: int
    length: int
    digest: str


@dataclass(slots=True)
class Index:
    """All of an index."""

    head: dict[str, Any]
    entries: list[Entry] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    archive_bytes: int = 0
    tar_bytes: int = 0
    raw_bytes: int = 0


# --- the index -----------------------------------------------------------------------------


def parse_index(packed: bytes, where: str) -> Index:
    """An index from its object's bytes. Raises FormatError."""
    index: Index | None = None
    digest = xxhash.xxh3_128()
    is_ended = False
    for raw in _lines(packed, where):
        line = jsontext.object_of(raw, where)
        if is_ended:
            raise FormatError(where, "goes on behind its end")
        if index is None:
            if line.get("format") != INDEX_FORMAT:
                raise FormatError(where, f"format {line.get('format')!a:.20}, not {INDEX_FORMAT}")
            index = Index(line)
        elif "path" in line:
            index.entries.append(_entry(line, where))
        elif "piece" in line:
            index.pieces.append(_piece(line, where))
        elif line.get("end") is True:
            is_ended = True
            if line.get("digest") != digest.hexdigest():
                raise FormatError(where, "its digest does not match")
            index.archive_bytes = _number(line, "archive_bytes", where)
            index.tar_bytes = _number(line, "tar_bytes", where)
            index.raw_bytes = _number(line, "raw_bytes", where)
            if _number(line, "entries", where) != len(index.entries):
                raise FormatError(where, "entries are missing")
        digest.update(raw)
    if index is None or not is_ended:
        raise FormatError(where, "has no end")
    _check(index, where)
    return index


def _lines(packed: bytes, where: str) -> Iterator[bytes]:
    left = INDEX_BYTES_MAX
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            while raw := file.readline(LINE_BYTES_MAX + 1):
                left -= len(raw)
                if len(raw) > LINE_BYTES_MAX or left < 0:
                    raise FormatError(where, "is longer than an index may be")
                yield raw
    except (OSError, EOFError, zlib.error) as exc:
        raise FormatError(where, f"is no gzip file, or damaged: {exc}") from exc


def _number(line: dict[str, Any], name: str, where: str, least: int = 0) -> int:
    value = line.get(name)
    if type(value) is not int or not least <= value < 1 << 63:
        raise FormatError(where, f"{name} is {value!a:.40}")
    return value


def _text(line: dict[str, Any], name: str, where: str) -> bytes:
    value = line.get(name, "")
    try:
        if isinstance(value, str):
            return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        pass
    raise FormatError(where, f"{name} is {value!a:.40}")


def _entry(line: dict[str, Any], where: str) -> Entry:
    kind = line.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise FormatError(where, f"an entry of type {kind!a:.20}")
    return Entry(
        path=_text(line, "path", where),
        type=kind,
        mode=_number(line, "mode", where),
        uid=_number(line, "uid", where),
        gid=_number(line, "gid", where),
        mtime_ns=_number(line, "mtime_ns", where, least=-(1 << 63)),
        at=_number(line, "at", where),
        length=_number(line, "bytes", where),
        size=_number(line, "size", where) if kind == "file" else 0,
        target=_text(line, "target", where),
    )


def _piece(line: dict[str, Any], where: str) -> Piece:
    digest = line.get("xxh3")
    if not isinstance(digest, str):
        raise FormatError(where, "a piece without a digest")
    raw_at, raw_bytes, at, length = (
        _number(line, name, where) for name in ("piece", "raw_bytes", "at", "bytes")
    )
    return Piece(raw_at, raw_bytes, at, length, digest)


def _check(index: Index, where: str) -> None:
    raw_at = at = 0
    for piece in index.pieces:
        if (piece.raw_at, piece.at) != (raw_at, at):
            raise FormatError(where, "its pieces do not join")
        raw_at, at = raw_at + piece.raw_bytes, at + piece.length
    if (raw_at, at) != (index.tar_bytes, index.archive_bytes):
        raise FormatError(where, "its pieces are not all of the archive")
    tar_at = 0
    for entry in index.entries:
        if entry.at != tar_at or entry.at + entry.length > index.tar_bytes:
            raise FormatError(where, f"{entry.path!r} does not stand where the tar is")
        tar_at += entry.length


# --- the archive ---------------------------------------------------------------------------

ReadAt = Callable[[int, int], bytes]
"""Bytes of the archive: offset, length. Raises StoreError, OSError."""


class BackupReader:
    """One backup: its index, and reads of its archive."""

    def __init__(self, name: str, index: Index, read_at: ReadAt) -> None:
        self.name = name
        self.index = index
        self._read_at = read_at
        self._starts = [piece.raw_at for piece in index.pieces]

    def raw(self, ranges: Iterable[Range], pool: Executor | None = None) -> Iterator[bytes]:
        """The tar's bytes of these ranges, one after the other. Raises FormatError, StoreError."""
        jobs = [job for wanted in _joined(ranges) for job in self._jobs(wanted)]
        read = self._read_pieces
        for parts in map(read, jobs) if pool is None else windowed(pool, read, jobs, GETS_AHEAD):
            yield from parts

    def _jobs(self, wanted: Range) -> Iterator[tuple[list[Piece], Range]]:
        """Pieces that one GET brings, for each GET."""
        start, length = wanted
        group: list[Piece] = []
        at = max(0, bisect.bisect_right(self._starts, start) - 1)
        for piece in self.index.pieces[at:]:
            if piece.raw_at >= start + length:
                break
            if group and piece.at + piece.length - group[0].at > FETCH_BYTES_MAX:
                yield group, wanted
                group = []
            group.append(piece)
        if group:
            yield group, wanted

    def _read_pieces(self, job: tuple[list[Piece], Range]) -> list[bytes]:
        pieces, (start, length) = job
        packed = read_twice(lambda: self._fetch(pieces))
        found = []
        for piece, data in zip(pieces, packed, strict=True):
            raw = self._unpack(piece, data)
            first = max(0, start - piece.raw_at)
            found.append(raw[first : max(first, start + length - piece.raw_at)])
        return found

    def _fetch(self, pieces: list[Piece]) -> list[bytes]:
        first = pieces[0].at
        data = memoryview(self._read_at(first, pieces[-1].at + pieces[-1].length - first))
        found = []
        for piece in pieces:
            part = bytes(data[piece.at - first : piece.at - first + piece.length])
            if xxhash.xxh3_128_hexdigest(part) != piece.digest:
                where = backups.archive_key(self.name)
                raise FormatError(where, f"its bytes at {piece.at} are damaged")
            found.append(part)
        return found

    def _unpack(self, piece: Piece, data: bytes) -> bytes:
        where = backups.archive_key(self.name)
        try:
            unpacking = zlib.decompressobj(GZIP_BITS)
            raw = unpacking.decompress(data, piece.raw_bytes + 1)
        except zlib.error as exc:
            raise FormatError(where, f"the piece at {piece.at} is damaged: {exc}") from exc
        if len(raw) != piece.raw_bytes:
            raise FormatError(where, f"the piece at {piece.at} is not as long as it should be")
        return raw


def _joined(ranges: Iterable[Range]) -> list[Range]:
    found: list[Range] = []
    for at, length in ranges:
        if found and sum(found[-1]) == at:
            found[-1] = (found[-1][0], found[-1][1] + length)
        elif length:
            found.append((at, length))
    return found


# --- where backups are ---------------------------------------------------------------------


def list_backups(store: ScopedStore, pool: Executor | None = None) -> list[Backup]:
    """The workspace's backups, the newest first, with what their indexes' metadata says."""
    listed = store.list(backups.COMPRESSED_PREFIX)
    found = backups.gather((item.key, item.size_bytes, {}) for item in listed)[
        : backups.BACKUPS_MAX
    ]
    indexed = [backup for backup in found if backup.index_bytes is not None]

    def look(backup: Backup) -> dict[str, str]:
        try:
            return dict(store.head(backups.index_key(backup.name)).metadata)
        except NotFoundError:
            return {}

    answers = map(look, indexed) if pool is None else windowed(pool, look, indexed)
    for backup, said in zip(indexed, answers, strict=True):
        backup.said = said
    return found


def open_backup(store: ScopedStore, name: str) -> BackupReader:
    """A backup of the bucket. Raises UserError when it is not there, FormatError, StoreError."""
    key = backups.index_key(name)
    try:
        index = read_twice(lambda: parse_index(store.get(key).data, key))
    except NotFoundError:
        raise UserError(
            f"The backup {name} has no index: it was not finished, or was removed meanwhile.",
            remedy="`s3ws backups` lists those that are whole.",
            exit_code=ExitCode.DAMAGED,
        ) from None
    archive = backups.archive_key(name)

    def read_at(offset: int, length: int) -> bytes:
        return store.get(archive, offset, length).data

    return BackupReader(name, index, read_at)


def open_local(path: Path) -> BackupReader:
    """A backup that stands in a directory, its index beside it. Raises UserError, FormatError."""
    beside = path.with_name(path.name.removesuffix(backups.ARCHIVE_SUFFIX) + backups.INDEX_SUFFIX)
    try:
        index = parse_index(beside.read_bytes(), str(beside))
        path.stat()
    except OSError as exc:
        raise UserError(
            f"The backup {str(path)!a} can't be read: {exc.strerror}.",
            remedy=f"Its index must stand beside it, as {beside.name!a}.",
            exit_code=ExitCode.BAD_SETTINGS,
        ) from exc

    def read_at(offset: int, length: int) -> bytes:
        with path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    return BackupReader(path.name.removesuffix(backups.ARCHIVE_SUFFIX), index, read_at)
