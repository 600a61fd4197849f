"""The transfer worker: a child process that talks to the store, so that the daemon never does.

Run as `python -m s3ws_fs.transfer.worker --fd N`, N being one end of a socketpair (wire.py).

Invariants
1. It opens the cache read-only and writes only below the cache's directories `spool`, `history` and
   `layouts`.
2. It may be killed at any moment: what it knows is in the cache, the bucket, or not yet promised.
3. It ends by itself: when the parent's end closes (at once, whatever is under way), or after IDLE_S
   without a request (at once after `renew` with `then_end`, unless something else was asked for).
4. Flush work (freeze, seal, mirror, …) runs one at a time in its lane; fetches (and renewals of the
   lease) have lanes of their own, so that a person's read never waits behind a flush.
5. "ping" is answered at once, whatever is under way, with the request that waits longest for the
   store: silence means that this process is stopped or stuck.
6. A fetch that nobody waits for any more is not begun.
7. What changes the bucket passes the gate (gate.py): without a proven lease nothing is sent, and
   the kernel ends this process when a proof ends under a change.

Started by client; called by nobody.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from s3ws_fs.core.errors import S3wsError
from s3ws_fs.transfer import faultline, wire
from s3ws_fs.transfer.deadline import Deadline
from s3ws_fs.transfer.requests import Handlers
from s3ws_fs.transfer.session import FETCH_LANES, Means, Session

IDLE_S: Final = 60.0
MOMENT_S: Final = 0.5
"""After so long without a request it loads what was not asked for yet."""
END_SOON_S: Final = 1.0
"""After a renewal for a mount with nothing else to do."""
NICENESS: Final = 5
FETCH_REQUESTS: Final = frozenset({"fetch", "fetch-mirror", "check", "renew", "snap-list"})
"""Those with lanes of their own (invariant 4)."""
KEEP_REQUESTS: Final = frozenset({"put-file", "list-below", "drop-below"})
"""Backups and bundles: one at a time, in a lane of their own, so that no flush waits for them."""


class Worker:
    """The process: its socket, its lanes, and whether it is idle. What is done: requests."""

    def __init__(
        self, sock: socket.socket, idle_s: float = IDLE_S, means: Means | None = None
    ) -> None:
        means = Means() if means is None else means
        self.session = Session(means)
        self.handlers = Handlers(self.session)
        self._sock = sock
        self._idle_s = idle_s
        self._send_lock = threading.Lock()
        self._busy = 0
        self._busy_lock = threading.Lock()
        self._flush_lane: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._end_soon = False
        self._fetches = means.pool(FETCH_LANES, "fetch")
        self._keeps = means.pool(1, "keep")

    def run(self) -> None:
        """Serve until the parent's end closes or nothing was asked for IDLE_S."""
        threading.Thread(target=self._flush_loop, name="flush", daemon=True).start()
        while True:
            idle_s = min(END_SOON_S, self._idle_s) if self._end_soon else self._idle_s
            is_whole = self._end_soon or self.handlers.is_whole
            wait_s = idle_s if is_whole else min(MOMENT_S, idle_s)
            ready, _, _ = select.select([self._sock], [], [], wait_s)
            if not ready and not is_whole:
                self.handlers.load()
                continue
            if not ready:
                with self._busy_lock:
                    if self._busy == 0 and self.session.frozen is None:
                        return
                continue
            head = self._read(wire.HEAD_BYTES)
            if head is None:
                return
            rest = self._read(wire.rest_bytes(head))
            if rest is None:
                return
            self._dispatch(*wire.decode(head, rest))

    def _read(self, count: int) -> bytes | None:
        parts = []
        while count:
            part = self._sock.recv(min(count, 1 << 20))
            if not part:
                return None
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _flush_loop(self) -> None:
        while True:
            self._flush_lane.get()()

    def _dispatch(self, ask: dict[str, Any], _: memoryview) -> None:
        if "patience_s" in ask:
            ask["until_s"] = time.monotonic() + ask["patience_s"]
        with self._busy_lock:
            self._busy += 1
        if ask["cmd"] != "ping":
            self._end_soon = bool(ask.get("then_end"))

        def job() -> None:
            self._answer(ask)

        if ask["cmd"] in ("ping", "stop-mirror"):
            job()
        elif ask["cmd"] in FETCH_REQUESTS:
            self._fetches.submit(job)
        elif ask["cmd"] in KEEP_REQUESTS:
            self._keeps.submit(job)
        else:
            self._flush_lane.put(job)

    def _send(self, message: dict[str, Any], payload: bytes | memoryview = b"") -> None:
        frame = wire.encode(message, payload)
        with self._send_lock:
            self._sock.sendall(frame)

    def _answer(self, ask: dict[str, Any]) -> None:
        number = ask["id"]

        def part(body: dict[str, Any], payload: bytes | memoryview = b"") -> None:
            self._send({"id": number, "part": body}, payload)

        try:
            result = self.handlers[ask["cmd"]](ask, part)
            message = {"id": number, "ok": result or {}}
        except (S3wsError, OSError) as exc:
            message = {"id": number, "error": wire.error_json(exc)}
        except Exception as exc:
            faultline.tell(self.session.log_format, "transfer.worker", f"{ask['cmd']} failed")
            message = {"id": number, "error": wire.error_json(exc)}
        message |= self.session.told()
        with self._busy_lock:
            self._busy -= 1
        try:
            self._send(message)
        except OSError:
            os._exit(0)


def main() -> None:
    """Entry point of the child process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--idle-s", type=float, default=IDLE_S)
    args = parser.parse_args()
    os.nice(NICENESS)
    with (
        socket.socket(fileno=args.fd) as sock,
        contextlib.suppress(ConnectionError, KeyboardInterrupt),
    ):
        Worker(sock, args.idle_s, Means(deadline=Deadline)).run()
    # Threads may hang in the network for as long as its timeouts: nothing of theirs is needed.
    os._exit(0)


if __name__ == "__main__":
    main()
