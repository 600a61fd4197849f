"""What the replica tells the cache: sealed, located, mirrored, fetched, restored.

These transactions change no file: they use no generation and mark nothing dirty.

Invariants
1. A dirty mark goes only when its record was sealed at a generation not older than the mark's.
2. A location is recorded only for an extent that still is what was shipped: a mark newer than the
   seal, or no mark at all (the file is gone), means it is not.
3. Fetched bytes are stored only while the extent is still cold and still has that location.
4. Each call is bounded by its arguments, so that the loop can serve requests in between.
5. Evicted is only what the bucket has: no dirty mark, a location, and bytes of its digest.

Called by replica (in the daemon, on the loop's thread).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import lmdb
import xxhash

from s3ws_fs.cache.tables import Tables
from s3ws_fs.cache.tx import drop_mirror_row, drop_prefix, put_mirror_row
from s3ws_fs.core import failpoints, jsontext, keys
from s3ws_fs.core.errors import CacheError, FormatError, FsError
from s3ws_fs.core.records import (
    MirrorRow,
    decode_dirty,
    decode_location,
    encode_dirty,
    encode_location,
)
from s3ws_fs.core.types import Location

FORGET_BATCH_MAX: Final = 2000
"""Dirty marks looked at in one transaction of `forget`."""

EVICT_BATCH_MAX: Final = 256
"""Extents looked at in one transaction of `evict`."""

_TABLE_FIELDS: Final = keys.TABLE_NAMES


def damaged_error(directory: Path, why: str) -> CacheError:
    """What a person reads when a cache can't be used as it is."""
    return CacheError(
        f"the cache in {directory} is damaged: {why}",
        remedy="Move that directory away and mount again: the workspace is rebuilt from "
        "the bucket. What was not sealed is only in the directory you moved: keep it.",
    )


class Bookkeeping:
    """Mixed into Cache; needs its `env` and `tables`."""

    env: lmdb.Environment
    tables: Tables
    directory: Path
    has_evicted = False
    """Whether anything was made cold since it was opened."""

    def failed(self, exc: lmdb.Error) -> FsError:
        """The error to raise for an engine error."""
        raise NotImplementedError

    def spent(self, added_bytes: int) -> None:
        """So many bytes of pages were committed."""
        raise NotImplementedError

    def settle(self) -> bool:
        """Have all that was acknowledged in the database."""
        raise NotImplementedError

    def _begin_book(self) -> None:
        """What comes is committed past the redo log. Raises FsError."""
        raise NotImplementedError

    @contextlib.contextmanager
    def _book(self) -> Iterator[lmdb.Transaction[bytes]]:
        """One transaction. Raises FsError (ENOSPC, EIO), and then nothing of it stands."""
        self._begin_book()
        try:
            with self.env.begin(write=True) as txn:
                yield txn
                failpoints.hit(failpoints.BOOK_BEFORE)
        except lmdb.Error as exc:
            raise self.failed(exc) from exc
        failpoints.hit(failpoints.BOOK_AFTER)

    def get_json(self, name: str) -> Any:
        """A meta value kept as JSON; None when there is none. Raises CacheError."""
        self.settle()
        with self.env.begin() as txn:
            raw = txn.get(name.encode(), db=self.tables.meta)
        if raw is None:
            return None
        try:
            return jsontext.value_of(raw, name)
        except FormatError as exc:
            raise damaged_error(self.directory, f"its note of {exc}") from exc

    def put_json(self, name: str, value: Any) -> None:
        """Keep a meta value as JSON."""
        with self._book() as txn:
            txn.put(name.encode(), json.dumps(value).encode(), db=self.tables.meta)

    def record_locations(self, generation: int, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Sealed extents: (chunk key, chunk record) each; what changed since is left alone."""
        with self._book() as txn:
            for key, raw in items:
                mark = keys.dirty_key(keys.T_CHUNKS, key)
                noted = txn.get(mark, db=self.tables.dirty)
                if noted is not None and decode_dirty(noted)[0] <= generation:
                    txn.put(key, raw, db=self.tables.chunks)
                    txn.delete(mark, db=self.tables.dirty)

    def forget(
        self,
        generation: int,
        freeze_ns: int,
        resume: bytes = b"",
        limit: int = FORGET_BATCH_MAX,
    ) -> bytes | None:
        """Forget dirt up to a sealed generation; returns where to resume, None when done.

        Call after `record_locations` of the same seal. Inodes go to the mirror's to-do. A mark
        newer than the seal stays; its first dirt is moved up to the freeze, since what was
        dirty before is sealed.
        """
        with self._book() as txn, txn.cursor(db=self.tables.dirty) as cursor:
            found = cursor.set_range(resume) if resume else cursor.first()
            for _ in range(limit):
                if not found:
                    return None
                mark = cursor.key()
                noted, first_ns = decode_dirty(cursor.value())
                if noted > generation:
                    if first_ns < freeze_ns:
                        cursor.put(mark, encode_dirty(noted, freeze_ns))
                    found = cursor.next()
                elif mark[0] == keys.T_CHUNKS and self._is_missing(txn, mark[1:]):
                    found = cursor.next()
                else:
                    if mark[0] == keys.T_INODES:
                        txn.put(mark[1:], keys.pack_u64(noted), db=self.tables.mtodo)
                        cursor.set_range(mark)
                    # At the end of the table py-lmdb's delete() still says True, on an empty key.
                    found = cursor.delete() and bool(cursor.key())
            return cursor.key() if found else None

    def _is_missing(self, txn: lmdb.Transaction[bytes], key: bytes) -> bool:
        """Data that got no location was not in the seal after all: it stays dirty.

        Save an orphan's: it is never shipped, and can't come back.
        """
        return (
            txn.get(key, db=self.tables.extents) is not None
            and txn.get(key[:8], db=self.tables.orphans) is None
        )

    def record_mirrored(
        self,
        put: Sequence[MirrorRow],
        removed: Sequence[bytes],
        done: Sequence[tuple[int, int]],
    ) -> None:
        """Mirror progress: rows now standing, paths gone, and (ino, generation) finished."""
        with self._book() as txn:
            for path in removed:
                drop_mirror_row(txn, self.tables, keys.mirror_key(path))
            for row in put:
                put_mirror_row(txn, self.tables, row)
            for ino, generation in done:
                key = keys.pack_u64(ino)
                noted = txn.get(key, db=self.tables.mtodo)
                if noted is not None and keys.unpack_u64(noted) <= generation:
                    txn.delete(key, db=self.tables.mtodo)

    def add_mirror_todo(self, inos: Iterable[int], generation: int) -> None:
        """Have these inodes' mirror objects looked at again."""
        with self._book() as txn:
            for ino in inos:
                txn.put(keys.pack_u64(ino), keys.pack_u64(generation), db=self.tables.mtodo)

    def store_fetched(self, items: Iterable[tuple[int, int, Location, bytes]]) -> int:
        """Keep fetched bytes: (ino, index, location they came from, bytes); returns how many."""
        stored = stored_bytes = 0
        with self._book() as txn:
            for ino, index, location, data in items:
                key = keys.chunk_key(ino, index)
                if txn.get(key, db=self.tables.chunks) != encode_location(location):
                    continue
                if txn.put(key, data, db=self.tables.extents, overwrite=False):
                    stored += 1
                    stored_bytes += len(data)
        self.spent(stored_bytes)
        return stored

    def evict(self, resume: bytes = b"", limit: int = EVICT_BATCH_MAX) -> tuple[int, bytes | None]:
        """Make clean extents cold; (bytes freed, where to go on or None at the end).

        Their pages serve again after the next sync point. Looks at `limit` extents.
        """
        freed_bytes = 0
        self.has_evicted = True
        with self._book() as txn, txn.cursor(db=self.tables.extents) as cursor:
            found = cursor.set_range(resume) if resume else cursor.first()
            for _ in range(limit):
                if not found:
                    return freed_bytes, None
                key = cursor.key()
                if self._is_in_bucket(txn, key, cursor.value()):
                    freed_bytes += len(cursor.value())
                    found = cursor.delete() and bool(cursor.key())
                else:
                    found = cursor.next()
            return freed_bytes, cursor.key() if found else None

    def _is_in_bucket(self, txn: lmdb.Transaction[bytes], key: bytes, data: bytes) -> bool:
        raw = txn.get(key, db=self.tables.chunks)
        if raw is None or txn.get(keys.dirty_key(keys.T_CHUNKS, key), db=self.tables.dirty):
            return False
        # An orphan's data is not shipped, and has no mark all the same: its digest tells.
        return decode_location(raw).digest == xxhash.xxh3_128_digest(data)

    def load_records(
        self, table: int, puts: Iterable[tuple[bytes, bytes]], *, append: bool = False
    ) -> None:
        """Restore: put records of a journal table; `append` when sorted and the table is empty.

        Raises FormatError when they are not sorted.
        """
        db = getattr(self.tables, _TABLE_FIELDS[table])
        with self._book() as txn, txn.cursor(db=db) as cursor:
            seen, added = cursor.putmulti(puts, append=append)
            if append and added != seen:
                raise FormatError("checkpoint", f"its {_TABLE_FIELDS[table]} are not in order")

    def drop_records(self, table: int, gone: Iterable[bytes]) -> None:
        """Restore: tombstones of a journal table; an inode's takes all that hangs on it along."""
        db = getattr(self.tables, _TABLE_FIELDS[table])
        hanging = (self.tables.chunks, self.tables.xattrs, self.tables.links)
        with self._book() as txn:
            for key in gone:
                txn.delete(key, db=db)
                if table == keys.T_INODES:
                    for other in hanging:
                        drop_prefix(txn, other, key)

    def clear_all(self) -> None:
        """Restore anew: empty every table."""
        with self._book() as txn:
            for name in self.tables.__dataclass_fields__:
                txn.drop(getattr(self.tables, name), delete=False)
