"""HTTP/1.1 for the status page: bytes of a connection to requests, and answers back.

Invariants
1. Whatever a client sends or leaves out, it holds one of CONNECTIONS_MAX places, and each of those
   for a bounded time: heads, bodies and answers have limits and deadlines, and so has idleness.
2. What can't be read as a request is answered with a status and the connection ends; nothing a
   client sends is repeated to it or logged.
3. A body is read whole before its request is handled, and is at most BODY_BYTES_MAX long.
4. An answer whose bytes stop short ends the connection, so that nobody takes it for whole.
5. Whatever fails on a connection ends that one alone.

Called by web.server. The parser is h11's.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote_to_bytes

import h11
import trio

from s3ws_fs.core.errors import S3wsError

HEAD_BYTES_MAX: Final = 16 << 10
BODY_BYTES_MAX: Final = 64 << 10
QUERY_FIELDS_MAX: Final = 16
CONNECTIONS_MAX: Final = 64
REQUESTS_MAX: Final = 1000
"""Of one connection; then it is made anew."""
REQUEST_S: Final = 10.0
"""From the first byte of a request to its last."""
IDLE_S: Final = 30.0
"""A connection on which nothing is asked."""
SEND_S: Final = 30.0
"""For each piece of an answer; who reads more slowly is let go."""
LINGER_S: Final = 2.0
_RECEIVE_BYTES: Final = 16 << 10

_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)

Body = bytes | AsyncIterator[bytes]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `path` is as it was sent, without its query; names of headers are lower case."""

    method: str
    path: str
    query: Mapping[str, bytes]
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Response:
    """One answer; `length` has to be given with a body that comes in pieces."""

    status: int = HTTPStatus.OK
    body: Body = b""
    headers: list[tuple[str, str]] = field(default_factory=list)
    length: int | None = None


class BadRequest(Exception):
    """What a client sent is refused with a status; `text` is said to it."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(status, text)


Handler = Callable[[Request], Awaitable[Response]]
Refuse = Callable[[BadRequest], Response]


async def serve_connection(stream: trio.SocketStream, handle: Handler, refuse: Refuse) -> None:
    """Answer the requests of one connection until either side ends it."""
    async with stream:
        try:
            await _Connection(stream, handle, refuse).run()
        except _GONE:
            return
        except Exception:
            _log.exception("a connection failed")
            return
        await _linger(stream)


async def turn_away(stream: trio.SocketStream, refuse: Refuse) -> None:
    """For a connection too many."""
    busy = BadRequest(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections; try again")
    async with stream:
        try:
            connection = _Connection(stream, _nobody, refuse)
            await connection.send(refuse(busy), head_only=False)
        except _GONE:
            return


async def _nobody(_: Request) -> Response:
    raise AssertionError("nothing is handled on a connection that is turned away")


async def _linger(stream: trio.SocketStream) -> None:
    """Read what is still on its way: closing before that would throw our answer away."""
    with trio.move_on_after(LINGER_S):
        try:
            await stream.send_eof()
            left = BODY_BYTES_MAX + HEAD_BYTES_MAX
            while left > 0 and (data := await stream.receive_some(_RECEIVE_BYTES)):
                left -= len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


class _Connection:
    def __init__(self, stream: trio.SocketStream, handle: Handler, refuse: Refuse) -> None:
        self._stream = stream
        self._handle = handle
        self._refuse = refuse
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def run(self) -> None:
        for _ in range(REQUESTS_MAX):
            try:
                request = await self._receive()
            except BadRequest as exc:
                await self.send(self._refuse(exc), head_only=False)
                return
            except h11.RemoteProtocolError as exc:
                hint = exc.error_status_hint
                bad = BadRequest(hint, "this is no request")
                await self.send(self._refuse(bad), head_only=False)
                return
            if request is None:
                return
            await self.send(await self._handle(request), head_only=request.method == "HEAD")
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _receive(self) -> Request | None:
        """The next request; None when the client has no more. Raises BadRequest."""
        if self._http.trailing_data[0] == b"":
            with trio.move_on_after(IDLE_S) as idle:
                self._http.receive_data(await self._stream.receive_some(_RECEIVE_BYTES))
            if idle.cancelled_caught:
                return None
        with trio.move_on_after(REQUEST_S):
            head = await self._event()
            if not isinstance(head, h11.Request):
                return None
            return _request(head, await self._body())
        raise BadRequest(HTTPStatus.REQUEST_TIMEOUT, "the request did not come in time")

    async def _body(self) -> bytes:
        data = bytearray()
        while isinstance(event := await self._event(), h11.Data):
            data += event.data
            if len(data) > BODY_BYTES_MAX:
                raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the body is too long")
        return bytes(data)

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                assert not isinstance(event, type) or event is h11.PAUSED
                return event
            if self._http.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await self._stream.send_all(self._http.send(go_on) or b"")
            self._http.receive_data(await self._stream.receive_some(_RECEIVE_BYTES))

    async def send(self, response: Response, *, head_only: bool) -> None:
        """One answer (invariant 4)."""
        body = response.body
        length = len(body) if isinstance(body, bytes) else response.length
        head = h11.Response(
            status_code=int(response.status),
            headers=[*response.headers, ("Content-Length", str(length))],
            reason=HTTPStatus(response.status).phrase,
        )
        await self._out(head)
        if head_only:
            await self._out(h11.EndOfMessage())
            return
        if isinstance(body, bytes):
            await self._out(h11.Data(data=body))
        elif not await self._pieces(body):
            return
        try:
            await self._out(h11.EndOfMessage())
        except h11.LocalProtocolError:
            # Fewer bytes than were announced.
            self._http.send_failed()

    async def _pieces(self, body: AsyncIterator[bytes]) -> bool:
        """Send a body as it comes; False when it can't be had to its end (invariant 4)."""
        try:
            async with aclosing(body) as found:  # type: ignore[type-var]
                async for piece in found:
                    await self._out(h11.Data(data=piece))
        except S3wsError as exc:
            _log.warning("an answer stopped short: %s", exc)
            self._http.send_failed()
            return False
        return True

    async def _out(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            with trio.fail_after(SEND_S):
                await self._stream.send_all(data)


def _request(head: h11.Request, body: bytes) -> Request:
    """Raises BadRequest."""
    headers: dict[str, str] = {}
    for name, value in head.headers:
        key = name.decode("ascii")
        if key in headers and key in ("host", "origin", "cookie", "content-type"):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "a header is there twice")
        headers[key] = value.decode("latin-1")
    path, _, query = head.target.decode("ascii").partition("?")
    return Request(head.method.decode("ascii"), path, parse_query(query), headers, body)


def parse_query(text: str) -> dict[str, bytes]:
    """`a=x&b=y` with percent escapes, as bytes: names of files are. Raises BadRequest."""
    found: dict[str, bytes] = {}
    for number, part in enumerate(text.split("&")):
        name, _, value = part.partition("=")
        if number >= QUERY_FIELDS_MAX or name in found:
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the query can't be read")
        found[name] = unquote_to_bytes(value)
    return found


def pieces(found: Iterator[bytes], limiter: trio.CapacityLimiter) -> AsyncIterator[bytes]:
    """The pieces of a blocking iterator, each fetched in a thread."""

    async def each() -> AsyncIterator[bytes]:
        while True:
            piece = await trio.to_thread.run_sync(next, found, None, limiter=limiter)
            if piece is None:
                return
            yield piece

    return each()
