"""Exporting what was never sealed: whole, beside what is there, and nowhere else."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.view import View
from s3ws_fs.core.errors import TransientError
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.types import ROOT_INO, Location
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.transfer.rescue import Rescued, rescue
from tests.transfer.conftest import CRED, write


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "out"
    directory.mkdir()
    yield directory


def export(cache: Cache, out: Path, fetch: object = None) -> Rescued:
    fd = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return rescue(cache, fd, fetch)  # type: ignore[arg-type]
    finally:
        os.close(fd)


def seal(cache: Cache) -> None:
    """As if everything had been sealed."""
    resume: bytes | None = b""
    while resume is not None:
        resume = cache.forget(cache.generation, cache.now_ns(), resume)


def test_changed_files_come_whole_with_their_attributes(
    cache: Cache, fs: FileSystem, out: Path
) -> None:
    large = os.urandom(3 * EXTENT_BYTES + 5)
    ino = write(fs, b"large", large)
    write(fs, b"untouched", b"")
    seal(cache)
    fs.write(ino, EXTENT_BYTES, b"changed")
    sub = fs.mkdir(ROOT_INO, b"dir", 0o700, CRED).ino
    inner = fs.create(sub, b"\xff\n", 0o640, CRED).ino
    fs.write(inner, 0, b"new")
    fs.setxattr(inner, b"user.a", b"1", 0)
    fs.link(inner, ROOT_INO, b"link")
    fs.symlink(ROOT_INO, b"away", b"/etc/passwd", CRED)
    done = export(cache, out)
    want = large[:EXTENT_BYTES] + b"changed" + large[EXTENT_BYTES + 7 :]
    assert (out / "large").read_bytes() == want
    path = os.fsencode(out) + b"/dir/\xff\n"
    info = os.lstat(path)
    assert stat.S_IMODE(info.st_mode) == 0o640
    assert info.st_mtime_ns == fs.getattr(inner).mtime_ns
    assert os.getxattr(path, b"user.a") == b"1"
    assert os.stat(out / "link").st_ino == info.st_ino
    assert stat.S_IMODE((out / "dir").stat().st_mode) == 0o700
    assert os.readlink(out / "away") == "/etc/passwd"
    assert not (out / "untouched").exists()
    assert done.is_whole
    assert set(done.exported) == {b"large", b"dir", b"dir/\xff\n", b"link", b"away"}


def test_deletions_are_listed(cache: Cache, fs: FileSystem, out: Path) -> None:
    write(fs, b"gone", b"1")
    seal(cache)
    fs.unlink(ROOT_INO, b"gone")
    assert export(cache, out).deleted == [b"gone"]
    assert os.listdir(out) == []


def test_nothing_that_stands_there_is_touched(
    cache: Cache, fs: FileSystem, out: Path, tmp_path: Path
) -> None:
    """Neither files, nor what a symlink there leads to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"theirs")
    (out / "file").write_bytes(b"mine")
    (out / "link").symlink_to(outside / "file")
    (out / "dangling").symlink_to(outside / "new")
    (out / "dir").symlink_to(outside)
    for name in (b"file", b"link", b"dangling", b"fine"):
        write(fs, name, b"rescued")
    sub = fs.mkdir(ROOT_INO, b"dir", 0o755, CRED).ino
    fs.write(fs.create(sub, b"file", 0o644, CRED).ino, 0, b"escaped")
    done = export(cache, out)
    assert {path: os.listdir(path) for path in (outside,)} == {outside: ["file"]}
    assert (outside / "file").read_bytes() == b"theirs"
    assert (out / "file").read_bytes() == b"mine"
    assert (out / "fine").read_bytes() == b"rescued"
    assert set(done.left) == {b"file", b"link", b"dangling", b"dir", b"dir/file"}
    assert not done.is_whole


@pytest.mark.parametrize(
    "name", [b"..", b"../out-of-it", b".", b"", b"/etc/x", b"a/../../b", b"a\0b"]
)
def test_hostile_paths_are_refused(
    cache: Cache, fs: FileSystem, out: Path, tmp_path: Path, name: bytes
) -> None:
    """No filesystem operation makes such a name; a cache that somebody wrote may hold it."""
    write(fs, b"f", b"1")
    before = sorted(os.listdir(tmp_path))
    with mock.patch.object(View, "paths_of", lambda *_: [name]):
        done = export(cache, out)
    assert sorted(os.listdir(tmp_path)) == before
    assert os.listdir(out) in ([], ["a"])
    assert set(done.left) == ({name} if name else set())


def test_rights_are_not_exported(cache: Cache, fs: FileSystem, out: Path) -> None:
    ino = write(fs, b"f", b"1")
    with cache.write() as tx:
        rec = tx.inode(ino)
        assert rec is not None
        rec.mode = stat.S_IFREG | 0o6755
        tx.put_inode(rec)
    done = export(cache, out)
    assert stat.S_IMODE((out / "f").stat().st_mode) == 0o755
    assert b"f" in done.notes


def test_cold_bytes_are_fetched_or_named(cache: Cache, fs: FileSystem, out: Path) -> None:
    ino = write(fs, b"f", b"x" * (2 * EXTENT_BYTES))
    cold = Location(1, 1024, EXTENT_BYTES, b"d" * 16)
    extent = View.extent

    def without_the_first(view: View, which: int, index: int) -> bytes | None:
        return None if (which, index) == (ino, 0) else extent(view, which, index)

    def fetch(where: Location) -> bytes:
        assert where == cold
        return b"y" * EXTENT_BYTES

    def away(_: Location) -> bytes:
        raise TransientError("get", "seg", "away")

    with (
        mock.patch.object(View, "extent", without_the_first),
        mock.patch.object(View, "chunk", lambda *a: cold if a[2] == 0 else None),
    ):
        assert export(cache, out, fetch).is_whole
        assert (out / "f").read_bytes() == b"y" * EXTENT_BYTES + b"x" * EXTENT_BYTES
        for way in (away, None):
            (out / "f").unlink()
            done = export(cache, out, way)
            assert list(done.incomplete) == [b"f"] and not done.is_whole
            assert (out / "f").read_bytes() == bytes(EXTENT_BYTES) + b"x" * EXTENT_BYTES
