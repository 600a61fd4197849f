"""Bytes for the audit: each object read once from end to end, against every digest known of it.

Invariants
1. Memory is bounded: pieces of PIECE_BYTES, and as many objects under way as `windowed` allows.
2. A place is judged by its own digest, so that damage names exactly the files it touches.

Called by audit, audit_journal, audit_mirror.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import xxhash

from s3ws_fs.core.errors import NotFoundError
from s3ws_fs.core.journal import TRAILER_BYTES
from s3ws_fs.core.types import Location
from s3ws_fs.store.scoped import ScopedStore

PIECE_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Stream:
    """What an object is to be held against: its size, the places in it, its own trailer or none."""

    key: str
    size_bytes: int
    places: Sequence[Location]
    has_trailer: bool


@dataclass(slots=True)
class Streamed:
    """What came of it: `bad` places, and what is wrong with the object as a whole."""

    stream: Stream
    bad: list[Location]
    why: str = ""


def pieces(
    store: ScopedStore, key: str, size_bytes: int, etag: str | None = None
) -> Iterator[bytes]:
    """An object from start to end; ends early when it is shorter. Raises StoreError.

    ConflictError when it is not (or no longer) the one of `etag`.
    """
    at = 0
    while at < size_bytes:
        data = store.get(key, at, min(PIECE_BYTES, size_bytes - at), if_match=etag).data
        if not data:
            return
        yield data
        at += len(data)


def run(store: ScopedStore, stream: Stream) -> Streamed:
    """Read the object and judge it. Raises StoreError, save for a missing one."""
    done = Streamed(stream, [])
    places = deque(sorted(stream.places, key=lambda loc: (loc.offset, loc.length)))
    state = xxhash.xxh3_128()
    body_bytes = stream.size_bytes - (TRAILER_BYTES if stream.has_trailer else 0)
    held, start, end = b"", 0, 0
    try:
        for data in pieces(store, stream.key, stream.size_bytes):
            state.update(data[: max(0, body_bytes - end)])
            # What a place, or the trailer, needs of the piece before goes along.
            keep_from = max(start, min(places[0].offset if places else end, end - TRAILER_BYTES))
            held = held[keep_from - start :] + data
            start, end = keep_from, end + len(data)
            while places and places[0].offset + places[0].length <= end:
                loc = places.popleft()
                at = loc.offset - start
                if xxhash.xxh3_128_digest(held[at : at + loc.length]) != loc.digest:
                    done.bad.append(loc)
    except NotFoundError:
        done.why = "it was listed, and is gone"
    if not done.why and end < stream.size_bytes:
        done.why = f"it ends at {end}, it was listed with {stream.size_bytes} bytes"
    elif not done.why and stream.has_trailer and state.digest() != held[-TRAILER_BYTES:]:
        done.why = "the digest at its end is not that of its bytes"
    # Beyond the end, or never reached.
    done.bad.extend(places)
    return done
