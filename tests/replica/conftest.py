"""A mount without a kernel: cache, filesystem, replicator, over a real store and a real worker."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from s3ws_fs.cache.cache import Cache, open_cache
from s3ws_fs.cache.durability import Durability
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.core.types import ROOT_INO, Cred, NeedExtents
from s3ws_fs.daemon.parts import identity
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.replica.fixed import FixedPoint
from s3ws_fs.replica.follower import Follower
from s3ws_fs.replica.replicator import Replicator
from s3ws_fs.store.factory import open_store
from s3ws_fs.store.scoped import ScopedStore
from tests.support.seaweed import Seaweed

CRED = Cred(uid=1000, gid=1000)


@dataclass
class Mount:
    """One mounted workspace."""

    config: MountConfig
    cache: Cache
    fs: FileSystem
    replica: Replicator

    def dir_of(self, path: str) -> tuple[int, bytes]:
        """Inode of the parent directory, made when missing, and the last name."""
        *above, last = path.encode("utf-8", "surrogateescape").split(b"/")
        ino = ROOT_INO
        for name in above:
            with self.cache.read() as view:
                found = view.dentry(ino, name)
            ino = self.fs.mkdir(ino, name, 0o755, CRED).ino if found is None else found
        return ino, last

    def ino(self, path: str) -> int:
        with self.cache.read() as view:
            found = view.resolve(path.encode("utf-8", "surrogateescape"))
        assert found is not None, path
        return found

    def write(self, path: str, data: bytes, offset: int = 0) -> int:
        """Create the file when missing, and write."""
        parent, name = self.dir_of(path)
        with self.cache.read() as view:
            found = view.dentry(parent, name)
        ino = self.fs.create(parent, name, 0o644, CRED).ino if found is None else found
        for at in range(0, len(data), 1 << 20):
            piece = data[at : at + (1 << 20)]
            assert self.fs.write(ino, offset + at, piece) == len(piece)
        return ino

    async def read(self, path: str) -> bytes:
        """The whole file, fetching what is cold."""
        ino = self.ino(path)
        size = self.fs.getattr(ino).size
        out = b""
        while len(out) < size:
            got = self.fs.read(ino, len(out), 1 << 18)
            if isinstance(got, NeedExtents):
                await self.replica.fetch(got)
                continue
            out += got
        return out

    def unlink(self, path: str) -> None:
        parent, name = self.dir_of(path)
        ino = self.ino(path)
        self.fs.unlink(parent, name)
        self.fs.forget(ino)
        self.fs.reap()

    def rename(self, old: str, new: str) -> None:
        self.fs.rename(*self.dir_of(old), *self.dir_of(new), 0)

    async def sync(self, *, outside: bool = False) -> dict[str, Any]:
        return await self.replica.sync(lambda _: None, outside=outside)

    async def files(self) -> dict[str, bytes]:
        """Every regular file with its bytes."""
        return {
            path[1:]: await self.read(path[1:])
            for path in self.tree()
            if stat.S_ISREG(self.fs.getattr(self.ino(path)).mode)
        }

    def tree(self) -> dict[str, tuple[object, ...]]:
        """Every path with its attributes (without atime and blocks), xattrs and target."""
        found: dict[str, tuple[object, ...]] = {}

        def walk(ino: int, path: str) -> None:
            attr = self.fs.getattr(ino)
            with self.cache.read() as view:
                rec = view.inode(ino)
                assert rec is not None
                xattrs = tuple(view.xattrs(ino))
                entries = [(name, child) for _, name, child in view.entries(ino)]
            found[path] = (
                attr.ino,
                attr.mode,
                attr.uid,
                attr.gid,
                attr.nlink,
                attr.size,
                attr.mtime_ns,
                attr.blocks512,
                xattrs,
                rec.target,
            )
            if rec.is_dir:
                for name, child in entries:
                    walk(child, f"{path}/{os.fsdecode(name)}")

        walk(ROOT_INO, "")
        return found


Mounter = Callable[..., contextlib.AbstractAsyncContextManager[Mount]]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def store_config(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> StoreConfig:
    """Both kinds of store."""
    return make_store_config(request, request.param, tmp_path, monkeypatch)


def make_store_config(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> StoreConfig:
    if kind == "local":
        (tmp_path / "bucket").mkdir(exist_ok=True)
        return StoreConfig(type="local", bucket="", path=str(tmp_path / "bucket"))
    server: Seaweed = request.getfixturevalue("seaweed")
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    return StoreConfig(
        type="s3",
        bucket=server.bucket,
        endpoint_url=server.endpoint_url,
        region=server.region,
        addressing_style="path",
    )


@pytest.fixture
def config(store_config: StoreConfig, tmp_path: Path) -> MountConfig:
    return MountConfig(
        mountpoint=str(tmp_path / "mnt"),
        workspace=WorkspaceId("u", f"c-{secrets.token_hex(6)}"),
        store=store_config,
        cache_dir=str(tmp_path / "cache"),
        runtime_dir=str(tmp_path / "run"),
        debounce_min_s=0.05,
        debounce_max_s=1.0,
        # So long that none is renewed: tests count requests.
        lease_s=600.0,
    )


@pytest.fixture
def bucket(config: MountConfig) -> Iterator[ScopedStore]:
    """The workspace's part of the bucket, seen directly."""
    store = open_store(config.store, config.workspace.prefix)
    yield store
    store.close()


@pytest.fixture
def mounter(config: MountConfig) -> Mounter:
    """`async with mounter() as m:` mounts; `cache="b"`: on another host, `run=True`: flushes.

    `read_only=True`: follows (`run=True`: by itself), or shows one point (`at_number`, `at_hash`).
    At the end nothing is flushed, but the lease is given back, unless the end is a `crash`.
    `changes` are of the configuration, as `take_over=True`.
    """

    @contextlib.asynccontextmanager
    async def mount(
        cache: str = "a",
        *,
        run: bool = False,
        read_only: bool = False,
        on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
        adopted: bool = False,
        crash: bool = False,
        **changes: Any,
    ) -> AsyncIterator[Mount]:
        changes["read_only"] = read_only
        own = replace(config, cache_dir=f"{config.cache_dir}-{cache}", **changes)
        opened = open_cache(
            Path(own.workspace_cache_dir),
            identity(own),
            quota_bytes=own.max_size_bytes,
            now_ns=time.time_ns,
        )
        with opened:
            durability = Durability(opened)
            replica: Replicator | Follower
            if read_only:
                replica = (FixedPoint if own.at_number else Follower)(own, opened)
            else:
                replica = Replicator(own, opened, durability)
            fs = FileSystem(
                opened,
                quota_bytes=own.max_size_bytes,
                quota_inodes=own.max_inodes,
                on_change=replica.notify,
                is_following=read_only,
            )
            if isinstance(replica, Follower):
                replica.is_open, replica.note_orphans = fs.is_open, fs.note_orphans
            try:
                if isinstance(replica, Follower):
                    await replica.prepare(on_progress)
                elif adopted:
                    replica.attach(fs)
                    replica.take_over()
                else:
                    replica.attach(fs)
                    await replica.prepare(on_progress)
                    fs.make_root(uid=0, gid=0, mode=0o755)
                fs.drop_orphans_unmounted()
                async with trio.open_nursery() as nursery:
                    if run:
                        nursery.start_soon(replica.run)
                    # For the tests of following: what both have is called alike.
                    yield Mount(own, opened, fs, cast(Replicator, replica))
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    if not crash and isinstance(replica, Replicator):
                        await replica._lease.give_back()
                    await replica.worker.close()

    return mount
