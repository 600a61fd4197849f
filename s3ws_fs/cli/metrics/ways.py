"""Ways metrics reach a Prometheus: a file for node_exporter, or a port on loopback.

Invariants
1. The file is replaced whole (temporary file beside it, rename): a collector never reads half of
   it. Everybody may read it, for the collector is another user: docs/metrics.md says so.
2. The port is bound to a loopback address only, and asked by one of its names only: a page in a
   browser on this host can't have it read through a name of its own.
3. One request at a time, none longer than REQUEST_S: a client that says nothing holds up the others
   for so long, and no client makes threads or memory.

Called by cli.metrics.command.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client.exposition import generate_latest, make_wsgi_app
from prometheus_client.registry import Collector

from s3ws_fs.core.errors import ExitCode, UserError

TEXTFILE_SUFFIX: Final = ".prom"
"""node_exporter reads no other files."""
TEXTFILE_MODE: Final = 0o644
REQUEST_S: Final = 5.0
WAITING_MAX: Final = 8
"""Connections that wait for their turn; the kernel refuses more."""
PORT_DEFAULT: Final = 9748
PORT_MAX: Final = 65_535

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


# --- a file --------------------------------------------------------------------------------------


def write_textfile(path: Path, collector: Collector) -> None:
    """Put the metrics in place of the file. Raises UserError."""
    text = generate_latest(collector)
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as out:
                out.write(text)
                os.fchmod(fd, TEXTFILE_MODE)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as exc:
        raise UserError(
            f"The metrics can't be written to {str(path)!a}: {exc.strerror}.",
            remedy="Name a file in a directory that this user may write to.",
            exit_code=ExitCode.BAD_SETTINGS,
        ) from exc


def repeat(work: Callable[[], None], every_s: float) -> None:
    """Do it now and every `every_s` until SIGTERM or SIGINT. Raises what the work raises."""
    with _until_signal() as ended:
        while True:
            work()
            if ended.wait(every_s):
                return


@contextlib.contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- a port --------------------------------------------------------------------------------------


def loopback(given: str) -> tuple[str, int]:
    """Address and port of `PORT`, `ADDRESS:PORT` or `[ADDRESS]:PORT`. Raises UserError."""
    host, _, port = given.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]") or "127.0.0.1")
        number = int(port) if port.isascii() and port.isdecimal() else -1
    except ValueError:
        number = -1
    if not 0 <= number <= PORT_MAX:
        raise UserError(
            f"{given[:100]!a} is no port of this host.",
            remedy=f"Give a port such as {PORT_DEFAULT}, or 127.0.0.1:{PORT_DEFAULT}.",
            exit_code=ExitCode.USAGE,
        )
    if not address.is_loopback:
        raise UserError(
            f"{address} is not a loopback address: metrics are not shown to the network.",
            remedy="Let a Prometheus (agent) on this host scrape it, or put a proxy with a password"
            " before it.",
            exit_code=ExitCode.USAGE,
        )
    return str(address), number


class Server(WSGIServer):
    """HTTP on loopback, one request after the other."""

    request_queue_size = WAITING_MAX

    def __init__(self, address: str, port: int, collector: Collector) -> None:
        """Raises UserError when the port can't be had."""
        if ":" in address:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((address, port), _Quiet)
        except OSError as exc:
            raise UserError(
                f"The port {port} on {address} can't be used: {exc.strerror}.",
                remedy="Choose another one.",
                exit_code=ExitCode.BAD_SETTINGS,
            ) from exc
        self.set_app(_guarded(make_wsgi_app(collector), address))

    def server_bind(self) -> None:
        # wsgiref's would ask the resolver for a name of the address.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self.socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def serve_until_signal(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        with _until_signal() as ended:
            thread = threading.Thread(target=self.serve_forever, name="http", daemon=True)
            thread.start()
            ended.wait()
            self.shutdown()


class _Quiet(WSGIRequestHandler):
    """Says nothing of requests, and waits for none longer than REQUEST_S."""

    timeout = REQUEST_S

    def log_message(self, format: str, *args: Any) -> None:
        return


def _guarded(app: Wsgi, address: str) -> Wsgi:
    names = {address, "localhost", "127.0.0.1", "::1"}

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = str(environ.get("HTTP_HOST", ""))
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name not in names:
            start_response("421 Misdirected Request", [("Content-Type", "text/plain")])
            return [b"this is the loopback port of s3ws: ask for localhost\n"]
        if environ.get("PATH_INFO") not in ("/", "/metrics"):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"metrics are at /metrics\n"]
        return app(environ, start_response)

    return guarded
