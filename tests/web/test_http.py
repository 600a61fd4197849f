"""Requests as bytes: what is read, what is refused, and for how long a client may hold a place."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import h11
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core.errors import S3wsError
from s3ws_fs.web import http
from s3ws_fs.web.http import BadRequest, Request, Response
from s3ws_fs.web.routes import refusal

Handle = Callable[[Request], Awaitable[Response]]


async def echo(request: Request) -> Response:
    return Response(body=f"{request.method} {request.path} {request.body!r}".encode())


@asynccontextmanager
async def connected(handle: Handle = echo) -> AsyncIterator[trio.SocketStream]:
    """A client's end of a connection that is served."""
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    client = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    server = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    async with trio.open_nursery() as nursery, client:
        nursery.start_soon(http.serve_connection, server, handle, refusal)
        yield client
        await client.aclose()


async def read_all(client: trio.SocketStream) -> bytes:
    data = b""
    async for part in client:
        data += part
    return data


async def status_of(raw: bytes) -> int:
    async with connected() as client:
        await client.send_all(raw)
        return int((await read_all(client)).split(b" ")[1])


HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


async def test_several_requests_of_one_connection() -> None:
    async with connected() as client:
        second = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
        await client.send_all(HEAD + b"\r\n" + second)
        said = await read_all(client)
    assert said.count(b"HTTP/1.1 200") == 2
    assert b"GET / b''" in said and said.endswith(b"POST /x b'hi'")


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (HEAD + b"X: " + b"a" * 4 * http.HEAD_BYTES_MAX + b"\r\n\r\n", 431),
        (HEAD + b"Host: other\r\n\r\n", 400),
        (HEAD + b"Cookie: a\r\nCookie: b\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (HEAD + b"Content-Length: %d\r\n\r\n" % (http.BODY_BYTES_MAX + 1)
         + bytes(http.BODY_BYTES_MAX + 1), 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
         + b"10000\r\n" + bytes(65536) + b"\r\n" + b"1\r\nx\r\n0\r\n\r\n", 413),
        (b"GET /?" + b"&".join(b"a%d=1" % n for n in range(http.QUERY_FIELDS_MAX + 1))
         + b" HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET /?a=1&a=2 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n", 400),
    ],
    ids=["nonsense", "no-host", "long-head", "two-hosts", "two-cookies", "two-lengths", "long-body",
         "long-chunks", "many-fields", "field-twice", "tls"],
)  # fmt: skip
async def test_what_is_no_request_is_refused(raw: bytes, status: int) -> None:
    assert await status_of(raw) == status


async def test_a_body_at_the_limit_is_taken() -> None:
    body = bytes(http.BODY_BYTES_MAX)
    head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert await status_of(head + body) == 200


async def test_an_idle_connection_ends(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as client:
        assert await read_all(client) == b""
    assert trio.current_time() >= http.IDLE_S


@pytest.mark.parametrize("begun", [b"G", HEAD, HEAD + b"Content-Length: 5\r\n\r\nhi"])
async def test_a_slow_request_ends(begun: bytes, autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as client:
        await client.send_all(begun)
        assert b" 408 " in await read_all(client)
    assert http.REQUEST_S <= trio.current_time() < http.IDLE_S


async def test_who_does_not_read_is_let_go(autojump_clock: trio.testing.MockClock) -> None:
    async def much(_: Request) -> Response:
        return Response(body=bytes(64 << 20))

    async with connected(much) as client:
        await client.send_all(HEAD + b"\r\n")
        await trio.sleep(http.SEND_S + 1)
        said = await read_all(client)
    assert len(said) < 64 << 20


async def test_an_answer_that_stops_short_ends_the_connection() -> None:
    async def short(_: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"half"

        return Response(body=pieces(), length=8)

    async with connected(short) as client:
        await client.send_all(HEAD + b"\r\n" + HEAD + b"\r\n")
        said = await read_all(client)
    assert b"content-length: 8" in said.lower() and said.endswith(b"\r\n\r\nhalf")
    assert said.count(b"HTTP/1.1") == 1


async def test_a_connection_too_many_is_told_so() -> None:
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    client = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    server = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    async with client:
        await http.turn_away(server, refusal)
        assert b" 503 " in await read_all(client)


def test_queries_are_bytes() -> None:
    assert http.parse_query("path=%ff%2Fa&start=2") == {"path": b"\xff/a", "start": b"2"}
    with pytest.raises(BadRequest):
        http.parse_query("&".join(f"a{n}" for n in range(http.QUERY_FIELDS_MAX + 1)))


async def test_a_connection_serves_so_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUESTS_MAX", 2)
    async with connected() as client:
        await client.send_all((HEAD + b"\r\n") * 3)
        assert (await read_all(client)).count(b"HTTP/1.1 200") == 2


@given(st.binary(max_size=300), st.sampled_from((b"", HEAD, b"GET /?", b"POST /x HTTP/1.1\r\n")))
def test_any_bytes_are_a_request_or_refused(rest: bytes, begin: bytes) -> None:
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=http.HEAD_BYTES_MAX)
    parser.receive_data(begin + rest + b"\r\n\r\n")
    try:
        head = parser.next_event()
        if isinstance(head, h11.Request):
            http._request(head, b"")
    except (h11.RemoteProtocolError, BadRequest):
        pass


@pytest.mark.parametrize("error", [S3wsError("damaged"), RuntimeError("a fault")])
async def test_what_fails_under_way_ends_that_connection_alone(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(_: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"half"
            raise error

        return Response(body=pieces(), length=8)

    # The nursery of the connections would end with it.
    async with connected(fails) as client:
        await client.send_all(HEAD + b"\r\n" + HEAD + b"\r\n")
        said = await read_all(client)
    assert said.endswith(b"\r\n\r\nhalf") and said.count(b"HTTP/1.1") == 1
    assert str(error) in caplog.text
