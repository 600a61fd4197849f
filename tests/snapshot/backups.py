"""Backups in a store, made without a mount.

Called by the tests of snapshot and cli.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import backups
from s3ws_fs.snapshot import archive
from s3ws_fs.snapshot.tree import take
from s3ws_fs.store.scoped import ScopedStore

NAME = "backup-20260131T120000Z"
LIMIT_BYTES = 1 << 30


def make(cache: Cache, store: ScopedStore, directory: Path, name: str = NAME) -> archive.Written:
    """Put a backup of the cache as it is."""
    directory.mkdir(exist_ok=True)
    index = io.BytesIO()
    packed = io.BytesIO()
    with (
        take(cache, directory, lambda: store, limit_bytes=LIMIT_BYTES) as tree,
        ThreadPoolExecutor(2) as pool,
    ):
        written = archive.write(tree, {"name": name}, packed, index, pool)
    store.put(backups.archive_key(name), packed.getvalue())
    store.put(
        backups.index_key(name),
        index.getvalue(),
        metadata={
            backups.META_BYTES: str(written.archive_bytes),
            backups.META_ENTRIES: str(written.entries),
        },
    )
    return written
