"""The kernel forgets what changed without it: names, absences, attributes, pages.

Invariants
1. When `forget` returns, what it was told of is forgotten: the next stat, lookup, open or read asks
   us. Changes are committed before it is called, so the answer is the new one.
2. The kernel blocks who invalidates a name until requests on that directory are answered, and who
   invalidates pages until reads of them are, and then not even SIGKILL ends the waiting. So a small
   process of its own does it (fuse.notifier), never this one: a daemon that dies meanwhile is dead
   at once, the next one answers those requests, and that process ends by itself.
3. Only while requests are served. One batch after the other, by one process at a time. A batch
   whose caller is cancelled is done to its end all the same.
4. Never called by a handler, nor with anything held that a handler waits for.
5. `close` comes before serving ends: it lets a batch under way finish. Before `open`, and after
   `close`, the kernel has cached nothing that matters, and `forget` does nothing.

Called by the daemon, which passes `forget` to those who change files behind the kernel's back.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from s3ws_fs.core.types import Outdated
from s3ws_fs.fuse import notifier

BATCH_MAX: Final = 256
"""Names and inodes invalidated at once; between two it can be cancelled."""

TRIES_MAX: Final = 3
"""How often a batch is handed over anew when the process that was to do it died."""

_UNKNOWN: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
"""The kernel knows no such name or inode: there is nothing to forget."""

_GONE: Final = frozenset({errno.ENOTCONN, errno.ENODEV, errno.EPERM, errno.EBADF})
"""The mount is gone, and what the kernel cached of it too."""

_OUT_HEADER: Final = struct.Struct("=IiQ")
"""Length; which notification; 0, for it answers no request."""
_INVAL_INODE: Final = struct.Struct("=Qqq")
"""Inode, offset, length: (0, 0) is all pages, a negative offset none."""
_INVAL_ENTRY: Final = struct.Struct("=QII")
"""Parent, length of the name, flags; the name and a zero follow."""


_NEW_EPOCH: Final = _OUT_HEADER.pack(_OUT_HEADER.size, 8, 0)
"""FUSE_NOTIFY_INC_EPOCH: names that were learned before it have to be looked up again."""


def inode_notice(inode: int, *, attr_only: bool = False) -> bytes:
    """The notification that has the kernel forget an inode's attributes, and pages."""
    length = _OUT_HEADER.size + _INVAL_INODE.size
    offset = -1 if attr_only else 0
    return _OUT_HEADER.pack(length, 2, 0) + _INVAL_INODE.pack(inode, offset, 0)


def entry_notice(parent: int, name: bytes) -> bytes:
    """The notification that has the kernel forget what is, or is not, behind a name."""
    length = _OUT_HEADER.size + _INVAL_ENTRY.size + len(name) + 1
    return b"%b%b%b\0" % (
        _OUT_HEADER.pack(length, 3, 0),
        _INVAL_ENTRY.pack(parent, len(name), 0),
        name,
    )


@dataclass(eq=False, slots=True)
class Notifier:
    """The process, as it is seen from here."""

    line: trio.socket.SocketType
    ended: trio.Event = field(default_factory=trio.Event)

    async def bury(self, process: trio.Process) -> None:
        """Until it has ended."""
        await process.wait()
        self.ended.set()


async def start_process(kernel_fd: int) -> Notifier:
    """Start one. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        numbers = (kernel_fd, theirs.fileno())
        program = str(Path(notifier.__file__))
        process = await trio.lowlevel.open_process(
            [sys.executable, "-I", "-S", "-E", program, *map(str, numbers)],
            pass_fds=numbers,
            # No secret is for it, nor the directory we stand in.
            env={"PATH": os.environ.get("PATH", os.defpath)},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    started = Notifier(trio.socket.from_stdlib_socket(ours))
    trio.lowlevel.spawn_system_task(started.bury, process)
    return started


Start = Callable[[int], Awaitable[Notifier]]


class KernelCache:
    """What the kernel of one served mount has cached."""

    def __init__(self, start: Start = start_process) -> None:
        self._start = start
        self._lock = trio.Lock()
        self._kernel_fd: int | None = None
        self._notifier: Notifier | None = None

    def open(self, kernel_fd: int) -> None:
        """Requests are served from now on; `kernel_fd` is the connection, and stays open."""
        self._kernel_fd = kernel_fd

    async def forget(self, outdated: Outdated) -> None:
        """Make the kernel forget it. Raises OSError when it can't (then it may show the old)."""
        names, inodes, attributes = outdated.names, outdated.inodes, outdated.attributes
        async with self._lock:
            for at in range(0, len(names), BATCH_MAX):
                await self._tell([entry_notice(*name) for name in names[at : at + BATCH_MAX]])
            for at in range(0, len(inodes), BATCH_MAX):
                await self._tell([inode_notice(inode) for inode in inodes[at : at + BATCH_MAX]])
            for at in range(0, len(attributes), BATCH_MAX):
                part = attributes[at : at + BATCH_MAX]
                await self._tell([inode_notice(inode, attr_only=True) for inode in part])

    def renew(self) -> bool:
        """Have the kernel ask anew for every name, whatever it knew; at once, and without waiting.

        False where it can't be told so (Linux before 6.16): then names are forgotten one by one.
        What is behind a name that nobody asks for stays known until it is forgotten.
        """
        if self._kernel_fd is None:
            return True
        try:
            os.write(self._kernel_fd, _NEW_EPOCH)
        except OSError as exc:
            return exc.errno in _GONE
        return True

    async def unknown_of(self, inodes: Sequence[int]) -> list[int] | None:
        """Which of these inodes the kernel does not know (any more); None when it can't be asked.

        Those it knows lose their cached attributes. This never waits for a request.
        """
        async with self._lock:
            if self._kernel_fd is None:
                return None
            return await trio.to_thread.run_sync(_unknown_of, inodes)

    async def _tell(self, notices: Sequence[bytes]) -> None:
        if self._kernel_fd is None:
            return
        for _ in range(TRIES_MAX):
            if self._notifier is None:
                self._notifier = await self._start(self._kernel_fd)
            codes = await self._exchange(self._notifier.line, b"".join(notices))
            if codes is not None:
                for code in set(codes) - _UNKNOWN - _GONE - {0}:
                    raise OSError(code, os.strerror(code))
                return
            self._hang_up()
        raise OSError(errno.EIO, "the process that has the kernel forget died again and again")

    async def _exchange(
        self, line: trio.socket.SocketType, batch: bytes
    ) -> array.array[int] | None:
        """What came of each notification; None when the process is gone."""
        codes = array.array("i")
        try:
            await line.send(batch)
            answer = await line.recv(BATCH_MAX * notifier.ERRNO_BYTES)
        except OSError:
            return None
        except trio.Cancelled:
            # Its answer would be taken for that to the next batch.
            self._hang_up()
            raise
        codes.frombytes(answer)
        return codes or None

    def _hang_up(self) -> None:
        if self._notifier is not None:
            self._notifier.line.close()
            self._notifier = None

    async def close(self) -> None:
        """Nothing is invalidated any more when this returns, and nobody else has the connection."""
        self._kernel_fd = None
        async with self._lock:
            last = self._notifier
            self._hang_up()
            if last is not None:
                await last.ended.wait()


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
