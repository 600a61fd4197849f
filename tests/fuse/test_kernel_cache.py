"""The kernel keeps attributes and names for a day: it must drop by itself what a change made stale.

Each test fills the kernel's cache by a stat, makes the change through another name or descriptor,
and looks again. If one of these fails on some kernel, the handler must invalidate explicitly.
"""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path

import pytest

pytestmark = pytest.mark.fuse


def _cached(*paths: Path) -> list[os.stat_result]:
    return [path.lstat() for path in paths]


def test_link_and_unlink_show_in_the_other_links(here: Path) -> None:
    a, b, c = here / "a", here / "b", here / "c"
    a.touch()
    before = _cached(a)[0]
    os.link(a, b)
    assert a.stat().st_nlink == b.stat().st_nlink == 2
    assert a.stat().st_ctime_ns > before.st_ctime_ns
    os.link(b, c)
    _cached(a, b, c)
    with a.open() as file:
        a.unlink()
        assert os.fstat(file.fileno()).st_nlink == 2
    first = b.stat()
    assert first.st_nlink == 2
    _cached(b, c)
    b.unlink()
    assert c.stat().st_nlink == 1
    assert c.stat().st_ctime_ns > first.st_ctime_ns


def test_rename_over_a_link_shows_in_the_other_links(here: Path) -> None:
    a, b, other = here / "a", here / "b", here / "other"
    a.touch()
    os.link(a, b)
    other.touch()
    before = _cached(a, b, other)
    other.rename(a)
    assert b.stat().st_nlink == 1
    assert b.stat().st_ctime_ns > before[1].st_ctime_ns
    assert a.stat().st_ino == before[2].st_ino
    assert a.stat().st_ctime_ns > before[2].st_ctime_ns


def test_exchange_shows_in_both_and_in_both_directories(here: Path) -> None:
    (here / "x").mkdir()
    (here / "y" / "dir").mkdir(parents=True)
    file, directory = here / "x" / "file", here / "y" / "dir"
    file.touch()
    before = _cached(file, directory, here / "x", here / "y")
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(-100, os.fsencode(file), -100, os.fsencode(directory), 2) == 0
    after = _cached(directory, file, here / "x", here / "y")
    assert [info.st_ino for info in after[:2]] == [info.st_ino for info in before[:2]]
    for was, now in zip(before, after, strict=True):
        assert now.st_ctime_ns > was.st_ctime_ns
    assert ((here / "x").stat().st_nlink, (here / "y").stat().st_nlink) == (3, 2)
    assert (here / "x" / "file" / "..").stat().st_ino == (here / "x").stat().st_ino


def test_changes_by_one_link_show_in_the_other(here: Path) -> None:
    a, b = here / "a", here / "b"
    a.touch()
    os.link(a, b)
    _cached(a, b)
    a.chmod(0o600)
    assert stat.S_IMODE(b.stat().st_mode) == 0o600
    a.write_bytes(b"12345")
    assert b.stat().st_size == 5
    assert b.read_bytes() == b"12345"
    _cached(a, b)
    os.truncate(a, 2)
    assert b.stat().st_size == 2
    assert b.read_bytes() == b"12"
    before = b.stat()
    os.setxattr(a, "user.x", b"1")
    assert b.stat().st_ctime_ns > before.st_ctime_ns
    assert os.getxattr(b, "user.x") == b"1"


def test_entries_show_in_the_directory(here: Path) -> None:
    seen = [here.stat().st_mtime_ns]

    def changed(what: str) -> None:
        seen.append(here.stat().st_mtime_ns)
        assert seen[-1] > seen[-2], what

    (here / "f").touch()
    changed("create")
    (here / "f").rename(here / "g")
    changed("rename")
    os.link(here / "g", here / "h")
    changed("link")
    (here / "h").unlink()
    changed("unlink")
    (here / "d").mkdir()
    changed("mkdir")
    (here / "d").rmdir()
    changed("rmdir")
    (here / "s").symlink_to("x")
    changed("symlink")
    os.mkfifo(here / "p")
    changed("mknod")
    (here / "g").write_text("x")
    assert here.stat().st_mtime_ns == seen[-1], "writing is no change of the directory"


def test_a_moved_directory_shows_in_both_parents(here: Path) -> None:
    (here / "x" / "moved").mkdir(parents=True)
    (here / "y").mkdir()
    before = _cached(here / "x", here / "y", here / "x" / "moved")
    (here / "x" / "moved").rename(here / "y" / "moved")
    after = _cached(here / "x", here / "y", here / "y" / "moved")
    assert [info.st_nlink for info in after] == [2, 3, 2]
    assert all(now.st_ctime_ns > was.st_ctime_ns for was, now in zip(before, after, strict=True))


def test_a_write_shows_in_size_and_times_at_once(here: Path) -> None:
    path = here / "f"
    with path.open("wb", buffering=0) as file:
        last = path.stat()
        for number in range(1, 20):
            file.write(b"x")
            now = path.stat()
            assert now.st_size == number
            assert now.st_mtime_ns > last.st_mtime_ns
            last = now


def test_a_name_that_went_and_came_back_is_the_new_file(here: Path) -> None:
    path = here / "f"
    numbers = set()
    for number in range(10):
        path.write_text(str(number))
        assert path.read_text() == str(number)
        numbers.add(path.stat().st_ino)
        path.unlink()
        assert not path.exists()
    assert len(numbers) == 10, "inode numbers are never used again"
