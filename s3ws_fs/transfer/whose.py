"""Whose is an object below files/: ours, with the bytes that we put, or somebody else's?

Invariants
1. Ours is only what carries our mark for this very path and has the bytes that the mark names:
   tools that edit in place keep the metadata, tools that copy take it along.
2. An object of ours may be of any age: put late by a writer that has been taken over from, or by us
   with the answer lost. It is never taken for somebody else's change.
3. Memory is bounded by a piece.

Called by objects, reconcile, outside.
"""

from __future__ import annotations

from typing import Final

import xxhash

from s3ws_fs.core import content
from s3ws_fs.core.errors import ConflictError, NotFoundError, TransientError
from s3ws_fs.core.layout import FILES_PREFIX
from s3ws_fs.store.base import ObjectInfo
from s3ws_fs.store.scoped import ScopedStore

PIECE_BYTES: Final = 4 << 20
READINGS: Final = 2
"""A byte that was spoilt on the way is not somebody else's change: it would come in as a file."""


def head(store: ScopedStore, text: str) -> ObjectInfo | None:
    """What stands at a mirror path; None: nothing."""
    try:
        return store.head(FILES_PREFIX + text)
    except NotFoundError:
        return None


def our_mark(
    store: ScopedStore, info: ObjectInfo, workspace: str, text: str
) -> tuple[int, bytes] | None:
    """(generation, digest) of an object that is ours (invariant 1); None: it is not, or not now.

    Reads the object. Raises StoreError.
    """
    mark = content.our_mark(info.metadata, workspace, text)
    if mark is not None:
        for _ in range(READINGS):
            if digest(store, info) == mark[1]:
                return mark
    return None


def digest(store: ScopedStore, info: ObjectInfo) -> bytes | None:
    """The xxh3-128 of an object's bytes; None when it is replaced meanwhile. Raises StoreError."""
    state = xxhash.xxh3_128()
    try:
        for offset in range(0, info.size_bytes, PIECE_BYTES):
            data = store.get(info.key, offset, PIECE_BYTES, if_match=info.etag).data
            if len(data) != min(PIECE_BYTES, info.size_bytes - offset):
                # Never a verdict: half an answer says nothing about whose the object is.
                raise TransientError("get", info.key, f"{len(data)} bytes came of a piece")
            state.update(data)
    except (NotFoundError, ConflictError):
        return None
    return state.digest()
