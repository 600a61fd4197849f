"""Attributes, extended attributes, statfs."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from s3ws_fs.core.errors import FsError
from s3ws_fs.core.limits import (
    XATTR_LIST_BYTES_MAX,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from s3ws_fs.core.types import ROOT_INO, Attr, Cred
from s3ws_fs.fs.filesystem import FileSystem

CRED = Cred(uid=5, gid=6)


@pytest.fixture
def ino(fs: FileSystem) -> int:
    return fs.create(ROOT_INO, b"f", 0o644, CRED).ino


def set_attr(fs: FileSystem, ino: int, **changes: int) -> Attr:
    got = fs.setattr(ino, **changes)
    assert isinstance(got, Attr)
    return got


def test_root_is_made_once(fs: FileSystem) -> None:
    fs.setattr(ROOT_INO, mode=0o700)
    fs.make_root(uid=9, gid=9, mode=0o777)
    attr = fs.getattr(ROOT_INO)
    assert (attr.mode, attr.uid, attr.nlink) == (stat.S_IFDIR | 0o700, 0, 2)


def test_setattr_changes_what_is_given_and_ctime(fs: FileSystem, ino: int) -> None:
    before = fs.getattr(ino)
    after = set_attr(fs, ino, mode=0o100600 | stat.S_IFDIR)
    assert after.mode == stat.S_IFREG | 0o600
    assert (after.uid, after.gid, after.mtime_ns) == (5, 6, before.mtime_ns)
    assert after.ctime_ns > before.ctime_ns
    assert set_attr(fs, ino, uid=0).uid == 0
    assert set_attr(fs, ino, gid=77).gid == 77


def test_times_to_the_nanosecond_and_before_1970(fs: FileSystem, ino: int) -> None:
    after = set_attr(fs, ino, atime_ns=-1, mtime_ns=1_234_567_890_123_456_789)
    assert (after.atime_ns, after.mtime_ns) == (-1, 1_234_567_890_123_456_789)


def test_truncate_changes_mtime_unless_given(fs: FileSystem, ino: int) -> None:
    before = fs.getattr(ino)
    assert set_attr(fs, ino, size=0).mtime_ns > before.mtime_ns
    assert set_attr(fs, ino, size=5, mtime_ns=3).mtime_ns == 3


def test_reading_changes_no_time(fs: FileSystem, ino: int) -> None:
    fs.write(ino, 0, b"abc")
    before = fs.getattr(ino)
    fs.read(ino, 0, 3)
    assert fs.getattr(ino) == before


def error_of(call: object, *args: object) -> int:
    with pytest.raises(FsError) as caught:
        call(*args)  # type: ignore[operator]
    return caught.value.errno


def test_xattrs(fs: FileSystem, ino: int) -> None:
    before = fs.getattr(ino).ctime_ns
    fs.setxattr(ino, b"user.a", b"1")
    fs.setxattr(ino, b"trusted.b", b"\0\xff")
    fs.setxattr(ino, b"user.empty", b"")
    assert fs.getattr(ino).ctime_ns > before
    assert sorted(fs.listxattr(ino)) == [b"trusted.b", b"user.a", b"user.empty"]
    assert fs.getxattr(ino, b"trusted.b") == b"\0\xff"
    assert fs.getxattr(ino, b"user.empty") == b""
    assert error_of(fs.setxattr, ino, b"user.a", b"2", os.XATTR_CREATE) == errno.EEXIST
    assert error_of(fs.setxattr, ino, b"user.z", b"2", os.XATTR_REPLACE) == errno.ENODATA
    fs.removexattr(ino, b"user.a")
    assert error_of(fs.getxattr, ino, b"user.a") == errno.ENODATA
    assert error_of(fs.removexattr, ino, b"user.a") == errno.ENODATA
    assert error_of(fs.getxattr, 999, b"user.a") == errno.ENOENT


def test_xattr_limits(fs: FileSystem, ino: int) -> None:
    name = b"user." + b"n" * (XATTR_NAME_BYTES_MAX - 5)
    fs.setxattr(ino, name, b"v" * XATTR_VALUE_BYTES_MAX)
    assert len(fs.getxattr(ino, name)) == XATTR_VALUE_BYTES_MAX
    assert error_of(fs.setxattr, ino, name + b"n", b"") == errno.ERANGE
    too_large = b"v" * (XATTR_VALUE_BYTES_MAX + 1)
    assert error_of(fs.setxattr, ino, b"user.b", too_large) == errno.E2BIG
    assert error_of(fs.setxattr, ino, b"system.other", b"") == errno.EOPNOTSUPP
    room = XATTR_LIST_BYTES_MAX // (XATTR_NAME_BYTES_MAX + 1)
    for number in range(room - 1):
        padded = b"user.%d." % number
        fs.setxattr(ino, padded.ljust(XATTR_NAME_BYTES_MAX, b"p"), b"")
    assert error_of(fs.setxattr, ino, b"user.x".ljust(255, b"x"), b"") == errno.ENOSPC


def test_statfs_shows_the_quota(fs: FileSystem, ino: int) -> None:
    before = fs.statfs()
    assert before.blocks * before.block_bytes == fs.quota_bytes
    assert before.blocks_free == before.blocks
    fs.write(ino, 0, b"x" * 5000)
    after = fs.statfs()
    assert before.blocks_free - after.blocks_free == 2
    assert after.files - after.files_free == 2
