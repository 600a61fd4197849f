"""A cache in a temporary directory, with a clock the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.fs.filesystem import FileSystem

IDENTITY = Identity(prefix="conversations/u/c/workspace/", store="local:/somewhere")
QUOTA_BYTES = 64 << 20


class Clock:
    """Nanoseconds that move by one microsecond a reading."""

    def __init__(self) -> None:
        self.ns = 1_700_000_000_000_000_000

    def __call__(self) -> int:
        self.ns += 1000
        return self.ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opener(tmp_path: Path, clock: Clock) -> Callable[..., Cache]:
    def opening(boot_id: str = "boot-1", identity: Identity = IDENTITY) -> Cache:
        return open_cache(
            tmp_path / "ws", identity, quota_bytes=QUOTA_BYTES, now_ns=clock, boot_id=boot_id
        )

    return opening


@pytest.fixture
def cache(opener: Callable[..., Cache]) -> Iterator[Cache]:
    with opener() as opened:
        yield opened


@pytest.fixture
def fs(cache: Cache) -> FileSystem:
    made = FileSystem(cache, quota_bytes=1 << 20, quota_inodes=20)
    made.make_root(uid=0, gid=0, mode=0o755)
    return made
