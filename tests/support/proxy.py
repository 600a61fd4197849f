"""A TCP proxy on loopback that spoils HTTP answers on demand: network faults for a real server.

Invariants
1. It forwards bytes unchanged until a fault is armed; a fault hits the next request that matches.
2. `close` ends every thread it started.

Called by tests.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

CHUNK_BYTES: Final = 1 << 16


class FaultyProxy:
    """Stands before one HTTP server. `url` is what the client is given."""

    def __init__(self, upstream_url: str) -> None:
        parts = urlsplit(upstream_url)
        assert parts.hostname is not None and parts.port is not None
        self._upstream = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._faults: list[tuple[str, str, bytes | None]] = []
        self.accepted = 0
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._spawn(self._accept)

    def lose_answer(self, method: str, containing: str = "") -> None:
        """The next request of this method reaches the server; its answer does not come back.

        `containing`: only a request whose path or query has this.
        """
        with self._lock:
            self._faults.append((method, containing, None))

    def answer(self, method: str, raw: bytes) -> None:
        """The next request of this method gets `raw` as answer and does not reach the server."""
        with self._lock:
            self._faults.append((method, "", raw))

    @property
    def armed(self) -> int:
        """Faults that have not struck yet."""
        with self._lock:
            return len(self._faults)

    def close(self) -> None:
        """Close everything and wait for the threads."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            _hang_up(sock)
        for thread in self._threads:
            thread.join()
        for sock in sockets:
            sock.close()

    def _spawn(self, target: object, *args: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._upstream)
            except OSError:
                return
            with self._lock:
                self._sockets |= {client, server}
                self.accepted += 1
            doomed = threading.Event()
            self._spawn(self._requests, client, server, doomed)
            self._spawn(self._answers, client, server, doomed)

    def _requests(
        self, client: socket.socket, server: socket.socket, doomed: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(CHUNK_BYTES):
                struck, raw = self._strike(data)
                if struck and raw is not None:
                    client.sendall(raw)
                    break
                if struck:
                    doomed.set()
                server.sendall(data)
        _hang_up(client)
        _hang_up(server)

    def _answers(
        self, client: socket.socket, server: socket.socket, doomed: threading.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(CHUNK_BYTES):
                if doomed.is_set() and not data.startswith(b"HTTP/1.1 100"):
                    break
                client.sendall(data)
        _hang_up(client)
        _hang_up(server)

    def _strike(self, data: bytes) -> tuple[bool, bytes | None]:
        with self._lock:
            line = data.partition(b"\r\n")[0].decode("latin-1")
            for index, (method, containing, raw) in enumerate(self._faults):
                if line.startswith(method + " ") and containing in line:
                    del self._faults[index]
                    return True, raw
        return False, None


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def faulty_proxy(upstream_url: str) -> Iterator[FaultyProxy]:
    """A proxy that is closed on exit."""
    proxy = FaultyProxy(upstream_url)
    try:
        yield proxy
    finally:
        proxy.close()
