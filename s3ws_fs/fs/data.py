"""File data: read, write, truncate; and what happens when bytes are still in the bucket.

Invariants
1. An extent's stored bytes never reach beyond the file's size: growing a file shows zeros.
2. A result that needs bytes of cold extents is `NeedExtents`, and nothing was changed.
3. Quota counts bytes held (4 KiB units), as du does; a write that does not grow is never refused.

Called by fuse (through FileSystem).
"""

from __future__ import annotations

import errno
import stat

from s3ws_fs.cache.tx import Tx
from s3ws_fs.cache.view import View
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.extents import ALLOC_UNIT_BYTES, extent_count, overlay, spans
from s3ws_fs.core.limits import EXTENT_BYTES, FILE_BYTES_MAX
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.types import Location, NeedExtents
from s3ws_fs.fs.base import FsBase, need


class ColdError(Exception):
    """Leaves a transaction (aborting it) because extents are cold."""

    def __init__(self, need_extents: NeedExtents) -> None:
        self.need = need_extents


def _need_file(view: View, ino: int) -> InodeRec:
    rec = need(view, ino)
    if not stat.S_ISREG(rec.mode):
        raise FsError(errno.EISDIR if rec.is_dir else errno.EINVAL)
    return rec


class DataOps(FsBase):
    """read, write, truncate."""

    def read(self, ino: int, offset: int, length: int) -> bytes | NeedExtents:
        """Bytes at `offset`, short at the end of the file. Raises EISDIR, EINVAL, ENOENT."""
        with self.cache.read() as view:
            rec = _need_file(view, ino)
            length = min(length, rec.size - offset)
            if length <= 0:
                return b""
            parts: list[bytes | memoryview] = []
            cold: list[tuple[int, Location]] = []
            for index, start, _, count in spans(offset, length):
                data = view.extent(ino, index)
                if data is None:
                    where = view.chunk(ino, index)
                    if where is not None:
                        cold.append((index, where))
                    data = b""
                if start == 0 and len(data) == count:
                    parts.append(data)
                    continue
                piece = memoryview(data)[start : start + count]
                parts.append(piece)
                if len(piece) < count:
                    parts.append(bytes(count - len(piece)))
            if cold:
                return NeedExtents(ino, tuple(cold))
            return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def write(self, ino: int, offset: int, data: bytes | memoryview) -> int | NeedExtents:
        """Write `data` at `offset`; how much: less than all only where the quota ends.

        Raises EFBIG, EDQUOT, ENOSPC, EISDIR, EINVAL.
        """
        end = offset + len(data)
        if end > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        try:
            with self.cache.write() as tx:
                rec = _need_file(tx, ino)
                self._write_extents(tx, rec, offset, memoryview(data))
                rec.size = max(rec.size, end)
                rec.mtime_ns = rec.ctime_ns = tx.now_ns
                rec.data_gen = tx.generation
                tx.put_inode(rec)
                tx.answer = len(data)
        except ColdError as cold:
            return cold.need
        except FsError as exc:
            if exc.errno == errno.EDQUOT and self._forgotten:
                self.reap()
                return self.write(ino, offset, data)
            fitting = self._fitting(offset) if exc.errno == errno.EDQUOT else 0
            if 0 < fitting < len(data):
                return self.write(ino, offset, memoryview(data)[:fitting])
            raise
        self.on_change()
        return len(data)

    def _fitting(self, offset: int) -> int:
        """How many bytes from `offset` on the quota has room for, ending with a unit of it."""
        left_bytes = self.quota_bytes - self.cache.head.used_bytes
        return (offset + left_bytes) // ALLOC_UNIT_BYTES * ALLOC_UNIT_BYTES - offset

    def _write_extents(self, tx: Tx, rec: InodeRec, offset: int, data: memoryview) -> None:
        used_before = tx.head_rec.used_bytes
        cold: list[tuple[int, Location]] = []
        # Invariant 1: at and beyond this index there is nothing to look up.
        absent_from = extent_count(rec.size)
        for index, start, at, count in spans(offset, len(data)):
            piece = data[at : at + count]
            if index >= absent_from:
                tx.put_extent(rec, index, overlay(b"", start, piece), 0)
                continue
            if count == EXTENT_BYTES:
                # Replaced whole: the old bytes matter only for the accounting.
                tx.put_extent(rec, index, bytes(piece), self._held(tx, rec.ino, index))
                continue
            old = tx.extent(rec.ino, index)
            if old is None:
                where = tx.chunk(rec.ino, index)
                if where is not None and (start > 0 or count < where.length):
                    cold.append((index, where))
                    continue
                old_length = where.length if where is not None else 0
                old = b""
            else:
                old_length = len(old)
            laid = overlay(old, start, piece)
            tx.put_extent(rec, index, laid, old_length, (start, piece))
        if cold:
            raise ColdError(NeedExtents(rec.ino, tuple(cold)))
        self._check_quota(tx, used_before)

    @staticmethod
    def _held(tx: Tx, ino: int, index: int) -> int:
        old = tx.extent(ino, index)
        if old is not None:
            return len(old)
        where = tx.chunk(ino, index)
        return 0 if where is None else where.length

    def _check_quota(self, tx: Tx, used_before: int) -> None:
        used = tx.head_rec.used_bytes
        if used > used_before and used > self.quota_bytes:
            raise FsError(errno.EDQUOT)

    def _truncate(self, tx: Tx, rec: InodeRec, size: int) -> None:
        """Set the size within a transaction. The caller stores the record. Raises ColdError."""
        if not stat.S_ISREG(rec.mode):
            raise FsError(errno.EISDIR if rec.is_dir else errno.EINVAL)
        if size > FILE_BYTES_MAX:
            raise FsError(errno.EFBIG)
        if size < rec.size:
            index, keep = divmod(size, EXTENT_BYTES)
            if keep:
                self._cut_extent(tx, rec, index, keep)
                index += 1
            tx.drop_extents(rec, index)
        rec.size = size
        rec.mtime_ns = tx.now_ns
        rec.data_gen = tx.generation

    def _cut_extent(self, tx: Tx, rec: InodeRec, index: int, keep: int) -> None:
        old = tx.extent(rec.ino, index)
        if old is None:
            where = tx.chunk(rec.ino, index)
            if where is not None and where.length > keep:
                raise ColdError(NeedExtents(rec.ino, ((index, where),)))
        elif len(old) > keep:
            tx.put_extent(rec, index, old[:keep], len(old))
