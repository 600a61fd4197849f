"""The cache seen by other processes: read-only, one short transaction at a time.

Invariants
1. Never writes: LMDB is opened read-only, and nothing else below the cache directory is touched.
2. A read transaction is held only while copying out (freeze, inspection), never across the network.

Called by transfer (worker) and cache.inspect.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

import lmdb

from s3ws_fs.cache.cache import ReadContext
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE, open_env, open_tables
from s3ws_fs.core.errors import CacheError

READER_MAP_BYTES_MIN: Final = 64 << 30
READER_GROWTH_FACTOR: Final = 4
"""A reader maps this many times the file: it must not outgrow the map while the reader lives."""


class CacheReader:
    """A cache opened read-only. Thread-safe: each `read()` is a transaction of its own."""

    def __init__(self, directory: Path) -> None:
        data_dir = directory / DATA_DIR
        try:
            held_bytes = (data_dir / DATA_FILE).stat().st_size
            map_size = max(READER_MAP_BYTES_MIN, held_bytes * READER_GROWTH_FACTOR)
            self._env = open_env(data_dir, map_size=map_size, readonly=True)
            self._tables = open_tables(self._env, create=False)
        except (lmdb.Error, OSError) as exc:
            raise CacheError(
                f"the cache in {directory} can't be read: {exc}",
                remedy="Is it a workspace's cache directory, and may you read it?",
            ) from exc

    def read(self) -> ReadContext:
        """`with reader.read() as view:` one point in time."""
        return ReadContext(self._env, self._tables)

    def close(self) -> None:
        """Close it."""
        self._env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_reader(directory: Path) -> CacheReader:
    """Open a cache read-only. Raises CacheError."""
    return CacheReader(directory)
