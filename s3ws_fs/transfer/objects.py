"""One object of the mirror: put or copied on a condition; and telling whose it is.

Invariants
1. An object is written only on condition that there stands what we last put (ETag), or nothing.
2. When that fails, the object is looked at (whose.py): ours (a lost answer, a row lost in a crash,
   a late put of a writer before us) is taken over; somebody else's stays, and is reported. One of
   ours of a later flush than this one says that we have been taken over from: it stays too.
3. What was learnt from a listing only (hash NO_HASH) is looked at before it is overwritten, copied
   from, or deleted: its bytes are read once.
4. A row TAKEN_OVER is somebody else's object whose bytes were sealed before this pass, or given up
   by the policy: it is overwritten on condition of its ETag like any other.

Called by mirror, from several threads.
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final

import xxhash

from s3ws_fs.core import content, failpoints, mirrorplan
from s3ws_fs.core.errors import ConflictError, NotFoundError, PermanentError, S3wsError
from s3ws_fs.core.extents import spans
from s3ws_fs.core.layout import FILES_PREFIX, blob_key, object_key
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.mirrorplan import NO_HASH, TAKEN_OVER, Op
from s3ws_fs.core.ranges import Run, runs_of, standing, unchanged
from s3ws_fs.core.records import InodeRec, MirrorRow
from s3ws_fs.store.base import ObjectInfo
from s3ws_fs.store.body import Body, Composed, FileSlice, Pieces, Standing
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import whose
from s3ws_fs.transfer.ahead import SPOOL_SHARE, spool_room_bytes
from s3ws_fs.transfer.fetch import ExtentSource, pieces
from s3ws_fs.transfer.freeze import Frozen
from s3ws_fs.transfer.layouts import Layouts
from s3ws_fs.transfer.spool import HASH_PIECE_BYTES, create, file_hash
from s3ws_fs.transfer.todo import TodoFile
from s3ws_fs.transfer.words import LATE

COMPOSE_BYTES_MIN: Final = 64 << 20
"""Of a larger file the store is asked to copy the ranges that stand in the bucket already."""
STANDING_BYTES_MIN: Final = 5 << 20
"""Shorter ranges are no part of a multipart upload, but for the last."""
MEMORY_BODY_BYTES_MAX: Final = 4 << 20
"""Larger bodies are put together in a spool file."""

FOREIGN: Final = "an object that this workspace did not put stands there"
CHANGED: Final = "it was changed from outside"
_UNREAD: Final = (NO_HASH, TAKEN_OVER)


class ForeignObjectError(S3wsError):
    """An object that this workspace did not put stands at a mirror path."""


class StaleSourceError(S3wsError):
    """The source of a copy is not what its row says: the row goes, the next pass puts the bytes."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        super().__init__(f"the mirror object of {path!r} was changed from outside")


class MirrorObjects:
    """Writes objects of one frozen point. Thread-safe."""

    def __init__(
        self,
        store: ScopedStore,
        source: ExtentSource,
        frozen: Frozen,
        *,
        workspace: str,
        directory: Path,
        layouts: Layouts,
    ) -> None:
        self._store = store
        self._source = source
        self._frozen = frozen
        self._todo = frozen.todo
        self._workspace = workspace
        self._directory = directory
        self._layouts = layouts
        self._serial = itertools.count()
        self.missed: list[str] = []
        """Mirror paths at which our object was gone when it was to be replaced: it was put anew."""

    def write(self, op: Op) -> MirrorRow:
        """Carry out one operation; returns the row that stands then.

        Raises ForeignObjectError, StaleSourceError, StoreError, FormatError.
        """
        failpoints.hit(failpoints.MIRROR_PUT_BEFORE)
        row = self._carry_out(op)
        failpoints.hit(failpoints.MIRROR_PUT_AFTER)
        return row

    def _carry_out(self, op: Op) -> MirrorRow:
        file = self._todo.files[op.target.ino]
        assert file.rec is not None
        if op.row is not None and op.row.hash == NO_HASH:
            known = self._adopt(op, file.rec)
            if known is not None:
                return known
        if op.kind == mirrorplan.COPY:
            return self._copy_mirror(op, file.rec)
        if op.kind == mirrorplan.REFRESH and op.row is not None and op.row.hash not in _UNREAD:
            fresh = self._refresh(op, file.rec, op.row)
            if fresh is not None:
                return fresh
        if op.kind == mirrorplan.COPY_BLOB:
            blob = self._frozen.blobs[op.blob_id]
            row = self._copy(op, file.rec, blob_key(op.blob_id), None, blob.hash)
            if file.rec.size > COMPOSE_BYTES_MIN:
                runs = runs_of(file.extents(), self._frozen.number, file.rec.size)
                self._layouts.note(row, runs)
            return row
        return self._put(op, file, file.rec)

    def _adopt(self, op: Op, rec: InodeRec) -> MirrorRow | None:
        """The row when what a listing showed is already what is wanted."""
        try:
            info = self._store.head(FILES_PREFIX + op.target.path)
        except NotFoundError:
            return None
        target = op.target
        mark = content.our_mark(info.metadata, self._workspace, target.path)
        if mark is None or mark[0] < target.generation or not target.generation:
            return None
        # It may have been another file's: directories above may have been renamed since.
        generation, digest = mark
        said = content.object_metadata(
            rec, digest=digest, generation=generation, workspace=self._workspace, path=target.path
        )
        if info.size_bytes != rec.size or dict(info.metadata) != said:
            return None
        if whose.digest(self._store, info) != digest:
            return None
        return self._row(op, info.etag, mark[1], generation=mark[0])

    def _row(self, op: Op, etag: str, digest: bytes, generation: int = 0) -> MirrorRow:
        target = op.target
        generation = generation or self._todo.generation
        path = target.path.encode()
        return MirrorRow(path, target.ino, generation, target.data_gen, etag, digest)

    def _metadata(self, op: Op, rec: InodeRec, digest: bytes) -> dict[str, str]:
        return content.object_metadata(
            rec,
            digest=digest,
            generation=self._todo.generation,
            workspace=self._workspace,
            path=op.target.path,
        )

    def _refresh(self, op: Op, rec: InodeRec, row: MirrorRow) -> MirrorRow | None:
        """New metadata for the bytes that stand there; None when that can't be."""
        key = FILES_PREFIX + op.target.path
        try:
            etag = self._store.copy(
                key,
                key,
                src_if_match=row.etag,
                content_type=self._type(op, rec),
                metadata=self._metadata(op, rec, row.hash),
                if_match=row.etag,
            )
        except (ConflictError, NotFoundError, PermanentError):
            # Changed, or a server that does not do this: the bytes are put, on their condition.
            return None
        return self._carried(row, self._row(op, etag, row.hash), rec)

    def _carried(self, old: MirrorRow, new: MirrorRow, rec: InodeRec) -> MirrorRow:
        """The row of a copy, once it is noted that it is made of the same."""
        if rec.size > COMPOSE_BYTES_MIN:
            self._layouts.carry(old, new)
        return new

    @staticmethod
    def _type(op: Op, rec: InodeRec) -> str:
        is_file = stat.S_ISREG(rec.mode)
        return content.content_type(op.target.path) if is_file else content.DEFAULT_TYPE

    def _copy_mirror(self, op: Op, rec: InodeRec) -> MirrorRow:
        source = op.source
        assert source is not None
        path = source.path.decode()
        if source.hash == NO_HASH:
            try:
                info = self._store.head(FILES_PREFIX + path)
            except NotFoundError:
                raise StaleSourceError(source.path) from None
            mark = whose.our_mark(self._store, info, self._workspace, path)
            if mark is None:
                raise StaleSourceError(source.path)
            source = replace(source, etag=info.etag, hash=mark[1])
        try:
            row = self._copy(op, rec, FILES_PREFIX + path, source.etag, source.hash)
        except (NotFoundError, ConflictError, ForeignObjectError):
            if self._is_stale(source):
                raise StaleSourceError(source.path) from None
            raise
        return self._carried(source, row, rec)

    def _is_stale(self, row: MirrorRow) -> bool:
        try:
            return self._store.head(FILES_PREFIX + row.path.decode()).etag != row.etag
        except NotFoundError:
            return True

    def _copy(
        self, op: Op, rec: InodeRec, src: str, src_etag: str | None, digest: bytes
    ) -> MirrorRow:
        metadata = self._metadata(op, rec, digest)
        kind = self._type(op, rec)

        def write(if_none_match: bool, if_match: str | None) -> str:
            return self._store.copy(
                src,
                FILES_PREFIX + op.target.path,
                src_if_match=src_etag,
                content_type=kind,
                metadata=metadata,
                if_none_match=if_none_match,
                if_match=if_match,
            )

        return self._row(op, self._write(op, write, digest), digest)

    def _put(self, op: Op, file: TodoFile, rec: InodeRec) -> MirrorRow:
        if content.is_inline_kind(rec):
            return self._put_body(op, rec, body := content.inline_body(rec), _digest(body))
        if rec.size <= MEMORY_BODY_BYTES_MAX:
            whole = bytearray(rec.size)
            for index, data in self._read(op, file):
                whole[index * EXTENT_BYTES : index * EXTENT_BYTES + len(data)] = data
            return self._put_body(op, rec, whole, _digest(whole))
        if rec.size > COMPOSE_BYTES_MIN:
            return self._put_large(op, file, rec)
        return self._put_spooled(op, file, rec)

    def _put_large(self, op: Op, file: TodoFile, rec: InodeRec) -> MirrorRow:
        """Of what stands in the bucket, as far as that goes; and note what it is made of now."""
        runs = runs_of(file.extents(), self._frozen.number, rec.size)
        standing = self._standing(op, runs)
        if 2 * sum(item.length_bytes for item in standing) > rec.size:
            lazy = _LazyBody(self._source, file, rec.size, op.target.path)
            row = self._put_body(op, rec, Composed(lazy, standing), lazy.digest())
        else:
            row = self._put_spooled(op, file, rec)
        self._layouts.note(row, runs)
        return row

    def _standing(self, op: Op, runs: list[Run]) -> list[Standing]:
        """What of a file stands in the object that is replaced, or in one of the journal.

        What is in the journal was written once, under a name of its own: neither it nor where it
        stands can change. The mirror's object counts as the one that we put, by its ETag.
        """
        row = op.row if op.row is not None and op.row.hash not in _UNREAD else None
        kept = [] if row is None else unchanged(self._layouts.of(row), runs)
        found = []
        for item in standing(runs, kept, STANDING_BYTES_MIN):
            length = item.end - item.start
            if item.run is not None:
                key = object_key(item.run.object_id)
                found.append(Standing(item.start, length, key, item.start + item.run.shift))
            elif row is not None:
                key = FILES_PREFIX + op.target.path
                found.append(Standing(item.start, length, key, item.start, row.etag))
        return found

    def _put_spooled(self, op: Op, file: TodoFile, rec: InodeRec) -> MirrorRow:
        if rec.size > spool_room_bytes(self._directory) // SPOOL_SHARE:
            lazy = _LazyBody(self._source, file, rec.size, op.target.path)
            return self._put_body(op, rec, lazy, lazy.digest())
        path = self._directory / f"{self._frozen.flush_id}.{next(self._serial)}.body"
        with create(path) as spooled:
            path.unlink()
            self._assemble(op, file, spooled, rec.size)
            digest = file_hash(spooled, rec.size)
            return self._put_body(op, rec, FileSlice(spooled.fileno(), 0, rec.size), digest)

    def _read(self, op: Op, file: TodoFile) -> Iterator[tuple[int, bytes]]:
        for part in pieces(file.extents()):
            yield from self._source.read(file.ino, part, op.target.path)

    def _assemble(self, op: Op, file: TodoFile, spooled: BinaryIO, size: int) -> None:
        spooled.truncate(size)
        for index, data in self._read(op, file):
            spooled.seek(index * EXTENT_BYTES)
            spooled.write(data)
        spooled.flush()

    def _put_body(self, op: Op, rec: InodeRec, body: Body, digest: bytes) -> MirrorRow:
        metadata = self._metadata(op, rec, digest)
        kind = self._type(op, rec)

        def write(if_none_match: bool, if_match: str | None) -> str:
            return self._store.put(
                FILES_PREFIX + op.target.path,
                body,
                content_type=kind,
                metadata=metadata,
                if_none_match=if_none_match,
                if_match=if_match,
            )

        return self._row(op, self._write(op, write, digest), digest)

    def _write(self, op: Op, write: Callable[[bool, str | None], str], digest: bytes) -> str:
        """Write under the right condition; returns the ETag. Raises ForeignObjectError."""
        expected = op.row.etag if op.row is not None and op.row.hash != NO_HASH else None
        if op.row is None or expected is not None:
            try:
                return write(expected is None, expected)
            except ConflictError:
                pass
        info = self._look(op.target.path)
        if info is None:
            if expected is not None:
                self.missed.append(op.target.path)
            return self._write_where_nothing_is(op.target.path, write)
        mark = whose.our_mark(self._store, info, self._workspace, op.target.path)
        if mark is None:
            raise ForeignObjectError(FOREIGN if expected is None else CHANGED)
        if mark == (self._todo.generation, digest):
            return info.etag
        if mark[0] > self._todo.generation:
            raise ForeignObjectError(LATE)
        return self._write_again(write, info.etag)

    def _look(self, path: str) -> ObjectInfo | None:
        return whose.head(self._store, path)

    def _write_where_nothing_is(self, path: str, write: Callable[[bool, str | None], str]) -> str:
        try:
            return write(True, None)
        except ConflictError:
            if self._look(path) is not None:
                raise ForeignObjectError("somebody else is writing there") from None
        # SeaweedFS keeps a directory's entry when the last object below is gone, and says "exists"
        # to a must-create put of its name, where HEAD says there is none: two looks must do.
        return write(False, None)

    def _write_again(self, write: Callable[[bool, str | None], str], etag: str) -> str:
        try:
            return write(False, etag)
        except ConflictError as exc:
            raise ForeignObjectError("somebody else is writing there") from exc

    def to_delete(self, row: MirrorRow) -> MirrorRow | None:
        """The row to delete, looked at when only a listing vouches for it; None: it is gone.

        Raises ForeignObjectError, StoreError.
        """
        if row.hash != NO_HASH:
            return row
        text = row.path.decode()
        info = self._look(text)
        if info is None:
            return None
        if whose.our_mark(self._store, info, self._workspace, text) is None:
            raise ForeignObjectError(CHANGED)
        return replace(row, etag=info.etag)


class _LazyBody(Pieces):
    """A file's bytes, read (and verified) each time: slower than a spool file, but it needs none.

    It is read twice, to know its digest first. Changing under way is what `verify` finds.
    """

    def __init__(self, source: ExtentSource, file: TodoFile, size_bytes: int, path: str) -> None:
        self.size_bytes = size_bytes
        self._source = source
        self._ino = file.ino
        self._places = dict(file.extents())
        self._path = path

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size_bytes - offset))
        whole = bytearray(length)
        wanted = {
            index: (start, at, count)
            for index, start, at, count in spans(offset, length)
            if index in self._places
        }
        items = [(index, self._places[index]) for index in wanted]
        for part in pieces(items):
            for index, data in self._source.read(self._ino, part, self._path):
                start, at, count = wanted[index]
                piece = data[start : start + count]
                whole[at : at + len(piece)] = piece
        return bytes(whole)

    def digest(self) -> bytes:
        """The xxh3-128 of all of it."""
        state = xxhash.xxh3_128()
        for offset in range(0, self.size_bytes, HASH_PIECE_BYTES):
            state.update(self.read_at(offset, HASH_PIECE_BYTES))
        return state.digest()


def _digest(data: bytes | bytearray) -> bytes:
    return xxhash.xxh3_128_digest(data)
