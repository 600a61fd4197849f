"""One workspace in a bucket in memory, one damage at a time, and three who look at it.

    check   the audit must name the object (or be right that nothing needs it)
    mounts  of a fresh cache, to write and to follow: each file has its bytes, or is an error that
            names it, or the mount is refused with the object's name; names and attributes are right

Invariants
1. The damaged bucket is a fork: nothing of a trial reaches the next.
2. The seed and the number of the trial say all about it.

Called by the tests of rot and the command.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast
from unittest import mock

import trio

from s3ws_fs.cache.cache import Cache, open_cache
from s3ws_fs.cache.durability import Durability
from s3ws_fs.core import history, keys, layout
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.core.errors import ExitCode, FsError, UserError
from s3ws_fs.core.findings import Report
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.daemon.parts import identity
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.replica import flusher
from s3ws_fs.replica.follower import Follower
from s3ws_fs.replica.replicator import Replicator
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.audit import LocalSide, audit
from tests.replica.conftest import CRED, Mount
from tests.support.inprocess import starting

KINDS: Final = (*5 * ["flip"], "truncate", "grow", "zero", "swap", "delete")
"""How often each is drawn: mostly single bits."""

READERS: Final = ("writer", "follower")


class Wrong(AssertionError):
    """Something was shown that is not so, or a damage was not found."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What was done: `keys` are the objects that are not as they were."""

    kind: str
    keys: tuple[str, ...]
    at: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {' and '.join(self.keys)} at {self.at}"


class Place:
    """The workspace as it should be: its bucket, and what stands in it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.store = MemoryStore()
        self.tree: dict[str, tuple[object, ...]] = {}
        self.bytes: dict[str, bytes] = {}
        self.needed: frozenset[str] = frozenset()
        self.checkpoint = self.older_checkpoint = ""
        self._mounts = 0

    def config(self, name: str, *, read_only: bool = False) -> MountConfig:
        """Of a mount with a cache of its own."""
        return MountConfig(
            mountpoint=str(self.base / "mnt"),
            workspace=WorkspaceId("u", "rot"),
            store=StoreConfig(type="local", path=str(self.base / "nowhere")),
            cache_dir=str(self.base / name),
            runtime_dir=str(self.base / "run"),
            read_timeout_s=5.0,
            read_only=read_only,
        )

    @contextlib.asynccontextmanager
    async def mounted(
        self, store: MemoryStore, name: str = "", *, read_only: bool = False
    ) -> AsyncIterator[Mount]:
        """A mount of the workspace in `store`; without a name, of a fresh cache that goes."""
        self._mounts += 1
        config = self.config(name or f"cache {self._mounts}", read_only=read_only)
        cache = open_cache(
            Path(config.workspace_cache_dir),
            identity(config),
            quota_bytes=64 << 20,
            now_ns=time.time_ns,
        )
        start = starting(store, lambda: cache)
        replica: Replicator | Follower
        if read_only:
            replica = Follower(config, cache, start_worker=start)
        else:
            replica = Replicator(config, cache, Durability(cache), start_worker=start)
        fs = FileSystem(
            cache, quota_bytes=64 << 20, quota_inodes=10_000, on_change=replica.notify,
            is_following=read_only,
        )  # fmt: skip
        try:
            with cache:
                try:
                    await replica.prepare(lambda _: None)
                    if not read_only:
                        fs.make_root(uid=0, gid=0, mode=0o755)
                    yield Mount(config, cache, fs, cast(Replicator, replica))
                finally:
                    with trio.CancelScope(shield=True):
                        if isinstance(replica, Replicator):
                            await replica._lease.give_back()
                        await replica.worker.close()
        finally:
            if not name:
                shutil.rmtree(config.cache_dir)

    async def make(self) -> None:
        """Some of everything: small and large files, holes, links, odd names, a checkpoint."""
        rng = random.Random(1)
        with mock.patch.object(flusher, "CHECKPOINT_EVERY_SEGMENTS", 3):
            async with self.mounted(self.store, "writer") as m:
                await _live(m, rng)
                self.tree = m.tree()
                for path, node in self.tree.items():
                    if isinstance(mode := node[1], int) and mode & 0o170000 == 0o100000:
                        self.bytes[path[1:]] = await m.read(path[1:])
                # As the clean-up does an hour later, when no history is to be kept: so the
                # checkpoint can't be done without.
                bucket = self.scoped(self.store)
                kept = history.encode_kept_from(
                    m.cache.get_json("workspace"), m.cache.get_json("sealed")["number"]
                )
                bucket.put(layout.HISTORY_KEY, kept)
                bucket.delete(layout.seg_key(1))
                self.needed = frozenset(self._needed(m.cache))
                found = self.scoped(self.store).list(layout.CKPT_PREFIX)
                self.older_checkpoint, self.checkpoint = (entry.key for entry in found)

    def scoped(self, store: MemoryStore) -> ScopedStore:
        """The workspace's part."""
        return ScopedStore(store, self.config("").workspace.prefix)

    def _needed(self, cache: Cache) -> Iterator[str]:
        """What a restore, a read or a person who looks into the mirror needs."""
        found = [entry.key for entry in self.scoped(self.store).list()]
        base = max(layout.key_number(key, layout.CKPT_PREFIX) or 0 for key in found)
        yield from (layout.WORKSPACE_KEY, layout.ckpt_key(base))
        yield from (key for key in found if key.startswith(layout.FILES_PREFIX))
        yield from (key for key in found if (layout.key_number(key, layout.SEG_PREFIX) or 0) > base)
        with cache.read() as view:
            for _, raw in view.txn.cursor(db=view.db.chunks):
                yield layout.object_key(keys.unpack_u64(raw))

    def witness(self, cache: Cache) -> LocalSide:
        """The writer's cache as the audit sees it."""
        from s3ws_fs.cache.checking import Checked, check_records

        done = Checked(Report(), prefix=self.config("").workspace.prefix)
        check_records(cache, done, lambda _: None)
        assert done.tables is not None and done.values is not None
        return LocalSide(cache, done.tables, done.values)


async def _live(m: Mount, rng: random.Random) -> None:
    m.write("soon gone", b"x")
    await m.sync()
    m.unlink("soon gone")
    m.write("small", b"small file")
    m.write("dir/sub/deep", b"deep" * 1000)
    m.write("blob", rng.randbytes(1_300_000))
    m.write("empty", b"")
    m.fs.setxattr(m.ino("small"), b"user.note", b"kept")
    await m.sync()
    m.fs.symlink(ROOT_INO, b"link", b"dir/sub", CRED)
    m.fs.mknod(ROOT_INO, b"fifo", 0o010644, 0, CRED)
    m.fs.link(m.ino("small"), m.ino("dir"), b"again")
    m.write("sparse", b"end", 300_000)
    m.write("odd \\ \udcff", b"odd")
    m.write("gone", b"gone soon" * 50)
    await m.sync()
    m.unlink("gone")
    m.rename("dir/sub", "dir/renamed")
    m.write("small", b"SMALL")
    m.write("blob", b"patched", 40_000)
    await m.sync()
    for number in range(12):
        m.write(f"many/file {number}", rng.randbytes(rng.randrange(1, 60_000)))
    await m.sync()
    m.write("late", rng.randbytes(70_000))
    await m.sync()


def damage(store: MemoryStore, prefix: str, rng: random.Random) -> Damage:
    """Damage one object (two, when swapped) as a disk does: what is said about it stays."""
    objects = store._objects
    found = sorted(key for key in objects if objects[key].data)
    kind = rng.choice(KINDS)
    key = rng.choice(found)
    data = objects[key].data
    at = rng.randrange(len(data))
    names = [key.removeprefix(prefix)]
    if kind == "delete":
        del objects[key]
        return Damage(kind, tuple(names))
    if kind == "swap":
        other = rng.choice([name for name in found if objects[name].data != data])
        _put(store, key, objects[other].data)
        _put(store, other, data)
        return Damage(kind, (*names, other.removeprefix(prefix)))
    if kind == "flip":
        data = data[:at] + bytes((data[at] ^ (1 << rng.randrange(8)),)) + data[at + 1 :]
    elif kind == "truncate":
        data = data[:at]
    elif kind == "grow":
        data += rng.randbytes(rng.randrange(1, 100))
    else:
        end = min(len(data), at + rng.choice((1, 100, 4096)))
        if not any(data[at:end]):
            return damage(store, prefix, rng)
        data = data[:at] + bytes(end - at) + data[end:]
    _put(store, key, data)
    return Damage(kind, tuple(names), at)


def _put(store: MemoryStore, key: str, data: bytes) -> None:
    was = store._objects[key]
    store._objects[key] = replace(was, data=data, info=replace(was.info, size_bytes=len(data)))


class Trial:
    """One damage and what came of it."""

    def __init__(self, place: Place, seed: int, number: int) -> None:
        self.place = place
        self.rng = random.Random(f"{seed} {number}")
        self.store = place.store.fork()
        prefix = place.config("").workspace.prefix
        self._is_bare = bool(number % 2)
        if self._is_bare:
            # One checkpoint alone: there is nothing that could stand in for it.
            place.scoped(self.store).delete(place.older_checkpoint)
        self.damage = damage(self.store, prefix, self.rng)
        self.counts: Counter[str] = Counter({self.damage.kind: 1})

    def check(self, pool: Executor) -> None:
        """The audit, with nothing but the bucket."""
        found = audit(self.place.scoped(self.store), pool, lambda _: None).report
        named = {finding.where for finding in found.findings}
        wrong = {finding.where for finding in found.findings if finding.severity != "note"}
        for key in self.damage.keys:
            self._judge(key, named, wrong, found)
        outcome = "note" if found.ok else "found"
        self.counts[f"check: {outcome}"] += 1

    def _judge(self, key: str, named: set[str], wrong: set[str], found: Report) -> None:
        codes = {finding.code for finding in found.findings}
        is_gone = self.damage.kind == "delete"
        if is_gone and not self._is_bare and key == self.place.checkpoint:
            # Nobody can say that it ever stood there, and nothing is lost without it.
            return
        if self.damage.kind == "grow" and key.startswith(layout.BLOB_PREFIX):
            # A blob has no end of its own: what is behind the last place in it is nobody's.
            return
        if is_gone and key == self.place.checkpoint and "journal-gap" in codes:
            # All that can be said: what it folded is not there.
            return
        if key in self.place.needed and not (is_gone and self._is_last(key)):
            if key not in wrong:
                raise Wrong(f"{self.damage}: not found by check: {found.findings}")
            if found.ok:
                raise Wrong(f"{self.damage}: check found it and ends well")
        elif is_gone and self._is_last(key):
            # Its successor is the checkpoint or the note of the mirror: that is ahead of it.
            if found.ok:
                raise Wrong(f"{self.damage}: the newest segment is missing, and check ends well")
        elif not is_gone and key not in named:
            raise Wrong(f"{self.damage}: not even a note: {found.findings}")

    def _is_last(self, key: str) -> bool:
        last = max(
            entry.key for entry in self.place.scoped(self.place.store).list(layout.SEG_PREFIX)
        )
        return key == last

    async def mounts(self, reader: str) -> None:
        """A fresh mount, and every file read."""
        place = self.place
        read_only = reader == "follower"
        try:
            async with place.mounted(self.store.fork(), read_only=read_only) as m:
                if m.tree() != place.tree:
                    raise Wrong(f"{self.damage}: a {reader} shows another tree")
                failed = [path for path in place.bytes if not await self._reads(m, path)]
                self._is_said(m, failed)
        except UserError as exc:
            if exc.exit_code is not ExitCode.STORE:
                raise Wrong(f"{self.damage}: refused with {exc.exit_code!r}") from exc
            text = str(exc)
            if not any(key in text for key in (*self.damage.keys, layout.SEG_PREFIX)):
                raise Wrong(f"{self.damage}: refused, and not said why: {text}") from exc
            self.counts[f"{reader}: refused"] += 1
            return
        self.counts[f"{reader}: {'errors' if failed else 'all read'}"] += 1

    async def _reads(self, m: Mount, path: str) -> bool:
        try:
            found = await m.read(path)
        except FsError as exc:
            if path not in str(exc) and os.fsencode(path) not in os.fsencode(str(exc)):
                raise Wrong(f"{self.damage}: the error does not name {path}: {exc}") from exc
            return False
        if found != self.place.bytes[path]:
            raise Wrong(f"{self.damage}: {path} has other bytes")
        return True

    def _is_said(self, m: Mount, failed: list[str]) -> None:
        """Errors are in status; so is what was read from the mirror."""
        status = m.replica.status()["hydration"]
        said = {item["path"] for item in status["damaged"]}
        if not set(failed) <= said:
            raise Wrong(f"{self.damage}: {failed} can't be read, status says {said}")
        if status["second_copies"]:
            self.counts["read from the mirror, and said"] += 1


async def run_trial(
    place: Place, pool: Executor, seed: int, number: int, readers: tuple[str, ...] = READERS
) -> Counter[str]:
    """One trial. Raises Wrong."""
    trial = Trial(place, seed, number)
    trial.check(pool)
    for reader in readers:
        await trial.mounts(reader)
    return trial.counts


@contextlib.asynccontextmanager
async def made() -> AsyncIterator[Place]:
    """The workspace, in a directory that goes."""
    with tempfile.TemporaryDirectory(prefix="s3ws-rot-") as base:
        place = Place(Path(base))
        await place.make()
        yield place
