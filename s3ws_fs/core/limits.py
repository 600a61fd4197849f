"""Named limits that more than one layer needs. A limit used by one module stands in that module.

Invariants
1. Units end names. 2. Each limit has a test at the limit.

Called by every layer.
"""

from __future__ import annotations

from typing import Final

FORMAT_VERSION: Final = 1
"""Version of the bucket format and of the cache format (docs/format.md)."""

EXTENT_BYTES: Final = 32 * 1024
"""Size of an extent (docs/decisions/0001): the piece of a file stored, dirtied and shipped."""

NAME_BYTES_MAX: Final = 255
SYMLINK_BYTES_MAX: Final = 4095
FILE_BYTES_MAX: Final = 8 << 40
"""Largest file size accepted (EFBIG beyond): keeps extent numbers within 32 bits."""
XATTR_NAME_BYTES_MAX: Final = 255
XATTR_VALUE_BYTES_MAX: Final = 64 * 1024
XATTR_LIST_BYTES_MAX: Final = 64 * 1024
LINKS_MAX: Final = 65_000
"""Hard links to one inode (EMLINK beyond), as on ext4."""
TIME_NS_MIN: Final = -(1 << 63)
TIME_NS_MAX: Final = (1 << 63) - 1
"""Times a record can hold: the years 1677 to 2262. Others become the nearest, as on ext4."""
