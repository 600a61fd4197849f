"""The errno and the side effects of system calls: a table, on the mount and on a plain directory.

Each call has the errno that POSIX or Linux says, and the same on both sides; a failed call changes
nothing at all, a successful one the same fields of the same inodes (tests/support/conformance.py).
What other users may do: test_errnos_users.py.
"""

from __future__ import annotations

import os
import shutil
import stat
from errno import (
    EBADF,
    EBUSY,
    EEXIST,
    EINVAL,
    EISDIR,
    ELOOP,
    ENAMETOOLONG,
    ENOENT,
    ENOTDIR,
    ENOTEMPTY,
    ENXIO,
    EPERM,
    EXDEV,
)
from functools import partial
from typing import Final

import pytest

from tests.support.actors import errno_of
from tests.support.conformance import (
    EXCHANGE,
    NOREPLACE,
    Case,
    build_one_of_everything,
    case,
    disagreements,
    on_descriptor,
    opened,
    paths,
    renameat2,
)
from tests.support.host import Host
from tests.support.pair import Pair

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

NEW: Final = os.O_CREAT | os.O_WRONLY
EXCLUSIVE: Final = NEW | os.O_EXCL

OPEN: Final = [
    *paths("open", lambda path: opened(path, os.O_RDONLY)),
    *paths("creat", lambda path: opened(path, NEW | os.O_TRUNC), absent=0),
    case("open a dangling link", ENOENT, lambda: opened("dangling", os.O_RDONLY)),
    case("open a loop", ELOOP, lambda: opened("loop", os.O_RDONLY)),
    case("create through a loop", ELOOP, lambda: opened("loop", NEW)),
    case("create through a dangling link", 0, lambda: opened("dangling", NEW)),
    case("open a link not following", ELOOP, lambda: opened("to file", os.O_NOFOLLOW)),
    case("open a file with a slash", ENOTDIR, lambda: opened("file/", os.O_RDONLY)),
    case("create with a slash", EISDIR, lambda: opened("new/", NEW)),
    case("write to a directory", EISDIR, lambda: opened("full", os.O_WRONLY)),
    case("read and write a directory", EISDIR, lambda: opened("full", os.O_RDWR)),
    case("create over a directory", EISDIR, lambda: opened("full", os.O_CREAT)),
    case("truncate a directory", EISDIR, lambda: opened("full", os.O_TRUNC)),
    case("open a file as a directory", ENOTDIR, lambda: opened("file", os.O_DIRECTORY)),
    case("a link as a directory", ENOTDIR, lambda: opened("to file", os.O_DIRECTORY)),
    case(
        "a link as a directory, not following",
        ENOTDIR,
        lambda: opened("to full", os.O_DIRECTORY | os.O_NOFOLLOW),
    ),
    *(
        case(f"create exclusively over {old}", EEXIST, partial(opened, old, EXCLUSIVE))
        for old in ("file", "full", "fifo", "socket", "dangling", "loop", "to file")
    ),
    case("open a fifo nobody reads", ENXIO, lambda: opened("fifo", os.O_WRONLY | os.O_NONBLOCK)),
    case("open a socket", ENXIO, lambda: opened("socket", os.O_RDWR)),
    case("read a directory", EISDIR, lambda: on_descriptor("full", os.O_RDONLY, _read)),
    case("write what is open to read", EBADF, lambda: on_descriptor("file", os.O_RDONLY, _write)),
    case("read what is open to write", EBADF, lambda: on_descriptor("file", os.O_WRONLY, _read)),
    case("create a file that exists", 0, lambda: opened("file", NEW)),
    case("create exclusively", 0, lambda: opened("new", EXCLUSIVE, 0o4751)),
    case("open truncating", 0, lambda: opened("file", os.O_WRONLY | os.O_TRUNC)),
    case("write", 0, lambda: on_descriptor("file", os.O_WRONLY, _write)),
    case(
        "write nothing", 0, lambda: on_descriptor("file", os.O_WRONLY, lambda fd: os.write(fd, b""))
    ),
]

MAKING: Final = [
    *paths("mkdir", os.mkdir, absent=0),
    *paths("mkfifo", os.mkfifo, absent=0),
    *paths("mknod", lambda path: os.mknod(path, stat.S_IFREG | 0o640), absent=0),
    *paths("symlink", lambda path: os.symlink("target", path), absent=0),
    *(
        case(f"{what} over {old}", EEXIST, partial(call, old))
        for what, call in (
            ("mkdir", os.mkdir),
            ("mkfifo", os.mkfifo),
            ("mknod", os.mknod),
            ("symlink", lambda path: os.symlink("target", path)),
            ("link", lambda path: os.link("file", path)),
        )
        for old in ("file", "full", "fifo", "socket", "dangling", "loop", ".", "full/..")
    ),
    case("mkdir with a slash", 0, lambda: os.mkdir("new/")),
    case("mkfifo with a slash", ENOENT, lambda: os.mkfifo("new/")),
    case("mknod of a directory", EPERM, lambda: os.mknod("new", stat.S_IFDIR | 0o755)),
    case("mknod of a link", EINVAL, lambda: os.mknod("new", stat.S_IFLNK | 0o777)),
    case("mknod of a socket", 0, lambda: os.mknod("new", stat.S_IFSOCK | 0o700)),
    case("symlink to nothing", ENOENT, lambda: os.symlink("", "new")),
    case("symlink of 4,095 bytes", 0, lambda: os.symlink("x" * 4095, "new")),
    case("symlink of 4,096 bytes", ENAMETOOLONG, lambda: os.symlink("x" * 4096, "new")),
    *paths("link from", lambda path: os.link(path, "new")),
    *paths("link to", lambda path: os.link("file", path), absent=0),
    case("link a directory", EPERM, lambda: os.link("empty", "new")),
    case("link a fifo", 0, lambda: os.link("fifo", "full/new")),
    case("link a link", 0, lambda: os.link("loop", "full/new", follow_symlinks=False)),
    case("link with a slash", ENOTDIR, lambda: os.link("file/", "new")),
]

REMOVING: Final = [
    *paths("unlink", os.unlink),
    *paths("rmdir", os.rmdir),
    case("unlink a directory", EISDIR, lambda: os.unlink("empty")),
    case("unlink a file with a slash", ENOTDIR, lambda: os.unlink("file/")),
    case("unlink a link to a directory with a slash", ENOTDIR, lambda: os.unlink("to full/")),
    case("unlink .", EISDIR, lambda: os.unlink(".")),
    case("rmdir a file", ENOTDIR, lambda: os.rmdir("file")),
    case("rmdir a link to a directory", ENOTDIR, lambda: os.rmdir("to full")),
    case("rmdir a full directory", ENOTEMPTY, lambda: os.rmdir("full")),
    case("rmdir .", EINVAL, lambda: os.rmdir("full/.")),
    case("rmdir ..", ENOTEMPTY, lambda: os.rmdir("full/..")),
    case("unlink one of two names", 0, lambda: os.unlink("twin")),
    case("unlink a loop", 0, lambda: os.unlink("loop")),
    case("unlink a socket", 0, lambda: os.unlink("socket")),
    case("rmdir", 0, lambda: os.rmdir("empty/")),
]

RENAMING: Final = [
    *paths("rename from", lambda path: os.rename(path, "new")),
    *paths("rename to", lambda path: os.rename("file", path), absent=0),
    *(
        case(f"rename {old} to {new}", wanted, partial(os.rename, old, new))
        for old, new, wanted in (
            ("full", "file", ENOTDIR),
            ("full", "to full", ENOTDIR),
            ("file", "empty", EISDIR),
            ("full", "other", ENOTEMPTY),
            ("file", "other", EISDIR),
            ("full", "full/sub/new", EINVAL),
            ("full", "full/new", EINVAL),
            ("full/sub", "full", ENOTEMPTY),
            (".", "new", EBUSY),
            ("full/..", "new", EBUSY),
            ("file", "full/.", EBUSY),
            ("file", "new/", ENOTDIR),
            ("file/", "new", ENOTDIR),
            ("file", "file", 0),
            ("file", "twin", 0),
            ("full", "full", 0),
            ("file", "fifo", 0),
            ("full", "empty", 0),
            ("full/sub", "sub", 0),
            ("twin", "other/file", 0),
            ("loop", "other/new", 0),
            ("empty", "new/", 0),
        )
    ),
    case("exchange with nothing", ENOENT, lambda: renameat2("file", "none", EXCHANGE)),
    case("exchange with its parent", EINVAL, lambda: renameat2("full", "full/sub", EXCHANGE)),
    case("exchange its parent", EINVAL, lambda: renameat2("full/sub", "full", EXCHANGE)),
    case("exchange, not replacing", EINVAL, lambda: renameat2("file", "other", 3)),
    case("rename with a flag nobody knows", EINVAL, lambda: renameat2("file", "new", 8)),
    case("not replacing a file", EEXIST, lambda: renameat2("file", "fifo", NOREPLACE)),
    case("not replacing itself", EEXIST, lambda: renameat2("file", "twin", NOREPLACE)),
    case("not replacing nothing", 0, lambda: renameat2("file", "other/new", NOREPLACE)),
    case("exchange of kinds", 0, lambda: renameat2("other/file", "full", EXCHANGE)),
]


def _read(fd: int) -> None:
    os.read(fd, 1)


def _write(fd: int) -> None:
    os.write(fd, b"new")


def _write_nothing(fd: int) -> None:
    os.write(fd, b"")


@pytest.mark.parametrize(
    "cases",
    [OPEN, MAKING, REMOVING, RENAMING],
    ids=["open", "making", "removing", "renaming"],
)
def test_errnos(pair: Pair, cases: list[Case]) -> None:
    assert disagreements(pair, build_one_of_everything, cases) == []


def test_two_filesystems_share_no_inode(pair: Pair) -> None:
    for there, back in ((pair.here, pair.native), (pair.native, pair.here)):
        (there / "file").write_bytes(b"stays")
        (there / "directory").mkdir()
        assert errno_of(partial(os.link, there / "file", back / "new")) == EXDEV
        for name in ("file", "directory"):
            assert errno_of(partial(os.rename, there / name, back / "new")) == EXDEV
        # What a program does then: copy and remove.
        for name in ("file", "directory"):
            shutil.move(there / name, back / f"moved {name}")
        assert (back / "moved file").read_bytes() == b"stays"
        assert "file" not in os.listdir(there)


def test_the_mount_point_stays(pair: Pair, shared: Host) -> None:
    top = shared.mountpoint
    assert errno_of(lambda: os.rmdir(top)) == EBUSY
    assert errno_of(lambda: os.rename(top, top.parent / "elsewhere")) == EBUSY
    assert errno_of(lambda: os.rename(pair.here, top)) == EXDEV
    assert os.path.ismount(top)
