"""What the kernel and libfuse agree on, where libfuse leaves us no choice: flags of INIT.

libfuse 3 takes what it is offered, and what it does not know it can't take; pyfuse3 lets nobody
choose. So the request shows it less, and the answer says more.

    AUTO_INVAL_DATA     not taken. With it the kernel drops a file's pages whenever it hears of
                        another mtime: also after each write of its own, so that what was just
                        written is asked for again. Bytes that change without the kernel are told to
                        it (fuse.invalidate), so it need not guess. Taken by a mount that follows
                        the bucket: there a file that stays open changes under its reader.
    HANDLE_KILLPRIV_V2  taken. The kernel leaves it to us to drop setuid and setgid, and in return
                        remembers of a file that there is nothing to drop, instead of asking for
                        `security.capability` before each write. See `Operations.setattr`.

Invariants
1. Only flags change, never the length; what is noted of INIT is what the kernel said and heard.
2. A mount goes on as it was greeted: a later daemon shows libfuse, and adds to its answer, what the
   first one did, whichever version that was.
3. What the kernel did not offer is never taken.

Called by fuse.device.
"""

from __future__ import annotations

import struct
from typing import Final

from s3ws_fs.holder.memory import FLAGS_AT

AUTO_INVAL_DATA: Final = 1 << 12
HANDLE_KILLPRIV_V2: Final = 1 << 28
REPLY_FLAGS_AT: Final = 16 + 12
"""Where the answer to INIT has its flags (fuse_init_out, behind the header)."""
_FLAGS: Final = struct.Struct("=I")


class Greeting:
    """What is agreed on in one mount.

    request: the kernel's. reply: what it was answered by the first daemon; empty for the first,
    which decides: `keeps_pages` when pages stay until they are told to go.
    """

    def __init__(self, request: bytes, reply: bytes, *, keeps_pages: bool) -> None:
        self._request = request
        offered = _flags(request, FLAGS_AT)
        if reply:
            self._not_shown = AUTO_INVAL_DATA & ~_flags(reply, REPLY_FLAGS_AT)
            self._added = HANDLE_KILLPRIV_V2 & _flags(reply, REPLY_FLAGS_AT)
        else:
            self._not_shown = AUTO_INVAL_DATA if keeps_pages else 0
            self._added = HANDLE_KILLPRIV_V2 & offered

    def request(self) -> bytes:
        """INIT as libfuse is to see it."""
        flags = _flags(self._request, FLAGS_AT) & ~self._not_shown
        return _with_flags(self._request, FLAGS_AT, flags)

    def reply(self, answered: bytes) -> bytes:
        """What the kernel is to hear, for what libfuse answered."""
        flags = _flags(answered, REPLY_FLAGS_AT) | self._added
        return _with_flags(answered, REPLY_FLAGS_AT, flags)


def _flags(message: bytes, at: int) -> int:
    if len(message) < at + _FLAGS.size:
        return 0
    flags: int = _FLAGS.unpack_from(message, at)[0]
    return flags


def _with_flags(message: bytes, at: int, flags: int) -> bytes:
    if len(message) < at + _FLAGS.size:
        # An answer that is only an error.
        return message
    return message[:at] + _FLAGS.pack(flags) + message[at + _FLAGS.size :]
