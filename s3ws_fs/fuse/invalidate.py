"""The kernel forgets what changed without it: names, absences, attributes, pages.

Invariants
1. When `forget` returns, what it was told of is forgotten: the next stat, lookup, open or read asks
   us. Changes are committed before it is called, so the answer is the new one.
2. The kernel blocks who invalidates a name until requests on that directory are answered, and who
   invalidates pages until reads of them are: it is done by a thread, and only while requests are
   served. One batch after the other, by one thread at a time.
3. Never called by a handler, nor with anything held that a handler waits for.
4. `close` comes before serving ends: it lets a batch under way finish. A thread that still waits
   then would wait for ever, in the kernel, where not even SIGKILL reaches it. Before `open`, and
   after `close`, the kernel has cached nothing that matters, and `forget` does nothing.

Called by the daemon, which passes `forget` to those who change files behind the kernel's back.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from typing import Final

import pyfuse3
import trio

from s3ws_fs.core.types import Outdated

BATCH_MAX: Final = 256
"""Names and inodes invalidated in one visit of the thread; between two it can be cancelled."""

_UNKNOWN: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
"""The kernel knows no such name or inode: there is nothing to forget."""

_GONE: Final = frozenset({errno.ENOTCONN, errno.ENODEV, errno.EPERM, errno.EBADF})
"""The mount is gone, and what the kernel cached of it too."""


class KernelCache:
    """What the kernel of one served mount has cached."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._serving = False

    def open(self) -> None:
        """Requests are served from now on."""
        self._serving = True

    async def forget(self, outdated: Outdated) -> None:
        """Make the kernel forget it. Raises OSError when it can't (then it may show the old)."""
        names, inodes = outdated.names, outdated.inodes
        async with self._lock:
            for at in range(0, len(names), BATCH_MAX):
                await self._visit(names[at : at + BATCH_MAX], ())
            for at in range(0, len(inodes), BATCH_MAX):
                await self._visit((), inodes[at : at + BATCH_MAX])

    async def unknown_of(self, inodes: Sequence[int]) -> list[int] | None:
        """Which of these inodes the kernel does not know (any more); None when it can't be asked.

        Those it knows lose their cached attributes.
        """
        async with self._lock:
            if not self._serving:
                return None
            return await trio.to_thread.run_sync(_unknown_of, inodes)

    async def _visit(self, names: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
        if self._serving:
            await trio.to_thread.run_sync(_invalidate, names, inodes)

    async def close(self) -> None:
        """Nothing is invalidated any more when this returns."""
        self._serving = False
        async with self._lock:
            return


def _invalidate(names: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
    for parent, name in names:
        with _forgiving():
            pyfuse3.invalidate_entry(parent, name)
    for inode in inodes:
        with _forgiving():
            pyfuse3.invalidate_inode(inode)


def _unknown_of(inodes: Sequence[int]) -> list[int]:
    unknown = []
    for inode in inodes:
        try:
            pyfuse3.invalidate_inode(inode, attr_only=True)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                unknown.append(inode)
            elif exc.errno not in _GONE:
                raise
    return unknown


@contextlib.contextmanager
def _forgiving() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in _UNKNOWN | _GONE:
            raise
