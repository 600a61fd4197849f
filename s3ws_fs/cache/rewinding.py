"""Records of a restore into the cache: in bulk, within a transaction of the filesystem's.

What is put and deleted comes as frames of the journal's codec (core/rewind planned it, the worker
wrote them), so that nothing is held but one frame.

Invariants
1. Every record put or deleted is marked dirty at the transaction's generation; what was dirty
   before keeps the time of its first dirt.
2. An inode without links is put as an orphan: what hangs on it stays until it is dropped.
3. No extent loses its bytes: chunk records come under new inodes only.

Called by fs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from s3ws_fs.cache.tx import Tx
from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.journal import Frame
from s3ws_fs.core.records import decode_dirty, encode_dirty

PUT_RECORDS: Final = 5000
"""Records handed to the engine at once."""

_EMPTY: Final = b""
_NLINK: Final = slice(12, 16)
_NO_LINKS: Final = bytes(4)


class BulkChanges:
    """Puts frames into one transaction. `orphans`: inodes that lost their last name by it."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        tx.bulk()
        self._mark = encode_dirty(tx.generation, tx.now_ns)
        self._marked = {}
        with tx.txn.cursor(db=tx.db.dirty) as cursor:
            for key, raw in cursor:
                self._marked[key] = encode_dirty(tx.generation, decode_dirty(raw)[1])
        self.orphans: list[int] = []

    def add(self, frame: Frame) -> None:
        """The puts or deletions of one frame. Raises FormatError, lmdb.Error."""
        if frame.table not in keys.TABLE_NAMES:
            raise FormatError("a restore's changes", f"are of table {frame.table}")
        tx = self._tx
        tx.changed = True
        table = getattr(tx.db, keys.TABLE_NAMES[frame.table])
        if frame.tombs:
            if frame.table in (keys.T_INODES, keys.T_CHUNKS):
                raise FormatError("a restore's changes", "delete what an orphan may need")
            for key in frame.keys:
                tx.txn.delete(key, db=table)
        else:
            with tx.txn.cursor(db=table) as cursor:
                for batch in _batches(zip(frame.keys, frame.values, strict=True)):
                    cursor.putmulti(batch)
            tx.put_bytes += sum(map(len, frame.values))
            if frame.table == keys.T_INODES:
                self._orphans(frame)
        self._mark_all(frame)

    def _mark_all(self, frame: Frame) -> None:
        prefix = bytes((frame.table,))
        mark, marked = self._mark, self._marked
        with self._tx.txn.cursor(db=self._tx.db.dirty) as cursor:
            if not marked:
                items: Iterable[tuple[bytes, bytes]] = ((prefix + key, mark) for key in frame.keys)
            else:
                full = (prefix + key for key in frame.keys)
                items = ((key, marked.get(key, mark)) for key in full)
            for batch in _batches(items):
                cursor.putmulti(batch)

    def _orphans(self, frame: Frame) -> None:
        gone = [
            key
            for key, raw in zip(frame.keys, frame.values, strict=True)
            if raw[_NLINK] == _NO_LINKS
        ]
        with self._tx.txn.cursor(db=self._tx.db.orphans) as cursor:
            cursor.putmulti([(key, _EMPTY) for key in gone])
        self.orphans += map(keys.unpack_u64, gone)

    def keep_warm(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Copy warm extents: (key, new key) each; what is cold by now is left."""
        tx = self._tx
        for old, new in pairs:
            data = tx.txn.get(old, db=tx.db.extents)
            if data is not None:
                tx.txn.put(new, data, db=tx.db.extents)
                tx.put_bytes += len(data)


def _batches(
    items: Iterable[tuple[bytes, bytes]],
) -> Iterator[list[tuple[bytes, bytes]]]:
    source = iter(items)
    while batch := list(itertools.islice(source, PUT_RECORDS)):
        yield batch
