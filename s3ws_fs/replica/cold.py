"""Which extents are cold, in the order of their keys, and how they are cut into pieces.

Invariants
1. A call looks at no more chunk records than it is told, in one read transaction.

Called by hydrate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import keys
from s3ws_fs.core.types import Location

PIECE_EXTENTS: Final = 256
"""Extents the hydrator asks for at once; of bytes see Pace."""

Item = tuple[int, int, Location]
"""Inode, extent index, where its bytes stand."""


def piece_of(items: Sequence[Item], at: int, size_bytes: int) -> list[Item]:
    """Items from `at` on: at least one, at most PIECE_EXTENTS, and `size_bytes` together."""
    end = at
    while end < min(len(items), at + PIECE_EXTENTS):
        size_bytes -= items[end][2].length
        if size_bytes < 0 and end > at:
            break
        end += 1
    return list(items[at:end])


def scan_cold(cache: Cache, resume: bytes, limit: int) -> tuple[list[Item], bytes | None]:
    """Cold extents among the next `limit` chunks from `resume` on, and where to go on."""
    found: list[Item] = []
    with cache.read() as view, view.txn.cursor(db=view.db.chunks) as cursor:
        more = cursor.set_range(resume) if resume else cursor.first()
        for _ in range(limit):
            if not more:
                return found, None
            key = cursor.key()
            if view.txn.get(key, db=view.db.extents) is None:
                ino, index = keys.split_chunk_key(key)
                loc = view.chunk(ino, index)
                if loc is not None:
                    found.append((ino, index, loc))
            more = cursor.next()
        return found, cursor.key() if more else None
