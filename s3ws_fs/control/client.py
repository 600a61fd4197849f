"""The other side of the control socket: blocking, with timeouts, for the command and the launcher.

Invariants
1. No wait is without a bound that the caller chose; `None` means as long as the daemon lives.
2. A daemon that dies ends every wait at once (the kernel closes its socket).
3. What the daemon refused is raised as it said it (ReplyError: message, remedy, exit code), also
   when it refused before it read the request.

Called by launch, cli and the manager (in a thread).
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from s3ws_fs.control import wire
from s3ws_fs.control.paths import socket_address
from s3ws_fs.core.errors import ExitCode, UserError

CONNECT_TIMEOUT_S: Final = 5.0
STATUS_TIMEOUT_S: Final = 10.0
_RECEIVE_BYTES: Final = 64 * 1024


class DaemonGoneError(UserError):
    """Nobody listens on the socket, or the daemon ended before it answered."""


class DaemonSilentError(UserError):
    """The daemon is there but did not answer in time."""


def request(
    socket_path: str,
    cmd: str,
    args: Mapping[str, Any] | None = None,
    *,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    timeout_s: float | None = STATUS_TIMEOUT_S,
) -> dict[str, Any]:
    """Send one command and return its result; events go to `on_event` as they come.

    `timeout_s` bounds the whole exchange. Raises DaemonGoneError, DaemonSilentError, or the
    daemon's own ReplyError.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with _connect(socket_path) as sock:
        lines = _Lines(sock, deadline)
        try:
            _send(sock, wire.encode_request(cmd, args or {}))
            while True:
                message = wire.decode(lines.next())
                if "ok" in message:
                    return _result(message)
                if on_event is not None:
                    on_event(message)
        except TimeoutError as exc:
            raise DaemonSilentError(
                f"The daemon did not answer `{cmd}` within {timeout_s:g} s."
                if timeout_s is not None
                else f"The daemon did not take `{cmd}`.",
                remedy="It goes on in the background; look again with `s3ws status`.",
            ) from exc
        except (ConnectionError, EOFError) as exc:
            raise DaemonGoneError(
                f"The daemon ended before it answered `{cmd}`.",
                remedy="Its log says why; the cache keeps everything: mount again to go on.",
                exit_code=ExitCode.NOT_MOUNTED,
            ) from exc
        except wire.ProtocolError as exc:
            raise UserError(
                f"The answer of the daemon to `{cmd}` was not understood ({exc}).",
                remedy="Use the version of s3ws that mounted it.",
            ) from exc


def _connect(socket_path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_TIMEOUT_S)
    try:
        with socket_address(socket_path) as address:
            sock.connect(address)
    except PermissionError as exc:
        sock.close()
        raise UserError(
            f"The control socket {socket_path!a} belongs to another user.",
            remedy="Run the command as the user who mounted, or as root.",
            exit_code=ExitCode.NOT_MOUNTED,
        ) from exc
    except TimeoutError as exc:
        sock.close()
        raise DaemonSilentError(
            "The daemon does not take connections.", remedy="Look at its log; it may be stuck."
        ) from exc
    except OSError as exc:
        sock.close()
        raise DaemonGoneError(
            f"No daemon answers on {socket_path!a}.",
            remedy="Mount the workspace with `s3ws mount`.",
            exit_code=ExitCode.NOT_MOUNTED,
        ) from exc
    return sock


def _send(sock: socket.socket, line: bytes) -> None:
    try:
        sock.sendall(line)
    except (BrokenPipeError, ConnectionResetError):
        # A daemon that refuses a connection hangs up without reading; its reason waits here to be
        # read, and where there is none, reading says that it is gone.
        return


class _Lines:
    """Lines from a socket, with one deadline over all of them (monotonic seconds)."""

    def __init__(self, sock: socket.socket, deadline: float | None) -> None:
        self._sock = sock
        self._deadline = deadline
        self._data = bytearray()

    def next(self) -> bytes:
        """The next line. Raises TimeoutError, EOFError, ConnectionError or ProtocolError."""
        scanned = 0
        while (end := self._data.find(b"\n", scanned)) < 0:
            scanned = len(self._data)
            if scanned > wire.LINE_BYTES_MAX:
                raise wire.ProtocolError("a line is too long")
            self._sock.settimeout(self._left())
            chunk = self._sock.recv(_RECEIVE_BYTES)
            if not chunk:
                raise EOFError
            self._data += chunk
        line = bytes(self._data[: end + 1])
        del self._data[: end + 1]
        return line

    def _left(self) -> float | None:
        if self._deadline is None:
            return None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def _result(message: dict[str, Any]) -> dict[str, Any]:
    if message["ok"] is not True:
        raise wire.error_from(message.get("error"))
    result = message.get("result")
    if not isinstance(result, dict):
        raise wire.ProtocolError("the answer has no result")
    return result
