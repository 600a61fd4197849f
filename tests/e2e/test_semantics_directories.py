"""Directories: link counts, inheritance, listings while others work in them, and many entries."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.actors import require_root
from tests.support.pair import Line, Pair, forked, hear, outcome, say

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

STAY: Final = 2_000
CHURN: Final = 40
LARGE: Final = 5_000
BUFFER_BYTES: Final = 4096
"""Small, so that a listing takes many calls."""

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_GETDENTS64: Final = {"x86_64": 217, "aarch64": 61}


def test_link_counts_of_directories(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        def counts() -> tuple[int, ...]:
            return tuple((top / name).stat().st_nlink for name in ("", "a", "b"))

        (top / "a").mkdir()
        (top / "b").mkdir()
        seen = [counts()]
        for step in (
            lambda: (top / "a" / "sub").mkdir(),
            lambda: (top / "a" / "file").touch(),
            lambda: (top / "a" / "link").symlink_to("sub"),
            lambda: (top / "a" / "sub").rename(top / "a" / "renamed"),
            lambda: (top / "a" / "renamed").rename(top / "b" / "sub"),
            lambda: (top / "a" / "other").mkdir(),
            lambda: (top / "a" / "other").rename(top / "b" / "sub"),
            lambda: (top / "b" / "sub").rmdir(),
            lambda: (top / "b" / "again").mkdir(),
        ):
            step()
            seen.append(counts())
        return seen

    assert pair.same(scenario)[0] == (4, 2, 2)


def test_removing_directories(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        (top / "full" / "x").mkdir(parents=True)
        (top / "file").touch()
        (top / "link").symlink_to("full/x")
        names = ["full", "file", "link", "none", "full/x/.", "full/x/..", "file/x", "link/"]
        seen = [outcome(os.rmdir, f"{top}/{name}") for name in names]
        seen += [outcome(os.unlink, f"{top}/{name}") for name in ("full", "full/x", "file/")]
        seen += [outcome(os.mkdir, f"{top}/{name}") for name in ("full", "file", "link", "file/x")]
        seen += [outcome(os.mkdir, f"{top}/slash/"), outcome(os.mkdir, f"{top}/.")]
        return [*seen, sorted(os.listdir(top))]

    pair.same(scenario)


def test_setgid_directories_pass_on_their_group(pair: Pair) -> None:
    require_root()

    def scenario(top: Path) -> list[tuple[int, int]]:
        shared = top / "shared"
        shared.mkdir()
        os.chown(shared, 10, 4321)
        shared.chmod(0o2775)
        (shared / "file").touch()
        (shared / "dir" / "deeper").mkdir(parents=True)
        (shared / "link").symlink_to("x")
        os.mkfifo(shared / "fifo")
        os.mknod(shared / "node", stat.S_IFREG | 0o640)
        os.close(os.open(shared / "setgid", os.O_CREAT | os.O_WRONLY, 0o2755))
        outside = top / "outside"
        outside.mkdir()
        outside.rename(shared / "moved in")
        (shared / "dir").chmod(0o755)
        (shared / "dir" / "plain").mkdir()
        os.link(top / "shared" / "file", shared / "dir" / "linked")
        names = sorted(path for path in shared.rglob("*"))
        infos = [path.lstat() for path in (shared, *names)]
        return [(info.st_gid, stat.S_IMODE(info.st_mode)) for info in infos]

    before = os.umask(0o022)
    try:
        seen = pair.same(scenario)
    finally:
        os.umask(before)
    assert (4321, 0o2755) in seen


def test_sticky_bits_are_kept_and_not_inherited(pair: Pair) -> None:
    def scenario(top: Path) -> list[int]:
        (top / "tmp").mkdir()
        (top / "tmp").chmod(0o1777)
        (top / "tmp" / "d").mkdir(0o755)
        (top / "tmp" / "made").mkdir(0o1755)
        return [stat.S_IMODE((top / name).stat().st_mode) for name in ("tmp", "tmp/d", "tmp/made")]

    assert pair.same(scenario)[0] == 0o1777


def _entries(fd: int) -> Iterator[tuple[bytes, int]]:
    """(name, offset after it) of a directory, a few at a time (getdents64(2))."""
    number = _SYS_GETDENTS64.get(os.uname().machine)
    if number is None:
        pytest.skip(f"the number of getdents64 on {os.uname().machine} is not known to this test")
    buffer = ctypes.create_string_buffer(BUFFER_BYTES)
    while (count := _libc.syscall(number, fd, buffer, BUFFER_BYTES)) > 0:
        raw, at = buffer.raw[:count], 0
        while at < count:
            _, offset, length, _ = struct.unpack_from("<QqHB", raw, at)
            yield raw[at + 19 : at + length].split(b"\0", 1)[0], offset
            at += length
    assert count == 0


def test_a_listing_neither_skips_nor_repeats_while_another_process_works(pair: Pair) -> None:
    """Entries that stay the whole time are listed exactly once; others at most once."""

    def churn(top: Path, line: Line) -> int:
        number = 0
        line.setblocking(False)
        while True:
            try:
                hear(line)
            except BlockingIOError:
                for _ in range(CHURN):
                    (top / f"new{number}").touch()
                    os.rename(top / f"new{number}", top / f"renamed{number}")
                    if number >= CHURN:
                        (top / f"renamed{number - CHURN}").unlink()
                    number += 1
                continue
            return number

    top = pair.here
    stay = {b"stay%d" % number for number in range(STAY)}
    for name in stay:
        (top / os.fsdecode(name)).touch()
    with forked(lambda line: churn(top, line)) as (child,):
        for _ in range(15):
            fd = os.open(top, os.O_RDONLY)
            seen = [name for name, _ in _entries(fd)]
            os.close(fd)
            kept = [name for name in seen if name in stay]
            assert len(seen) == len(set(seen)), "an entry was listed twice"
            assert len(kept) == STAY, "an entry that stayed was not listed"
        say(child.line)
        assert child.result() > CHURN


def test_a_position_stays_good_while_entries_come_and_go(pair: Pair) -> None:
    """lseek to any offset that a listing gave goes on after that entry, as telldir/seekdir do."""
    top = pair.here
    for number in range(500):
        (top / f"n{number}").touch()
    fd = os.open(top, os.O_RDONLY)
    listing = list(_entries(fd))
    assert len({offset for _, offset in listing}) == len(listing)
    for at in (0, 1, 2, 3, 250, 499, 500):
        name, offset = listing[at]
        (top / f"added{at}").touch()
        if name not in (b".", b".."):
            (top / os.fsdecode(name)).unlink()  # also when the entry itself has gone
        os.lseek(fd, offset, os.SEEK_SET)
        found = [name for name, _ in _entries(fd)]
        old = {name for name, _ in listing}
        gone = {name for name, _ in listing} - {os.fsencode(n) for n in os.listdir(top)}
        wanted = [name for name, _ in listing[at + 1 :] if name not in gone | {b".", b".."}]
        assert [name for name in found if name in old - {b".", b".."}] == wanted
    os.lseek(fd, 0, os.SEEK_SET)
    assert len(list(_entries(fd))) == len(os.listdir(top)) + 2
    os.close(fd)


def test_rm_style_removal_while_listing(pair: Pair) -> None:
    """Unlink each entry as it is listed: one pass empties the directory."""

    def scenario(top: Path) -> Any:
        for number in range(1_000):
            (top / f"f{number}").touch()
        fd = os.open(top, os.O_RDONLY)
        for name, _ in _entries(fd):
            if name not in (b".", b".."):
                os.unlink(name, dir_fd=fd)
        os.close(fd)
        return os.listdir(top)

    assert pair.same(scenario) == []


def test_many_entries(pair: Pair) -> None:
    """A large directory: listed whole, each entry found, and removed."""
    top = os.fsencode(pair.here)
    for number in range(LARGE):
        os.mknod(b"%s/entry-%06d" % (top, number), 0o600)
    with os.scandir(top) as entries:
        inodes = {entry.name: entry.inode() for entry in entries}
    assert len(inodes) == LARGE
    assert len(set(inodes.values())) == LARGE
    for number in range(0, LARGE, 97):
        name = b"entry-%06d" % number
        assert os.stat(b"%s/%s" % (top, name)).st_ino == inodes[name]
    assert not os.path.exists(b"%s/entry-%06d" % (top, LARGE))
    for name in inodes:
        os.unlink(b"%s/%s" % (top, name))
    assert os.listdir(top) == []
    assert os.stat(top).st_size == 4096
