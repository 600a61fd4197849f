"""The same operations on a mount and on a plain directory: reading directories piece by piece.

Invariants
1. A directory's handle shows, from its beginning to its end, every entry that stays exactly once,
   and none that never was there. That is checked of the mount; what another filesystem does in
   between is its own affair, and only errors are compared.

Called through Twins (see twins).
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from typing import Any, Final

from tests.model.doing import acting_as, operation
from tests.model.files import Files, Handle
from tests.model.look import MOUNT, PLAIN, Difference, on_both, outcome

DIRENT: Final = struct.Struct("=QqHB")
"""struct linux_dirent64, up to the name."""

_libc = ctypes.CDLL(None, use_errno=True)


class Listings(Files):
    """Operations on handles of directories."""

    def handle_pairs(self) -> list[tuple[str, os.stat_result, os.stat_result]]:
        self._note_listings()
        return super().handle_pairs()

    def opened(self, handle: Handle) -> None:
        self._begin_listing(handle)

    def _begin_listing(self, handle: Handle) -> None:
        if stat.S_ISDIR(handle.mode):
            handle.stays = self._listing(handle)
            handle.ever = set(handle.stays)
            handle.read = [[], []]
            handle.cookies = []

    def _listing(self, handle: Handle) -> dict[str, int]:
        path = f"/proc/self/fd/{handle.fds[PLAIN]}"
        listed = outcome(lambda: [(e.name, e.inode()) for e in os.scandir(path)])
        return {} if isinstance(listed, str) else dict(listed)

    def _note_listings(self) -> None:
        """What came, and what went, while a directory is being read."""
        for handle in self.handles.values():
            if stat.S_ISDIR(handle.mode):
                now = self._listing(handle)
                handle.ever |= now.keys()
                handle.stays = {n: i for n, i in handle.stays.items() if now.get(n) == i}

    @operation
    def readdir(self, number: int, size: int) -> Any:
        """Read on with a buffer of `size` bytes; at the end invariant 1 is checked."""
        handle = self.handles.get(number)
        if handle is None:
            return None

        def do(side: int) -> str:
            got = getdents(handle.fds[side], size)
            handle.read[side] += [name for name, _ in got]
            if side == MOUNT:
                handle.cookies += [cookie for _, cookie in got]
            return "entries" if got else "end"

        with acting_as(self.uid):
            results = on_both(do)
        if results[MOUNT] == "end":
            check_listing(handle.read[MOUNT], stay=handle.stays, ever=handle.ever)
        if set(results) - {"entries", "end"}:
            self.same(*results)
        self.look()
        return results[0]

    @operation
    def seekdir(self, number: int, index: int) -> Any:
        """Back behind the entry that was read as number `index`; 0: to the beginning."""
        handle = self.handles.get(number)
        if handle is None or not stat.S_ISDIR(handle.mode):
            return None
        index = min(index, len(handle.cookies))
        if index == 0:
            self.same(*on_both(lambda side: os.lseek(handle.fds[side], 0, os.SEEK_SET)))
            self._begin_listing(handle)
        else:
            os.lseek(handle.fds[MOUNT], handle.cookies[index - 1], os.SEEK_SET)
            del handle.cookies[index:], handle.read[MOUNT][index:]
        return index


def check_listing(names: list[str], *, stay: Iterable[str], ever: Iterable[str]) -> None:
    """Invariant 1 of a directory that was read as `names`. Raises Difference."""
    wrong = [name for name in (".", "..", *stay) if names.count(name) != 1]
    strange = set(names) - {".", "..", *ever}
    if wrong or strange:
        raise Difference(f"a directory's {names}: not exactly once {wrong}, never there {strange}")


def getdents(fd: int, size: int) -> list[tuple[str, int]]:
    """getdents64(2): names, and the position behind each. Raises OSError."""
    buffer = ctypes.create_string_buffer(size)
    count = _libc.getdents64(fd, buffer, ctypes.c_size_t(size))
    if count < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    found, at, raw = [], 0, buffer.raw
    while at < count:
        _, cookie, length, _ = DIRENT.unpack_from(raw, at)
        name = raw[at + DIRENT.size : at + length].split(b"\0", 1)[0]
        found.append((os.fsdecode(name), cookie))
        at += length
    return found
