"""The warning of a workspace that is nearly full: told once, seen while it lasts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache, open_cache
from s3ws_fs.cache.durability import Durability
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.types import Cred
from s3ws_fs.daemon.parts import identity
from s3ws_fs.daemon.quota import MIB, Quota
from s3ws_fs.fs.filesystem import FileSystem

MAX_BYTES, MAX_INODES = 10 * MIB, 100
ROOT = Cred(0, 0, 0o022)


@pytest.fixture
def cache(config: MountConfig) -> Iterator[Cache]:
    opened = open_cache(
        Path(config.workspace_cache_dir), identity(config), quota_bytes=MAX_BYTES, now_ns=lambda: 1
    )
    yield opened
    opened.close()


@pytest.fixture
def fs(cache: Cache) -> FileSystem:
    made = FileSystem(cache, quota_bytes=MAX_BYTES, quota_inodes=MAX_INODES)
    made.make_root(uid=0, gid=0, mode=0o755)
    return made


async def test_it_is_told_with_the_sync_point_and_once(
    cache: Cache, fs: FileSystem, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "s3ws_fs.daemon.quota")
    quota, durability = Quota(cache, MAX_BYTES, MAX_INODES, is_ours=True), Durability(cache)
    durability.on_point = quota.look
    ino = fs.create(1, b"big", 0o644, ROOT).ino
    fs.write(ino, 0, b"x" * (7 * MIB))
    await durability.ensure()
    assert caplog.messages == []
    assert quota.status()["warning"] is None
    fs.write(ino, 7 * MIB, b"x" * (2 * MIB))
    await durability.ensure()
    [said] = caplog.messages
    assert said.startswith("the workspace is nearly full: 9.0 of 10 MiB and 2 of 100 files")
    fs.write(ino, 9 * MIB, b"x")
    await durability.ensure()
    assert len(caplog.messages) == 1
    status = quota.status()
    assert status["warning"].startswith("9.0 of 10 MiB")
    assert (status["max_bytes"], status["max_inodes"]) == (MAX_BYTES, MAX_INODES)
    fs.setattr(ino, size=MIB)
    assert quota.status()["warning"] is None, "status looks by itself"
    assert caplog.messages[1:] == [
        "the workspace has room again: 1.0 of 10 MiB and 2 of 100 files are used"
    ]


def test_a_mount_that_only_shows_says_nothing(cache: Cache, fs: FileSystem) -> None:
    ino = fs.create(1, b"big", 0o644, ROOT).ino
    fs.write(ino, 0, b"x" * (9 * MIB))
    status = Quota(cache, MAX_BYTES, MAX_INODES, is_ours=False).status()
    assert status["warning"] is None
    assert status["used_bytes"] >= 9 * MIB
