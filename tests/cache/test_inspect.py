"""What `s3ws ls` is told about files, beside an open cache and beside a dead one."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.inspect import Inspector, open_readonly
from s3ws_fs.core import keys
from s3ws_fs.core.errors import CacheError
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import encode_location
from s3ws_fs.core.types import ROOT_INO, Cred, Location
from s3ws_fs.fs.filesystem import FileSystem
from tests.support.caches import evict


@pytest.fixture
def fs(cache: Cache) -> FileSystem:
    made = FileSystem(cache, quota_bytes=1 << 30, quota_inodes=100)
    made.make_root(uid=0, gid=0, mode=0o755)
    return made


@contextlib.contextmanager
def looking(cache: Cache) -> Iterator[Inspector]:
    """Look into a copy: a process can't have the same environment open twice."""
    with tempfile.TemporaryDirectory() as temp:
        copy = Path(temp) / "copy"
        shutil.copytree(cache.directory, copy)
        with open_readonly(copy, "boot-1") as look:
            yield look


def seal(cache: Cache, ino: int, length: int) -> None:
    generation = cache.generation
    key = keys.chunk_key(ino, 0)
    cache.record_locations(generation, [(key, encode_location(Location(1, 0, length, b"d" * 16)))])
    cache.forget(generation, freeze_ns=0)


def test_states_of_a_file(cache: Cache, fs: FileSystem) -> None:
    cred = Cred(1, 2)
    ino = fs.create(ROOT_INO, b"f", 0o644, cred).ino
    fs.write(ino, 0, b"abc")
    with looking(cache) as look:
        (entry,) = look.listdir(b"")
        assert (entry.name, entry.attr.size) == (b"f", 3)
        assert (entry.dirty, entry.mirrored, entry.warmth) == (True, False, "warm")
        assert look.dirty_summary()[:2] == (4, 2)
    seal(cache, ino, 3)
    with looking(cache) as look:
        (entry,) = look.listdir(b"")
        assert (entry.dirty, entry.mirrored, entry.warmth) == (False, False, "warm")
        assert look.dirty_summary() == (0, 0, None)
    cache.record_mirrored([], [], [(ino, cache.generation)])
    with cache.env.begin(write=True) as txn:
        txn.delete(keys.chunk_key(ino, 0), db=cache.tables.extents)
    with looking(cache) as look:
        (entry,) = look.listdir(b"f")
        assert (entry.dirty, entry.mirrored, entry.warmth) == (False, True, "cold")


def test_one_file_s_extents_do_not_warm_another(cache: Cache, fs: FileSystem) -> None:
    inos = [fs.create(ROOT_INO, name, 0o644, Cred(1, 2)).ino for name in (b"a", b"b", b"c")]
    for ino in inos:
        fs.write(ino, 0, b"x")
        seal(cache, ino, 1)
    with cache.env.begin(write=True) as txn:
        txn.delete(keys.chunk_key(inos[1], 0), db=cache.tables.extents)
    with looking(cache) as look:
        assert [entry.warmth for entry in look.listdir(b"")] == ["warm", "cold", "warm"]


def test_sorted_by_name_with_subdirectories(cache: Cache, fs: FileSystem) -> None:
    cred = Cred(0, 0)
    below = fs.mkdir(ROOT_INO, b"d", 0o755, cred).ino
    for name in (b"z", b"\xff", b"a"):
        fs.create(below, name, 0o644, cred)
    fs.symlink(below, b"l", b"target", cred)
    with looking(cache) as look:
        found = look.listdir(b"d")
        assert [entry.name for entry in found] == [b"a", b"l", b"z", b"\xff"]
        assert found[1].target == b"target"
        with pytest.raises(FileNotFoundError):
            look.listdir(b"d/none")


def test_beside_a_dead_daemon(cache: Cache, fs: FileSystem, tmp_path: Path) -> None:
    fs.create(ROOT_INO, b"f", 0o644, Cred(0, 0))
    dead = tmp_path / "dead"
    shutil.copytree(cache.directory, dead)
    with open_readonly(dead, "boot-1") as look:
        assert [entry.name for entry in look.listdir(b"")] == [b"f"]


def test_no_cache_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="can't be read"):
        open_readonly(tmp_path)


def test_one_that_may_be_torn_is_refused(cache: Cache, tmp_path: Path) -> None:
    shutil.copytree(cache.directory, tmp_path / "torn")
    with pytest.raises(CacheError, match="sync point"):
        open_readonly(tmp_path / "torn", "boot-2")


def test_pages_of_a_directory(cache: Cache, fs: FileSystem) -> None:
    below = fs.mkdir(ROOT_INO, b"d", 0o755, Cred(1, 2)).ino
    for name in (b"c", b"a", b"\xff", b"b"):
        fs.create(below, name, 0o644, Cred(1, 2))
    with looking(cache) as look:
        total, entries = look.page(b"d", 1, 2)
        assert (total, [entry.name for entry in entries]) == (4, [b"b", b"c"])
        assert look.page(b"d", 4, 2) == (4, [])
        with pytest.raises(NotADirectoryError):
            look.page(b"d/a", 0, 1)
        with pytest.raises(FileNotFoundError):
            look.page(b"d/x", 0, 1)
        assert look.entry(b"d/a").name == b"a"


def test_extents_are_bytes_or_places(cache: Cache, fs: FileSystem) -> None:
    ino = fs.create(ROOT_INO, b"f", 0o644, Cred(1, 2)).ino
    fs.write(ino, 0, b"warm")
    fs.write(ino, 3 * EXTENT_BYTES, b"cold")
    at = Location(1, 7, 4, b"d" * 16)
    generation = cache.generation
    cache.record_locations(generation, [(keys.chunk_key(ino, 3), encode_location(at))])
    cache.forget(generation, freeze_ns=0)
    evict(cache, ino, 3)
    with looking(cache) as look:
        assert look.extents(ino, 0, 4) == [(0, b"warm"), (3, at)]
        assert look.extents(ino, 1, 2) == []
        with pytest.raises(FileNotFoundError):
            look.extents(ino + 1, 0, 1)
