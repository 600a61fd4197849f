"""The fuse layer alone, over a real filesystem on a real cache, in a process of its own.

`python -m tests.support.fuse_child JSON --ready-fd N`, where JSON has mountpoint, cache, and maybe
allow_other, uid_map, gid_map, quota_bytes, adaptive_wait_us, faulty, traced, by_helper. With
`faulty`, names that start with `fault-` make the filesystem raise what no filesystem should. With
`traced`, each request for bytes or an extended attribute is a line of the log. With `by_helper`,
fusermount3 mounts, as where mount(2) is not allowed. With `unheld` there is no holder's memory, and
libfuse greets the kernel by itself. With `behind` (the path of a socket), it takes changes that do
not come through the kernel (see `Behind`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import trio

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.durability import Durability
from s3ws_fs.core.clock import CLOCK_REALTIME_COARSE, Clock
from s3ws_fs.core.types import Attr, Cred, NeedExtents, Outdated
from s3ws_fs.daemon import logs
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.fuse import mount
from s3ws_fs.fuse.invalidate import KernelCache
from s3ws_fs.fuse.once import Once
from s3ws_fs.fuse.operations import Operations
from s3ws_fs.fuse.translate import IdMap
from s3ws_fs.holder import memory

log = logging.getLogger("s3ws_fs.traced")

SYNC_INTERVAL_S = 5.0


class FaultyFileSystem(FileSystem):
    """Raises for certain names."""

    def lookup(self, parent: int, name: bytes) -> Attr:
        if name == b"fault-lookup":
            raise ZeroDivisionError
        return super().lookup(parent, name)

    def create(self, parent: int, name: bytes, mode: int, cred: Cred) -> Attr:
        if name == b"fault-create":
            raise KeyError(name)
        return super().create(parent, name, mode, cred)

    def forget(self, ino: int) -> None:
        super().forget(ino)
        raise RuntimeError("forget")

    def write(self, ino: int, offset: int, data: bytes | memoryview) -> int | NeedExtents:
        if bytes(data) == b"fault-write":
            raise MemoryError
        return super().write(ino, offset, data)


class TracedFileSystem(FileSystem):
    """Logs what it is asked for."""

    def getxattr(self, ino: int, name: bytes) -> bytes:
        log.info("getxattr %d %s", ino, name.decode())
        return super().getxattr(ino, name)

    def read(self, ino: int, offset: int, length: int) -> bytes | NeedExtents:
        log.info("read %d %d %d", ino, offset, length)
        return super().read(ino, offset, length)


class Behind:
    """Changes behind the kernel's back, by a socket: JSON lines in, one answer a line.

    {"calls": [[method of FileSystem, argument…]…], "names": [[parent, name]…], "inodes": [ino…]};
    "attributes" as "inodes", and "renew": true for all names, may be missing;
    the answer has the inode that each call returned, if any, when the kernel has forgotten. Strings
    are names or bytes, and `"cred"` is root.
    """

    def __init__(self, fs: FileSystem, kernel: KernelCache) -> None:
        self._fs = fs
        self._kernel = kernel

    async def serve(
        self, path: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Started once somebody may connect."""
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(path)
        listener.listen()
        task_status.started()
        stream, _ = await listener.accept()
        while line := await stream.recv(1 << 16):
            ask = json.loads(line)
            found = [self._call(*call) for call in ask["calls"]]
            names = tuple((parent, name.encode()) for parent, name in ask["names"])
            if ask.get("renew"):
                assert self._kernel.renew()
            attributes = tuple(ask.get("attributes", ()))
            await self._kernel.forget(Outdated(names, tuple(ask["inodes"]), attributes))
            await stream.send(json.dumps(found).encode() + b"\n")

    def _call(self, method: str, *args: Any) -> int | None:
        given = [arg.encode() if isinstance(arg, str) else arg for arg in args]
        given = [Cred(0, 0) if arg == b"cred" else arg for arg in given]
        result = getattr(self._fs, method)(*given)
        return result.ino if isinstance(result, Attr) else None


async def run(options: dict[str, Any], ready_fd: int) -> None:
    clock = Clock(partial(time.clock_gettime_ns, CLOCK_REALTIME_COARSE))
    cache = open_cache(
        Path(options["cache"]),
        Identity("test/", "test"),
        quota_bytes=options.get("quota_bytes", 500 << 20),
        now_ns=clock,
        with_log=True,
    )
    kind = FaultyFileSystem if options.get("faulty") else FileSystem
    if options.get("traced"):
        kind = TracedFileSystem
    if options.get("by_helper"):
        mount._mount_directly = lambda mountpoint, allow_other, read_only: None
    with cache:
        fs = kind(
            cache,
            quota_bytes=options.get("quota_bytes", 500 << 20),
            quota_inodes=options.get("quota_inodes", 1_000_000),
        )
        fs.make_root(uid=os.getuid(), gid=os.getgid(), mode=0o755)
        durability = Durability(cache)
        held = None if options.get("unheld") else _held(cache)
        operations = Operations(
            fs,
            fetch=_no_fetch,
            wait_durable=durability.ensure,
            settled=clock.settled,
            once=None if held is None else held.once,
            uids=IdMap(options.get("uid_map", ())),
            gids=IdMap(options.get("gid_map", ())),
        )
        allow_other = options.get("allow_other", os.geteuid() == 0)
        with mount.mounted(
            operations, options["mountpoint"], allow_other=allow_other, held=held
        ) as ours:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_obey, ours)
                nursery.start_soon(durability.run, SYNC_INTERVAL_S)
                kernel = KernelCache()
                if "behind" in options:
                    kernel.open(ours.kernel_fd)
                    await nursery.start(Behind(fs, kernel).serve, options["behind"])
                nursery.start_soon(_announce, operations, ours, ready_fd)
                await mount.serve(
                    adaptive_wait_us=options.get("adaptive_wait_us", 40),
                    device=ours.device,
                    turn=cache,
                )
                await kernel.close()
                nursery.cancel_scope.cancel()


def _held(cache: Cache) -> mount.Held:
    """What a holder would mean: its memory, and nobody behind it."""
    fd = memory.create()
    kept = memory.Memory(fd)
    os.close(fd)
    once = Once(kept, cache.generation)
    cache.before_commit = once.committing
    return mount.Held(kept, once, None, lambda _: None, lambda: None)


async def _no_fetch(need: NeedExtents) -> None:
    raise AssertionError(need)


async def _announce(operations: Operations, ours: mount.Mount, ready_fd: int) -> None:
    await operations.started.wait()
    await mount.show_root(ours)
    os.write(ready_fd, b'{"event":"ready"}\n')
    os.close(ready_fd)


async def _obey(ours: mount.Mount) -> None:
    with trio.open_signal_receiver(15) as signals:
        async for _ in signals:
            await mount.unmount(ours, grace_s=10)


if __name__ == "__main__":
    logs.set_up("info", "text")
    trio.run(run, json.loads(sys.argv[1]), int(sys.argv[3]))
