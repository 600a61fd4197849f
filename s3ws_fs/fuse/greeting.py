"""What the kernel offers in INIT, as libfuse is to see it: it takes what it is offered.

    AUTO_INVAL_DATA     not taken. With it the kernel drops a file's pages whenever it hears of
                        another mtime: also after each write of its own, so that what was just
                        written is asked for again. Bytes that change without the kernel are told to
                        it (fuse.invalidate), so it need not guess. Taken by a mount that follows
                        the bucket: there a file that stays open changes under its reader.

Invariants
1. Only flags change, never the length; what is noted of INIT is what the kernel said and heard.
2. A mount goes on as it was greeted: a later daemon shows libfuse what the first one did, whichever
   version that was.

Called by fuse.device.
"""

from __future__ import annotations

import struct
from typing import Final

from s3ws_fs.holder.memory import FLAGS_AT

AUTO_INVAL_DATA: Final = 1 << 12
REPLY_FLAGS_AT: Final = 16 + 12
"""Where the answer to INIT has its flags (fuse_init_out, behind the header)."""
_FLAGS: Final = struct.Struct("=I")


def shown(request: bytes, reply: bytes, *, keeps_pages: bool) -> bytes:
    """The kernel's INIT for libfuse.

    reply: what it was answered by the first daemon; empty for the first, which decides:
    `keeps_pages` when pages stay until they are told to go.
    """
    if reply:
        keeps_pages = not _flags(reply, REPLY_FLAGS_AT) & AUTO_INVAL_DATA
    if not keeps_pages or len(request) < FLAGS_AT + _FLAGS.size:
        return request
    flags = _flags(request, FLAGS_AT) & ~AUTO_INVAL_DATA
    return request[:FLAGS_AT] + _FLAGS.pack(flags) + request[FLAGS_AT + _FLAGS.size :]


def _flags(message: bytes, at: int) -> int:
    if len(message) < at + _FLAGS.size:
        return 0
    flags: int = _FLAGS.unpack_from(message, at)[0]
    return flags
