"""Spool files: objects on their way to or from the bucket, below the cache's spool directory.

Invariants
1. Files are 0600, made new (never over an existing one), and belong to one flush or one restore.
2. A journal object's header is written last: a spool file cut off by a crash never decodes.
3. Nothing in the spool is needed after a crash: `clean` may remove it all at any start.

Called by worker-side modules (write, read), and by replica (reads records of sealed segments).
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import xxhash

from s3ws_fs.core import journal
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.journal import HEADER_BYTES, TRAILER_BYTES, Frame, Header

HASH_PIECE_BYTES: Final = 4 << 20


def create(path: Path) -> BinaryIO:
    """Make a new private file. Raises FileExistsError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return os.fdopen(fd, "w+b", buffering=1 << 20)


def clean(directory: Path, keep: str = "") -> None:
    """Remove spool files, save those whose name starts with `keep` (when given)."""
    for path in directory.iterdir():
        if path.is_file() and not (keep and path.name.startswith(keep)):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def file_hash(file: BinaryIO, length: int, offset: int = 0) -> bytes:
    """The xxh3-128 of a range of an open file."""
    state = xxhash.xxh3_128()
    while length:
        piece = os.pread(file.fileno(), min(HASH_PIECE_BYTES, length), offset)
        if not piece:
            raise FormatError("spool file", "shorter than it should be")
        state.update(piece)
        offset += len(piece)
        length -= len(piece)
    return state.digest()


class ObjectWriter:
    """Writes one journal object into a new spool file: data first, then frames, then `finish`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = create(path)
        self.file.write(bytes(HEADER_BYTES))
        self.data_bytes = 0
        self.records_bytes = 0
        self.puts = 0
        self.tombs = 0
        self._records = xxhash.xxh3_128()

    def add_data(self, data: bytes) -> int:
        """Append an extent's bytes; returns their offset in the object."""
        assert not self.records_bytes, "data comes before records"
        offset = HEADER_BYTES + self.data_bytes
        self.file.write(data)
        self.data_bytes += len(data)
        return offset

    def add_puts(self, table: int, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Append records."""
        for count, frame in journal.encode_puts(table, items):
            self.puts += count
            self._add(frame)

    def add_tombs(self, table: int, gone: Iterable[bytes]) -> None:
        """Append tombstones."""
        for count, frame in journal.encode_tombs(table, gone):
            self.tombs += count
            self._add(frame)

    def _add(self, frame: bytes) -> None:
        self.file.write(frame)
        self._records.update(frame)
        self.records_bytes += len(frame)

    @property
    def records_hash(self) -> str:
        """Digest (hex) of the records so far."""
        return self._records.hexdigest()

    def finish(self, header: Header) -> str:
        """Write header and trailer; returns the header's hash. The file stays open for reading."""
        raw = journal.encode_header(header)
        assert header.total_bytes == HEADER_BYTES + self.data_bytes + self.records_bytes + 16
        self.file.flush()
        os.pwrite(self.file.fileno(), raw, 0)
        body_bytes = header.total_bytes - TRAILER_BYTES
        os.pwrite(self.file.fileno(), file_hash(self.file, body_bytes), body_bytes)
        return journal.header_hash(raw)


@dataclass(frozen=True, slots=True)
class RecordsFile:
    """A verified header and where its records block stands in a spool file.

    A sealed segment's own spool file holds all of it; a restored one only header and records.
    """

    path: Path
    where: str
    header: Header
    header_hash: str
    records_offset: int

    def frames(self) -> Iterator[Frame]:
        """The records, a frame at a time; the file is mapped, not read into memory."""
        if not self.header.records_bytes:
            return
        with (
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            end = self.records_offset + self.header.records_bytes
            at = self.records_offset
            while at < end:
                head = bytes(view[at : at + journal.FRAME_HEAD_BYTES])
                size = journal.FRAME_HEAD_BYTES + journal.frame_bytes(head, self.where)
                yield journal.decode_frame(bytes(view[at : at + size]), self.where)
                at += size


def open_records(path: Path, where: str, *, whole: bool) -> RecordsFile:
    """Open a spool file for its records: `whole` object or header and records only.

    Raises FormatError (also when the file is gone).
    """
    try:
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
    except FileNotFoundError as exc:
        raise FormatError(where, "its spool file is gone") from exc
    header = journal.decode_header(raw, where)
    offset = header.records_offset if whole else HEADER_BYTES
    return RecordsFile(path, where, header, journal.header_hash(raw), offset)
