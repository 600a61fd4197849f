"""A transfer worker in a thread of this process, over any store: a mount without a child process.

Invariants
1. It is the real worker, with its own loop, lanes and frames; only the process is missing.
2. When the daemon's end closes, it ends, as the process would.

Called by tests that make many mounts.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core.config import StoreConfig
from s3ws_fs.store.base import ObjectStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.client import Running, Start
from s3ws_fs.transfer.session import Means
from s3ws_fs.transfer.worker import Worker

WAIT_POLL_S = 0.005


class _Worker(Worker):
    def _send(self, message: dict[str, Any], payload: bytes | memoryview = b"") -> None:
        # Where the process would end itself, nobody listens any more.
        with contextlib.suppress(OSError):
            super()._send(message, payload)


class _Thread:
    """What WorkerClient sees as the process."""

    def __init__(self, sock: socket.socket, means: Means) -> None:
        self.pid = 1
        self._sock = sock
        self._thread = threading.Thread(target=self._run, args=(means,), daemon=True)
        self._thread.start()

    def _run(self, means: Means) -> None:
        with self._sock, contextlib.suppress(OSError):
            _Worker(self._sock, means=means).run()

    async def wait(self) -> int:
        while self._thread.is_alive():
            await trio.sleep(WAIT_POLL_S)
        return 0

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


def starting(store: ObjectStore, cache: Callable[[], Cache]) -> Start:
    """Starts workers over `store`, which read `cache`."""

    def open_store(_: StoreConfig, prefix: str, *, read_only: bool = False) -> ScopedStore:
        return ScopedStore(store, prefix, read_only=read_only)

    def open_reader(_: Path) -> Cache:
        return cache()

    async def start() -> tuple[Running, trio.abc.Stream]:
        ours, theirs = socket.socketpair()
        means = Means(open_store=open_store, open_reader=open_reader)
        return _Thread(theirs, means), trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    return start
