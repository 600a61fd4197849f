"""A proxy on loopback that makes each request late and counts it: for every S3 target alike.

1. Bytes pass unchanged and as a stream in both directions, an `Expect: 100-continue` and its answer
   among them: the proxy never holds a body, so that it costs a large transfer little.
2. A request's head waits `delay_s` before it is passed on. Connections don't wait for each other.
3. Counted: requests by kind, the bytes of their bodies, the bytes of the answers (heads included).
   A kind is the method, but COPY for a PUT that names a source, and LIST for a GET of a bucket.
4. It is a process of its own, so that its work is nobody else's interpreter's. It ends when its
   standard input does: with whoever started it, however that ended.

tests/support/proxy.py is for faults and holds whole bodies; this one is for figures.

Called by bench.behind; the process is `python -m bench.proxy PORT`.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

HERE: Final = Path(__file__).resolve().parent.parent
CHUNK_BYTES: Final = 256 * 1024
HEAD_BYTES_MAX: Final = 64 * 1024
CONNECTIONS_MAX: Final = 512
END_TIMEOUT_S: Final = 5.0
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.I)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked[ \t]*\r\n", re.I)
_COPY: Final = re.compile(rb"\r\nx-amz-copy-source:", re.I)
_LIST: Final = re.compile(rb"[?&](?:list-type|prefix|delimiter|marker|max-keys)=")


class ProxyError(Exception):
    """What a client sends is no HTTP/1.1 request, or has a limitless head."""


class Piece(NamedTuple):
    """A part of the stream; `kind` is set where a request begins, and `data` is then its head."""

    kind: str
    data: bytes


class Requests:
    """The client's stream, cut into heads and bodies. Pure: `feed` gives what is to be passed on.

    What it gave, joined, is what it got, up to a head that is not whole yet.
    """

    def __init__(self) -> None:
        self._held = b""
        self._left_bytes = 0
        self._chunked = False

    def feed(self, data: bytes) -> Iterator[Piece]:
        """Raises ProxyError for what is no request."""
        data, self._held = self._held + data, b""
        while data:
            if self._left_bytes:
                taken, data = data[: self._left_bytes], data[self._left_bytes :]
                self._left_bytes -= len(taken)
                yield Piece("", taken)
            elif self._chunked:
                line, end, rest = data.partition(b"\r\n")
                if not end:
                    self._hold(data)
                    return
                if line and not self._chunk_begins(line):
                    # The last one; the empty line behind it belongs to it.
                    if not rest.startswith(b"\r\n"):
                        self._chunked = True
                        self._hold(data)
                        return
                    end, rest = end + rest[:2], rest[2:]
                yield Piece("", line + end)
                data = rest
            else:
                head, end, rest = data.partition(b"\r\n\r\n")
                if not end:
                    self._hold(data)
                    return
                yield Piece(self._head(head + end), head + end)
                data = rest

    def _hold(self, data: bytes) -> None:
        if len(data) > HEAD_BYTES_MAX:
            raise ProxyError(f"no end of a head within {HEAD_BYTES_MAX} bytes")
        self._held = data

    def _chunk_begins(self, line: bytes) -> bool:
        """False for the last chunk of a body."""
        try:
            self._left_bytes = int(line.partition(b";")[0], 16)
        except ValueError:
            raise ProxyError(f"no chunk: {line[:40]!r}") from None
        self._chunked = self._left_bytes > 0
        return self._chunked

    def _head(self, head: bytes) -> str:
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            raise ProxyError(f"no request: {head[:40]!r}")
        length = _LENGTH.search(head)
        self._chunked = _CHUNKED.search(head) is not None
        self._left_bytes = int(length[1]) if length and not self._chunked else 0
        method = words[0].decode("latin-1").upper()
        if method == "PUT" and _COPY.search(head):
            return "COPY"
        if method == "GET" and _LIST.search(words[1]):
            return "LIST"
        return method


@dataclass(slots=True)
class Counts:
    """What passed since the start. `requests`: by kind."""

    requests: dict[str, int] = field(default_factory=dict)
    up_bytes: int = 0
    down_bytes: int = 0

    @property
    def total(self) -> int:
        """All requests."""
        return sum(self.requests.values())

    def since(self, before: Counts) -> Counts:
        """What passed since `before`."""
        kinds = {
            kind: count - before.requests.get(kind, 0)
            for kind, count in self.requests.items()
            if count > before.requests.get(kind, 0)
        }
        return Counts(kinds, self.up_bytes - before.up_bytes, self.down_bytes - before.down_bytes)


class Server:
    """The proxy's inside: threads, two a connection."""

    def __init__(self, upstream_port: int) -> None:
        self.delay_s = 0.0
        self._upstream = ("127.0.0.1", upstream_port)
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._up_bytes = 0
        self._down_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])

    def counts(self) -> Counts:
        """Now."""
        with self._lock:
            return Counts(dict(self._requests), self._up_bytes, self._down_bytes)

    def serve(self) -> None:
        """Accept for ever."""
        while True:
            self._room.acquire()
            client, _ = self._listener.accept()
            threading.Thread(target=self._connection, args=(client,), daemon=True).start()

    def _connection(self, client: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._room.release)
            stack.enter_context(client)
            stack.enter_context(contextlib.suppress(OSError))
            server = stack.enter_context(socket.create_connection(self._upstream))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self._down, args=(server, client), daemon=True)
            back.start()
            try:
                with contextlib.suppress(OSError, ProxyError):
                    self._up(client, server)
            finally:
                # Whatever the other half waits for, it gets an end.
                for end in (server, client):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                back.join()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        requests = Requests()
        while data := client.recv(CHUNK_BYTES):
            for piece in requests.feed(data):
                if piece.kind:
                    if self.delay_s:
                        time.sleep(self.delay_s)
                    with self._lock:
                        self._requests[piece.kind] += 1
                else:
                    with self._lock:
                        self._up_bytes += len(piece.data)
                server.sendall(piece.data)

    def _down(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(CHUNK_BYTES):
                with self._lock:
                    self._down_bytes += len(data)
                client.sendall(data)
        # The server hung up: the client has to learn it, and the other half to end.
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


class Proxy:
    """The outside: the process, asked line by line. One thread asks at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self._ask('port')}"

    def counts(self) -> Counts:
        """What passed since its start."""
        return Counts(**self._ask("counts"))

    def delay(self, seconds: float) -> None:
        """From now on each request waits so long."""
        self._ask(f"delay {seconds}")

    @contextlib.contextmanager
    def late(self, seconds: float) -> Iterator[None]:
        """`delay` for the block."""
        self.delay(seconds)
        try:
            yield
        finally:
            self.delay(0)

    def _ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the proxy is gone")
        return json.loads(answer)


@contextlib.contextmanager
def running(upstream_port: int) -> Iterator[Proxy]:
    """A proxy before a server on loopback; its process has ended when the block is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.proxy", str(upstream_port)],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield Proxy(process)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def main() -> None:
    """Serve until standard input ends."""
    server = Server(int(sys.argv[1]))
    threading.Thread(target=server.serve, daemon=True).start()
    for line in sys.stdin:
        word, _, value = line.strip().partition(" ")
        answer: Any = None
        if word == "port":
            answer = server.port
        elif word == "delay":
            server.delay_s = float(value)
        elif word == "counts":
            counts = server.counts()
            answer = {name: getattr(counts, name) for name in Counts.__slots__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
