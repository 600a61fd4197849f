"""What one daemon leaves to the next: a page of memory that the holder keeps open between them.

    offset      what
    0           magic with the version of this layout
    8           number of the kernel's connection, plus one
    16, 20      lengths of the INIT request and of our reply to it (0: not there yet)
    24          1 when the daemon answered a change that came new to it
    64, 1024    these two
    2048        SLOTS of SLOT_BYTES each: generation (0: empty), result, hash of the request
                (see fuse.once)

Invariants
1. It lives as long as the holder and the daemons: a SIGKILL loses nothing of it. It means nothing
   after a reboot, and so is never on a disk.
2. Each number is written by one store of eight bytes, or is not read before what follows it counts:
   a daemon that dies while it writes leaves the old state or the new.
3. Numbers are in the machine's byte order, as FUSE's own are.

Called by the holder, and by the fuse layer of its daemon.
"""

from __future__ import annotations

import mmap
import os
import sys

MAGIC = b"s3wsmem1"
BYTES = 8192
WORKED_AT = 24
INIT_AT = 64
REPLY_AT = 1024
INIT_BYTES_MAX = REPLY_AT - INIT_AT
SLOTS_AT = 2048
REPLY_BYTES_MAX = SLOTS_AT - REPLY_AT
SLOTS = 64
SLOT_BYTES = 32

FLAGS_AT = 40 + 12
FLAGS2_AT = 40 + 16
"""Where an INIT request has its flags, and the second word of them (fuse_init_in)."""
INIT_EXT = 1 << 30
HAS_RESEND = 1 << (39 - 32)
"""The kernel can send unanswered requests again: since Linux 6.9."""


class Memory:
    """The page, mapped."""

    def __init__(self, fd: int) -> None:
        """Map the memory file `fd`, which stays the caller's. ValueError if it is not one."""
        self.map = mmap.mmap(fd, BYTES)
        if self.map[:8] != MAGIC:
            raise ValueError("not the memory of a holder of this version")

    def _number(self, at: int, count: int) -> int:
        return int.from_bytes(self.map[at : at + count], sys.byteorder)

    @property
    def connection(self) -> int | None:
        """The kernel's number of the connection; None before the mount."""
        number = self._number(8, 8)
        return number - 1 if number else None

    def set_connection(self, number: int | None) -> None:
        """Note which mount this is about."""
        value = 0 if number is None else number + 1
        self.map[8:16] = value.to_bytes(8, sys.byteorder)

    @property
    def init_request(self) -> bytes:
        """The kernel's INIT request; empty before it came."""
        return self.map[INIT_AT : INIT_AT + self._number(16, 4)]

    @property
    def init_reply(self) -> bytes:
        """What the first daemon answered to it; empty before."""
        return self.map[REPLY_AT : REPLY_AT + self._number(20, 4)]

    def set_init(self, request: bytes, reply: bytes) -> None:
        """Note INIT and the answer to it. Raises ValueError when they are too long."""
        if len(request) > INIT_BYTES_MAX or len(reply) > REPLY_BYTES_MAX:
            raise ValueError("INIT is longer than any known")
        self.map[INIT_AT : INIT_AT + len(request)] = request
        self.map[REPLY_AT : REPLY_AT + len(reply)] = reply
        lengths = len(request).to_bytes(4, sys.byteorder) + len(reply).to_bytes(4, sys.byteorder)
        self.map[16:24] = lengths

    @property
    def has_worked(self) -> bool:
        """Whether this daemon answered a change, other than what its predecessor left."""
        return self.map[WORKED_AT] == 1

    def set_worked(self, worked: bool) -> None:
        """Note it; the holder takes it back before each start."""
        self.map[WORKED_AT] = int(worked)

    @property
    def can_resend(self) -> bool:
        """Whether INIT is through, and the kernel sends again what was never answered."""
        request = self.init_request
        if len(request) < FLAGS2_AT + 4 or not self.init_reply:
            return False
        flags = int.from_bytes(request[FLAGS_AT : FLAGS_AT + 4], sys.byteorder)
        flags2 = int.from_bytes(request[FLAGS2_AT : FLAGS2_AT + 4], sys.byteorder)
        return bool(flags & INIT_EXT and flags2 & HAS_RESEND)

    def close(self) -> None:
        """Unmap it."""
        self.map.close()


def create() -> int:
    """A new memory file, empty. Raises OSError."""
    fd = os.memfd_create("s3ws-holder", os.MFD_CLOEXEC)
    os.ftruncate(fd, BYTES)
    os.pwrite(fd, MAGIC, 0)
    return fd
