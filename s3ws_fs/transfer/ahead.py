"""Dirty bytes shipped ahead of a freeze, by way of memory, when the spool's disk is short.

A freeze copies out at one instant all that is unsealed; on a disk that is nearly full that does
not fit. So before it, dirty extents go up as blobs, a portion at a time, each read in a transaction
of its own. A freeze takes such a location instead of the bytes, if the extent's dirty mark still
has the generation it had: then its bytes are the same. What changed since is copied as always.

Invariants
1. No read transaction is open while a blob is put.
2. A location made here counts only while its extent's dirty mark has that generation.
3. What no seal names in the end is garbage in the bucket, as after any flush that failed.

Called by worker.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import xxhash

from s3ws_fs.cache.headroom import LAST_SHARE, floor_bytes
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.cache.view import View
from s3ws_fs.core import keys, layout
from s3ws_fs.core.ids import RandBits
from s3ws_fs.core.records import encode_location
from s3ws_fs.core.types import BLOB_BIT, Location
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.freeze import Readable
from s3ws_fs.transfer.journaling import JOURNAL_TYPE

PORTION_BYTES: Final = 8 << 20
"""Bytes put at once; so much memory is used."""
SPOOL_SHARE: Final = 2
"""Bytes of data that may be spooled: this share of the room; the rest is for records and others."""


def spool_room_bytes(directory: Path) -> int:
    """What may be written to the spool: the last of the disk is for the cache itself."""
    disk = os.statvfs(directory)
    total_bytes = disk.f_blocks * disk.f_frsize
    return max(0, disk.f_bavail * disk.f_frsize - floor_bytes(total_bytes) // LAST_SHARE)


class Ahead:
    """Of one worker. `known`: chunk key → (generation of its dirty mark, location record)."""

    def __init__(
        self,
        reader: Readable,
        cache_dir: Path,
        spool_dir: Path,
        randbits: RandBits = secrets.randbits,
    ) -> None:
        self._reader = reader
        self._data_file = cache_dir / DATA_DIR / DATA_FILE
        self._spool = spool_dir
        self._randbits = randbits
        self.known: dict[bytes, tuple[int, bytes]] = {}

    def make_fit(self, store: ScopedStore, shipped: Callable[[int], None]) -> bool:
        """Ship ahead until the rest fits the spool; whether there was need. Raises StoreError."""
        room_bytes = spool_room_bytes(self._spool) // SPOOL_SHARE
        if room_bytes >= self._data_file.stat().st_size:
            self.known.clear()
            return False
        with self._reader.read() as view:
            left_bytes = sum(len(data) for _, _, data in self._unshipped(view))
        if left_bytes <= room_bytes:
            return False
        count = 0
        while left_bytes > room_bytes:
            portion = self._portion()
            if not portion:
                break
            left_bytes -= self._ship(store, portion)
            count += 1
            shipped(count)
        return True

    def _unshipped(self, view: View) -> Iterator[tuple[bytes, int, bytes]]:
        """(chunk key, generation of its mark, bytes) of dirty extents not shipped yet."""
        for table, key, generation, _ in view.dirty():
            if table != keys.T_CHUNKS or self.known.get(key, (0, b""))[0] == generation:
                continue
            data = view.txn.get(key, db=view.db.extents)
            if data is not None:
                yield key, generation, data

    def _portion(self) -> list[tuple[bytes, int, bytes]]:
        found: list[tuple[bytes, int, bytes]] = []
        size = 0
        with self._reader.read() as view:
            for item in self._unshipped(view):
                found.append(item)
                size += len(item[2])
                if size >= PORTION_BYTES:
                    break
        return found

    def _ship(self, store: ScopedStore, portion: list[tuple[bytes, int, bytes]]) -> int:
        object_id = BLOB_BIT | self._randbits(63)
        body = b"".join(data for _, _, data in portion)
        store.put(layout.blob_key(object_id), body, content_type=JOURNAL_TYPE)
        offset = 0
        for key, generation, data in portion:
            place = Location(object_id, offset, len(data), xxhash.xxh3_128_digest(data))
            self.known[key] = (generation, encode_location(place))
            offset += len(data)
        return offset
