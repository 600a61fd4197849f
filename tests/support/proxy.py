"""An HTTP proxy on loopback that spoils requests and answers on demand: faults for a real server.

Invariants
1. What no fault hits is passed on byte for byte: request line, headers and body as the client
   signed them, the server's status, headers and body as they came.
2. A fault hits the requests that its script names (method, text in the target, the n-th of them,
   how many) and no other; every request is counted with what befell it.
3. A request is passed on whole or not at all, so that "applied" and "not applied" are certain.
4. `refuse` and `listen` keep the port: a client that comes back finds the same address.
5. `close` ends every thread it started.

Called by tests.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPResponse
from typing import BinaryIO, Final
from urllib.parse import urlsplit

CHUNK_BYTES: Final = 1 << 16
POLL_S: Final = 0.05
LOG_MAX: Final = 10_000
EVERY: Final = 1 << 60
"""As `times`: until disarmed."""
_NO_BODY: Final = (204, 304)


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the client sent it. `raw` is line and headers."""

    method: str
    target: str
    raw: bytes
    body: bytes

    @property
    def name(self) -> str:
        """For the log."""
        return f"{self.method} {self.target}"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as the server gave it; header names are lower case."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    is_head: bool

    def raw(self) -> bytes:
        """As bytes on the wire."""
        lines = [f"HTTP/1.1 {self.status} {self.reason}"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body

    def having(self, name: str, value: str) -> Answer:
        """The same with one header replaced (where it stood)."""
        return replace(self, headers=tuple((n, value if n == name else v) for n, v in self.headers))


class Broken(Exception):
    """Send these bytes and then end the connection: with a reset, or as if all were said."""

    def __init__(self, raw: bytes, *, reset: bool) -> None:
        super().__init__()
        self.raw = raw
        self.reset = reset


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls a request, in this order; see the functions below for ready ones."""

    name: str
    delay_s: float = 0.0
    """Wait so long before it is passed on."""
    gate: threading.Event | None = None
    """Wait until this is set before it is passed on."""
    cut_request: bool = False
    """Reset the connection in the middle of the request; the server gets none of it."""
    swallow: bool = False
    """Take everything, pass nothing on, and never say anything on this connection again."""
    answer: bytes | None = None
    """Say this, then hang up; the server gets none of it."""
    lose: bool = False
    """The server gets it and applies it; the client gets no answer."""
    spoil: Callable[[Answer], Answer] | None = None
    """Change the answer; may raise Broken."""


def error(status: int, code: str, message: str = "for a test", *, retry_after: int = 0) -> Fault:
    """S3's way to say no."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId></Error>"
    body = b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode()
    more = f"Retry-After: {retry_after}\r\n" if retry_after else ""
    head = (
        f"HTTP/1.1 {status} Said\r\nContent-Type: application/xml\r\n{more}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return Fault(f"{status} {code}", answer=head.encode() + body)


def page(status: int, *, headers: str = "") -> Fault:
    """What something that is not S3 says: a login page, a load balancer without a server."""
    body = b"<html><body>Please log in</body></html>"
    head = (
        f"HTTP/1.1 {status} Said\r\nContent-Type: text/html\r\n{headers}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return Fault(f"{status} page", answer=head.encode() + body)


GARBAGE: Final = Fault("garbage", answer=b"\x00\xff\x17SSH-2.0-not-http\r\n\r\n\x00" * 3)
LOST: Final = Fault("lost", lose=True)
CUT_REQUEST: Final = Fault("cut request", cut_request=True)
BLACK_HOLE: Final = Fault("black hole", swallow=True)
HANG_UP: Final = Fault("hang up", answer=b"")
SLOW_DOWN: Final = error(503, "SlowDown", "Please reduce your request rate.")
INTERNAL: Final = error(500, "InternalError", "We encountered an internal error.")


def late(seconds: float) -> Fault:
    """Everything takes so long."""
    return Fault(f"late {seconds:g} s", delay_s=seconds)


def held(gate: threading.Event) -> Fault:
    """Nothing is passed on before the gate opens; then all of it is, however late."""
    return Fault("held", gate=gate)


def _half(answer: Answer) -> bytes:
    """To the middle of the body; of the first line when there is none."""
    raw = answer.raw()
    return raw[: len(raw) - (len(answer.body) + 1) // 2] if answer.body else raw[:9]


def _reset_answer(answer: Answer) -> Answer:
    raise Broken(_half(answer), reset=True)


def _short(answer: Answer) -> Answer:
    raise Broken(_half(answer), reset=False)


def _corrupt(answer: Answer) -> Answer:
    body = bytearray(answer.body)
    if body:
        body[len(body) // 2] ^= 0x20
    return replace(answer, body=bytes(body))


def _shifted_range(answer: Answer) -> Answer:
    """As many bytes as asked for, but said (and meant) to be from another place."""
    for name, value in answer.headers:
        if name == "content-range":
            where, _, total = value.removeprefix("bytes ").partition("/")
            start, _, end = where.partition("-")
            moved = f"bytes {int(start) + 1}-{int(end) + 1}/{int(total) + 1}"
            return replace(answer.having(name, moved), body=answer.body[1:] + b"?")
    return answer


RESET_ANSWER: Final = Fault("reset answer", spoil=_reset_answer)
SHORT: Final = Fault("short answer", spoil=_short)
CORRUPT: Final = Fault("corrupt answer", spoil=_corrupt)
WRONG_RANGE: Final = Fault("wrong range", spoil=_shifted_range)
WRONG_ETAG: Final = Fault("wrong ETag", spoil=lambda a: a.having("etag", '"00112233445566"'))


@dataclass(slots=True)
class _Script:
    """An armed fault: which requests it waits for."""

    fault: Fault
    method: str
    containing: str
    header: bytes
    skip: int
    left: int
    share: float
    chance: random.Random


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that came, and what befell it ("" for nothing)."""

    method: str
    target: str
    fault: str


@dataclass(slots=True, eq=False)
class _Connection:
    """A client's connection, and that to the server while a request is under way."""

    client: socket.socket
    reader: BinaryIO
    server: socket.socket | None = None


class FaultyProxy:
    """Stands before one HTTP server. `url` is what the client is given."""

    def __init__(self, upstream_url: str) -> None:
        self._lock = threading.Lock()
        self._scripts: list[_Script] = []
        self._connections: set[_Connection] = set()
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._listening = threading.Event()
        self.accepted = 0
        self.passed_on = 0
        self.log: deque[Seen] = deque(maxlen=LOG_MAX)
        self.struck: Counter[str] = Counter()
        self.upstream_url = upstream_url
        self._listener, self._port = _bound_listener()
        self.url = f"http://127.0.0.1:{self._port}"
        self.listen()
        self._spawn(self._accept)

    # --- what goes wrong -------------------------------------------------------------------

    def arm(
        self,
        fault: Fault,
        method: str = "",
        containing: str = "",
        *,
        nth: int = 1,
        times: int = 1,
        header: str = "",
        share: float = 1.0,
        seed: int = 0,
    ) -> None:
        """From the `nth` matching request on, `times` of them suffer this.

        `method` "" matches all, `containing` is looked for in path and query, `header` in all that
        comes before the body. Of those that match
        only a random `share` is hit. The script armed first goes first.
        """
        chance = random.Random(seed)
        script = _Script(fault, method, containing, header.encode(), nth - 1, times, share, chance)
        with self._lock:
            self._scripts.append(script)

    def weather(self, *faults: Fault, share: float = 1.0, seed: int = 0) -> None:
        """All requests from now on; of several faults each takes its share."""
        for number, fault in enumerate(faults):
            self.arm(fault, times=EVERY, share=share / (len(faults) - number), seed=seed + number)

    def lose_answer(self, method: str, containing: str = "") -> None:
        """The next request of this method reaches the server; its answer does not come back.

        `containing`: only a request whose path or query has this.
        """
        self.arm(LOST, method, containing)

    def answer(self, method: str, raw: bytes) -> None:
        """The next request of this method gets `raw` as answer and does not reach the server."""
        self.arm(Fault("answer", answer=raw), method)

    def disarm(self) -> None:
        """No fault is armed any more. Connections that a black hole holds stay dead."""
        with self._lock:
            self._scripts.clear()

    def refuse(self) -> None:
        """Nobody listens any more, and what was connected is reset."""
        if self._listening.is_set():
            self._listening.clear()
            self._listener.shutdown(socket.SHUT_RDWR)
        self.reset_all()

    def listen(self) -> None:
        """Listen (again)."""
        self._listener.listen(128)
        self._listening.set()

    def reset_all(self) -> None:
        """Reset every connection."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _reset(connection.client)
            server = connection.server
            if server is not None and self._closing.is_set():
                _reset(server)

    def heal(self) -> None:
        """Everything works from now on."""
        self.disarm()
        if not self._listening.is_set():
            self.listen()

    # --- what came -------------------------------------------------------------------------

    @property
    def armed(self) -> int:
        """Faults that have not struck as often as they were to."""
        with self._lock:
            return sum(1 for script in self._scripts if script.left < EVERY)

    def count(self, method: str = "", containing: str = "") -> int:
        """How many such requests came (of the last LOG_MAX)."""
        with self._lock:
            return sum(
                1
                for seen in self.log
                if seen.method.startswith(method) and containing in seen.target
            )

    # --- the end ---------------------------------------------------------------------------

    def close(self) -> None:
        """Close everything and wait for the threads."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.reset_all()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    # --- the work --------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._closing.is_set():
            if not self._listening.wait(POLL_S):
                continue
            try:
                client, _ = self._listener.accept()
            except OSError:
                # Refusing, or the end.
                time.sleep(POLL_S if self._listening.is_set() else 0)
                continue
            with self._lock:
                self.accepted += 1
                self._threads = [thread for thread in self._threads if thread.is_alive()]
            connection = _Connection(client, client.makefile("rb"))
            with self._lock:
                self._connections.add(connection)
            self._spawn(self._serve, connection)

    def _serve(self, connection: _Connection) -> None:
        try:
            with contextlib.suppress(OSError, HTTPException, EOFError, ValueError):
                while self._one(connection):
                    pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.reader.close()
            connection.client.close()

    def _one(self, connection: _Connection) -> bool:
        """One request and its answer; False when the connection is at its end."""
        raw, length, chunked = _read_head(connection)
        method, target, _ = raw.split(b" ", 2)
        name, where = method.decode("latin-1"), target.decode("latin-1")
        fault = self._strike(name, where, raw)
        if fault is None:
            body = _read_body(connection.reader, length, chunked)
            self._exchange(connection, Request(name, where, raw, body), None)
            return True
        if fault.swallow:
            while connection.client.recv(CHUNK_BYTES):
                pass
            return False
        if fault.cut_request:
            connection.reader.read(length // 2)
            _abort_at_close(connection.client)
            return False
        body = _read_body(connection.reader, length, chunked)
        if not self._wait(fault):
            return False
        if fault.answer is not None:
            connection.client.sendall(fault.answer)
            return False
        try:
            return self._exchange(connection, Request(name, where, raw, body), fault)
        except Broken as broken:
            with contextlib.suppress(OSError):
                connection.client.sendall(broken.raw)
            if broken.reset:
                _abort_at_close(connection.client)
            return False

    def _wait(self, fault: Fault) -> bool:
        """False when the proxy was closed meanwhile."""
        if fault.delay_s and self._closing.wait(fault.delay_s):
            return False
        while fault.gate is not None and not fault.gate.wait(POLL_S):
            if self._closing.is_set():
                return False
        return True

    def _exchange(self, connection: _Connection, request: Request, fault: Fault | None) -> bool:
        answer = self._ask_server(connection, request)
        with self._lock:
            self.passed_on += 1
        if fault is not None and fault.lose:
            return False
        if fault is not None and fault.spoil is not None:
            answer = fault.spoil(answer)
        connection.client.sendall(answer.raw())
        return True

    def _ask_server(self, connection: _Connection, request: Request) -> Answer:
        """On a connection of its own, so that no server's way of keeping one alive plays a part."""
        parts = urlsplit(self.upstream_url)
        assert parts.hostname is not None
        assert parts.port is not None
        with socket.create_connection((parts.hostname, parts.port)) as server:
            connection.server = server
            try:
                server.sendall(request.raw + request.body)
                return _read_answer(server, request.method)
            finally:
                connection.server = None

    def _strike(self, method: str, target: str, raw: bytes) -> Fault | None:
        with self._lock:
            struck = self._struck(method, target, raw)
            name = "" if struck is None else struck.name
            self.log.append(Seen(method, target, name))
            self.struck[name] += 1
        return struck

    def _struck(self, method: str, target: str, raw: bytes) -> Fault | None:
        for script in self._scripts:
            if script.method not in ("", method) or script.containing not in target:
                continue
            if script.header not in raw:
                continue
            if script.skip:
                script.skip -= 1
                continue
            if script.share < 1.0 and script.chance.random() >= script.share:
                continue
            if script.left < EVERY:
                script.left -= 1
            if not script.left:
                self._scripts.remove(script)
            return script.fault
        return None


def _bound_listener() -> tuple[socket.socket, int]:
    """A socket that keeps its port also while it does not listen.

    Linux gives an automatic port back when a listener is shut down, a port that was named it keeps.
    """
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
            continue
        return listener, port


def _read_head(connection: _Connection) -> tuple[bytes, int, bool]:
    """Line and headers, the body's length, and whether it is chunked. Raises EOFError."""
    raw, length, chunked, expects = bytearray(), 0, False, False
    while True:
        line = connection.reader.readline(CHUNK_BYTES)
        if not line:
            raise EOFError
        name, _, value = line.lower().partition(b":")
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding":
            chunked = b"chunked" in value
        if name == b"expect":
            # Answered here: the server gets the request only when its body is whole.
            expects = True
            continue
        raw += line
        if line == b"\r\n":
            break
    if expects:
        connection.client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    return bytes(raw), length, chunked


def _read_body(reader: BinaryIO, length: int, chunked: bool) -> bytes:
    if not chunked:
        body = reader.read(length)
        if len(body) != length:
            raise EOFError
        return body
    raw = bytearray()
    while True:
        line = reader.readline(CHUNK_BYTES)
        size = int(line.partition(b";")[0], 16)
        raw += line
        if not size:
            break
        raw += reader.read(size + 2)
    while True:
        line = reader.readline(CHUNK_BYTES)
        raw += line
        if line in (b"\r\n", b""):
            return bytes(raw)


def _read_answer(server: socket.socket, method: str) -> Answer:
    with HTTPResponse(server, method=method) as response:
        response.begin()
        body = response.read()
        headers = [
            (name.lower(), value)
            for name, value in response.getheaders()
            if name.lower() not in ("transfer-encoding", "connection")
        ]
        names = {name for name, _ in headers}
        if "content-length" not in names and response.status not in _NO_BODY:
            headers.append(("content-length", str(len(body))))
        return Answer(response.status, response.reason, tuple(headers), body, method == "HEAD")


def _abort_at_close(sock: socket.socket) -> None:
    """Let `close` say RST instead of FIN."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _reset(sock: socket.socket) -> None:
    """End another thread's connection: it wakes up, and closes it."""
    _abort_at_close(sock)
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
