"""System calls that Python's os does not have, by libc.

Called by the tests of e2e.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

AT_FDCWD: Final = -100
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)

AnyPath = str | os.PathLike[str]


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def call(name: str, *arguments: Any) -> int:
    """A function of libc that answers -1 and errno when it fails. Raises OSError."""
    got: int = getattr(_libc, name)(*arguments)
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return got


def utimensat(path: AnyPath, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set times, each (seconds, nanoseconds), which may be UTIME_NOW or UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    call("utimensat", AT_FDCWD, os.fsencode(path), times, 0)


def renameat2(old: AnyPath, new: AnyPath, flags: int) -> None:
    """Rename with flags."""
    call("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


HANDLE_BYTES: Final = 128


class FileHandle(ctypes.Structure):
    """struct file_handle, as name_to_handle_at(2) fills it."""

    _fields_ = (
        ("bytes", ctypes.c_uint),
        ("kind", ctypes.c_int),
        ("data", ctypes.c_ubyte * HANDLE_BYTES),
    )


def handle_of(path: AnyPath) -> FileHandle:
    """The handle of a file."""
    handle, mount = FileHandle(HANDLE_BYTES), ctypes.c_int()
    name = os.fsencode(path)
    call("name_to_handle_at", AT_FDCWD, name, ctypes.byref(handle), ctypes.byref(mount), 0)
    return handle


def open_handle(mount: AnyPath, handle: FileHandle, flags: int) -> int:
    """Open a file by its handle; needs CAP_DAC_READ_SEARCH."""
    fd = os.open(mount, os.O_RDONLY)
    try:
        return call("open_by_handle_at", fd, ctypes.byref(handle), flags)
    finally:
        os.close(fd)
