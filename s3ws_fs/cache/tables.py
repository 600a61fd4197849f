"""The LMDB environment of one workspace: how it is opened, and its tables.

Invariants
1. The engine is pinned (`LIB_VERSION`) and never `writemap`: meta pages are written by pwrite, so a
   copy of the first two pages of the file is a copy of the meta pages (syncpoint.py relies on it).
2. Commits are unsynced; what survives a power cut is decided by sync points alone.
3. One process opens it for writing (the daemon, under a lock file); others open it read-only.

Called by cache only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb

LIB_VERSION: Final = 0
"""The 0.9 format: py-lmdb bundles two formats that can't read each other."""
MAX_READERS: Final = 126
MAX_DBS: Final = 16
MAP_BYTES_MIN: Final = 1 << 30
MAP_QUOTA_FACTOR: Final = 4
"""Map = quota x this + MAP_BYTES_MIN: room for copy-on-write, pages kept by a pin, metadata."""

DATA_DIR: Final = "data"
DATA_FILE: Final = "data.mdb"
ENGINE_LOCK_FILE: Final = "lock.mdb"
ENGINE_LOCK_BYTES: Final = 8192
"""What the engine makes it for MAX_READERS."""

TABLES: Final = (
    "inodes",
    "dentries",
    "extents",
    "chunks",
    "xattrs",
    "links",
    "dirty",
    "orphans",
    "mtodo",
    "mirror",
    "mirrori",
    "meta",
)


def map_bytes(quota_bytes: int) -> int:
    """Size of the memory map for a workspace of this quota (address space, not disk)."""
    return quota_bytes * MAP_QUOTA_FACTOR + MAP_BYTES_MIN


@dataclass(frozen=True, slots=True)
class Tables:
    """Handles of the named databases; fields are the names of TABLES."""

    inodes: lmdb._Database
    dentries: lmdb._Database
    extents: lmdb._Database
    chunks: lmdb._Database
    xattrs: lmdb._Database
    links: lmdb._Database
    dirty: lmdb._Database
    orphans: lmdb._Database
    mtodo: lmdb._Database
    mirror: lmdb._Database
    mirrori: lmdb._Database
    meta: lmdb._Database


def open_env(data_dir: Path, *, map_size: int, readonly: bool) -> lmdb.Environment:
    """Open (when writable: create) the environment. Raises lmdb.Error, OSError (disk full)."""
    if not readonly:
        _fill_lock_file(data_dir / ENGINE_LOCK_FILE)
    return lmdb.Environment(
        str(data_dir),
        map_size=map_size,
        readonly=readonly,
        create=not readonly,
        mode=0o600,
        sync=False,
        metasync=False,
        writemap=False,
        meminit=False,
        readahead=False,
        max_readers=MAX_READERS,
        max_dbs=MAX_DBS,
        max_spare_txns=4,
        lib_version=LIB_VERSION,
    )


def _fill_lock_file(path: Path) -> None:
    """The engine maps its lock file with holes: on a full disk, touching one would be SIGBUS.

    To be done before it has it open: closing any descriptor of a file drops all locks on it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, ENGINE_LOCK_BYTES)
    finally:
        os.close(fd)


def open_tables(env: lmdb.Environment, *, create: bool) -> Tables:
    """Open all tables. Raises lmdb.Error when one is missing and `create` is false."""
    return Tables(**{name: env.open_db(name.encode(), create=create) for name in TABLES})
