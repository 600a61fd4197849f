"""A small filesystem over a cache in a temporary directory."""

from __future__ import annotations

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.fs.filesystem import FileSystem
from tests.cache.conftest import cache, clock, opener

__all__ = ["cache", "clock", "opener"]


@pytest.fixture
def fs(cache: Cache) -> FileSystem:
    made = FileSystem(cache, quota_bytes=1 << 20, quota_inodes=20)
    made.make_root(uid=0, gid=0, mode=0o755)
    return made
