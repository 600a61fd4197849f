"""A cache with a filesystem on it, its reader, and a store in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.core.types import ROOT_INO, Cred
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from tests.transfer import seals

PREFIX = "conversations/u/c/workspace/"
CRED = Cred(uid=1, gid=2)
QUOTA_BYTES = 512 << 20


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Every freeze of a test is closed behind it."""
    yield
    seals.close_all()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    identity = Identity(prefix=PREFIX, store="memory:")
    with open_cache(
        tmp_path / "ws", identity, quota_bytes=QUOTA_BYTES, now_ns=time.time_ns
    ) as opened:
        yield opened


@pytest.fixture
def fs(cache: Cache) -> FileSystem:
    made = FileSystem(cache, quota_bytes=QUOTA_BYTES, quota_inodes=10_000, on_change=lambda: None)
    made.make_root(uid=0, gid=0, mode=0o755)
    return made


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def store(memory: MemoryStore) -> ScopedStore:
    return ScopedStore(memory, PREFIX)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def write(fs: FileSystem, name: bytes, data: bytes) -> int:
    """A new file in the root."""
    ino = fs.create(ROOT_INO, name, 0o644, CRED).ino
    for at in range(0, len(data), 1 << 20):
        fs.write(ino, at, data[at : at + (1 << 20)])
    return ino
