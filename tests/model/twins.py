"""Twins: a directory on a mount and a plain one, and every operation that is done on both.

Invariants
1. A mapping is a number, as a handle is (see files).
2. No page beyond a file's end is touched through a mapping (that is SIGBUS).

Operations by path are in names, by handle in files, on open directories in listings. Called by
machine, world and tests.model.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.model.differences import Native
from tests.model.doing import Fill, fill, operation
from tests.model.listings import Listings
from tests.model.look import MOUNT, PLAIN


@dataclass(slots=True)
class Mapping:
    """A mapping on both sides, `start` bytes into the file."""

    views: tuple[mmap.mmap, mmap.mmap]
    start: int
    ino: int
    is_shared: bool

    def room(self) -> int:
        """How many of its bytes are within the file on both sides."""
        return max(0, min(*(min(len(view), view.size() - self.start) for view in self.views)))


class Twins(Listings):
    """Everything that is done on both trees."""

    def __init__(self, mount: Path, plain: Path, native: Native) -> None:
        super().__init__(mount, plain, native)
        self.maps: dict[int, Mapping] = {}
        self.on_event: Callable[[str, Twins], None] | None = None
        self.look()

    @operation
    def event(self, name: str) -> None:
        """Something happens to the workspace (see world); afterwards all is as it was."""
        assert self.on_event is not None, "these twins have no world"
        for mapping in self.maps.values():
            # A store through a mapping is nobody's promise before msync.
            for view in mapping.views:
                view.flush()
        self.look()
        self.watch.loose.clear()
        self.on_event(name, self)
        self.look()

    def close_all(self) -> None:
        """Handles and mappings, whatever a mount that is dead says to it."""
        for mapping in self.maps.values():
            for view in mapping.views:
                with contextlib.suppress(OSError):
                    view.close()
        for handle in self.handles.values():
            for fd in handle.fds:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.maps.clear()
        self.handles.clear()
        self.watch.loose.clear()

    # --- mappings ------------------------------------------------------------------------------

    @operation
    def map(self, handle: int, start: int, size: int, shared: bool, writable: bool) -> Any:
        """mmap(2); the mapping's number. Not more than the file has (Python maps no more)."""
        found = self.handles.get(handle)
        if found is None or not stat.S_ISREG(found.mode):
            return None
        start -= start % mmap.ALLOCATIONGRANULARITY
        size = min(size, os.fstat(found.fds[PLAIN]).st_size - start)
        if size <= 0:
            return None
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        views: list[mmap.mmap] = []

        def do(side: int) -> str:
            views.append(mmap.mmap(found.fds[side], size, flags, protection, offset=start))
            return "mapped"

        result = self.both(do)
        if result == "mapped":
            self._given += 1
            ino = os.fstat(found.fds[MOUNT]).st_ino
            self.maps[self._given] = Mapping((views[0], views[1]), start, ino, shared)
            return self._given
        return result

    @operation
    def map_read(self, number: int, at: int, size: int) -> Any:
        mapping = self._mapping(number)
        if mapping is None:
            return None
        end = min(at + size, mapping.room())
        return self.both(lambda side: mapping.views[side][at:end])

    @operation
    def map_write(self, number: int, at: int, data: Fill) -> Any:
        """As much of the data as stands within the file."""
        mapping = self._mapping(number)
        if mapping is None:
            return None
        body = fill(data)[: max(0, mapping.room() - at)]
        if not body:
            return None
        if mapping.is_shared:
            self.watch.loose.add(mapping.ino)

        def do(side: int) -> int:
            try:
                mapping.views[side][at : at + len(body)] = body
            except TypeError:
                return 0
            return len(body)

        return self.both(do)

    @operation
    def msync(self, number: int) -> Any:
        mapping = self._mapping(number)
        if mapping is None:
            return None
        result = self.both(lambda side: mapping.views[side].flush())
        self._written_back(mapping)
        return result

    @operation
    def unmap(self, number: int) -> Any:
        mapping = self._mapping(number)
        if mapping is None:
            return None
        del self.maps[number]
        result = self.both(lambda side: mapping.views[side].close())
        self._written_back(mapping)
        return result

    def _mapping(self, number: int) -> Mapping | None:
        mapping = self.maps.get(number)
        self._touched = frozenset() if mapping is None else frozenset((mapping.ino,))
        return mapping

    def _written_back(self, mapping: Mapping) -> None:
        """Times are compared again from now on, unless there is another mapping."""
        if not any(other.ino == mapping.ino for other in self.maps.values()):
            self.watch.loose.discard(mapping.ino)
