"""The freeze: one read transaction of the cache, copied out to the spool at disk speed.

It takes every dirty record with its value at generation G, the data of dirty extents, when asked
the whole metadata (a checkpoint), and what the mirror will need: inodes to look at, their paths,
attributes and the places of their bytes, all as of G.

Where data goes
    small files      into the segment itself, up to SEGMENT_INLINE_BYTES_MAX together
    large dirt       (above BLOB_FILE_BYTES_MIN in one file) into blobs of its own; a file that is
                     new as a whole into one blob, so that its mirror object is a server-side copy
    the rest         small files that no longer fit the segment share blobs of BLOB_BYTES_MAX

Invariants
1. Everything is read in one transaction, closed before this returns; no network in between.
2. The locations in the segment point at itself (SELF_OBJECT), at blobs of this freeze, or at blobs
   that were shipped ahead of it and stand already.
3. A checkpoint's records are the cache's at G with this segment's locations in place: what
   replaying everything up to and with the segment gives.

Called by worker.
"""

from __future__ import annotations

import contextlib
import heapq
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import xxhash

from s3ws_fs.cache.cache import ReadContext
from s3ws_fs.cache.view import View
from s3ws_fs.core import failpoints, journal, keys
from s3ws_fs.core.extents import extent_count
from s3ws_fs.core.ids import RandBits
from s3ws_fs.core.journal import Header
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import InodeRec, decode_location, encode_location
from s3ws_fs.core.types import BLOB_BIT, SELF_OBJECT, Location
from s3ws_fs.transfer.spool import ObjectWriter, create
from s3ws_fs.transfer.todo import MirrorTodo, collect_todo, never

SEGMENT_INLINE_BYTES_MAX: Final = 16 << 20
BLOB_BYTES_MAX: Final = 64 << 20
BLOB_FILE_BYTES_MIN: Final = 1 << 20
"""A file with more dirty bytes than this gets blobs of its own."""
WHOLE_FILE_BLOB_BYTES_MAX: Final = 1 << 30
"""A new file up to this size stands in one blob, so that the mirror can copy it."""
NOTHING_AHEAD: Final[Mapping[bytes, tuple[int, bytes]]] = {}


class Readable(Protocol):
    """What can be read in transactions: a CacheReader (in the worker), or an open Cache."""

    def read(self) -> ReadContext:
        """`with x.read() as view:` one point in time."""


@dataclass(frozen=True, slots=True)
class FreezeRequest:
    """What the daemon knows and the freeze needs. Hashes are hex; see journal.Header."""

    workspace: str
    writer: str
    host: str
    flush_id: str
    number: int
    prev_hash: str
    mirrored: int
    created_ns: int
    checkpoint: bool
    prefix_bytes: int
    epoch: int = 0
    mirror: bool = True
    """Whether a mirror pass follows; without it nothing is planned for one."""
    alone: bool = False
    """Whether it is sealed, for its checkpoint's sake, though nothing is dirty."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FreezeRequest:
        """From a request's JSON."""
        return cls(**value)


@dataclass(slots=True)
class Blob:
    """A blob in the spool. `whole_ino` is set when it holds exactly that file's bytes."""

    object_id: int
    path: Path
    file: BinaryIO
    length: int = 0
    whole_ino: int = 0
    hash: bytes = b""


@dataclass(slots=True)
class Frozen:
    """A freeze: what is to be sealed (when `segment`), and what the mirror has to look at."""

    flush_id: str
    generation: int
    number: int
    todo: MirrorTodo
    segment: Path | None = None
    segment_file: BinaryIO | None = None
    header: Header | None = None
    header_hash: str = ""
    checkpoint: Path | None = None
    blobs: dict[int, Blob] = field(default_factory=dict)

    def close(self) -> None:
        """Close and remove the spool files."""
        files = [blob.file for blob in self.blobs.values()]
        paths = [blob.path for blob in self.blobs.values()]
        if self.segment_file is not None:
            files.append(self.segment_file)
        paths += [path for path in (self.segment, self.checkpoint) if path is not None]
        _remove(files, paths)


def _remove(files: Iterable[BinaryIO], paths: Iterable[Path]) -> None:
    """Remove spool files; on a full disk closing writes the rest of a buffer, and fails."""
    for path in paths:
        path.unlink(missing_ok=True)
    for file in files:
        with contextlib.suppress(OSError):
            file.close()


class _DataPlacer:
    """Decides where each dirty extent's bytes go, and writes them there."""

    def __init__(
        self, directory: Path, flush_id: str, segment: ObjectWriter, randbits: RandBits
    ) -> None:
        self._directory = directory
        self._flush_id = flush_id
        self._segment = segment
        self._randbits = randbits
        self._shared: Blob | None = None
        self.blobs: dict[int, Blob] = {}

    def place(
        self, rec: InodeRec | None, extents: Iterator[tuple[int, bytes]]
    ) -> Iterator[tuple[int, Location]]:
        """Write one file's dirty extents; yields (index, location)."""
        held: list[tuple[int, bytes]] = []
        size = 0
        for index, data in extents:
            held.append((index, data))
            size += len(data)
            if size > BLOB_FILE_BYTES_MIN:
                yield from self._own_blobs(rec, held, extents)
                return
        for index, data in held:
            yield index, self._place_small(data)

    def _place_small(self, data: bytes) -> Location:
        digest = xxhash.xxh3_128_digest(data)
        if self._segment.data_bytes + len(data) <= SEGMENT_INLINE_BYTES_MAX:
            return Location(SELF_OBJECT, self._segment.add_data(data), len(data), digest)
        if self._shared is None or self._shared.length + len(data) > BLOB_BYTES_MAX:
            self._shared = self._new_blob()
        return _append(self._shared, data, digest)

    def _own_blobs(
        self,
        rec: InodeRec | None,
        held: list[tuple[int, bytes]],
        more: Iterator[tuple[int, bytes]],
    ) -> Iterator[tuple[int, Location]]:
        may_be_whole = rec is not None and held[0][0] == 0 and rec.size <= WHOLE_FILE_BLOB_BYTES_MAX
        limit = WHOLE_FILE_BLOB_BYTES_MAX if may_be_whole else BLOB_BYTES_MAX
        blob = self._new_blob()
        state = xxhash.xxh3_128()
        first, expected = blob, 0
        for part in (held, more):
            for index, data in part:
                if blob.length + len(data) > limit:
                    blob = self._new_blob()
                if index == expected and blob.length == index * EXTENT_BYTES:
                    expected += 1
                    state.update(data)
                yield index, _append(blob, data, xxhash.xxh3_128_digest(data))
        if (
            rec is not None
            and blob is first
            and blob.length == rec.size
            and expected == extent_count(rec.size)
        ):
            blob.whole_ino, blob.hash = rec.ino, state.digest()

    def _new_blob(self) -> Blob:
        object_id = BLOB_BIT | self._randbits(63)
        path = self._directory / f"{self._flush_id}.{object_id:016x}.blob"
        blob = Blob(object_id, path, create(path))
        self.blobs[object_id] = blob
        return blob


def _append(blob: Blob, data: bytes, digest: bytes) -> Location:
    location = Location(blob.object_id, blob.length, len(data), digest)
    blob.file.write(data)
    blob.length += len(data)
    return location


def freeze(
    reader: Readable,
    directory: Path,
    ask: FreezeRequest,
    ahead: Mapping[bytes, tuple[int, bytes]] = NOTHING_AHEAD,
    *,
    randbits: RandBits = secrets.randbits,
    stopped: Callable[[], bool] = never,
) -> Frozen:
    """Copy out everything unsealed, but for what was shipped `ahead` (see Ahead.known).

    Once `stopped`, the mirror's plan is given up, and no more than that.
    Raises OSError (spool full), FormatError, CacheError.
    """
    failpoints.hit(failpoints.FREEZE_BEFORE)
    segment = ObjectWriter(directory / f"{ask.flush_id}.seg")
    placer = _DataPlacer(directory, ask.flush_id, segment, randbits)
    frozen: Frozen | None = None
    try:
        with reader.read() as view:
            frozen = _freeze(view, directory, ask, segment, placer, ahead, stopped)
        return frozen
    finally:
        if frozen is None or frozen.segment is None:
            _remove([segment.file], [segment.path])
        if frozen is None:
            blobs = placer.blobs.values()
            _remove((blob.file for blob in blobs), (blob.path for blob in blobs))


def _freeze(
    view: View,
    directory: Path,
    ask: FreezeRequest,
    segment: ObjectWriter,
    placer: _DataPlacer,
    ahead: Mapping[bytes, tuple[int, bytes]],
    stopped: Callable[[], bool],
) -> Frozen:
    head = view.head()
    puts, tombs, chunk_keys, shipped = _dirty_records(view, ahead)
    located, gone_chunks = _place_data(view, chunk_keys, placer)
    located.update(shipped)
    if gone_chunks:
        tombs[keys.T_CHUNKS] = gone_chunks
    changed = [keys.unpack_u64(key) for key, _ in puts.get(keys.T_INODES, ())]
    changed += [keys.unpack_u64(key) for key in tombs.get(keys.T_INODES, ())]
    whole = {b.whole_ino: b.object_id for b in placer.blobs.values() if b.whole_ino}
    todo = MirrorTodo(head.generation)
    if ask.mirror:
        prefix_bytes = ask.prefix_bytes
        todo = collect_todo(
            view, changed, head.generation, prefix_bytes, located, whole, stopped=stopped
        )
    frozen = Frozen(ask.flush_id, head.generation, ask.number, todo, blobs=placer.blobs)
    if not (puts or tombs or located or ask.alone):
        return frozen
    for table in (keys.T_INODES, *(t for t in tombs if t != keys.T_INODES)):
        segment.add_tombs(table, tombs.get(table, ()))
    for table, items in puts.items():
        segment.add_puts(table, items)
    segment.add_puts(keys.T_CHUNKS, sorted(located.items()) if shipped else located.items())
    for blob in placer.blobs.values():
        blob.file.flush()

    def header(kind: str, made: ObjectWriter, prev: tuple[int, str]) -> Header:
        return Header(
            kind=kind,
            workspace=ask.workspace,
            writer=ask.writer,
            host=ask.host[: journal.HOST_CHARS_MAX],
            flush_id=ask.flush_id,
            number=ask.number,
            prev_number=prev[0],
            prev_hash=prev[1],
            generation=head.generation,
            next_ino=head.next_ino,
            used_bytes=head.used_bytes,
            inodes=head.inodes,
            mirrored=ask.mirrored,
            created_ns=ask.created_ns,
            extent_bytes=EXTENT_BYTES,
            data_bytes=made.data_bytes,
            records_bytes=made.records_bytes,
            records_hash=made.records_hash,
            puts=made.puts,
            tombs=made.tombs,
            epoch=ask.epoch,
        )

    frozen.header = header(journal.KIND_SEGMENT, segment, (ask.number - 1, ask.prev_hash))
    frozen.header_hash = segment.finish(frozen.header)
    frozen.segment, frozen.segment_file = segment.path, segment.file
    if ask.checkpoint:
        frozen.checkpoint = directory / f"{ask.flush_id}.ckpt"
        _write_checkpoint(view, frozen, located, gone_chunks, changed, header)
    return frozen


_Puts = dict[int, list[tuple[bytes, bytes]]]
_Tombs = dict[int, list[bytes]]


def _dirty_records(
    view: View, ahead: Mapping[bytes, tuple[int, bytes]]
) -> tuple[_Puts, _Tombs, list[bytes], dict[bytes, bytes]]:
    """Dirty records with their values, tombstones by table, keys of dirty chunks, and the chunk
    records of those that were shipped ahead.
    """
    tables = {t: getattr(view.db, name) for t, name in keys.TABLE_NAMES.items()}
    puts: _Puts = {}
    tombs: _Tombs = {}
    chunk_keys: list[bytes] = []
    shipped: dict[bytes, bytes] = {}
    for table, key, generation, _ in view.dirty():
        if table == keys.T_CHUNKS:
            known = ahead.get(key)
            if known is not None and known[0] == generation:
                shipped[key] = known[1]
            else:
                chunk_keys.append(key)
            continue
        value = view.txn.get(key, db=tables[table])
        if value is None:
            tombs.setdefault(table, []).append(key)
        else:
            puts.setdefault(table, []).append((key, value))
    return puts, tombs, chunk_keys, shipped


def _place_data(
    view: View, chunk_keys: list[bytes], placer: _DataPlacer
) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Write dirty extents; returns {chunk key: chunk record} and the chunks that are gone."""
    located: dict[bytes, bytes] = {}
    gone: list[bytes] = []
    at = 0
    while at < len(chunk_keys):
        ino_key = chunk_keys[at][:8]
        ino = keys.unpack_u64(ino_key)
        end = at
        while end < len(chunk_keys) and chunk_keys[end][:8] == ino_key:
            end += 1
        extents = _extents(view, chunk_keys[at:end], located, gone)
        for index, location in placer.place(view.inode(ino), extents):
            located[keys.chunk_key(ino, index)] = encode_location(location)
        at = end
    return located, gone


def _extents(
    view: View, chunk_keys: list[bytes], located: dict[bytes, bytes], gone: list[bytes]
) -> Iterator[tuple[int, bytes]]:
    for key in chunk_keys:
        data = view.txn.get(key, db=view.db.extents)
        standing = view.txn.get(key, db=view.db.chunks)
        if standing is not None and (data is None or _holds(standing, data)):
            # Dirty, but cold, or as it was: what was sealed before is still its content.
            located[key] = standing
        elif data is not None:
            yield keys.split_chunk_key(key)[1], data
        else:
            gone.append(key)


def _holds(standing: bytes, data: bytes) -> bool:
    """Whether the bytes that a chunk record places are these."""
    where = decode_location(standing)
    return where.length == len(data) and where.digest == xxhash.xxh3_128_digest(data)


def _write_checkpoint(
    view: View,
    frozen: Frozen,
    located: dict[bytes, bytes],
    gone_chunks: list[bytes],
    changed: list[int],
    header: Callable[[str, ObjectWriter, tuple[int, str]], Header],
) -> None:
    assert frozen.checkpoint is not None
    own = keys.pack_u64(SELF_OBJECT)
    number = keys.pack_u64(frozen.number)
    fresh = sorted(
        (key, number + raw[8:] if raw.startswith(own) else raw) for key, raw in located.items()
    )
    skip = set(located) | set(gone_chunks)
    todo = {keys.pack_u64(ino): keys.pack_u64(gen) for ino, gen in view.mtodo()}
    todo.update((keys.pack_u64(ino), keys.pack_u64(frozen.generation)) for ino in changed)
    made = ObjectWriter(frozen.checkpoint)
    try:
        for table, name in keys.TABLE_NAMES.items():
            with view.txn.cursor(db=getattr(view.db, name)) as cursor:
                if table == keys.T_CHUNKS:
                    old = ((key, raw) for key, raw in cursor if key not in skip)
                    made.add_puts(table, heapq.merge(old, fresh))
                else:
                    made.add_puts(table, cursor)
        made.add_puts(journal.T_MTODO, sorted(todo.items()))
        prev = (frozen.number, frozen.header_hash)
        made.finish(header(journal.KIND_CHECKPOINT, made, prev))
    finally:
        made.file.close()
