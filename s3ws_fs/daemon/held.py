"""The daemon's side of its holder: what it took over, and what it says to it.

Invariants
1. Without a holder (started by itself, or the holder died) the daemon lives as it can: nothing here
   is needed to serve or to save.
2. A daemon whose holder died before the mount came to be ends: nobody waits for it.

Called by daemon.daemon and the daemon's entry. The holder's side is holder/main.py.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.fuse.mount import Held
from s3ws_fs.fuse.once import Once
from s3ws_fs.holder.memory import Memory

log = logging.getLogger(__name__)

_MOUNTED: Final = b"mounted"
_SERVING: Final = b"serving"
_BYTES_MAX: Final = 64


class HolderLine:
    """What this daemon has of its holder. kernel_fd: the connection taken over, None for the first
    daemon. restarts: how many daemons were there before; restarted_by: how the last one ended.
    """

    def __init__(
        self,
        line_fd: int,
        memory_fd: int,
        *,
        kernel_fd: int | None = None,
        restarts: int = 0,
        restarted_by: str = "",
    ) -> None:
        self._line = socket.socket(fileno=line_fd)
        self._line.set_inheritable(False)
        self.memory = Memory(memory_fd)
        os.close(memory_fd)
        if kernel_fd is not None:
            os.set_inheritable(kernel_fd, False)
        self.kernel_fd = kernel_fd
        self.restarts = restarts
        self.restarted_by = restarted_by
        self.pid: int | None = os.getppid()
        self.once: Once | None = None
        self.through = trio.Event()
        """All that the kernel had to send again has come."""

    @property
    def can_hand_on(self) -> bool:
        """Whether another daemon can take the mount over from here."""
        return self.pid is not None and self.memory.can_resend

    def open(self, cache: Cache) -> Held:
        """The cache was opened: find what is owed, and note from now on what is done."""
        self.once = Once(self.memory, cache.generation)
        if self.once.owed:
            log.info("operations done and perhaps not answered: %d", self.once.owed)
        cache.before_commit = self.once.committing
        return Held(self.memory, self.once, self.kernel_fd, self._keep, self.through.set)

    def _keep(self, kernel_fd: int) -> None:
        with contextlib.suppress(OSError):
            socket.send_fds(self._line, [_MOUNTED], [kernel_fd])

    def serving(self) -> None:
        """Say that requests are answered."""
        with contextlib.suppress(OSError):
            self._line.send(_SERVING)

    async def watch(self, on_lost: Callable[[], None]) -> None:
        """Until cancelled: note the holder's death, and call `on_lost`."""
        self._line.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(self._line)
            try:
                if self._line.recv(_BYTES_MAX):
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            break
        self.pid = None
        log.warning("the holder is gone: nobody would go on if this daemon died as well")
        on_lost()

    def status(self) -> dict[str, Any] | None:
        """Its part of the status document; None when the holder is gone."""
        if self.pid is None:
            return None
        return {
            "pid": self.pid,
            "restarts": self.restarts,
            "restarted_by": self.restarted_by or None,
            "can_replace": self.can_hand_on,
        }
