"""The same operations on a mount and on a plain directory: open files.

Invariants
1. A handle is a number, given by order of opening: a trace replays to the same numbers. `open`
   returns it, or the name of an errno; other methods of a handle that is not there do nothing.
2. After an operation that writes by a handle, all bytes behind it are the same on both sides.

Called through Twins (see twins).
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.model.differences import (
    TIMES_DIFFER_AFTER,
    Native,
    fallocates_alike,
    has_own_position,
)
from tests.model.doing import Fill, When, acting_as, fill, operation, times_set
from tests.model.look import HANDLE, MOUNT, PLAIN, bytes_of, drop_pages, on_both
from tests.model.names import Names

FLAGS: Final = {
    "rdonly": os.O_RDONLY,
    "wronly": os.O_WRONLY,
    "rdwr": os.O_RDWR,
    "creat": os.O_CREAT,
    "excl": os.O_EXCL,
    "trunc": os.O_TRUNC,
    "append": os.O_APPEND,
    "nofollow": os.O_NOFOLLOW,
    "directory": os.O_DIRECTORY,
    "path": os.O_PATH,
    "sync": os.O_SYNC,
}
OFD: Final = {"read": fcntl.F_RDLCK, "write": fcntl.F_WRLCK, "free": fcntl.F_UNLCK}


@dataclass(slots=True)
class Handle:
    """An open file on both sides; for a directory, what was read and what must be."""

    fds: tuple[int, int]
    mode: int
    stays: dict[str, int] = field(default_factory=dict)
    ever: set[str] = field(default_factory=set)
    read: list[list[str]] = field(default_factory=lambda: [[], []])
    cookies: list[int] = field(default_factory=list)
    """Where the mount's entries end, for seekdir."""


class Files(Names):
    """Operations by handle."""

    def __init__(self, mount: Path, plain: Path, native: Native) -> None:
        super().__init__(mount, plain, native)
        self.handles: dict[int, Handle] = {}
        self._given = 0
        self._touched: frozenset[int] = frozenset()

    # --- handles in general --------------------------------------------------------------------

    def handle_pairs(self) -> list[tuple[str, os.stat_result, os.stat_result]]:
        return [
            (f"{HANDLE}{number}", os.fstat(handle.fds[MOUNT]), os.fstat(handle.fds[PLAIN]))
            for number, handle in self.handles.items()
        ]

    def unlike_times(self) -> frozenset[int]:
        done = self.trace[-1][2:].partition("(")[0] if self.trace else ""
        inos = {
            os.fstat(handle.fds[MOUNT]).st_ino
            for handle in self.handles.values()
            if stat.S_ISFIFO(handle.mode)
        }
        return self._touched | inos if done in TIMES_DIFFER_AFTER else frozenset(inos)

    def _by_fd(self, number: int, do: Any, *, atime_set: bool = False, data: bool = False) -> Any:
        """`do(fd)` on both sides of a handle; `data`: then its bytes are compared."""
        handle = self.handles.get(number)
        if handle is None:
            return None
        self._touched = frozenset((os.fstat(handle.fds[MOUNT]).st_ino,))
        result = self.both(lambda side: do(handle.fds[side]), atime_set=atime_set)
        if data:
            self._same_bytes(handle)
        return result

    def _same_bytes(self, handle: Handle, *, dropped: bool = False) -> None:
        """The bytes behind a handle, however it was opened."""
        if not stat.S_ISREG(handle.mode):
            return
        bodies = []
        for fd in handle.fds:
            mine = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if dropped:
                    drop_pages(mine)
                bodies.append(bytes_of(mine, size=os.fstat(mine).st_size))
            finally:
                os.close(mine)
        self.same(*bodies)

    @operation
    def open(self, path: str, flags: str, mode: int = 0o644) -> Any:
        """`flags`: words of FLAGS. The handle's number."""
        bits = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        for word in flags.split():
            bits |= FLAGS[word]
        fds: list[int] = []

        def do(side: int) -> str:
            fds.append(os.open(self.at(side, path), bits, mode))
            return "open"

        with acting_as(self.uid):
            results = on_both(do)
        if results == ["open", "open"]:
            handle = Handle((fds[MOUNT], fds[PLAIN]), os.fstat(fds[PLAIN]).st_mode)
            self._given += 1
            self.handles[self._given] = handle
            self.opened(handle)
        else:
            for fd in fds:
                os.close(fd)
        self.same(*results)
        self.look(path)
        return self._given if fds else results[0]

    def opened(self, handle: Handle) -> None:
        """A handle was made."""

    @operation
    def close(self, handle: int) -> Any:
        result = self._by_fd_closing(handle)
        self.look()
        return result

    def _by_fd_closing(self, number: int) -> Any:
        handle = self.handles.pop(number, None)
        if handle is None:
            return None
        results = on_both(lambda side: os.close(handle.fds[side]))
        self.same(*results)
        return results[0]

    # --- bytes ---------------------------------------------------------------------------------

    @operation
    def read(self, handle: int, size: int) -> Any:
        found = self.handles.get(handle)
        if found is not None and has_own_position(found.mode, is_read=any(found.read)):
            return None
        return self._by_fd(handle, lambda fd: os.read(fd, size))

    @operation
    def pread(self, handle: int, offset: int, size: int) -> Any:
        return self._by_fd(handle, lambda fd: os.pread(fd, size, offset))

    @operation
    def write(self, handle: int, data: Fill) -> Any:
        return self._by_fd(handle, lambda fd: os.write(fd, fill(data)), data=True)

    @operation
    def pwrite(self, handle: int, offset: int, data: Fill) -> Any:
        return self._by_fd(handle, lambda fd: os.pwrite(fd, fill(data), offset), data=True)

    @operation
    def writev(self, handle: int, pieces: Sequence[Fill]) -> Any:
        return self._by_fd(
            handle, lambda fd: os.writev(fd, [fill(data) for data in pieces]), data=True
        )

    @operation
    def lseek(self, handle: int, offset: int, whence: int) -> Any:
        return self._by_fd(handle, lambda fd: os.lseek(fd, offset, whence))

    @operation
    def ftruncate(self, handle: int, size: int) -> Any:
        return self._by_fd(handle, lambda fd: os.ftruncate(fd, size), data=True)

    @operation
    def posix_fallocate(self, handle: int, offset: int, size: int) -> Any:
        if (found := self.handles.get(handle)) is None:
            return None
        flags = fcntl.fcntl(found.fds[PLAIN], fcntl.F_GETFL)
        if not fallocates_alike(flags, os.fstat(found.fds[PLAIN]).st_mode, self.uid):
            return None
        return self._by_fd(handle, lambda fd: os.posix_fallocate(fd, offset, size), data=True)

    @operation
    def copy_file_range(self, handle: int, other: int, size: int, at: int, to: int) -> Any:
        """From `handle` at `at` to `other` at `to`."""
        source, sink = self.handles.get(handle), self.handles.get(other)
        if source is None or sink is None:
            return None
        result = self.both(
            lambda side: os.copy_file_range(source.fds[side], sink.fds[side], size, at, to)
        )
        self._same_bytes(sink)
        return result

    @operation
    def drop(self, handle: int) -> Any:
        """The kernel forgets the file's pages, and what is then read is the same."""
        if (found := self.handles.get(handle)) is not None:
            self._same_bytes(found, dropped=True)

    @operation
    def fsync(self, handle: int, data_only: bool = False) -> Any:
        return self._by_fd(handle, os.fdatasync if data_only else os.fsync)

    # --- attributes and locks ------------------------------------------------------------------

    @operation
    def fchmod(self, handle: int, mode: int) -> Any:
        return self._by_fd(handle, lambda fd: os.fchmod(fd, mode))

    @operation
    def fchown(self, handle: int, uid: int, gid: int) -> Any:
        return self._by_fd(handle, lambda fd: os.fchown(fd, uid, gid))

    @operation
    def futime(self, handle: int, atime: int, mtime: int) -> Any:
        def do(fd: int) -> list[int]:
            os.utime(fd, ns=(atime, mtime))
            wanted: tuple[When, When] = (atime, mtime)
            return times_set(os.fstat(fd), *wanted)

        return self._by_fd(handle, do, atime_set=True)

    @operation
    def flock(self, handle: int, kind: str) -> Any:
        """`kind`: read, write, free; never waits."""
        how = {"read": fcntl.LOCK_SH, "write": fcntl.LOCK_EX, "free": fcntl.LOCK_UN}[kind]
        return self._by_fd(handle, lambda fd: fcntl.flock(fd, how | fcntl.LOCK_NB))

    @operation
    def ofd_lock(self, handle: int, kind: str, start: int, size: int) -> Any:
        """A lock of the open file description; never waits."""
        lock = struct.pack("hhqqi4x", OFD[kind], os.SEEK_SET, start, size, 0)
        return self._by_fd(handle, lambda fd: len(fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)))
