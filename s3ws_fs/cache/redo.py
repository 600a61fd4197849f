"""The redo log: what was changed since the newest sync point, record by record.

Two uses. An operation is *acknowledged* when its frame is in the log (in the kernel's page cache:
safe from a killed process), so that the database may be committed for many operations at once. And
it is *durable* when the log was flushed to the disk: one sequential write, where a sync point is
two flushes and dozens of scattered pages.

    redo-0, redo-1   header, then frames; one is written, in turn with the sync points
    header           magic 8 bytes, sequence u64 (of the sync point it follows), epoch u64 (random),
                     linked u8, xxh3-64 of all before
    frame            body bytes u32, generation u64, xxh3-64 (seed: the epoch) of both and the body;
                     the body: records
    record           table u8, key bytes u16, value bytes u32 (all ones: deleted), start i32, key,
                     value. start -1: the value; else it is laid over the one before, from there on

Invariants (all numbers big endian)
1. Frames of one generation each, in order. A frame without a body is a *break*: something was
   committed past the log, a piece of bookkeeping or a change in bulk.
2. After a killed process the database has all that was committed past the log, and every frame
   beyond its head follows from it: breaks don't count. After a power cut the base is a sync point,
   and what comes after the first break, gap or torn frame does not count; `is_intact` says whether
   there is one since, and then an fsync has to make a sync point.
3. A file is begun anew only when a finished sync point covers all that is in it: frames of before
   don't have its epoch. Should a sync point fail, both are needed, and the newer one goes on.
4. Bounded by LOG_BYTES_MAX each. Full, it takes no more: operations are committed one by one, and
   the next sync point frees the other.
5. What is in the database already needs no frame until somebody waits for it to be durable: it is
   kept in memory (`note`), PENDING_BYTES_MAX of it, and is in the log before what comes after it.
6. `flush` touches no more than descriptors: it may run beside all else, in another thread.

Called by cache.cache, cache.durability and cache.recovery.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lmdb
import xxhash

from s3ws_fs.cache.syncpoint import sync_directory
from s3ws_fs.cache.tables import TABLES, Tables
from s3ws_fs.core import failpoints
from s3ws_fs.core.extents import overlay

LOG_FILES: Final = ("redo-0", "redo-1")
LOG_BYTES_MAX: Final = 8 << 20
GROWTH_BYTES: Final = 256 << 10
"""A file grows by this, filled with zeros: what then comes over them changes no metadata of the
filesystem below, and its flush is the quicker."""
FRAME_BYTES_MAX: Final = 96 << 10
"""What is larger goes to the database at once: it would be written twice for nothing."""
PENDING_BYTES_MAX: Final = 1 << 20
RECORD_BYTES: Final = 64
"""What a record is taken to need beside its value."""
SYNC_SHARE: Final = 2
"""After this share of a file a sync point is due, which frees the other one."""

_MAGIC: Final = b"S3WSRED1"
_HEADER: Final = struct.Struct(">8sQQB")
_HEADER_BYTES: Final = _HEADER.size + 8
_FRAME: Final = struct.Struct(">IQ")
_SUM: Final = struct.Struct(">Q")
_FRAME_BYTES: Final = _FRAME.size + _SUM.size
_RECORD: Final = struct.Struct(">BHIi")
_DELETED: Final = 0xFFFFFFFF
_WHOLE: Final = -1

Record = tuple[int, bytes, bytes | None, int]
"""Number of the table, key, value (None: deleted), start (-1: the value is whole)."""

TABLE_NUMBERS: Final = {name: number for number, name in enumerate(TABLES)}
_LARGE: Final = frozenset(TABLE_NUMBERS[name] for name in ("extents", "xattrs", "meta"))
"""Tables whose values may have pages of their own."""


class LoggedTxn:
    """A write transaction that notes what is put and deleted; a cursor's deletions have to be noted
    by who does them (`Tx.log`).
    """

    __slots__ = ("_numbers", "cursor", "get", "records", "stat", "txn")

    def __init__(self, txn: lmdb.Transaction[bytes], numbers: dict[Any, int]) -> None:
        """`numbers`: see `numbered`."""
        self.txn = txn
        self._numbers = numbers
        self.records: list[Record] = []
        self.get = txn.get
        self.cursor = txn.cursor
        self.stat = txn.stat

    def put(self, key: bytes, value: bytes, *, db: Any) -> bool:
        """See lmdb.Transaction.put."""
        self.records.append((self._numbers[db], key, value, _WHOLE))
        return self.txn.put(key, value, db=db)

    def delete(self, key: bytes, *, db: Any) -> bool:
        """See lmdb.Transaction.delete."""
        self.records.append((self._numbers[db], key, None, _WHOLE))
        return self.txn.delete(key, db=db)


def numbered(tables: Tables) -> dict[Any, int]:
    """The numbers of the tables by their handles."""
    return {getattr(tables, name): number for name, number in TABLE_NUMBERS.items()}


def encode_records(records: Iterable[Record]) -> bytes:
    """The body of a frame."""
    parts: list[bytes] = []
    for number, key, value, start in records:
        if value is None:
            parts += (_RECORD.pack(number, len(key), _DELETED, _WHOLE), key)
        else:
            parts += (_RECORD.pack(number, len(key), len(value), start), key, value)
    return b"".join(parts)


def decode_records(body: bytes) -> Iterator[Record]:
    """The records of a frame whose checksum was right."""
    at = 0
    while at < len(body):
        number, key_bytes, value_bytes, start = _RECORD.unpack_from(body, at)
        at += _RECORD.size
        key = body[at : at + key_bytes]
        at += key_bytes
        if value_bytes == _DELETED:
            yield number, key, None, _WHOLE
            continue
        yield number, key, body[at : at + value_bytes], start
        at += value_bytes


def apply(txn: lmdb.Transaction[bytes], tables: Tables, records: Iterable[Record]) -> None:
    """Put and delete it (again). Raises lmdb.Error."""
    handles = [getattr(tables, name) for name in TABLES]
    for number, key, value, start in records:
        db = handles[number]
        if value is not None and start != _WHOLE:
            value = overlay(txn.get(key, db=db) or b"", start, value)
        if value is None or number in _LARGE:
            # As Tx does (its invariant 5).
            txn.delete(key, db=db)
        if value is not None:
            txn.put(key, value, db=db)


def _sum(epoch: int, head: bytes, body: bytes) -> bytes:
    return _SUM.pack(xxhash.xxh3_64_intdigest(head + body, epoch))


def _encode_header(sequence: int, epoch: int, *, linked: bool) -> bytes:
    raw = _HEADER.pack(_MAGIC, sequence, epoch, linked)
    return raw + _SUM.pack(xxhash.xxh3_64_intdigest(raw))


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogFile:
    """What one file holds, as far as it is whole. A frame: generation, body (empty: a break)."""

    sequence: int
    linked: bool
    frames: list[tuple[int, bytes]]


def decode_log(raw: bytes) -> LogFile | None:
    """Decode a file; None when it has no valid header. Ends before the first frame that is torn."""
    if len(raw) < _HEADER_BYTES:
        return None
    magic, sequence, epoch, linked = _HEADER.unpack_from(raw)
    if magic != _MAGIC or raw[:_HEADER_BYTES] != _encode_header(sequence, epoch, linked=linked):
        return None
    frames = []
    at = _HEADER_BYTES
    while at + _FRAME_BYTES <= len(raw):
        body_bytes, generation = _FRAME.unpack_from(raw, at)
        begin = at + _FRAME_BYTES
        body = raw[begin : begin + body_bytes]
        head = raw[at : at + _FRAME.size]
        if raw[at + _FRAME.size : begin] != _sum(epoch, head, body) or len(body) != body_bytes:
            break
        frames.append((generation, body))
        at = begin + body_bytes
    return LogFile(sequence, bool(linked), frames)


def read_log(directory: Path) -> list[LogFile]:
    """The valid log files of a cache, older first."""
    found = []
    for name in LOG_FILES:
        with contextlib.suppress(FileNotFoundError):
            found.append(decode_log((directory / name).read_bytes()))
    return sorted((log for log in found if log is not None), key=lambda log: log.sequence)


def has_frames(directory: Path) -> bool:
    """Whether a log was begun, and not removed by a clean end."""
    for name in LOG_FILES:
        with contextlib.suppress(OSError), (directory / name).open("rb") as file:
            # The first frame is enough: who looks into a living cache comes here each time.
            log = decode_log(file.read(_HEADER_BYTES + FRAME_BYTES_MAX))
            if log is not None and log.frames:
                return True
    return False


def beyond(logs: Iterable[LogFile], head: int, base: int | None) -> list[bytes]:
    """The bodies of the frames that follow generation `head`, to be applied in this order.

    `base`: after a power cut, the sequence of the sync point that was put back (invariant 2).
    """
    bodies: list[bytes] = []
    at = head
    for log in logs:
        if base is not None and log.sequence != base:
            if log.sequence < base:
                continue
            if not log.linked or log.sequence > base + 1:
                return bodies
        for generation, body in log.frames:
            if not body:
                if base is not None:
                    return bodies
            elif generation == at + 1:
                bodies.append(body)
                at = generation
            elif generation > at:
                return bodies
    return bodies


def remove_log(directory: Path) -> None:
    """Remove the log of a cache. Raises OSError."""
    for name in LOG_FILES:
        (directory / name).unlink(missing_ok=True)


# --- writing --------------------------------------------------------------------------------------


class _Half:
    """One of the two files, as it is written."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size_bytes = os.fstat(self.fd).st_size
        # Whatever stands there is of before: it must not come back, nor after a power cut.
        _pwrite(self.fd, bytes(_HEADER_BYTES), 0)
        self.size_bytes = max(self.size_bytes, _HEADER_BYTES)
        os.fsync(self.fd)
        self.at = 0
        self.flushed_at = 0
        self.epoch = 0
        self.is_intact = True
        self.is_needed = False
        """Whether no finished sync point covers all of it."""

    def begin(self, sequence: int, *, linked: bool) -> None:
        """Start anew. Raises OSError."""
        self.epoch = int.from_bytes(os.urandom(8))
        self.at = 0
        self.put(_encode_header(sequence, self.epoch, linked=linked))
        self.flushed_at = 0
        self.is_intact = self.is_needed = True

    def put(self, raw: bytes) -> None:
        """Append. Raises OSError; then what was before stands."""
        end = self.at + len(raw)
        if end > self.size_bytes:
            grown = -(-end // GROWTH_BYTES) * GROWTH_BYTES
            _pwrite(self.fd, bytes(grown - self.size_bytes), self.size_bytes)
            self.size_bytes = grown
        _pwrite(self.fd, raw, self.at)
        self.at = end


def _pwrite(fd: int, raw: bytes, at: int) -> None:
    if os.pwrite(fd, raw, at) != len(raw):
        raise OSError(f"a short write at {at} of the log")


class Redo:
    """The log of an open cache. All but `flush` on the loop's thread."""

    def __init__(self, directory: Path) -> None:
        """When a sync point covers all that is in the cache. Raises OSError."""
        first = _Half(directory / LOG_FILES[0])
        try:
            self._halves = (first, _Half(directory / LOG_FILES[1]))
            sync_directory(directory)
        except BaseException:
            os.close(first.fd)
            raise
        self._current = 0
        self.durable_generation = -1
        self._newest = -1
        self._point_generation = -1
        self._pending: list[tuple[int, list[Record], int]] = []
        """Generation, records, about how many bytes."""
        self._pending_bytes = 0

    def begin_point(self, sequence: int, generation: int) -> None:
        """A sync point, which will be number `sequence`, begins at this generation: what comes now
        goes to the other file, if that is free (invariant 3). Raises OSError.
        """
        other = self._halves[1 - self._current]
        self._newest = self._point_generation = generation
        if not other.is_needed:
            other.begin(sequence, linked=self._halves[self._current].is_intact)
            self._current = 1 - self._current

    def finish_point(self) -> None:
        """It is finished: the other file is free."""
        self._halves[1 - self._current].is_needed = False
        self._pending = [each for each in self._pending if each[0] > self._point_generation]
        self._pending_bytes = sum(each[2] for each in self._pending)

    @property
    def is_intact(self) -> bool:
        """Whether every change since the newest finished sync point is in the log (invariant 2)."""
        first, second = self._halves
        return (first.is_intact or not first.is_needed) and (
            second.is_intact or not second.is_needed
        )

    @property
    def is_due(self) -> bool:
        """Whether a sync point should free the other file."""
        return self._halves[self._current].at > LOG_BYTES_MAX // SYNC_SHARE

    def note(self, generation: int, records: list[Record], put_bytes: int) -> None:
        """This is in the database already (invariant 5)."""
        if not self._halves[self._current].is_intact:
            return
        put_bytes += RECORD_BYTES * len(records)
        self._pending_bytes += put_bytes
        if put_bytes > FRAME_BYTES_MAX or self._pending_bytes > PENDING_BYTES_MAX:
            self.break_off(generation)
            return
        self._pending.append((generation, records, put_bytes))
        self._newest = generation

    def write_pending(self) -> None:
        """Have in the log what was only noted; without room for it, that is a break."""
        pending = self._pending
        self._forget_pending()
        for generation, records, _ in pending:
            if not self._put(generation, records):
                self.break_off(generation)
                return

    def _forget_pending(self) -> None:
        self._pending = []
        self._pending_bytes = 0

    def append(self, generation: int, records: list[Record]) -> bool:
        """Note a change; whether there was room for it. When this returns, a killed process costs
        nothing.
        """
        if self._pending:
            self.write_pending()
        return self._put(generation, records)

    def _put(self, generation: int, records: list[Record]) -> bool:
        body = encode_records(records)
        half = self._halves[self._current]
        total_bytes = len(body) + _FRAME_BYTES
        # A break must always find room.
        if total_bytes > FRAME_BYTES_MAX or half.at + total_bytes > LOG_BYTES_MAX - _FRAME_BYTES:
            return False
        head = _FRAME.pack(len(body), generation)
        try:
            half.put(head + _sum(half.epoch, head, body) + body)
        except OSError:
            # The disk is full, most likely: the database has room of its own kept for that.
            return False
        self._newest = generation
        return True

    def break_off(self, generation: int) -> None:
        """Something is committed past the log: from here on only a sync point helps."""
        half = self._halves[self._current]
        if not half.is_intact:
            return
        self._forget_pending()
        half.is_intact = False
        head = _FRAME.pack(0, generation)
        # Where it can't be noted, nothing that follows is ever vouched for, for `is_intact` is not.
        with contextlib.suppress(OSError):
            half.put(head + _sum(half.epoch, head, b""))

    def begin_flush(self) -> tuple[int, list[int]] | None:
        """What a flush will cover, and the descriptors for it; None when it is of no use."""
        self.write_pending()
        if not self.is_intact:
            return None
        halves = [half for half in self._halves if half.is_needed and half.flushed_at < half.at]
        for half in halves:
            half.flushed_at = half.at
        return self._newest, [half.fd for half in halves]

    def finish_flush(self, generation: int) -> None:
        """It succeeded: `generation` is durable."""
        self.durable_generation = max(self.durable_generation, generation)

    def close(self) -> None:
        """Close the files."""
        for half in self._halves:
            # Whoever still comes must not write into another file that got the number.
            fd, half.fd = half.fd, -1
            os.close(fd)


def flush(fds: list[int]) -> None:
    """Flush the log to the disk. In any thread. Raises OSError."""
    failpoints.hit(failpoints.LOG_FLUSHING)
    for fd in fds:
        os.fdatasync(fd)
    failpoints.hit(failpoints.LOG_FLUSHED)
