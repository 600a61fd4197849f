"""Where a mount may differ from a plain directory, and why: the allowances of the two-tree oracle.

Invariants
1. Every allowance of the oracle stands here, with the reason, and nowhere else.
2. An allowance is as narrow as its reason: one attribute, or the times of the inodes that one
   operation touched.

Called by tests.model.look and tests.model.twins.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TIMES_DIFFER_AFTER: Final = {
    "map_write": "a store through a mapping moves the times when the page is written back; ext4 "
    "moves them at the first store into a clean page",
    "msync": "see map_write: this is when pages are written back",
    "unmap": "see map_write",
    "posix_fallocate": "the kernel passes no fallocate to the daemon: glibc writes zeros where "
    "there are none, and writes nothing where all is allocated",
}
"""Operations after which mtime and ctime of the inode that they touch are not compared."""

TIMES_DIFFER_ON_FIFOS: Final = (
    "the kernel moves a pipe's bytes by itself, and moves no times of a FUSE inode for it"
)
"""Whatever is done with an open fifo, its mtime and ctime are not compared."""

MODES_LEFT_OUT: Final = {
    0o2644: "a write by who is not in the file's group clears setgid also without group execute; "
    "Linux clears it on FUSE (without HANDLE_KILLPRIV_V2) only together with group execute, and "
    "tells the daemon nothing of the writer",
}
"""Modes that the machine gives to no file."""

PAGE_BYTES: Final = 4096
COARSE_PROBES: Final = 20
CLOCK_REALTIME_COARSE: Final = 5
"""Linux's number; Python has no name for it."""


def shown(info: os.stat_result) -> tuple[int, ...]:
    """What must be the same on both sides of an inode's attributes, but for its number and times.

    Left out: st_size of directories (always 4,096 here; another filesystem counts its blocks or
    entries); st_blocks (extents here are 32 KiB); st_blksize.
    """
    size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
    return (info.st_mode, info.st_uid, info.st_gid, info.st_nlink, size, info.st_rdev)


def holds_too_much(info: os.stat_result) -> bool:
    """Whether a file of the mount counts for more than its bytes, in whole pages.

    How much it holds is not compared: see `shown`.
    """
    pages = -(-info.st_size // PAGE_BYTES)
    return stat.S_ISREG(info.st_mode) and info.st_blocks * 512 > pages * PAGE_BYTES


def fallocates_alike(flags: int, mode: int, uid: int) -> bool:
    """Whether posix_fallocate is comparable on a handle with these flags of a file of this mode.

    glibc's emulation (see TIMES_DIFFER_AFTER) reads what is there and can't write in between on a
    handle that appends (EBADF); where it writes nothing, it does not clear setuid and setgid.
    """
    clears = uid != 0 and mode & (stat.S_ISUID | stat.S_ISGID)
    return flags & (os.O_ACCMODE | os.O_APPEND) == os.O_RDWR and not clears


def has_own_position(mode: int, *, is_read: bool) -> bool:
    """Whether a handle's position is the filesystem's own affair: a directory that was read from.

    Some number of it is too large to read(2) from, which is EINVAL, before it is EISDIR.
    """
    return stat.S_ISDIR(mode) and is_read


@dataclass(frozen=True, slots=True)
class Native:
    """What the plain directory's filesystem can do, found by trying."""

    has_user_xattrs: bool
    """tmpfs of Linux before 6.6 has none: extended attributes are then left out."""
    has_fine_times: bool
    """Before Linux 6.13, and on tmpfs, time ticks with the timer: two changes may have one."""
    skips_same_xattr: bool
    """Setting an attribute to what it is moves no ctime: so on ext4 and here, not on tmpfs. Where
    the plain directory does otherwise, it is not tried."""

    def tick(self, *, is_touch: bool = False) -> None:
        """Wait until a change gets another time than the one before.

        is_touch: the time will be the kernel's "now" of utimensat, which reaches a FUSE filesystem
        as the kernel's tick: it may be the time that the file has.
        """
        if self.has_fine_times and not is_touch:
            return
        before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
        while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == before:
            pass


def probe(plain: Path) -> Native:
    """Try a plain directory; nothing is left in it."""
    path = plain / ".probe"
    path.touch()
    try:
        return Native(
            has_user_xattrs=_works(lambda: os.setxattr(path, "user.probe", b"x")),
            has_fine_times=all(_moves(path) for _ in range(COARSE_PROBES)),
            skips_same_xattr=_skips_same_xattr(path),
        )
    finally:
        path.unlink()


def _works(call: Callable[[], None]) -> bool:
    try:
        call()
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
        return False
    return True


def _skips_same_xattr(path: Path) -> bool:
    times = []
    for _ in range(2):
        _works(lambda: os.setxattr(path, "user.probe", b"y"))
        times.append(path.stat().st_ctime_ns)
        Native(False, has_fine_times=False, skips_same_xattr=False).tick()
    return times[0] == times[1]


def _moves(path: Path) -> bool:
    """Whether each of a few quick changes gets a time of its own."""
    above, other = path.parent, path.with_name(".other")
    seen = []
    changes: tuple[Callable[[], None], ...] = (path.touch, other.touch, other.unlink)
    for change in changes:
        change()
        seen.append(max(path.stat().st_ctime_ns, above.stat().st_mtime_ns))
    return len({*seen}) == len(seen)
