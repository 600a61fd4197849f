"""inotify by the C library, so that its tests need no package.

Called by the tests of e2e.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from types import TracebackType
from typing import Final, Self

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
DELETE_SELF: Final = 0x400
MOVE_SELF: Final = 0x800
IS_DIRECTORY: Final = 0x40000000

EVENT_S_MAX: Final = 30.0
_HEAD: Final = struct.Struct("iIII")
_NAMES: Final = {
    MODIFY: "modify", ATTRIB: "attrib", CLOSE_WRITE: "close_write", MOVED_FROM: "moved_from",
    MOVED_TO: "moved_to", CREATE: "create", DELETE: "delete", DELETE_SELF: "delete_self",
    MOVE_SELF: "move_self",
}  # fmt: skip
EVERYTHING: Final = sum(_NAMES)


class Watcher:
    """Watches paths; `take(n)` waits for n events."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._names: dict[int, str] = {}
        self._events: list[tuple[str, str, str]] = []

    def watch(self, path: os.PathLike[str], name: str = "", mask: int = EVERYTHING) -> None:
        """Watch a path; its events carry `name`."""
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
        if number < 0:
            raise OSError(ctypes.get_errno(), f"inotify_add_watch {path}")
        self._names[number] = name

    def take(self, count: int) -> list[tuple[str, str, str]]:
        """The next `count` events: name of the watch, kind, name of the entry."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while len(self._events) < count:
            assert poll.poll(EVENT_S_MAX * 1000), f"no further event after {self._events}"
            self._read()
        taken, self._events = self._events[:count], self._events[count:]
        return taken

    def _read(self) -> None:
        data = os.read(self._fd, 1 << 16)
        while data:
            number, mask, _, length = _HEAD.unpack_from(data)
            name = data[_HEAD.size : _HEAD.size + length].rstrip(b"\0").decode()
            data = data[_HEAD.size + length :]
            kind = next((word for bit, word in _NAMES.items() if mask & bit), "")
            if kind:
                self._events.append((self._names[number], kind, name))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)
