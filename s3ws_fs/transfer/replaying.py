"""Replay: the tables of a workspace after some journal objects, in memory. The one way it is done.

(A restore does the same into the cache's own tables: replica/restore.)

Invariants
1. Frames apply in order, as docs/format.md says: a put replaces, a tombstone removes; that of an
   inode also removes what hangs on it.
2. A place in "this segment" becomes one in the segment of that number.
3. Records that do not decode stay as they are: whoever judges them tells.

Called by audit_journal, points, looking, and by replica (a restore on a live mount).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from s3ws_fs.cache.tableset import Rows, TableSet
from s3ws_fs.cache.view import META_HEAD
from s3ws_fs.core import journal, keys
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.journal import Frame, Header
from s3ws_fs.core.records import Head, decode_head
from s3ws_fs.core.types import SELF_OBJECT

_SELF: Final = keys.pack_u64(SELF_OBJECT)
HANGING: Final = (keys.T_CHUNKS, keys.T_XATTRS, keys.T_LINKS)
"""Tables whose rows go with their inode."""
_NLINK: Final = struct.Struct(">12xI")
_ALLOC: Final = struct.Struct(">32xQ")
"""Where an inode record has its number of links, and its bytes held."""


def absolute(raw: bytes, number: int) -> bytes:
    """A chunk record of segment `number`, with that number where it says "this segment"."""
    return keys.pack_u64(number) + raw[8:] if raw[:8] == _SELF else raw


def apply(tables: TableSet, frame: Frame, number: int) -> None:
    """Apply one frame of object `number`; what is not of the five tables is left out."""
    if frame.table == journal.T_MTODO:
        return
    rows = tables.journal_table(frame.table)
    if not frame.tombs:
        values = frame.values
        if frame.table == keys.T_CHUNKS:
            values = [absolute(raw, number) for raw in values]
        rows.update(zip(frame.keys, values, strict=True))
        return
    gone = {key for key in frame.keys if rows.pop(key, None) is not None}
    if frame.table == keys.T_INODES:
        _drop_hanging(tables, gone)


def _drop_hanging(tables: TableSet, gone: set[bytes]) -> None:
    if not gone:
        return
    for table in HANGING:
        kept: Rows = tables.journal_table(table)
        for key in [key for key in kept if key[:8] in gone]:
            del kept[key]


def finish(tables: TableSet, header: Header) -> None:
    """Note the counters of the last object."""
    head = Head(header.generation, header.next_ino, header.used_bytes, header.inodes)
    tables.meta[META_HEAD] = head.encode()


def replay(objects: Iterable[tuple[Header, Iterable[Frame]]]) -> TableSet:
    """The tables after these objects, in order; orphans too. Raises FormatError as frames do."""
    tables = TableSet(is_local=False)
    for header, frames in objects:
        for frame in frames:
            apply(tables, frame, header.number)
        finish(tables, header)
    return tables


def drop_orphans(tables: TableSet) -> int:
    """Take away files that were open and without a name at that moment, as a restore does, and
    count them out of the counters; returns how many. Raises FormatError."""
    gone = {key for key, raw in tables.inodes.items() if not _NLINK.unpack_from(raw)[0]}
    if not gone:
        return 0
    used = 0
    for key in gone:
        used += _ALLOC.unpack_from(tables.inodes.pop(key))[0]
    _drop_hanging(tables, gone)
    head = tables.head
    if head is None:
        raise FormatError("head record", "it is missing")
    counters = decode_head(head)
    counters.used_bytes = max(0, counters.used_bytes - used)
    counters.inodes = max(0, counters.inodes - len(gone))
    tables.meta[META_HEAD] = counters.encode()
    return len(gone)
