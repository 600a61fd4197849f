"""Arithmetic of extents: which pieces of a file a byte range touches, and how bytes combine.

Invariants
1. An extent's bytes never reach beyond EXTENT_BYTES, nor beyond the file's size.
2. Bytes of an extent beyond its stored length (and within the file) read as zeros.
3. `alloc_bytes` is what an extent counts for in quota, du and df: whole 4 KiB units.

Called by fs, cache, transfer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from s3ws_fs.core.limits import EXTENT_BYTES

ALLOC_UNIT_BYTES: Final = 4096


def alloc_bytes(length: int) -> int:
    """Bytes accounted for an extent of `length` stored bytes."""
    return -(-length // ALLOC_UNIT_BYTES) * ALLOC_UNIT_BYTES


def spans(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Pieces of the range: (extent index, start in extent, start in range, bytes)."""
    done = 0
    while done < length:
        index, start = divmod(offset + done, EXTENT_BYTES)
        count = min(EXTENT_BYTES - start, length - done)
        yield index, start, done, count
        done += count


def overlay(old: bytes | memoryview, start: int, data: bytes | memoryview) -> bytes:
    """Bytes of an extent after `data` was written over `old` at `start` (gap filled with zeros)."""
    end = start + len(data)
    if start == 0 and end >= len(old):
        return bytes(data)
    if start > len(old):
        return b"".join((old, bytes(start - len(old)), data))
    return b"".join((old[:start], data, old[end:]))


def extent_count(size: int) -> int:
    """How many extents a file of `size` bytes spans."""
    return -(-size // EXTENT_BYTES)
