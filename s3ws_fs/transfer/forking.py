"""A fork: a new workspace that begins with the state of another one at some point.

Every object that the point's records name is copied inside the store as a blob of the new workspace
(offsets stay: places count from an object's start), then segment 1 holds all records, and
workspace.json, put last, makes it a workspace. No byte of a file passes through this host.

    lease.json, fork.json → blobs → segment 1 → workspace.json → fork.json removed, lease released

Invariants
1. Until workspace.json stands, fork.json does, and nobody takes what is there for a workspace
   (journaling.require_nothing_half). Everything is done under the lease of the new conversation.
2. A second try removes what the first left, and nothing else: only where there is fork.json and no
   workspace.json, and nothing but what a fork puts. Anything else there is somebody's: refused.
3. Nothing is read outside the source's prefix, nothing written outside the target's; the source is
   opened read-only.
4. What is copied was measured before: an object that is missing, or shorter than the places in it,
   is an error before anything is put. Its bytes are verified when they are read, as everywhere.

Called by the cli.
"""

from __future__ import annotations

import contextlib
import secrets
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from s3ws_fs.cache.tableset import TableSet
from s3ws_fs.core import failpoints, keys, layout
from s3ws_fs.core.bounds import LEASE_S_MIN
from s3ws_fs.core.errors import (
    ConflictError,
    ExitCode,
    FormatError,
    NotFoundError,
    StoreError,
    TransientError,
    UserError,
)
from s3ws_fs.core.forks import Mark, Origin, decode_mark
from s3ws_fs.core.ids import RandBits, new_id
from s3ws_fs.core.journal import HOST_CHARS_MAX, KIND_SEGMENT, Header
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import CHUNK_RECORD_BYTES, decode_head
from s3ws_fs.core.types import BLOB_BIT
from s3ws_fs.store.body import FileSlice
from s3ws_fs.store.scoped import PROBE_PREFIX, ScopedStore
from s3ws_fs.transfer import journaling
from s3ws_fs.transfer.gate import Gate, GatedStore
from s3ws_fs.transfer.leasing import Claim
from s3ws_fs.transfer.spool import ObjectWriter
from s3ws_fs.transfer.windowed import windowed
from s3ws_fs.transfer.wire import FencedError

FORK_LEASE_S: Final = 15.0
"""A fork that was killed keeps its target for so long."""
LEFT_OBJECTS_MAX: Final = 1_000_000
"""More than this below a target's prefix is no unfinished fork."""

_PLACE: Final = struct.Struct(">QQI")
_SEGMENT: Final = layout.seg_key(1)
_OURS: Final = (layout.LEASE_KEY, layout.FORK_KEY, _SEGMENT)

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Who:
    """Who makes the fork, for the lease and the segment's header."""

    host: str
    pid: int
    now_ns: int
    lease_s: float = FORK_LEASE_S


@dataclass(frozen=True, slots=True)
class Forked:
    """What was made."""

    workspace: str
    origin: Origin
    objects: int
    copied_bytes: int
    inodes: int
    used_bytes: int


# --- what there is to copy


@dataclass(frozen=True, slots=True)
class Plan:
    """Object ids of the source with their sizes, and the id of each copy."""

    sizes: dict[int, int]
    copies: dict[int, int]

    @property
    def total_bytes(self) -> int:
        """Bytes that the store copies."""
        return sum(self.sizes.values())


def plan(source: ScopedStore, tables: TableSet, randbits: RandBits) -> Plan:
    """What the records name (invariant 4). Raises StoreError, FormatError."""
    ends: dict[int, int] = {}
    for raw in tables.chunks.values():
        if len(raw) != CHUNK_RECORD_BYTES:
            raise FormatError("chunk record", f"{len(raw)} bytes instead of {CHUNK_RECORD_BYTES}")
        number, offset, length = _PLACE.unpack_from(raw)
        ends[number] = max(ends.get(number, 0), offset + length)
    sizes: dict[int, int] = {}
    for prefix in (layout.SEG_PREFIX, layout.BLOB_PREFIX):
        for number, size_bytes, _ in journaling.numbers(source, prefix):
            if number in ends:
                sizes[number] = size_bytes
    for number, end in ends.items():
        if sizes.get(number, 0) < end:
            why = f"has {sizes[number]} bytes, {end} are named" if number in sizes else "is missing"
            raise FormatError(layout.object_key(number), why)
    copies = {number: BLOB_BIT | randbits(63) for number in sorted(sizes)}
    return Plan(sizes, copies)


def _placed(tables: TableSet, made: Plan) -> Iterator[tuple[bytes, bytes]]:
    """The chunk records of the new workspace, by key."""
    names = {keys.pack_u64(old): keys.pack_u64(new) for old, new in made.copies.items()}
    for key in sorted(tables.chunks):
        raw = tables.chunks[key]
        yield key, names[raw[:8]] + raw[8:]


# --- what stands at the target


@dataclass(frozen=True, slots=True)
class _Left:
    """What an earlier try left: nothing, a half-made fork, or a whole one with its mark."""

    mark: Mark | None = None
    etag: str | None = None
    keys: tuple[str, ...] = ()
    is_whole: bool = False


def _exists(target: ScopedStore, what: str) -> UserError:
    return UserError(
        f"{target.prefix} is not free: {what}",
        remedy="A fork makes a new workspace. Choose a conversation that has none.",
        exit_code=ExitCode.EXISTS,
    )


def _look(target: ScopedStore) -> _Left:
    """What stands there. Raises UserError (exit 18) unless it is free or left by a fork."""
    mark, etag = _read_mark(target)
    workspace = journaling.read_workspace(target)
    if workspace is not None and (mark is None or mark.workspace != workspace):
        raise _exists(target, "it has a workspace")
    found: list[str] = []
    for entry in target.list():
        key = entry.key
        is_blob = layout.key_number(key, layout.BLOB_PREFIX) is not None
        is_known = key in _OURS or is_blob or key.startswith(PROBE_PREFIX)
        is_its = key == layout.WORKSPACE_KEY and workspace is not None
        if not (is_known or is_its) or len(found) == LEFT_OBJECTS_MAX:
            raise _exists(target, f"{key!a} stands there")
        if is_blob or key == _SEGMENT:
            found.append(key)
    if mark is None and found:
        raise _exists(target, f"{found[0]!a} stands there")
    return _Left(mark, etag, tuple(found), workspace is not None)


def _read_mark(target: ScopedStore) -> tuple[Mark | None, str | None]:
    try:
        raw = target.get(layout.FORK_KEY, 0, journaling.JSON_BYTES_MAX)
    except NotFoundError:
        return None, None
    try:
        return decode_mark(raw.data), raw.etag
    except FormatError as exc:
        raise _exists(target, f"{layout.FORK_KEY} is damaged ({exc.why})") from exc


# --- making it


class Forker:
    """Makes one fork. `target` is the bare store of the new prefix."""

    def __init__(
        self,
        source: ScopedStore,
        target: ScopedStore,
        who: Who,
        *,
        gate: Gate | None = None,
        randbits: RandBits = secrets.randbits,
        pool: Callable[[], AbstractContextManager[Executor]] = lambda: ThreadPoolExecutor(10),
    ) -> None:
        self._source = source
        self._bare = target
        self._gate = Gate(target, randbits=randbits) if gate is None else gate
        self._target = GatedStore(target, self._gate)
        self._who = who
        self._randbits = randbits
        self._pool = pool

    def require_free(self) -> None:
        """Raise UserError (exit 18) where a fork could not be made."""
        _look(self._bare)

    def run(self, origin: Origin, tables: TableSet, directory: Path, progress: Progress) -> Forked:
        """Make it. `directory` is for the segment's file.

        Raises UserError (exit 16, 18), StoreError, FormatError, FencedError.
        """
        made = plan(self._source, tables, self._randbits)
        self.require_free()
        writer = new_id(self._randbits)
        self._gate.take(self._claim(writer))
        try:
            # Again: from now on nobody else changes it.
            left = _look(self._bare)
            if left.is_whole and left.mark is not None and left.mark.origin != origin:
                raise _exists(self._bare, "it has a workspace")
            if left.is_whole and left.mark is not None:
                mark = left.mark
            else:
                mark = self._begin(origin, left)
                self._copy(made, progress)
                self._seal(mark, writer, tables, made, directory)
                self._commit(mark)
            self._target.delete(layout.FORK_KEY)
        except BaseException:
            # So that it can be tried again at once; what stands there is no workspace.
            with contextlib.suppress(StoreError, FencedError):
                self._gate.release()
            raise
        self._gate.release()
        head = decode_head(tables.head or b"")
        return Forked(
            mark.workspace,
            origin,
            len(made.copies),
            made.total_bytes,
            head.inodes,
            head.used_bytes,
        )

    def _claim(self, writer: str) -> Claim:
        who = self._who
        lease_s = max(LEASE_S_MIN, min(who.lease_s, FORK_LEASE_S))
        return Claim(writer, who.host, who.pid, who.now_ns, lease_s, 0)

    def _begin(self, origin: Origin, left: _Left) -> Mark:
        if left.keys:
            failed = self._target.delete_many(left.keys)
            if failed:
                raise failed[0].error
        mark = Mark(origin, new_id(self._randbits), self._who.now_ns)
        self._target.put(
            layout.FORK_KEY,
            mark.encode(),
            content_type="application/json",
            if_none_match=left.etag is None,
            if_match=left.etag,
        )
        failpoints.hit(failpoints.FORK_BEGUN)
        return mark

    def _copy(self, made: Plan, progress: Progress) -> None:
        def copy(item: tuple[int, int]) -> int:
            old, new = item
            self._target.copy_from(self._source, layout.object_key(old), layout.blob_key(new))
            failpoints.hit(failpoints.FORK_COPIED)
            return made.sizes[old]

        total, done = len(made.copies), 0
        with self._pool() as pool:
            try:
                for _ in windowed(pool, copy, made.copies.items()):
                    done += 1
                    progress({"phase": "copying", "done": done, "total": total})
            except NotFoundError as exc:
                raise FormatError(exc.key, "went while it was copied: that point is gone") from exc

    def _seal(self, mark: Mark, writer: str, tables: TableSet, made: Plan, directory: Path) -> None:
        segment = ObjectWriter(directory / f"{mark.workspace}.seg")
        with contextlib.closing(segment.file):
            segment.path.unlink()
            for table in keys.JOURNAL_TABLES:
                rows = tables.journal_table(table)
                is_chunks = table == keys.T_CHUNKS
                segment.add_puts(
                    table, _placed(tables, made) if is_chunks else sorted(rows.items())
                )
            header = self._header(mark, writer, tables, segment)
            segment.finish(header)
            body = FileSlice(segment.file.fileno(), 0, header.total_bytes)
            self._target.put(
                _SEGMENT, body, content_type=journaling.JOURNAL_TYPE, if_none_match=True
            )
        failpoints.hit(failpoints.FORK_SEALED)

    def _header(self, mark: Mark, writer: str, tables: TableSet, segment: ObjectWriter) -> Header:
        head = decode_head(tables.head or b"")
        grant = self._gate.grant
        return Header(
            kind=KIND_SEGMENT,
            workspace=mark.workspace,
            writer=writer,
            host=self._who.host[:HOST_CHARS_MAX],
            flush_id=new_id(self._randbits),
            number=1,
            prev_number=0,
            prev_hash="",
            # Not from 1: the records' data generations are the source's.
            generation=head.generation,
            next_ino=head.next_ino,
            used_bytes=head.used_bytes,
            inodes=head.inodes,
            mirrored=0,
            created_ns=self._who.now_ns,
            extent_bytes=EXTENT_BYTES,
            data_bytes=0,
            records_bytes=segment.records_bytes,
            records_hash=segment.records_hash,
            puts=segment.puts,
            tombs=0,
            epoch=0 if grant is None else grant.lease.epoch,
        )

    def _commit(self, mark: Mark) -> None:
        """workspace.json: from here on it is a workspace."""
        body = journaling.workspace_body(
            mark.workspace, mark.created_ns, forked_from=asdict(mark.origin)
        )
        try:
            self._target.put(
                layout.WORKSPACE_KEY, body, content_type="application/json", if_none_match=True
            )
        except (ConflictError, TransientError):
            # Was it put, and the answer lost?
            if journaling.read_workspace(self._bare) != mark.workspace:
                raise
        failpoints.hit(failpoints.FORK_MADE)
