"""A service manager's side of NOTIFY_SOCKET: a real datagram socket, and what came on it.

Invariants
1. Every wait is for a word, with a deadline.

Called by the tests of control, daemon, integrations and e2e.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

WORD_S_MAX: Final = 60.0
DATAGRAM_BYTES_MAX: Final = 65536

Words = dict[str, str]


class Manager:
    """What a service says. `heard` is all of it, with the monotonic time of each datagram."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self._sock = sock
        self.address = address
        self.heard: list[tuple[float, Words]] = []

    def take(self) -> list[Words]:
        """What has come by now and was not taken yet."""
        self._sock.setblocking(False)
        came: list[Words] = []
        while True:
            try:
                came.append(self._next())
            except BlockingIOError:
                return came

    def until(self, wanted: Callable[[Words], bool], timeout_s: float = WORD_S_MAX) -> Words:
        """The next datagram that is wanted. AssertionError when none comes."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            self._sock.settimeout(left_s)
            try:
                words = self._next()
            except TimeoutError:
                break
            if wanted(words):
                return words
        raise AssertionError(f"not said within {timeout_s:g} s; heard: {self.heard}")

    def _next(self) -> Words:
        text = self._sock.recv(DATAGRAM_BYTES_MAX).decode()
        words = dict(line.split("=", 1) for line in text.splitlines())
        self.heard.append((time.monotonic(), words))
        return words


@contextmanager
def listening(address: str) -> Iterator[Manager]:
    """A manager that listens at a path, or at an abstract name (@…)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        yield Manager(sock, address)
