"""The tree goes back as one operation, or not at all."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError, FsError
from s3ws_fs.core.journal import Frame
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.fs.rewinding import REWOUND, Rewind
from tests.support import caches


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with open_cache(
        tmp_path,
        Identity(prefix=caches.PREFIX, store="local:/somewhere"),
        quota_bytes=64 << 20,
        now_ns=itertools.count(1).__next__,
        boot_id="boot",
    ) as opened:
        yield opened


def removal(cache: Cache, fs: FileSystem, name: bytes) -> tuple[Rewind, list[Frame]]:
    """The changes that take a file's only name away."""
    ino = fs.lookup(ROOT_INO, name).ino
    with cache.read() as view:
        rec = view.inode(ino)
    assert rec is not None
    alloc = rec.alloc
    rec.nlink, rec.parent, rec.name = 0, 0, b""
    frames = [
        Frame(keys.T_DENTRIES, True, [keys.dentry_key(ROOT_INO, name)], []),
        Frame(keys.T_INODES, False, [keys.pack_u64(ino)], [rec.encode()]),
    ]
    return Rewind(cache.generation, cache.head.next_ino, 0, 0, 1, alloc), frames


def test_one_generation_and_an_orphan_that_the_kernel_is_asked_about(cache: Cache) -> None:
    told: list[str] = []
    fs = caches.filesystem(cache)
    fs.on_change = lambda: told.append("changed")
    fs.on_forgotten = lambda: told.append("forgotten")
    ino = fs.create(ROOT_INO, b"file", 0o644, caches.CRED).ino
    fs.write(ino, 0, b"bytes")
    change, frames = removal(cache, fs, b"file")
    told.clear()
    before = cache.generation
    assert fs.rewind(change, frames) == [ino]
    assert cache.generation == before + 1 and told == ["changed"]
    assert fs.getattr(ino).nlink == 0 and fs.read(ino, 0, 9) == b"bytes"
    assert cache.get_json(REWOUND) == cache.generation
    assert cache.get_json("hydrated") is False
    fs.look_at_orphans()
    assert told == ["changed", "forgotten"] and fs.doubtful() == [ino]
    # The kernel does not know it: it goes, and what it held is free.
    fs.settle([ino], [ino])
    assert fs.reap(1) and not fs.reap(1)
    assert cache.head.used_bytes == 0 and cache.head.inodes == 1


def test_not_when_something_came_between(cache: Cache) -> None:
    fs = caches.filesystem(cache)
    fs.create(ROOT_INO, b"file", 0o644, caches.CRED)
    change, frames = removal(cache, fs, b"file")
    fs.create(ROOT_INO, b"late", 0o644, caches.CRED)
    before = cache.generation
    assert fs.rewind(change, frames) is None
    assert cache.generation == before and fs.lookup(ROOT_INO, b"file").nlink == 1


def test_quota_and_inode_limit(cache: Cache) -> None:
    fs = caches.filesystem(cache)
    fs.create(ROOT_INO, b"file", 0o644, caches.CRED)
    change, frames = removal(cache, fs, b"file")
    fs.quota_bytes, fs.quota_inodes = 8192, 2
    for grown, why in (
        (replace(change, new_bytes=8192 + 1), "quota"),
        (replace(change, new_inodes=2), "limit"),
    ):
        before = cache.generation
        with pytest.raises(FsError) as refused:
            fs.rewind(grown, frames)
        assert refused.value.errno == errno.EDQUOT and why in str(refused.value)
        assert cache.generation == before and not fs.doubtful()
    # Exactly at both limits, and where it is no more than now: that is let through.
    assert fs.room_to_rewind(replace(change, new_bytes=8192, new_inodes=1)) == ""
    fs.quota_bytes, fs.quota_inodes = 0, 0
    assert fs.room_to_rewind(change) == ""


def test_a_plan_that_is_damaged_changes_nothing(cache: Cache) -> None:
    fs = caches.filesystem(cache)
    fs.create(ROOT_INO, b"file", 0o644, caches.CRED)
    change, frames = removal(cache, fs, b"file")
    before = cache.generation
    with pytest.raises(FormatError):
        fs.rewind(change, [*frames, Frame(keys.T_INODES, True, [keys.pack_u64(ROOT_INO)], [])])
    assert cache.generation == before and fs.lookup(ROOT_INO, b"file").nlink == 1
    assert not fs.doubtful()
