"""The daemon's side of the control socket.

Invariants
1. Only this user and root are answered (SO_PEERCRED); the socket has mode 0600.
2. No client can delay the daemon: a handler's events go to a bounded queue (the oldest are
   dropped), requests and answers have deadlines, connections and request sizes have limits.
3. A handler's failure becomes an answer; it never ends the server.
4. When a client hangs up, its handler is cancelled, except for the commands in `detached`: what
   those began must end whether or not somebody looks on.
5. A socket file that somebody listens on is never taken over; at the end only our own is removed.

Called by the daemon, in its trio loop: `await nursery.start(serve, path, handlers)`.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

import trio

from s3ws_fs.control import wire
from s3ws_fs.control.paths import ensure_private_dir, is_listening, socket_address
from s3ws_fs.core.errors import ExitCode, UserError

Emit = Callable[[dict[str, Any]], Awaitable[None]]
Handler = Callable[[dict[str, Any], Emit], Awaitable[dict[str, Any]]]

CONNECTIONS_MAX: Final = 32
REQUEST_TIMEOUT_S: Final = 10.0
SEND_TIMEOUT_S: Final = 10.0
EVENTS_QUEUED_MAX: Final = 256
_BACKLOG: Final = 64
_RECEIVE_BYTES: Final = 16 * 1024

_log = logging.getLogger(__name__)


async def serve(
    path: str,
    handlers: Mapping[str, Handler],
    *,
    detached: Collection[str] = ("unmount",),
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen on the unix socket `path` until cancelled; started once the socket is ready.

    Raises UserError (exit code 5) when another process listens there.
    """
    ensure_private_dir(os.path.dirname(path))  # noqa: PTH120 - bytes-safe and symmetrical to split
    listener = _listen(path)
    identity = _identity(path)
    limit = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def connection(stream: trio.SocketStream) -> None:
        try:
            await _connection(stream, handlers, detached, limit)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            _log.debug("control connection lost: %s", exc)

    try:
        await trio.serve_listeners(
            connection,
            [trio.SocketListener(trio.socket.from_stdlib_socket(listener))],
            task_status=_Started(task_status),
        )
    finally:
        if _identity(path) == identity:
            Path(path).unlink(missing_ok=True)


class _Started(trio.TaskStatus[list[trio.SocketListener]]):
    """Tells the caller's task status that the server runs, without the listeners."""

    def __init__(self, outer: trio.TaskStatus[None]) -> None:
        self._outer = outer

    def started(self, value: object = None) -> None:
        self._outer.started()


def _listen(path: str) -> socket.socket:
    if is_listening(path):
        raise UserError(
            f"Another daemon answers on the control socket {path!a}.",
            remedy="Look at `s3ws status`; end that mount with `s3ws umount` first.",
            exit_code=ExitCode.ALREADY_MOUNTED,
        )
    Path(path).unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_address(path) as address:
            sock.bind(address)
        # The directory is private, so nobody gets in between bind and chmod.
        Path(path).chmod(0o600)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _identity(path: str) -> tuple[int, int] | None:
    try:
        info = Path(path).lstat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


def peer_uid(sock: trio.socket.SocketType | socket.socket) -> int:
    """The user id of the process at the other end of a connected unix socket."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    _pid, uid, _gid = struct.unpack("iII", raw)
    return int(uid)


async def _connection(
    stream: trio.SocketStream,
    handlers: Mapping[str, Handler],
    detached: Collection[str],
    limit: trio.CapacityLimiter,
) -> None:
    async with stream:
        if peer_uid(stream.socket) not in (0, os.geteuid()):
            await _refuse(stream, "This mount belongs to another user.")
            return
        try:
            limit.acquire_nowait()
        except trio.WouldBlock:
            await _refuse(stream, "The daemon has too many control connections; try again.")
            return
        try:
            request = await _receive(stream)
            if request is not None:
                await _answer(stream, request, handlers, request.cmd in detached)
        except wire.ProtocolError as exc:
            await _refuse(stream, f"The control request was not understood: {exc}.")
        finally:
            limit.release()


async def _receive(stream: trio.SocketStream) -> wire.Request | None:
    """The request, or None when the client said nothing in time or hung up."""
    data = bytearray()
    with trio.move_on_after(REQUEST_TIMEOUT_S):
        while b"\n" not in data:
            chunk = await stream.receive_some(_RECEIVE_BYTES)
            if not chunk:
                return None
            data += chunk
            if len(data) > wire.REQUEST_BYTES_MAX:
                raise wire.ProtocolError("the request is too long")
        return wire.decode_request(bytes(data[: data.index(b"\n") + 1]))
    return None


async def _answer(
    stream: trio.SocketStream,
    request: wire.Request,
    handlers: Mapping[str, Handler],
    is_detached: bool,
) -> None:
    outbox = _Outbox(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        hung_up = trio.CancelScope(shield=False)
        if not is_detached:
            nursery.start_soon(_cancel_on_hang_up, stream, hung_up)
        with hung_up:
            outbox.final(await _call(handlers, request, outbox.emit))
        if hung_up.cancelled_caught:
            nursery.cancel_scope.cancel()
        else:
            await outbox.done.wait()
            nursery.cancel_scope.cancel()


async def _call(
    handlers: Mapping[str, Handler], request: wire.Request, emit: Emit
) -> dict[str, Any]:
    handler = handlers.get(request.cmd)
    if handler is None:
        error = UserError(
            f"The daemon does not know the command {request.cmd!a}.",
            remedy="The daemon may be of an older version: unmount and mount again.",
        )
        return {"ok": False, "error": wire.error_object(error)}
    try:
        return {"ok": True, "result": await handler(request.args, emit)}
    except UserError as exc:
        return {"ok": False, "error": wire.error_object(exc)}
    except Exception:
        # The daemon serves files: a fault in one request must not take the mount away.
        _log.exception("control command %s failed", request.cmd)
        error = UserError(
            f"The command {request.cmd} failed inside the daemon.", remedy="See the daemon's log."
        )
        return {"ok": False, "error": wire.error_object(error)}


async def _cancel_on_hang_up(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    # More bytes after the request are no part of the protocol: treated as a hang-up too.
    try:
        await stream.receive_some(1)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        _log.debug("control client went away")
    scope.cancel()


async def _refuse(stream: trio.SocketStream, message: str) -> None:
    error = UserError(message, exit_code=ExitCode.INTERNAL)
    with trio.move_on_after(SEND_TIMEOUT_S):
        await stream.send_all(wire.encode({"ok": False, "error": wire.error_object(error)}))


class _Outbox:
    """The lines on their way to one client: events may be dropped, the answer may not."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._events: deque[bytes] = deque(maxlen=EVENTS_QUEUED_MAX)
        self._final: bytes | None = None
        self._wake = trio.Event()
        self.done = trio.Event()

    async def emit(self, event: dict[str, Any]) -> None:
        """Queue an event; never waits for the client."""
        self._events.append(wire.encode(event))
        self._wake.set()

    def final(self, answer: dict[str, Any]) -> None:
        """Queue the answer."""
        self._final = wire.encode(answer)
        self._wake.set()

    async def run(self) -> None:
        """Send until the answer is out, or the client is gone or too slow."""
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                while self._events:
                    await self._send(self._events.popleft())
                if self._final is not None:
                    await self._send(self._final)
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as exc:
            _log.debug("control client lost: %r", exc)
        finally:
            self.done.set()

    async def _send(self, line: bytes) -> None:
        with trio.fail_after(SEND_TIMEOUT_S):
            await self._stream.send_all(line)
