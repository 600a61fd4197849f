"""Bytes by location: from the spool, from the cache, or by ranged GETs, always verified.

Invariants
1. Bytes come out only if their xxh3-128 is the location's; else FormatError naming the path.
2. Bytes that differ are fetched once more before that: they may have been spoilt on the way.
3. Neighbouring locations of one object are fetched by one GET, bounded by FETCH_BYTES_MAX.

Called by worker and mirror.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import xxhash

from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError, NotFoundError
from s3ws_fs.core.layout import FILES_PREFIX, object_key
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.types import SELF_OBJECT, Location
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.freeze import Frozen, Readable
from s3ws_fs.transfer.words import MISSING

T = TypeVar("T")

FETCH_BYTES_MAX: Final = 8 << 20
"""Most bytes of one GET."""
GAP_BYTES_MAX: Final = 128 << 10
"""Bytes between two wanted ranges that are fetched along rather than asked for apart."""


def coalesce(wanted: Iterable[Location]) -> Iterator[list[Location]]:
    """Groups of locations that one ranged GET of one object brings."""
    group: list[Location] = []
    end = 0
    for loc in sorted(wanted, key=lambda loc: (loc.object_id, loc.offset)):
        if (
            group
            and loc.object_id == group[0].object_id
            and loc.offset <= end + GAP_BYTES_MAX
            and loc.offset + loc.length - group[0].offset <= FETCH_BYTES_MAX
        ):
            group.append(loc)
            end = max(end, loc.offset + loc.length)
            continue
        if group:
            yield group
        group, end = [loc], loc.offset + loc.length
    if group:
        yield group


def verify(data: bytes | memoryview, loc: Location, where: str) -> None:
    """Raise FormatError unless these are the location's bytes."""
    if len(data) != loc.length:
        raise FormatError(where, f"{len(data)} bytes instead of {loc.length}")
    if xxhash.xxh3_128_digest(data) != loc.digest:
        raise FormatError(where, "its bytes in the bucket are damaged: the digest does not match")


def fetch_group(store: ScopedStore, group: Sequence[Location]) -> dict[Location, bytes]:
    """One ranged GET (invariant 2). Raises StoreError; FormatError naming the object."""
    return read_twice(lambda: _fetch_group(store, group))


def read_twice(read: Callable[[], T]) -> T:
    """What `read` gives; it is asked again when what came does not verify (invariant 2)."""
    try:
        return read()
    except FormatError:
        return read()


def _fetch_group(store: ScopedStore, group: Sequence[Location]) -> dict[Location, bytes]:
    key = object_key(group[0].object_id)
    start = group[0].offset
    length = max(loc.offset + loc.length for loc in group) - start
    try:
        data = store.get(key, start, length).data
    except NotFoundError as exc:
        raise FormatError(key, MISSING) from exc
    view = memoryview(data)
    found = {}
    for loc in group:
        piece = view[loc.offset - start : loc.offset - start + loc.length]
        verify(piece, loc, f"{key} at {loc.offset}")
        found[loc] = bytes(piece)
    return found


def fetch_from_mirror(store: ScopedStore, text: str, index: int, loc: Location) -> bytes:
    """A location's bytes as the mirror object of its file has them. Raises StoreError, FormatError.

    For what the journal has lost: the digest decides whether they are the same.
    """
    key = FILES_PREFIX + text
    data = store.get(key, index * EXTENT_BYTES, loc.length).data
    verify(data, loc, f"{key} at {index * EXTENT_BYTES}")
    return data


class ExtentSource:
    """Reads extents of a frozen point: spool first, then the cache, then the store."""

    def __init__(self, store: ScopedStore, reader: Readable, frozen: Frozen) -> None:
        self._store = store
        self._reader = reader
        self._frozen = frozen

    def _spooled(self, loc: Location) -> bytes | None:
        frozen = self._frozen
        if loc.object_id == SELF_OBJECT:
            assert frozen.segment_file is not None
            return os.pread(frozen.segment_file.fileno(), loc.length, loc.offset)
        blob = frozen.blobs.get(loc.object_id)
        return None if blob is None else os.pread(blob.file.fileno(), loc.length, loc.offset)

    def _cached(self, ino: int, items: list[tuple[int, Location]]) -> dict[Location, bytes]:
        found = {}
        with self._reader.read() as view:
            for index, loc in items:
                if view.is_dirty(keys.T_CHUNKS, keys.chunk_key(ino, index)):
                    continue
                data = view.extent(ino, index)
                if data is not None and view.chunk(ino, index) == loc:
                    found[loc] = data
        return found

    def read(
        self, ino: int, items: list[tuple[int, Location]], where: str
    ) -> Iterator[tuple[int, bytes]]:
        """(extent index, bytes) of some extents of one file, verified. `where` is its path."""
        have: dict[Location, bytes] = {}
        for _, loc in items:
            data = self._spooled(loc)
            if data is not None:
                verify(data, loc, where)
                have[loc] = data
        rest = [(index, loc) for index, loc in items if loc not in have]
        if rest:
            for loc, data in self._cached(ino, rest).items():
                # A cache that disagrees with its own digest is not trusted: the store is asked.
                if xxhash.xxh3_128_digest(data) == loc.digest:
                    have[loc] = data
            for group in coalesce(loc for _, loc in rest if loc not in have):
                have.update(fetch_group(self._store, group))
        for index, loc in items:
            yield index, have[loc]


def pieces(
    items: Iterable[tuple[int, Location]], size: int = FETCH_BYTES_MAX
) -> Iterator[list[tuple[int, Location]]]:
    """Split a file's extents into lists of at most `size` bytes, to bound memory."""
    step = max(1, size // EXTENT_BYTES)
    part: list[tuple[int, Location]] = []
    for item in items:
        part.append(item)
        if len(part) == step:
            yield part
            part = []
    if part:
        yield part
