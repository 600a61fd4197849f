"""After an answer was lost: does the object that stands there come from our own attempt?

Invariants
1. Yes only when bytes, content type and metadata all are what we sent (contract invariant 4).
2. `is_md5_of` decides nothing: servers are free in their ETags. It says when a look is worth it.

Called by s3.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from s3ws_fs.core.errors import ConflictError, NotFoundError
from s3ws_fs.store.base import ObjectStore
from s3ws_fs.store.body import Source

COMPARE_BYTES: Final = 8 << 20
"""How much is read back at once."""


def lost_put(
    store: ObjectStore, key: str, source: Source, attributes: Mapping[str, Any]
) -> dict[str, Any] | None:
    """An answer with the ETag when the object at `key` is exactly what we meant to put."""
    try:
        info = store.head(key)
        found = (info.size_bytes, info.content_type, info.metadata)
        if found != (source.size_bytes, attributes["ContentType"], attributes["Metadata"]):
            return None
        for offset in range(0, source.size_bytes, COMPARE_BYTES):
            length = min(COMPARE_BYTES, source.size_bytes - offset)
            piece = store.get(key, offset, length, if_match=info.etag).data
            if piece != source.read_at(offset, length):
                return None
    except (NotFoundError, ConflictError):
        return None
    return {"ETag": info.etag}


def is_md5_of(etag: str, source: Source) -> bool:
    """Is the ETag what most servers give an object that was put in one piece?"""
    digest = hashlib.md5(usedforsecurity=False)
    for offset in range(0, source.size_bytes, COMPARE_BYTES):
        digest.update(source.read_at(offset, min(COMPARE_BYTES, source.size_bytes - offset)))
    return digest.hexdigest() == etag


def lost_copy(
    store: ObjectStore,
    src: str,
    dst: str,
    src_if_match: str | None,
    attributes: Mapping[str, Any] | None,
) -> dict[str, Any] | None:
    """An answer with the ETag when `dst` is what our copy of `src` must have made.

    `attributes`: what the copy was to replace, or None. A plain copy keeps the ETag on S3; where it
    does not, the conflict stands.
    """
    try:
        old, new = store.head(src), store.head(dst)
    except NotFoundError:
        return None
    kind, metadata = old.content_type, old.metadata
    if attributes is not None:
        kind, metadata = attributes["ContentType"], attributes["Metadata"]
    found = (new.etag, new.size_bytes, new.content_type, new.metadata)
    if found != (src_if_match or old.etag, old.size_bytes, kind, metadata):
        return None
    return {"CopyObjectResult": {"ETag": new.etag}}
