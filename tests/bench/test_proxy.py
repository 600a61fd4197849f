"""The counting proxy passes every byte on, counts what passed, and ends with its user."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import proxy
from bench.processes import usage
from bench.proxy import Counts, ProxyError, Requests

PLAIN = b"PUT /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n0123456789"
COPY = b"PUT /b/c HTTP/1.1\r\nX-Amz-Copy-Source: /b/k\r\nContent-Length: 0\r\n\r\n"
LIST = b"GET /b?list-type=2&prefix=a HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKED = (
    b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"4\r\nPOST\r\n3;x=y\r\n\r\n\r\r\n0\r\n\r\n"
)
EXCHANGE = [("PUT", PLAIN), ("COPY", COPY), ("POST", CHUNKED), ("LIST", LIST), ("PUT", PLAIN)]


@given(st.lists(st.sampled_from(EXCHANGE), max_size=6), st.lists(st.integers(1, 40), min_size=1))
def test_the_stream_passes_whole_and_is_cut_at_the_heads(
    exchange: list[tuple[str, bytes]], sizes: list[int]
) -> None:
    stream = b"".join(raw for _, raw in exchange)
    requests, at, turn = Requests(), 0, 0
    pieces: list[proxy.Piece] = []
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        pieces += requests.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert b"".join(piece.data for piece in pieces) == stream
    assert [piece.kind for piece in pieces if piece.kind] == [kind for kind, _ in exchange]
    heads = b"".join(piece.data for piece in pieces if piece.kind)
    assert heads == b"".join(raw[: raw.index(b"\r\n\r\n") + 4] for _, raw in exchange)


@pytest.mark.parametrize("raw", [b"SSH-2.0-not-http\r\n\r\n", CHUNKED[:54] + b"zz\r\n"])
def test_what_is_no_request_is_refused(raw: bytes) -> None:
    with pytest.raises(ProxyError, match=r"^no "):
        list(Requests().feed(raw))


def test_a_head_has_a_limit() -> None:
    requests = Requests()
    assert list(requests.feed(b"a" * proxy.HEAD_BYTES_MAX)) == []
    with pytest.raises(ProxyError, match="no end of a head"):
        list(requests.feed(b"a"))


def test_counts_since() -> None:
    after, before = Counts({"PUT": 3, "GET": 1}, 30, 9), Counts({"PUT": 1, "GET": 1}, 10, 8)
    assert after.since(before) == Counts({"PUT": 2}, 20, 1)
    assert after.total == 4


class Handler(http.server.BaseHTTPRequestHandler):
    """Says back what it got."""

    protocol_version = "HTTP/1.1"
    arrived: list[tuple[str, bytes]]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).arrived.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[http.server.ThreadingHTTPServer]:
    Handler.arrived = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_large_body_goes_there_and_back_and_is_counted(
    upstream: http.server.ThreadingHTTPServer,
) -> None:
    body = bytes(range(256)) * (3 * proxy.CHUNK_BYTES // 256) + b"end"
    with proxy.running(upstream.server_port) as running:
        connection = http.client.HTTPConnection(str(urlsplit(running.url).netloc), timeout=30)
        before = running.counts()
        with running.late(0.001):
            for number in range(2):
                # http.server answers an Expect with 100 before it reads: it has to pass, too.
                headers = {"Expect": "100-continue"} if number else {}
                connection.request("PUT", f"/k{number}", body, headers)
                answer = connection.getresponse()
                assert answer.read() == body
        connection.close()
        passed = running.counts().since(before)
        pid = running._process.pid
    assert Handler.arrived == [("/k0", body), ("/k1", body)]
    assert passed.requests == {"PUT": 2}
    assert passed.up_bytes == 2 * len(body)
    assert passed.down_bytes > 2 * len(body)
    assert usage(pid) is None


def test_the_process_ends_after_an_error(upstream: http.server.ThreadingHTTPServer) -> None:
    with pytest.raises(ZeroDivisionError), proxy.running(upstream.server_port) as running:
        raise ZeroDivisionError
    assert running._process.returncode == 0
