"""Which operation changes which time of which inode, and what times a file can have.

Reading never changes atime here (noatime), so that atime is left out where the trees are compared.
"""

from __future__ import annotations

import mmap
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from s3ws_fs.core.clock import TICK_NS_MAX
from s3ws_fs.core.limits import TIME_NS_MAX, TIME_NS_MIN
from tests.support.mounting import wait_until
from tests.support.pair import Pair, has_user_xattrs, outcome
from tests.support.syscalls import UTIME_OMIT, renameat2, utimensat

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

EXCHANGE: Final = 2
NOREPLACE: Final = 1
ROUNDS: Final = 50
ROUNDS_MAX: Final = 1_000
OLD_NS: Final = 1_000_000_000_123_456_789

Act = Callable[[Path], object]


def _write(path: Path, data: bytes, *, at: int = 0, flags: int = 0) -> None:
    fd = os.open(path, os.O_RDWR | flags)
    try:
        os.pwrite(fd, data, at)
    finally:
        os.close(fd)


def _open(path: Path, flags: int) -> None:
    os.close(os.open(path, flags, 0o644))


def _ftruncate(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _through_mmap(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0:4] = b"mmap"
        view.flush()


def _copy_range(source: Path, target: Path) -> None:
    with source.open("rb") as old, target.open("r+b") as new:
        assert os.copy_file_range(old.fileno(), new.fileno(), 100) == 100


def _read_all(top: Path) -> None:
    (top / "a" / "file").read_bytes()
    os.listdir(top / "a")
    os.readlink(top / "a" / "link")
    os.stat(top / "a" / "file")
    _open(top / "a" / "file", os.O_RDWR)
    os.access(top / "a", os.R_OK)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


ACTS: Final[dict[str, Act]] = {
    "write": lambda top: _write(top / "a/file", b"new"),
    "write of the same bytes": lambda top: _write(top / "a/file", b"x"),
    "write of nothing": lambda top: _write(top / "a/file", b""),
    "append": lambda top: _write(top / "a/file", b"new", flags=os.O_APPEND),
    "write far beyond the end": lambda top: _write(top / "a/file", b"new", at=1 << 30),
    "write through mmap": lambda top: _through_mmap(top / "a/file"),
    "copy_file_range": lambda top: _copy_range(top / "a/file", top / "b/file"),
    "truncate to less": lambda top: os.truncate(top / "a/file", 3),
    "truncate to more": lambda top: os.truncate(top / "a/file", 30_000),
    "truncate to the same size": lambda top: os.truncate(top / "a/file", 9_000),
    "ftruncate to less": lambda top: _ftruncate(top / "a/file", 3),
    "ftruncate to the same size": lambda top: _ftruncate(top / "a/file", 9_000),
    "O_TRUNC": lambda top: _open(top / "a/file", os.O_WRONLY | os.O_TRUNC),
    "O_TRUNC of an empty file": lambda top: _open(top / "a/empty", os.O_WRONLY | os.O_TRUNC),
    "O_CREAT of what exists": lambda top: _open(top / "a/file", os.O_WRONLY | os.O_CREAT),
    "create": lambda top: _open(top / "a/new", os.O_WRONLY | os.O_CREAT),
    "mkdir": lambda top: os.mkdir(top / "a/new"),
    "symlink": lambda top: os.symlink("x", top / "a/new"),
    "mkfifo": lambda top: os.mkfifo(top / "a/new"),
    "link": lambda top: os.link(top / "a/file", top / "b/new"),
    "unlink of the last name": lambda top: os.unlink(top / "a/file"),
    "unlink of one of two names": lambda top: os.unlink(top / "a/one"),
    "rmdir": lambda top: os.rmdir(top / "a/dir"),
    "rename in one directory": lambda top: os.rename(top / "a/file", top / "a/new"),
    "rename to another directory": lambda top: os.rename(top / "a/file", top / "b/new"),
    "rename of a directory": lambda top: os.rename(top / "a/dir", top / "b/new"),
    "rename over a file": lambda top: os.rename(top / "a/file", top / "b/file"),
    "rename over a file of two names": lambda top: os.rename(top / "a/file", top / "b/two"),
    "rename over a directory": lambda top: os.rename(top / "a/dir", top / "b/dir"),
    "rename to itself": lambda top: os.rename(top / "a/file", top / "a/file"),
    "rename to another name of the file": lambda top: os.rename(top / "a/one", top / "b/two"),
    "rename of a symbolic link": lambda top: os.rename(top / "a/link", top / "b/new"),
    "exchange": lambda top: renameat2(top / "a/file", top / "b/dir", EXCHANGE),
    "rename without replacing": lambda top: renameat2(top / "a/file", top / "b/new", NOREPLACE),
    "chmod": lambda top: os.chmod(top / "a/file", 0o600),
    "chmod to the same": lambda top: os.chmod(top / "a/file", 0o644),
    "chmod of a directory": lambda top: os.chmod(top / "a", 0o700),
    "chown": lambda top: os.chown(top / "a/file", os.geteuid(), os.getegid()),
    "chown of nothing": lambda top: os.chown(top / "a/file", -1, -1),
    "lchown": lambda top: os.lchown(top / "a/link", os.geteuid(), os.getegid()),
    "setxattr": lambda top: os.setxattr(top / "a/file", "user.new", b"1"),
    "setxattr of another value": lambda top: os.setxattr(top / "a/file", "user.old", b"2"),
    "removexattr": lambda top: os.removexattr(top / "a/file", "user.old"),
    "utimensat: both": lambda top: os.utime(top / "a/file", ns=(5, 6)),
    "utimensat: now": lambda top: os.utime(top / "a/file"),
    "utimensat: mtime alone": lambda top: utimensat(top / "a/file", (0, UTIME_OMIT), (5, 6)),
    "utimensat: atime alone": lambda top: utimensat(top / "a/file", (5, 6), (0, UTIME_OMIT)),
    "utimensat: nothing": lambda top: utimensat(top / "a/file", (0, UTIME_OMIT), (0, UTIME_OMIT)),
    "utimensat of a link": lambda top: os.utime(top / "a/link", ns=(5, 6), follow_symlinks=False),
    "reading": _read_all,
    "fsync": lambda top: _sync(top / "a/file"),
    "failed create": lambda top: outcome(_open, top / "a/file", os.O_CREAT | os.O_EXCL),
    "failed mkdir": lambda top: outcome(os.mkdir, top / "a/dir"),
    "failed rmdir": lambda top: outcome(os.rmdir, top / "a"),
    "failed rename": lambda top: outcome(os.rename, top / "a", top / "b"),
    "failed link": lambda top: outcome(os.link, top / "a/file", top / "b/file"),
    "failed unlink": lambda top: outcome(os.unlink, top / "a/none"),
    "failed truncate": lambda top: outcome(os.truncate, top / "a", 0),
    "failed removexattr": lambda top: outcome(os.removexattr, top / "a/file", "user.none"),
}


def _prepare(top: Path) -> dict[str, int]:
    """The tree of all acts; descriptors of its inodes (O_PATH: held, whatever becomes of names)."""
    for name in ("a/dir", "b/dir"):
        (top / name).mkdir(parents=True)
    for name in ("a/file", "b/file"):
        (top / name).write_bytes(b"x" * 9_000)
        (top / name).chmod(0o644)
    (top / "a" / "empty").touch()
    (top / "a" / "one").touch()
    os.link(top / "a" / "one", top / "b" / "two")
    (top / "a" / "link").symlink_to("file")
    outcome(os.setxattr, top / "a" / "file", "user.old", b"1")
    names = ("", "a", "b", "a/file", "b/file", "a/empty", "a/one", "a/link", "a/dir", "b/dir")
    return {name: os.open(top / name, os.O_PATH | os.O_NOFOLLOW) for name in names}


def _changes(top: Path, act: Act) -> list[str]:
    """Which inodes have a new mtime, a new ctime, after the act."""
    held = _prepare(top)
    try:
        before = {name: os.fstat(fd) for name, fd in held.items()}
        newest_ns = max(info.st_ctime_ns for info in before.values())
        probe = top.parent / f"{top.name} probe"
        probe.touch()

        def clock_went_on() -> bool:
            probe.chmod(0o600)
            return probe.stat().st_ctime_ns > newest_ns

        wait_until(clock_went_on, what="the filesystem's clock stands")
        act(top)
        seen = []
        for name, fd in held.items():
            was, now = before[name], os.fstat(fd)
            seen += [f"{name or '.'}: mtime"] * (now.st_mtime_ns != was.st_mtime_ns)
            seen += [f"{name or '.'}: ctime"] * (now.st_ctime_ns > was.st_ctime_ns)
            assert now.st_ctime_ns >= was.st_ctime_ns
        return seen
    finally:
        for fd in held.values():
            os.close(fd)


@pytest.mark.parametrize("name", ACTS)
def test_what_an_operation_changes(pair: Pair, name: str) -> None:
    if "xattr" in name and not has_user_xattrs(pair.native):
        pytest.skip("the plain directory's filesystem has no user extended attributes")
    pair.same(lambda top: _changes(top, ACTS[name]))


def test_reading_leaves_atime_alone(pair: Pair) -> None:
    top = pair.here
    _prepare_closed(top)
    paths = [top / "a", top / "a" / "file", top / "a" / "link"]
    for path in paths:
        os.utime(path, ns=(1, 2), follow_symlinks=False)
    _read_all(top)
    with (top / "a" / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=1) as view:
        assert view[:1] == b"x"
    assert [path.lstat().st_atime_ns for path in paths] == [1, 1, 1]
    fd = os.open(top / "a" / "file", os.O_RDONLY | os.O_NOATIME)
    assert os.read(fd, 1) == b"x"
    os.close(fd)
    assert os.statvfs(top).f_flag & os.ST_RDONLY == 0


def _prepare_closed(top: Path) -> None:
    for fd in _prepare(top).values():
        os.close(fd)


def test_a_new_inode_has_one_time(pair: Pair) -> None:
    def scenario(top: Path) -> list[int]:
        (top / "file").touch()
        (top / "dir").mkdir()
        (top / "link").symlink_to("x")
        os.mkfifo(top / "fifo")
        infos = [(top / name).lstat() for name in ("file", "dir", "link", "fifo")]
        return [len({info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns}) for info in infos]

    assert pair.same(scenario) == [1, 1, 1, 1]


def test_times_are_in_the_order_of_the_changes(pair: Pair) -> None:
    """make compares times that the filesystem set with such that touch asked the kernel for."""
    written, touched = pair.here / "written", pair.here / "touched"
    other = pair.native / "f"
    for path in (written, touched, other):
        path.touch()
    told = 0
    for _ in range(ROUNDS_MAX):
        # Linux 6.13 and later: a change on another filesystem makes "now" finer than its tick.
        other.write_bytes(b"x")
        quick = _touched_within_a_tick(touched)
        written.write_bytes(b"x")
        assert touched.stat().st_mtime_ns <= written.stat().st_mtime_ns
        written.write_bytes(b"y")
        if quick and _touched_within_a_tick(touched):
            assert written.stat().st_mtime_ns <= touched.stat().st_mtime_ns
            told += 1
        other.stat()
        if told == ROUNDS:
            return
    pytest.skip(f"too busy: {told} of {ROUNDS_MAX} pairs of touches were answered within a tick")


def _touched_within_a_tick(path: Path) -> bool:
    """Touch it; whether that was quick: a time that is older than a tick is no "now" to us."""
    started_ns = time.monotonic_ns()
    os.utime(path)
    return time.monotonic_ns() - started_ns < TICK_NS_MAX // 2


def test_times_that_ext4_can_hold_too(pair: Pair) -> None:
    """1901 to 2446 is ext4's range; nanoseconds in 64 bits end in 2262."""

    def scenario(top: Path) -> list[tuple[int, int]]:
        seen = []
        for when_ns in (0, 1, -1, -1_000_000_001, 2**31 * 10**9 - 1, 2**31 * 10**9, OLD_NS):
            path = top / f"at {when_ns}"
            path.touch()
            os.utime(path, ns=(when_ns, when_ns + 7))
            info = path.stat()
            seen.append((info.st_atime_ns, info.st_mtime_ns))
        return seen

    pair.same(scenario)


def test_times_beyond_what_can_be_kept_are_the_nearest_that_can(pair: Pair) -> None:
    path = pair.here / "f"
    path.touch()
    for asked_s, kept_ns in (
        (TIME_NS_MAX // 10**9, TIME_NS_MAX // 10**9 * 10**9),
        (TIME_NS_MAX // 10**9 + 1, TIME_NS_MAX),
        (2**40, TIME_NS_MAX),
        (TIME_NS_MIN // 10**9, TIME_NS_MIN),
        (-(2**40), TIME_NS_MIN),
    ):
        os.utime(path, (asked_s, asked_s))
        info = path.stat()
        assert (info.st_atime_ns, info.st_mtime_ns) == (kept_ns, kept_ns), asked_s
    assert stat.S_ISREG(path.stat().st_mode)


def test_a_time_set_by_hand_is_kept_by_renames_and_links(pair: Pair) -> None:
    def scenario(top: Path) -> Any:
        (top / "f").touch()
        os.utime(top / "f", ns=(OLD_NS, OLD_NS + 1))
        os.rename(top / "f", top / "g")
        os.link(top / "g", top / "h")
        os.chmod(top / "h", 0o600)
        return [path.stat().st_mtime_ns for path in (top / "g", top / "h")]

    assert pair.same(scenario) == [OLD_NS + 1] * 2
