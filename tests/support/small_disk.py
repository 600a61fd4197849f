"""A disk of a few MiB, to be filled: a tmpfs, mounted by root and unmounted for sure.

Called by tests of full disks.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HOG_PIECE_BYTES = 1 << 16


@contextlib.contextmanager
def small_disk(directory: Path, mib: int) -> Iterator[Path]:
    """A tmpfs of `mib` MiB at `directory`. Skips the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("a small disk can only be mounted by root")
    directory.mkdir(exist_ok=True)
    options = f"size={mib}m,mode=0700"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", directory],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        # Detached: a process that a failed test left there must not keep it.
        subprocess.run(["umount", "-l", directory], check=True)


def free_bytes(directory: Path) -> int:
    """Free on the disk of `directory`."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def hog(path: Path, leave_bytes: int = 0) -> None:
    """Another program fills the disk, but for `leave_bytes`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        while (left := free_bytes(path.parent) - leave_bytes) > 0:
            try:
                os.write(fd, bytes(min(left, HOG_PIECE_BYTES)))
            except OSError:
                return
    finally:
        os.close(fd)
