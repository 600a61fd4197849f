"""The small process that has the kernel forget, so that its daemon can die meanwhile.

    python -I -S -E notifier.py KERNEL_FD LINE_FD

Who invalidates a name waits in the kernel for the directory's lock, which a request may hold that
only the daemon can answer. A daemon that is killed while a thread of its own waits there can't be
reaped: its files stay open and locked, and no other can take its place. So this process waits.

Invariants
1. It holds the connection to the kernel and the line to its daemon, and nothing else of either.
2. One datagram is one batch: notifications as the kernel takes them, one after the other, each of
   which begins with its length. What came is done to its end, also when the daemon is dead by then;
   the answer is one errno for each, 0 for done.
3. It ends when its daemon is gone or has hung up, or has asked nothing for IDLE_S.
4. It is small: nothing is imported but what is below, and nothing of ours.

Started by fuse.invalidate; nobody imports it but for its limits.
"""

from __future__ import annotations

import os
import select
import socket
import sys

BATCH_BYTES_MAX = 128 << 10
IDLE_S = 30.0
ERRNO_BYTES = 4


def answered(kernel_fd: int, batch: bytes) -> bytes:
    """Hand each notification of the batch to the kernel; what came of each."""
    codes = b""
    while batch:
        length = int.from_bytes(batch[:4], sys.byteorder)
        code = 0
        try:
            os.write(kernel_fd, batch[:length])
        except OSError as exc:
            code = exc.errno or 0
        codes += code.to_bytes(ERRNO_BYTES, sys.byteorder)
        batch = batch[length:]
    return codes


def main(kernel_fd: int, line_fd: int) -> None:
    """Serve one daemon."""
    line = socket.socket(fileno=line_fd)
    poll = select.poll()
    poll.register(line, select.POLLIN)
    while poll.poll(IDLE_S * 1000):
        try:
            batch = line.recv(BATCH_BYTES_MAX)
            if not batch:
                return
            line.send(answered(kernel_fd, batch))
        except OSError:
            return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
