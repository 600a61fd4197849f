"""The errno and the side effects of calls that change an inode, not a name (see test_errnos.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from errno import (
    E2BIG,
    EBADF,
    EEXIST,
    EFBIG,
    EINVAL,
    EISDIR,
    ELOOP,
    ENODATA,
    EOPNOTSUPP,
    EPERM,
    ERANGE,
    ETXTBSY,
)
from pathlib import Path
from typing import Final

import pytest

from tests.support.actors import errno_of
from tests.support.conformance import (
    build_one_of_everything,
    case,
    disagreements,
    on_descriptor,
    opened,
    paths,
)
from tests.support.pair import Pair

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

ATTRIBUTES: Final = [
    *paths("stat", os.stat),
    *paths("chmod", lambda path: os.chmod(path, 0o600)),
    *paths("chown", lambda path: os.chown(path, -1, -1)),
    *paths("lchown", lambda path: os.lchown(path, -1, -1)),
    *paths("utimensat", lambda path: os.utime(path, ns=(1, 2))),
    *paths("truncate", lambda path: os.truncate(path, 0)),
    *paths("readlink", os.readlink),
    case("readlink of a file", EINVAL, lambda: os.readlink("file")),
    case("chmod through a loop", ELOOP, lambda: os.chmod("loop", 0o600)),
    case("chmod of a path descriptor", EBADF, lambda: on_descriptor("file", os.O_PATH, _fchmod)),
    case("chmod", 0, lambda: os.chmod("file", 0o6751)),
    case("chmod of a directory", 0, lambda: os.chmod("empty", 0o3770)),
    case("fchmod", 0, lambda: on_descriptor("file", os.O_RDONLY, _fchmod)),
    case("chown to nobody new", 0, lambda: os.chown("file", -1, -1)),
    case("chown to oneself", 0, lambda: os.chown("file", os.getuid(), os.getgid())),
    case("lchown", 0, lambda: os.lchown("loop", os.getuid(), os.getgid())),
    case("utimensat now", 0, lambda: os.utime("file")),
    case("utimensat", 0, lambda: os.utime("full", ns=(1, 999_999_999))),
    case("utimensat of a link", 0, lambda: os.utime("loop", ns=(1, 2), follow_symlinks=False)),
    case("truncate a directory", EISDIR, lambda: os.truncate("full", 0)),
    case("truncate a fifo", EINVAL, lambda: os.truncate("fifo", 0)),
    case("truncate to less than nothing", EINVAL, lambda: os.truncate("file", -1)),
    case("truncate beyond any size", EFBIG, lambda: os.truncate("file", 2**63 - 1), alone=True),
    case("truncate", 0, lambda: os.truncate("file", 4)),
    case("truncate to the same", 0, lambda: os.truncate("file", 10)),
    case("truncate to more", 0, lambda: os.truncate("file", 100_000)),
    case("ftruncate what is open to read", EINVAL, lambda: on_descriptor("file", 0, _cut)),
    case("ftruncate a directory", EINVAL, lambda: on_descriptor("full", 0, _cut)),
    case("ftruncate", 0, lambda: on_descriptor("file", os.O_WRONLY, _cut)),
]

XATTRS: Final = [
    *paths("setxattr", lambda path: os.setxattr(path, "user.a", b"1")),
    *paths("getxattr", lambda path: os.getxattr(path, "user.a")),
    *paths("listxattr", os.listxattr),
    *paths("removexattr", lambda path: os.removexattr(path, "user.a")),
    case("get what is not there", ENODATA, lambda: os.getxattr("file", "user.a")),
    case("remove what is not there", ENODATA, lambda: os.removexattr("file", "user.a")),
    case("replace nothing", ENODATA, lambda: os.setxattr("file", "user.a", b"", os.XATTR_REPLACE)),
    case("create over it", EEXIST, lambda: os.setxattr("file", "user.b", b"2", os.XATTR_CREATE)),
    case("a name of 256 bytes", ERANGE, lambda: os.setxattr("file", "user." + "a" * 251, b"1")),
    case("no name", ERANGE, lambda: os.setxattr("file", "", b"1")),
    case("a value over 64 KiB", E2BIG, lambda: os.setxattr("file", "user.a", bytes(65_537))),
    case("another namespace", EOPNOTSUPP, lambda: os.setxattr("file", "other.a", b"1")),
    case("user attributes of a fifo", EPERM, lambda: os.setxattr("fifo", "user.a", b"1")),
    case("of a link", EPERM, lambda: os.setxattr("loop", "user.a", b"1", follow_symlinks=False)),
    case("set", 0, lambda: os.setxattr("file", "user.a", b"1")),
    case("replace", 0, lambda: os.setxattr("file", "user.b", b"2", os.XATTR_REPLACE)),
    case("remove", 0, lambda: os.removexattr("twin", "user.b")),
    case("a name of 255 bytes", 0, lambda: os.setxattr("file", "user." + "a" * 250, b"1")),
    case("of a directory", 0, lambda: os.setxattr("full", "user.a", b"")),
]


def _cut(fd: int) -> None:
    os.ftruncate(fd, 3)


def _fchmod(fd: int) -> None:
    os.fchmod(fd, 0o640)


def test_errnos_of_attributes(pair: Pair) -> None:
    assert disagreements(pair, build_one_of_everything, ATTRIBUTES) == []


def _build_with_attribute() -> None:
    build_one_of_everything()
    os.setxattr("file", "user.b", b"1")


def test_errnos_of_extended_attributes(pair: Pair) -> None:
    (pair.native / "probe").touch()
    code = errno_of(lambda: os.setxattr(pair.native / "probe", "user.b", b"1"))
    # Some kernels' tmpfs has none: then there is nothing to compare with.
    cases = [replace(each, alone=code == EOPNOTSUPP) for each in XATTRS]
    assert disagreements(pair, _build_with_attribute, cases) == []


def test_a_running_program_is_not_written_to(pair: Pair) -> None:
    def scenario(top: Path) -> list[int]:
        program = top / "program"
        shutil.copy("/bin/cat", program)
        try:
            running = subprocess.Popen([program], stdin=subprocess.PIPE)
        except PermissionError:
            pytest.skip(f"{top} is mounted noexec")
        with running:
            # It has been executed when Popen returns, and ends when its input does.
            return [
                errno_of(lambda: opened(str(program), os.O_WRONLY)),
                errno_of(lambda: opened(str(program), os.O_WRONLY | os.O_TRUNC)),
                errno_of(lambda: os.truncate(program, 0)),
                errno_of(lambda: os.rename(program, top / "renamed")),
                errno_of(lambda: os.unlink(top / "renamed")),
            ]

    assert pair.same(scenario) == [ETXTBSY, ETXTBSY, ETXTBSY, 0, 0]


def test_no_program_runs_while_it_is_written(pair: Pair) -> None:
    def scenario(top: Path) -> int:
        program = top / "program"
        shutil.copy("/bin/true", program)
        with program.open("ab"):
            return errno_of(lambda: subprocess.run([program], check=True))

    assert pair.same(scenario) == ETXTBSY
