"""Header and records of one journal object, in memory and verified: one or two GETs.

(A restore has them in spool files: transfer/journaling.fetch_records.)

Invariants
1. What comes out is verified by header and records digest, and belongs where it stood.
2. Bytes that do not verify are asked for once more: they may have been spoilt on the way.

Called by points, spans, looking and audit_history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from s3ws_fs.core import journal
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.journal import HEADER_BYTES, Frame, Header
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.fetch import read_twice
from s3ws_fs.transfer.journaling import check_place

FIRST_BYTES: Final = 128 << 10
"""Bytes that are asked for first: all of a small object, else its header."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Header and records of a journal object, verified."""

    key: str
    header: Header
    header_hash: str
    records: bytes

    def frames(self) -> Iterator[Frame]:
        """Its records, in order."""
        return journal.decode_frames(self.records, self.key)


def open_records(store: ScopedStore, key: str, workspace: str, number: int, kind: str) -> Opened:
    """Fetch header and records of one object. Raises StoreError, FormatError."""
    opened = read_twice(lambda: _open(store, key))
    check_place(opened.header, key, workspace, number)
    if opened.header.kind != kind:
        raise FormatError(key, f"is a {opened.header.kind}")
    return opened


def _open(store: ScopedStore, key: str) -> Opened:
    first = store.get(key, 0, FIRST_BYTES)
    header = journal.decode_header(first.data, key)
    if first.total_bytes != header.total_bytes:
        raise FormatError(key, f"{first.total_bytes} bytes; its header says {header.total_bytes}")
    end = header.records_offset + header.records_bytes
    if end <= len(first.data):
        records = first.data[header.records_offset : end]
    else:
        records = store.get(key, header.records_offset, header.records_bytes).data
    journal.check_records(header, records, key)
    return Opened(key, header, journal.header_hash(first.data[:HEADER_BYTES]), records)
