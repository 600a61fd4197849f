"""Each operation is done once, and answered, when the daemon dies in the middle of it.

The daemon is killed just before the commit, just after it, and just before the answer, by a
failpoint; the program's call waits for the next daemon. That it was done once is told by the
generation, which every change raises by one.

Here each operation dies after its commit, and some at the other points as well; all of them at all
points: `python -m tests.e2e.test_holder_once`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from s3ws_fs.core import failpoints
from s3ws_fs.core.errors import ExitCode
from s3ws_fs.core.types import RENAME_EXCHANGE, RENAME_NOREPLACE
from s3ws_fs.fuse import table
from tests.support.armed import Trigger
from tests.support.buckets import LocalBucket
from tests.support.host import NEVER_BY_ITSELF, QUICK, Host
from tests.support.mounting import wait_until
from tests.support.syscalls import renameat2

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

LARGE = os.urandom(1 << 20)
"""One request: of pages never touched, as in bytes(n), the kernel makes one each."""
POINTS = [failpoints.COMMIT_BEFORE, failpoints.COMMIT_AFTER, failpoints.ANSWER_BEFORE]
EVERYWHERE = ("create", "rename over", "append", "setxattr create")
ALL = "S3WS_TEST_ALL" in os.environ


@dataclass
class Armed:
    """A mount whose daemon dies where it is told to."""

    host: Host
    trigger: Trigger

    def head(self) -> int:
        number: int = self.host.now()["generation"]["head"]
        return number


@pytest.fixture(scope="module")
def armed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Armed]:
    with armed_mount(tmp_path_factory.mktemp("armed")) as made:
        yield made


@contextlib.contextmanager
def armed_mount(base: Path, without: str = "") -> Iterator[Armed]:
    """A mount of its own (see Trigger)."""
    for name in ("store", "marks"):
        (base / name).mkdir()
    trigger = Trigger(str(base / "marks"), without)
    host = Host(
        base / "host", LocalBucket(base / "store").env, settings={**QUICK, **NEVER_BY_ITSELF}
    )
    host.settings |= trigger.env()
    try:
        host.mount()
        yield Armed(host, trigger)
    finally:
        host.end()


def _read(path: Path) -> bytes:
    return path.read_bytes()


@dataclass
class Case:
    """An operation: `prepare` gives what `call` gets; `check` looks at what `call` returned.

    commits: how much it raises the generation, what goes with the deleted file included.
    """

    prepare: Callable[[Path], object]
    call: Callable[..., object]
    check: Callable[[Path, object], object]
    commits: int = 1


def _equal(actual: object, wanted: object) -> None:
    assert actual == wanted


def _file(here: Path) -> Path:
    path = here / "f"
    path.write_bytes(b"0123456789")
    return path


def _dir(here: Path) -> Path:
    (here / "d").mkdir()
    return here / "d"


def _open(here: Path, flags: int = os.O_RDWR) -> int:
    return os.open(_file(here), flags)


def _written(fd: int, data: bytes, offset: int | None = None) -> int:
    try:
        return os.write(fd, data) if offset is None else os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def _create(here: Path) -> int:
    fd = os.open(here / "f", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
    try:
        os.write(fd, b"usable")
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def _pair(here: Path) -> Path:
    (here / "a").write_bytes(b"a")
    (here / "b").write_bytes(b"b")
    return here


def _attribute(here: Path) -> Path:
    path = _file(here)
    os.setxattr(path, "user.a", b"old")
    return path


CASES: dict[str, Case] = {
    # The write after the creation is a change of its own.
    "create": Case(
        lambda here: here,
        _create,
        lambda here, mode: _equal((mode, _read(here / "f")), (stat.S_IFREG | 0o640, b"usable")),
        commits=2,
    ),
    "mkdir": Case(
        lambda here: here / "d",
        lambda path: path.mkdir(0o700),
        lambda here, _: _equal((here / "d").stat().st_mode, stat.S_IFDIR | 0o700),
    ),
    "mknod": Case(
        lambda here: here / "p",
        lambda path: os.mkfifo(path, 0o600),
        lambda here, _: _equal((here / "p").stat().st_mode, stat.S_IFIFO | 0o600),
    ),
    "symlink": Case(
        lambda here: here / "s",
        lambda path: path.symlink_to("target"),
        lambda here, _: _equal(os.readlink(here / "s"), "target"),
    ),
    "link": Case(
        _file,
        lambda path: (path.parent / "g").hardlink_to(path),
        lambda here, _: _equal((here / "g").stat().st_nlink, 2),
    ),
    "unlink": Case(
        _file,
        lambda path: path.unlink(),
        lambda here, _: _equal(os.listdir(here), []),
        commits=2,
    ),
    "rmdir": Case(
        _dir, lambda path: path.rmdir(), lambda here, _: _equal(os.listdir(here), []), commits=2
    ),
    "rename": Case(
        _file,
        lambda path: path.rename(path.parent / "g"),
        lambda here, _: _equal((os.listdir(here), _read(here / "g")), (["g"], b"0123456789")),
    ),
    "rename over": Case(
        _pair,
        lambda here: (here / "a").rename(here / "b"),
        lambda here, _: _equal((os.listdir(here), _read(here / "b")), (["b"], b"a")),
        commits=2,
    ),
    "rename noreplace": Case(
        _file,
        lambda path: renameat2(path, path.parent / "g", RENAME_NOREPLACE),
        lambda here, _: _equal(os.listdir(here), ["g"]),
    ),
    "exchange": Case(
        _pair,
        lambda here: renameat2(here / "a", here / "b", RENAME_EXCHANGE),
        lambda here, _: _equal((_read(here / "a"), _read(here / "b")), (b"b", b"a")),
    ),
    "write": Case(
        _open,
        lambda fd: _written(fd, b"xyz", 4),
        lambda here, count: _equal((count, _read(here / "f")), (3, b"0123xyz789")),
    ),
    "append": Case(
        lambda here: _open(here, os.O_WRONLY | os.O_APPEND),
        lambda fd: _written(fd, b"more"),
        lambda here, count: _equal((count, _read(here / "f")), (4, b"0123456789more")),
    ),
    "large write": Case(
        _open,
        lambda fd: _written(fd, LARGE, 0),
        lambda here, count: _equal((count, _read(here / "f")), (len(LARGE), LARGE)),
    ),
    "truncate": Case(
        _file,
        lambda path: os.truncate(path, 3),
        lambda here, _: _equal(_read(here / "f"), b"012"),
    ),
    "open with truncation": Case(
        _file,
        lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
        lambda here, _: _equal(_read(here / "f"), b""),
    ),
    "chmod": Case(
        _file,
        lambda path: path.chmod(0o4711),
        lambda here, _: _equal(stat.S_IMODE((here / "f").stat().st_mode), 0o4711),
    ),
    "utime": Case(
        _file,
        lambda path: os.utime(path, ns=(5, 7)),
        lambda here, _: _equal((here / "f").stat().st_mtime_ns, 7),
    ),
    "touch": Case(
        _file, lambda path: os.utime(path), lambda here, _: _equal(_read(here / "f")[:1], b"0")
    ),
    "setxattr": Case(
        _attribute,
        lambda path: os.setxattr(path, "user.a", b"new"),
        lambda here, _: _equal(os.getxattr(here / "f", "user.a"), b"new"),
    ),
    "setxattr create": Case(
        _file,
        lambda path: os.setxattr(path, "user.a", b"new", os.XATTR_CREATE),
        lambda here, _: _equal(os.getxattr(here / "f", "user.a"), b"new"),
    ),
    "setxattr replace": Case(
        _attribute,
        lambda path: os.setxattr(path, "user.a", b"new", os.XATTR_REPLACE),
        lambda here, _: _equal(os.getxattr(here / "f", "user.a"), b"new"),
    ),
    "removexattr": Case(
        _attribute,
        lambda path: os.removexattr(path, "user.a"),
        lambda here, _: _equal(os.listxattr(here / "f"), []),
    ),
}


SELECTED = [
    (name, point)
    for name in CASES
    for point in POINTS
    if ALL or point == failpoints.COMMIT_AFTER or name in EVERYWHERE
]


@pytest.mark.parametrize(("name", "point"), SELECTED)
def test_once(armed: Armed, name: str, point: str) -> None:
    case = CASES[name]
    here = armed.host.mountpoint / f"{name} {point}"
    here.mkdir()
    prepared = case.prepare(here)
    before, pid = armed.head(), armed.host.pid()
    armed.trigger.set(point)
    try:
        result = case.call(prepared)
        assert not armed.trigger.is_set(point), "nobody died"
    finally:
        armed.trigger.unset(point)
    case.check(here, result)
    armed.host.wait_for_successor(pid)
    wait_until(lambda: armed.head() >= before + case.commits, what="deleted files to be dropped")
    assert armed.head() == before + case.commits


# --- negative controls ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error"), [("mkdir", errno.EEXIST), ("unlink", errno.ENOENT), ("rename", errno.ENOENT)]
)
def test_without_the_notes_it_is_done_twice(tmp_path: Path, name: str, error: int) -> None:
    """What the tests above would say of a daemon that forgets what was done."""
    case = CASES[name]
    with armed_mount(tmp_path, "once") as armed:
        prepared = case.prepare(armed.host.mountpoint)
        armed.trigger.set(failpoints.COMMIT_AFTER)
        with pytest.raises(OSError) as caught:
            case.call(prepared)
    assert caught.value.errno == error


def test_a_mount_made_by_fusermount3(tmp_path: Path) -> None:
    """As where only that may mount: the connection is kept all the same."""
    with armed_mount(tmp_path, "mount(2)") as armed:
        armed.trigger.set(failpoints.COMMIT_AFTER)
        (armed.host.mountpoint / "d").mkdir()
        assert not armed.trigger.is_set(failpoints.COMMIT_AFTER)
        armed.host.umount()


def test_a_kernel_that_does_not_send_again(tmp_path: Path) -> None:
    """Before Linux 6.9: the daemon's death is the mount's, and the next mount has everything."""
    with armed_mount(tmp_path, "resend") as armed:
        host = armed.host
        (host.mountpoint / "before").write_bytes(b"kept")
        assert host.now()["holder"]["can_replace"] is False
        refused = host.s3ws("restart", host.mountpoint, ok=ExitCode.CANT_RESTART)
        assert "6.9" in refused.stderr
        info = host.info()
        assert info is not None
        armed.trigger.set(failpoints.COMMIT_AFTER)
        with pytest.raises(OSError) as caught:
            (host.mountpoint / "d").mkdir()
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        wait_until(lambda: not info.is_alive(), what="the end of the holder")
        assert not table.is_mounted(str(host.mountpoint))
        host.mount()
        assert sorted(os.listdir(host.mountpoint)) == ["before", "d"]


if __name__ == "__main__":
    os.environ["S3WS_TEST_ALL"] = "1"
    sys.exit(pytest.main([__file__, "-q", *sys.argv[1:]]))
