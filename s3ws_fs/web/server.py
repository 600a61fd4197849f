"""The status page as a program: listens, answers, samples, until it is told to end.

Invariants
1. One thread runs all but the blocking calls; whatever a request does, the others are served.
2. What a browser began goes on when it goes away: a restore is not cut off by a closed page.

Called by the command.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from s3ws_fs.core.errors import ExitCode, S3wsError, UserError
from s3ws_fs.web import http
from s3ws_fs.web.guard import Guard
from s3ws_fs.web.mounts import BACKGROUND_S, Mounts
from s3ws_fs.web.routes import Routes, refusal

DEFAULT_ADDRESS: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8765
BACKLOG: Final = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where it listens, and the names by which it may be called."""

    address: str = DEFAULT_ADDRESS
    port: int = DEFAULT_PORT
    hosts: tuple[str, ...] = ()


async def serve(
    where: Listening,
    on_link: Callable[[str], None],
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. `on_link` is given each address that lets a browser in; the port is
    the answer to `nursery.start`. Raises UserError when it can't listen there.
    """
    listeners = await _listen(where)
    try:
        await _serve(where, listeners, on_link, task_status)
    finally:
        for listener in listeners:
            listener.socket.close()


async def _serve(
    where: Listening,
    listeners: list[trio.SocketListener],
    on_link: Callable[[str], None],
    task_status: trio.TaskStatus[int],
) -> None:
    port = int(listeners[0].socket.getsockname()[1])
    name = f"[{where.address}]" if ":" in where.address else where.address

    def tell(token: str) -> None:
        on_link(f"http://{name}:{port}/#token={token}")

    guard = Guard((name, *where.hosts), monotonic=time.monotonic, on_used=tell)
    mounts = Mounts()
    routes = Routes(guard, mounts)
    tell(guard.token)
    places = trio.CapacityLimiter(http.CONNECTIONS_MAX)

    async def connection(stream: trio.SocketStream) -> None:
        try:
            # A connection holds a place, whichever task it is in.
            places.acquire_on_behalf_of_nowait(stream)
        except trio.WouldBlock:
            await http.turn_away(stream, refusal)
            return
        try:
            await http.serve_connection(stream, routes.handle, refusal)
        finally:
            places.release_on_behalf_of(stream)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_sample, mounts)
            task_status.started(port)
            await trio.serve_listeners(connection, listeners)
    finally:
        mounts.close()


async def _listen(where: Listening) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(where.port, host=where.address, backlog=BACKLOG)
    except OSError as exc:
        in_use = exc.errno == errno.EADDRINUSE
        raise UserError(
            f"{where.address} port {where.port} can't be listened on: {exc.strerror or exc}.",
            remedy="Choose another port by --port (0: any that is free)."
            if in_use
            else "Name an address of this host by --listen.",
            exit_code=ExitCode.USAGE,
        ) from exc


async def _sample(mounts: Mounts) -> None:
    while True:
        try:
            await trio.to_thread.run_sync(mounts.sample)
        except (OSError, S3wsError) as exc:
            # The charts have a gap; whoever asks for the mounts is told why.
            _log.warning("the mounts can't be looked at: %s", exc)
        await trio.sleep(BACKGROUND_S)
