"""Whose a cache directory is: the lock of the daemon that has it open, the workspace it belongs to.

Invariants
1. A directory has one daemon at a time: the lock is the kernel's, and goes with the process.
2. A cache of another workspace, bucket or format is refused before anything in it is touched.

Called by cache.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from s3ws_fs.cache import syncpoint
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import CacheError, ExitCode, FormatError

LOCK_FILE: Final = "lock"
LOCK_BYTES: Final = 32
IDENTITY_FILE: Final = "identity.json"


def lock(directory: Path) -> int:
    """Take the lock; returns its descriptor.

    Raises CacheError when another daemon has it, FileNotFoundError when the directory just goes.
    """
    path = directory / LOCK_FILE
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, LOCK_BYTES).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise CacheError(
            f"the cache in {directory} is in use by the daemon with pid {holder}",
            remedy="This workspace is mounted already on this host: see `s3ws status`.",
            exit_code=ExitCode.ALREADY_MOUNTED,
        ) from None
    try:
        is_there = path.stat().st_ino == os.fstat(fd).st_ino
    except OSError:
        is_there = False
    if not is_there:
        # Whoever removed the directory had the lock until now.
        os.close(fd)
        raise FileNotFoundError(errno.ENOENT, "the cache was removed just now", str(directory))
    # Never cut off: on a full disk its block would not come back. It only tells a person.
    with contextlib.suppress(OSError):
        os.pwrite(fd, f"{os.getpid()}\n".encode().ljust(LOCK_BYTES), 0)
        os.ftruncate(fd, LOCK_BYTES)
    return fd


def check_identity(directory: Path, wanted: dict[str, object]) -> None:
    """Raise CacheError unless the directory is new, or belongs to that."""
    path = directory / IDENTITY_FILE
    try:
        found = jsontext.value_of(path.read_bytes(), str(path))
    except FileNotFoundError:
        if (directory / DATA_DIR / DATA_FILE).exists():
            raise CacheError(
                f"the cache in {directory} does not say which workspace it belongs to",
                remedy=f"Its {IDENTITY_FILE} is missing. Choose another WORKSPACE_CACHE_DIR.",
            ) from None
        syncpoint.write_json(path, wanted)
        return
    except FormatError as exc:
        raise CacheError(
            f"{path} is not readable: {exc.why}",
            remedy="Choose another WORKSPACE_CACHE_DIR, and keep this one for inspection.",
        ) from exc
    for field, value in wanted.items():
        if not isinstance(found, dict) or found.get(field) != value:
            has = found.get(field) if isinstance(found, dict) else found
            raise CacheError(
                f"the cache in {directory} belongs to another workspace: {field} is {has!r:.200}, "
                f"not {value!r}",
                remedy="Choose another WORKSPACE_CACHE_DIR, or mount the workspace it belongs to.",
            )
