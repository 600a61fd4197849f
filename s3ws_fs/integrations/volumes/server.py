"""Docker's volume plugin protocol (VolumeDriver, version 1) over HTTP on a unix socket.

Invariants
1. Only this user and root are answered (SO_PEERCRED); the socket has mode 0600.
2. Every answer is JSON; one that failed has status 500 and says why in "Err", without a traceback.
3. A request has at most BODY_BYTES_MAX, a connection is silent for at most SILENCE_S, and at most
   CONNECTIONS_MAX are served at once; the next ones wait.
4. `close` lets requests under way come to their end, and waits for them.

Called by the plugin's entry.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

from s3ws_fs import __version__
from s3ws_fs.control.paths import is_listening, make_private, socket_address
from s3ws_fs.control.server import peer_uid
from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import ExitCode, S3wsError, UserError
from s3ws_fs.integrations.volumes.driver import Driver

log = logging.getLogger("s3ws_fs.volumes")

BODY_BYTES_MAX: Final = 64 * 1024
CONNECTIONS_MAX: Final = 64
SILENCE_S: Final = 60.0
BACKLOG: Final = 128
CONTENT_TYPE: Final = "application/vnd.docker.plugins.v1.2+json"

Call = Callable[[dict[str, Any]], dict[str, Any]]


class Protocol:
    """The calls of the protocol over one driver."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.calls: dict[str, Call] = {
            "/Plugin.Activate": lambda _: {"Implements": ["VolumeDriver"]},
            "/VolumeDriver.Capabilities": lambda _: {"Capabilities": {"Scope": "local"}},
            "/VolumeDriver.Create": self._create,
            "/VolumeDriver.Remove": self._remove,
            "/VolumeDriver.Mount": self._mount,
            "/VolumeDriver.Unmount": self._unmount,
            "/VolumeDriver.Path": self._path,
            "/VolumeDriver.Get": self._get,
            "/VolumeDriver.List": self._list,
        }

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """HTTP status and document. Never raises."""
        call = self.calls.get(path)
        if call is None:
            return 404, {"Err": f"s3ws does not know {path[:256]!a}"}
        try:
            request = jsontext.object_of(body, "request") if body.strip() else {}
            return 200, {"Err": ""} | call(request)
        except UserError as exc:
            return 500, {"Err": f"{exc.message} {exc.remedy}".strip()}
        except (S3wsError, OSError) as exc:
            log.error("%s failed: %s", path, exc)
            return 500, {"Err": str(exc)}
        except Exception as exc:
            log.exception("%s failed", path)
            return 500, {"Err": f"internal error: {type(exc).__name__}; the plugin's log has more"}

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        given = request.get("Opts") or {}
        if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
            raise UserError("Opts is no object of strings", exit_code=ExitCode.USAGE)
        self._driver.create(_text(request, "Name"), given)
        return {}

    def _remove(self, request: dict[str, Any]) -> dict[str, Any]:
        self._driver.remove(_text(request, "Name"))
        return {}

    def _mount(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"Mountpoint": self._driver.mount(_text(request, "Name"), _text(request, "ID"))}

    def _unmount(self, request: dict[str, Any]) -> dict[str, Any]:
        self._driver.unmount(_text(request, "Name"), _text(request, "ID"))
        return {}

    def _path(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"Mountpoint": self._driver.path(_text(request, "Name"))}

    def _get(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"Volume": self._driver.describe(_text(request, "Name"))}

    def _list(self, _request: dict[str, Any]) -> dict[str, Any]:
        driver = self._driver
        return {"Volumes": [{"Name": n, "Mountpoint": driver.path(n)} for n in driver.names()]}


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not value:
        raise UserError(f"{name} is missing", exit_code=ExitCode.USAGE)
    return value


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = f"s3ws/{__version__}"
    timeout = SILENCE_S

    def do_POST(self) -> None:
        status, document = self._answer()
        data = json.dumps(document).encode("ascii")
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(data)))
        if self.server.is_closing:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(data)

    def _answer(self) -> tuple[int, dict[str, Any]]:
        text = self.headers.get("Content-Length") or "0"
        length = int(text) if text.isascii() and text.isdigit() else BODY_BYTES_MAX + 1
        if "Transfer-Encoding" in self.headers or length > BODY_BYTES_MAX:
            # What is not read would be taken for the next request.
            self.close_connection = True
            return 413, {"Err": f"a request has a Content-Length of at most {BODY_BYTES_MAX}"}
        return self.server.protocol.answer(self.path, self.rfile.read(length))

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens from its construction on; `serve_forever` answers."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = BACKLOG

    def __init__(self, path: str, driver: Driver) -> None:
        """Raises UserError when another one listens there, OSError."""
        self.protocol = Protocol(driver)
        self.is_closing = False
        self._path = Path(path)
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        if is_listening(path):
            raise UserError(
                f"Another plugin listens on {path!a}.",
                remedy="End it, or name another socket by --socket.",
                exit_code=ExitCode.ALREADY_MOUNTED,
            )
        make_private(self._path.parent)
        self._path.unlink(missing_ok=True)
        super().__init__(path, _Handler, bind_and_activate=False)
        try:
            with socket_address(path) as address:
                self.socket.bind(address)
            self._path.chmod(0o600)
            self.server_activate()
        except BaseException:
            self.server_close()
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Invariant 1."""
        return peer_uid(request) in (0, os.geteuid())

    def process_request(self, request: Any, client_address: Any) -> None:
        """Invariant 3: the thread that accepts waits for a place."""
        self._places.acquire()
        with self._lock:
            self._open.add(request)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One connection, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            self._open.discard(request)
        self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The other side went away."""
        log.debug("connection lost", exc_info=True)

    def close(self) -> None:
        """Invariant 4. Called from another thread than `serve_forever`."""
        self.is_closing = True
        self._hang_up()
        self.shutdown()
        self._path.unlink(missing_ok=True)
        # Those too that were accepted meanwhile.
        self._hang_up()
        self.server_close()

    def _hang_up(self) -> None:
        """Whoever waits for a further request hears of the end; answers can still be sent."""
        with self._lock:
            for request in self._open:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RD)
