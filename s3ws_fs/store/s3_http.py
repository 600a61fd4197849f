"""HTTP connections to one S3 endpoint, kept between requests, and the limits of waiting.

Invariants
1. One attempt a request, no redirect followed. What goes wrong on the way is raised as what
   botocore raises for it, so that s3_errors maps both alike.
2. A connection is kept only after its answer was read to the end; one that the server has closed
   meanwhile is not used again.
3. A large body goes only when the server has not refused its head ("100 Continue"): a refusal may
   be lost when the server closes the connection under it. A small one goes with its head. (Over
   TLS an answer can't be looked at before it is read: all bodies go at once.)

Called by s3_plain.py and s3_session.py (the limits).
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final
from urllib.parse import urlsplit

from botocore import exceptions as boto

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 30.0
"""Silence, not duration: a body may take as long as it keeps moving."""
EXPECT_BYTES_MIN: Final = 1 << 20
"""A larger body is sent only when the server has not refused its head."""
CONTINUE_WAIT_S: Final = 1.0
"""A server that says nothing about the head for so long gets the body."""
PEEKS_MAX: Final = 100
PEEK_S: Final = 0.01
"""The first bytes of an answer that came in two pieces are waited for so often, and so long."""
PIECE_BYTES: Final = 1 << 20

_CONTINUE: Final = (b"HTTP/1.1 100", b"HTTP/1.0 100")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said, all of it. Names of headers are in small letters."""

    status: int
    headers: dict[str, str]
    data: bytes


class Endpoint:
    """Where requests go. Thread-safe."""

    def __init__(self, url: str, context: ssl.SSLContext | None) -> None:
        """`context`: for https."""
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.url = url
        self.path = parts.path.rstrip("/")
        self._context = context
        self.is_tls = context is not None
        self._address = (parts.hostname, parts.port or (443 if self.is_tls else 80))
        name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.host = f"{name}:{parts.port}" if parts.port not in (None, 80, 443) else name
        if parts.port == (80 if self.is_tls else 443):
            self.host = f"{name}:{parts.port}"
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | BinaryIO = b""
    ) -> Answer:
        """Send one request and read its answer. Raises botocore's exceptions for what fails.

        A body that is no bytes is a seekable file, sent from its beginning; Content-Length is in
        the headers.
        """
        connection = self._connected()
        try:
            answer, is_kept = self._asked(connection, method, target, headers, body)
        except BaseException as exc:
            connection.close()
            if isinstance(exc, TimeoutError):
                raise boto.ReadTimeoutError(endpoint_url=self.url) from exc
            if isinstance(exc, ssl.SSLError):
                raise boto.SSLError(endpoint_url=self.url, error=exc) from exc
            if isinstance(exc, OSError | http.client.HTTPException):
                raise boto.ConnectionClosedError(endpoint_url=self.url) from exc
            raise
        if is_kept:
            with self._lock:
                self._idle.append(connection)
        else:
            connection.close()
        return answer

    def close(self) -> None:
        """Close the connections that are kept."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _connected(self) -> http.client.HTTPConnection:
        while True:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if not _is_readable(connection.sock, 0):
                return connection
            # Nothing was asked, so what comes is the end.
            connection.close()
        if self._context is None:
            connection = http.client.HTTPConnection(*self._address, timeout=CONNECT_TIMEOUT_S)
        else:
            connection = http.client.HTTPSConnection(
                *self._address, timeout=CONNECT_TIMEOUT_S, context=self._context
            )
        try:
            connection.connect()
        except ssl.SSLError as exc:
            raise boto.SSLError(endpoint_url=self.url, error=exc) from exc
        except TimeoutError as exc:
            raise boto.ConnectTimeoutError(endpoint_url=self.url) from exc
        except OSError as exc:
            raise boto.EndpointConnectionError(endpoint_url=self.url, error=exc) from exc
        connection.sock.settimeout(READ_TIMEOUT_S)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return connection

    def _asked(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | BinaryIO,
    ) -> tuple[Answer, bool]:
        waits = not self.is_tls and int(headers.get("Content-Length", "0")) > EXPECT_BYTES_MIN
        connection.putrequest(method, target, skip_host=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if waits:
            connection.putheader("Expect", "100-continue")
        is_sent = True
        try:
            if isinstance(body, bytes) and not waits:
                connection.endheaders(body or None)
            else:
                connection.endheaders()
                is_sent = not waits or self._may_send(connection)
                if is_sent:
                    for piece in _pieces(body):
                        connection.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            # It may have said why.
            is_sent = False
        response = connection.getresponse()
        data = response.read()
        said: dict[str, str] = {}
        for name, value in response.getheaders():
            name = name.lower()
            said[name] = f"{said[name]}, {value}" if name in said else value
        return Answer(response.status, said, data), is_sent and not response.will_close

    def _may_send(self, connection: http.client.HTTPConnection) -> bool:
        """Whether the server has not refused what it read of the request."""
        if not _is_readable(connection.sock, CONTINUE_WAIT_S):
            return True
        said = b""
        for _ in range(PEEKS_MAX):
            # The answer stays to be read: http.client passes over a 100.
            said = connection.sock.recv(len(_CONTINUE[0]), socket.MSG_PEEK)
            if not said or len(said) == len(_CONTINUE[0]):
                break
            time.sleep(PEEK_S)
        return said in _CONTINUE


def _is_readable(sock: socket.socket, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _pieces(body: bytes | BinaryIO) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield body
        return
    body.seek(0)
    while piece := body.read(PIECE_BYTES):
        yield piece
