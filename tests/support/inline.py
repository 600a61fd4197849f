"""A whole mount in one thread of one process, without a kernel: every step comes in one order.

The transfer worker is a real `Worker`, called where it would be asked; its pools run at once; its
store is any store. So the n-th request, commit or failpoint of a workload is the same each time.

Invariants
1. What crosses between daemon and worker crosses as JSON, errors too, as over the socket.
2. `WorkerDied`, raised at a failpoint of the worker, ends the worker alone: what it had told is
   delivered, and the daemon sees what it sees when a worker was killed.
3. Time jumps: nothing waits (trio.testing.MockClock).

Called by the tests of crash.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import trio

from s3ws_fs.cache.cache import Cache, open_cache
from s3ws_fs.cache.durability import Durability
from s3ws_fs.core.bounds import LEASE_S_MIN
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.core.errors import StartOverError
from s3ws_fs.daemon.parts import identity
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.replica import base as replica_base
from s3ws_fs.replica.replicator import Replicator
from s3ws_fs.store.base import ObjectStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import wire
from s3ws_fs.transfer.client import OnPart
from s3ws_fs.transfer.session import Means
from s3ws_fs.transfer.worker import Worker
from tests.replica.conftest import Mount

BOOT: Final = "boot-1"
STEP_NS: Final = 1000
START_NS: Final = 1_700_000_000_000_000_000


class WorkerDied(BaseException):
    """The worker's process is gone."""


class Ticks:
    """A clock that moves by STEP_NS a reading."""

    def __init__(self) -> None:
        self.ns = START_NS

    def __call__(self) -> int:
        self.ns += STEP_NS
        return self.ns


class _AtOnce(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as exc:
            future.set_exception(exc)
        return future


def at_once() -> Executor:
    """A pool that does the work when it is given it."""
    return _AtOnce()


class InlineClient:
    """Stands for a WorkerClient: the worker is an object here."""

    def __init__(
        self,
        hello: dict[str, Any],
        *,
        cache: Cache,
        open_store: Callable[[], ObjectStore],
        randbits: Callable[[int], int],
        **_: Any,
    ) -> None:
        self.hello = hello
        self.spawned = 0
        self.pid: int | None = None
        self.requests: dict[str, int] = {}
        self.late: tuple[str, float] | None = None
        self._worker: Worker | None = None
        self._means = Means(
            open_store=lambda _, prefix: ScopedStore(open_store(), prefix, randbits=randbits),
            open_reader=lambda _: cache,
            pool=lambda _, __: at_once(),
            randbits=randbits,
            boot=trio.current_time,
        )

    async def ask(
        self, cmd: str, on_part: OnPart | None = None, *, deadline_s: float = 0.0, **args: Any
    ) -> dict[str, Any]:
        """As WorkerClient.ask."""
        await trio.lowlevel.checkpoint()
        parts: list[tuple[dict[str, Any], bytes]] = []

        def part(body: dict[str, Any], payload: bytes | memoryview = b"") -> None:
            parts.append((json.loads(json.dumps(body)), bytes(payload)))

        error: Exception | None = None
        result: dict[str, Any] = {}
        try:
            worker = self._alive()
            result = _call(worker, cmd, args, part)
            if worker.session.gate.grant is not None:
                self.hello["lease"] = worker.session.gate.grant.to_json()
        except WorkerDied:
            self._bury()
            error = StartOverError(cmd, "", "the transfer worker died")
        except Exception as exc:
            error = wire.error_from(json.loads(json.dumps(wire.error_json(exc))))
        for body, payload in parts:
            if on_part is not None:
                await on_part(body, memoryview(payload))
        if error is not None:
            raise error
        return result

    def _alive(self) -> Worker:
        if self._worker is None:
            # Its socket is never read: one that leads nowhere will do.
            with socket.socket(socket.AF_UNIX) as sock:
                self._worker = Worker(sock, means=self._means)
            self.spawned += 1
            _call(self._worker, "hello", self.hello, lambda *_: None)
        return self._worker

    async def close(self) -> None:
        """As WorkerClient.close."""
        self._bury()

    def _bury(self) -> None:
        """The kernel closes what a dead process had open; its spool files stay."""
        frozen = None if self._worker is None else self._worker.session.frozen
        if frozen is not None:
            files = [blob.file for blob in frozen.blobs.values()]
            for file in (*files, frozen.segment_file):
                if file is not None:
                    file.close()
        self._worker = None


def _call(worker: Worker, cmd: str, args: dict[str, Any], part: Any) -> dict[str, Any]:
    ask = json.loads(json.dumps({**args, "id": 1, "cmd": cmd}))
    result = worker.handlers[cmd](ask, part)
    answer: dict[str, Any] = json.loads(json.dumps(result or {}))
    return answer


async def _here(work: Callable[[], None]) -> None:
    work()


def inline_config(base: Path) -> MountConfig:
    """A configuration with its cache below `base`; the store is handed over as an object."""
    return MountConfig(
        mountpoint=str(base / "mnt"),
        workspace=WorkspaceId("u", "c"),
        store=StoreConfig(type="local", bucket="", path=str(base / "bucket")),
        cache_dir=str(base / "cache"),
        runtime_dir=str(base / "run"),
        lease_s=LEASE_S_MIN,
        take_over=True,
    )


def assemble(
    config: MountConfig, cache: Cache, open_store: Callable[[], ObjectStore], seed: int
) -> Mount:
    """The parts over an open cache; `prepare` comes next."""
    randbits = random.Random(seed).getrandbits
    durability = Durability(cache, in_thread=_here)
    client = partial(InlineClient, cache=cache, open_store=open_store, randbits=randbits)
    with mock.patch.object(replica_base, "WorkerClient", client):
        replica = Replicator(
            config,
            cache,
            durability,
            random01=lambda: 0.5,
            randbits=randbits,
            host="here",
            boot=trio.current_time,
        )
    fs = FileSystem(
        cache,
        quota_bytes=config.max_size_bytes,
        quota_inodes=config.max_inodes,
        on_change=replica.notify,
    )
    replica.attach(fs)
    return Mount(config, cache, fs, replica)


@contextlib.asynccontextmanager
async def inline_mount(
    config: MountConfig,
    store: ObjectStore,
    *,
    boot_id: str = BOOT,
    seed: int = 1,
    now_ns: Callable[[], int] | None = None,
    on_open: Callable[[Cache], None] = lambda _: None,
) -> AsyncIterator[Mount]:
    """Open (or make) the cache, bring the workspace into it, and close it at the end.

    `on_open` is told of the cache before anything is done to it. When the block ends by an
    exception, the cache is let go as a killed process would.
    """
    cache = open_cache(
        Path(config.workspace_cache_dir),
        identity(config),
        quota_bytes=config.max_size_bytes,
        now_ns=now_ns or Ticks(),
        boot_id=boot_id,
    )
    mount: Mount | None = None
    try:
        on_open(cache)
        mount = assemble(config, cache, lambda: store, seed)
        await mount.replica.prepare(lambda _: None)
        mount.fs.make_root(uid=0, gid=0, mode=0o755)
        mount.fs.drop_orphans_unmounted()
        yield mount
        await mount.replica.worker.close()
    except BaseException:
        if mount is not None:
            await mount.replica.worker.close()
        cache.let_go()
        os.close(cache._lock_fd)
        raise
    cache.close()
