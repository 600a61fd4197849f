"""The descriptor that libfuse serves, when a holder keeps the connection behind it.

libfuse can only begin a session by answering INIT, and the kernel asks that once. So at the
beginning it reads from a file in memory, with one request in it at a time, and its answers go
there too; from then on, from the kernel itself (dup2).

    first daemon    INIT is read, noted in the holder's memory, and handed over; so is the answer
                    (INIT as fuse.greeting shows it)
    a later one     the INIT noted is played to it, its answer is dropped; then the kernel is asked
                    for what was never answered, and each of these requests is handed over

Invariants
1. While `step` has work, every request passes through it, so it is known which were sent again (the
   kernel marks them, and gives them out before all others): only these may be answered by what is
   noted (fuse.once).
2. `step` runs in one step of the loop, just before libfuse reads; answers that meanwhile went to
   the file in memory are passed on to the kernel by the next.
3. A daemon whose INIT ends otherwise than the first one's must not serve: the kernel holds to that.
4. The connection itself stays open when libfuse closes its descriptor.

Called by fuse.mount and fuse.wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
from collections.abc import Callable
from typing import Final

from s3ws_fs.core.errors import UserError
from s3ws_fs.fuse import greeting
from s3ws_fs.fuse.once import Once
from s3ws_fs.holder.memory import Memory

_IN_HEADER: Final = struct.Struct("=IIQ")
"""len, opcode, unique; more follows, 40 bytes in all."""
_OUT_HEADER: Final = struct.Struct("=IiQ")
_INIT: Final = 26
_WITHOUT_ANSWER: Final = frozenset({2, 36, 42})
"""INTERRUPT, FORGET, BATCH_FORGET: these may come between, and are never sent again."""
_UNIQUE_RESEND: Final = 1 << 63
_NOTIFY_RESEND: Final = _OUT_HEADER.pack(_OUT_HEADER.size, 7, 0)
_MAX_WRITE_AT: Final = _OUT_HEADER.size + 20
_BUFFER_EXTRA_BYTES: Final = 8192
"""What the kernel wants a reader to have room for, beside the largest write."""


class Device:
    """One daemon's way to the kernel. `number` is the descriptor for libfuse.

    memory, once: those of the holder. adopted: the mount stood before this daemon. through: called
    when there is nothing left to do here. keeps_pages: see fuse.greeting.
    """

    def __init__(
        self,
        kernel_fd: int,
        memory: Memory,
        once: Once,
        *,
        adopted: bool,
        through: Callable[[], None],
        keeps_pages: bool = True,
    ) -> None:
        self.kernel_fd = kernel_fd
        self._memory = memory
        self._keeps_pages = keeps_pages
        self.once = once
        self._through = through
        self._poll = select.poll()
        self._poll.register(kernel_fd, select.POLLIN)
        self._step: Callable[[], bool] = self._play_init if adopted else self._await_init
        self._file: tuple[int, int] | None = None
        """The file in memory that libfuse reads, and how long the request in it is."""
        self._raw = b""
        self.number = os.dup(kernel_fd)
        self.is_direct = False
        """libfuse reads from the kernel itself: `step` has nothing to do any more."""

    def step(self) -> bool:
        """Whether libfuse may read its next request now; if not, wait for the kernel's.

        Raises UserError (invariant 3), OSError.
        """
        self.once.resent = None
        self.once.reading()
        return self._step()

    # --- INIT ------------------------------------------------------------------------------

    def _await_init(self) -> bool:
        if not self._poll.poll(0):
            return False
        self._raw = os.read(self.kernel_fd, _BUFFER_EXTRA_BYTES)
        self._greet(b"")
        self._step = self._answer_init
        return True

    def _greet(self, reply: bytes) -> None:
        self._hand_over(greeting.shown(self._raw, reply, keeps_pages=self._keeps_pages))

    def _answer_init(self) -> bool:
        for reply in self._take_replies():
            # Noted first: should we die in between, the next daemon answers INIT with it.
            self._memory.set_init(self._raw, reply)
            self._send(reply)
        self._go_direct()
        return False

    def _play_init(self) -> bool:
        self._raw = self._memory.init_request
        self._greet(self._memory.init_reply)
        self._step = self._compare_init
        return True

    def _compare_init(self) -> bool:
        body = slice(_OUT_HEADER.size, None)
        if [reply[body] for reply in self._take_replies()] != [self._memory.init_reply[body]]:
            raise UserError(
                "this version agrees on another protocol with the kernel than the one that mounted",
                remedy="unmount, and mount again",
            )
        self._send(_NOTIFY_RESEND)
        self._step = self._next_resent
        return self._next_resent()

    # --- what was never answered -----------------------------------------------------------

    def _next_resent(self) -> bool:
        for reply in self._take_replies():
            self._send(reply)
        while self._poll.poll(0):
            room = struct.unpack_from("=I", self._memory.init_reply, _MAX_WRITE_AT)[0]
            try:
                raw = os.read(self.kernel_fd, room + _BUFFER_EXTRA_BYTES)
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    # The one who asked was killed meanwhile.
                    continue
                # The mount is gone: libfuse is told the same when it reads.
                break
            _, opcode, unique = _IN_HEADER.unpack_from(raw)
            is_resent = bool(unique & _UNIQUE_RESEND)
            if opcode == _INIT:
                self._send_init_reply(unique)
                continue
            self._hand_over(raw)
            if is_resent:
                self.once.resent = raw
            elif opcode not in _WITHOUT_ANSWER:
                self._all_came()
            return True
        self._all_came()
        self._go_direct()
        return False

    def _all_came(self) -> None:
        """From here on only new requests come."""
        self.once.all_came()
        self._step = self._last_replies

    def _last_replies(self) -> bool:
        for reply in self._take_replies():
            self._send(reply)
        self._go_direct()
        return False

    def _send_init_reply(self, unique: int) -> None:
        reply = self._memory.init_reply
        self._send(_OUT_HEADER.pack(len(reply), 0, unique) + reply[_OUT_HEADER.size :])

    # --- the file in memory ----------------------------------------------------------------

    def _hand_over(self, raw: bytes) -> None:
        file = os.memfd_create("s3ws-request", os.MFD_CLOEXEC)
        os.write(file, raw)
        os.lseek(file, 0, os.SEEK_SET)
        os.dup2(file, self.number, inheritable=False)
        self._file = file, len(raw)

    def _take_replies(self) -> list[bytes]:
        """What libfuse wrote since `_hand_over`, message by message."""
        if self._file is None:
            return []
        file, at = self._file
        self._file = None
        data = os.pread(file, os.fstat(file).st_size - at, at)
        os.close(file)
        replies = []
        while data:
            length = _OUT_HEADER.unpack_from(data)[0]
            replies.append(data[:length])
            data = data[length:]
        return replies

    def _send(self, message: bytes) -> None:
        # ENOENT: whoever asked is gone. Anything else means that the mount is.
        with contextlib.suppress(OSError):
            os.write(self.kernel_fd, message)

    def _go_direct(self) -> None:
        os.dup2(self.kernel_fd, self.number, inheritable=False)
        self._raw = b""
        self.is_direct = True
        self._through()
