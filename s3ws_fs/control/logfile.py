"""The daemon's log file: private, appended to, and never larger than a known size.

Invariants
1. Mode 0600, opened for appending: whoever holds a descriptor may cut it at any time.
2. At most LOG_BYTES_MAX bytes plus what one interval of `cap` adds, and one older file like it.

Called by launch (opens it as the daemon's standard error) and the daemon (caps it from a timer).
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Final

LOG_BYTES_MAX: Final = 4 * 1024 * 1024


def log_path(workspace_cache_dir: str) -> str:
    """The log of a workspace's daemon: beside its cache, so that it outlives a removed cache."""
    return workspace_cache_dir.rstrip("/") + ".log"


def open_log(path: str) -> int:
    """A descriptor for appending. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o600)
    try:
        os.fchmod(fd, 0o600)
        cap(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def cap(fd: int, path: str) -> bool:
    """When the log is full, keep it as `<path>.1` and start again; True when that was done.

    `fd` is the descriptor written to; nothing happens when it is not a regular file.
    """
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_size <= LOG_BYTES_MAX:
        return False
    # A copy, not a rename: other processes hold the same file as their standard error.
    older = Path(path + ".1")
    older.unlink(missing_ok=True)
    older_fd = os.open(older, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with Path(path).open("rb") as source, os.fdopen(older_fd, "wb") as target:
        shutil.copyfileobj(source, target)
    os.ftruncate(fd, 0)
    return True
