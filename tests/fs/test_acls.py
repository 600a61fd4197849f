"""Access control lists in the filesystem, measured by what the kernel does on a plain directory."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.core.acl import ACCESS, ACL_BYTES_MAX, DEFAULT
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.types import Cred
from s3ws_fs.fs.filesystem import FileSystem
from tests.core.test_acl import lists
from tests.support import acls
from tests.support.actors import require_root

ROOT = 1
ME = Cred(0, 0, 0o022)


def error_of(call: Callable[..., object], *args: object, **kwargs: Any) -> int:
    """The errno that a call raises; 0 when it succeeds."""
    try:
        call(*args, **kwargs)
    except (FsError, OSError) as exc:
        assert exc.errno is not None
        return exc.errno
    return 0


def seen(fs: FileSystem, ino: int) -> tuple[str, str | None, str | None]:
    """As tests.support.acls.seen, of an inode."""
    found = {}
    for name in (ACCESS, DEFAULT):
        if error_of(fs.getxattr, ino, name) == 0:
            found[name] = acls.text(fs.getxattr(ino, name))
    assert set(fs.listxattr(ino)) == set(found)
    return stat.filemode(fs.getattr(ino).mode), found.get(ACCESS), found.get(DEFAULT)


@contextlib.contextmanager
def umask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


class Both:
    """The filesystem and a plain directory: each step is done in both, then they are compared."""

    def __init__(self, fs: FileSystem, native: Path) -> None:
        self.fs = fs
        self.native = native
        self.inos = {b"": fs.mkdir(ROOT, b"top", 0o755, ME).ino}
        os.chmod(native, 0o755)

    def path(self, name: bytes) -> bytes:
        return os.path.join(os.fsencode(self.native), name)

    def check(self) -> None:
        for name, ino in self.inos.items():
            assert seen(self.fs, ino) == acls.seen(os.fsdecode(self.path(name))), name

    def make(self, kind: str, mode: int, mask: int) -> None:
        name = b"%d" % len(self.inos)
        cred, path, top = Cred(0, 0, mask), self.path(name), self.inos[b""]
        with umask(mask):
            if kind == "mkdir":
                os.mkdir(path, mode)
                attr = self.fs.mkdir(top, name, mode, cred)
            elif kind == "create":
                os.close(os.open(path, os.O_CREAT | os.O_EXCL, mode))
                attr = self.fs.create(top, name, mode, cred)
            elif kind == "mkfifo":
                os.mkfifo(path, mode)
                attr = self.fs.mknod(top, name, stat.S_IFIFO | mode, 0, cred)
            else:
                os.symlink("x", path)
                attr = self.fs.symlink(top, name, b"x", cred)
        self.inos[name] = attr.ino

    def chmod(self, name: bytes, mode: int) -> None:
        os.chmod(self.path(name), mode)
        self.fs.setattr(self.inos[name], mode=mode)

    def set(self, name: bytes, which: bytes, value: bytes) -> None:
        wanted = error_of(os.setxattr, self.path(name), which, value, follow_symlinks=False)
        assert error_of(self.fs.setxattr, self.inos[name], which, value) == wanted

    def remove(self, name: bytes, which: bytes) -> None:
        os.removexattr(self.path(name), which)
        self.fs.removexattr(self.inos[name], which)


@contextlib.contextmanager
def both(base: Path) -> Iterator[Both]:
    work = Path(tempfile.mkdtemp(dir=base))
    (work / "native").mkdir()
    acls.require_acls(work / "native")
    cache = open_cache(
        work / "cache", Identity("test/", "test"), quota_bytes=1 << 20, now_ns=lambda: 1
    )
    try:
        with cache:
            fs = FileSystem(cache, quota_bytes=1 << 20, quota_inodes=100)
            fs.make_root(uid=0, gid=0, mode=0o755)
            yield Both(fs, work / "native")
    finally:
        shutil.rmtree(work)


modes = st.sampled_from([0o666, 0o777, 0o600, 0o640, 0o000, 0o1777, 0o751])
steps = st.one_of(
    st.tuples(
        st.just("make"),
        st.sampled_from(["mkdir", "create", "mkfifo", "symlink"]),
        modes,
        st.sampled_from([0o000, 0o022, 0o077, 0o027]),
    ),
    st.tuples(st.just("chmod"), st.integers(0, 5), modes),
    st.tuples(
        st.just("set"),
        st.integers(0, 5),
        st.sampled_from([ACCESS, DEFAULT]),
        lists().map(
            lambda entries: b"\2\0\0\0" + b"".join(struct.pack("<HHI", *e) for e in entries)
        ),
    ),
    st.tuples(st.just("remove"), st.integers(0, 5), st.sampled_from([ACCESS, DEFAULT])),
)


@settings(max_examples=150)
@given(st.lists(steps, min_size=3, max_size=12))
def test_any_steps_lead_where_the_kernel_leads(
    tmp_path_factory: pytest.TempPathFactory, program: list[tuple[Any, ...]]
) -> None:
    require_root()  # who else could enter the directory again after chmod(0)
    with both(tmp_path_factory.getbasetemp()) as pair:
        for kind, *rest in program:
            if kind == "make":
                pair.make(*rest)
            else:
                name = sorted(pair.inos)[rest[0] % len(pair.inos)]
                link = stat.S_ISLNK(os.lstat(pair.path(name)).st_mode)
                if not link or kind == "set":
                    getattr(pair, kind)(name, *rest[1:])
            pair.check()


def test_setting_a_list_sets_the_mode_and_ctime(fs: FileSystem, clock: Any) -> None:
    ino = fs.create(ROOT, b"f", 0o644, ME).ino
    before = fs.getattr(ino)
    fs.setxattr(ino, ACCESS, acls.acl("u::rw-,u:7:rwx,g::r--,m::rwx,o::---"))
    after = fs.getattr(ino)
    assert stat.filemode(after.mode) == "-rw-rwx---"
    assert after.ctime_ns > before.ctime_ns
    assert after.mtime_ns == before.mtime_ns
    fs.removexattr(ino, ACCESS)
    assert fs.getattr(ino).ctime_ns > after.ctime_ns
    assert fs.getattr(ino).mode == after.mode


def test_a_list_that_says_no_more_than_a_mode_is_a_mode(fs: FileSystem) -> None:
    ino = fs.create(ROOT, b"f", 0o644, ME).ino
    fs.setxattr(ino, ACCESS, acls.acl("u::rw-,u:7:rwx,g::r--,m::rwx,o::---"))
    fs.setxattr(ino, ACCESS, acls.acl("u::rwx,g::r-x,o::--x"))
    assert seen(fs, ino) == ("-rwxr-x--x", None, None)


def test_removing_a_list_that_is_not_there_changes_nothing(fs: FileSystem, cache: Cache) -> None:
    ino = fs.create(ROOT, b"f", 0o644, ME).ino
    before = cache.head.generation
    fs.removexattr(ino, ACCESS)
    fs.removexattr(ino, DEFAULT)
    assert cache.head.generation == before
    assert error_of(fs.removexattr, ino, b"user.none") == errno.ENODATA


@pytest.mark.parametrize("keep", [True, False])
def test_setgid_goes_when_the_caller_may_not_keep_it(fs: FileSystem, keep: bool) -> None:
    ino = fs.create(ROOT, b"f", 0o644, ME).ino
    fs.setattr(ino, mode=0o6755)
    fs.setxattr(ino, ACCESS, acls.acl("u::rwx,u:7:r-x,g::r-x,m::r-x,o::---"), keep_setgid=keep)
    assert stat.S_IMODE(fs.getattr(ino).mode) == (0o6750 if keep else 0o4750)


def test_what_is_refused(fs: FileSystem) -> None:
    ino = fs.create(ROOT, b"f", 0o644, ME).ino
    link = fs.symlink(ROOT, b"l", b"x", ME).ino
    good = acls.acl("u::rwx,u:7:r-x,g::r-x,m::r-x,o::---")
    assert error_of(fs.setxattr, ino, ACCESS, good[:-1]) == errno.EINVAL
    assert error_of(fs.setxattr, ino, ACCESS, b"") == errno.EINVAL
    assert error_of(fs.setxattr, ino, DEFAULT, good) == errno.EACCES
    assert error_of(fs.setxattr, link, ACCESS, good) == errno.EOPNOTSUPP
    assert error_of(fs.setxattr, ino, b"system.posix_acl_other", good) == errno.EOPNOTSUPP
    assert seen(fs, ino) == ("-rw-r--r--", None, None)


def test_the_longest_list_is_what_the_kernel_can_read(fs: FileSystem) -> None:
    ino = fs.create(ROOT, b"f", 0o644, ME).ino
    fits = ACL_BYTES_MAX // 8 - 1
    for count, error in ((fits, 0), (fits + 1, errno.E2BIG)):
        names = ",".join(f"u:{n}:r--" for n in range(count - 4))
        value = acls.acl(f"u::rw-,{names},g::r--,m::r--,o::r--")
        assert len(value) == 4 + 8 * count
        assert error_of(fs.setxattr, ino, ACCESS, value) == error


def test_a_damaged_list_is_an_io_error(fs: FileSystem, cache: Cache) -> None:
    ino = fs.mkdir(ROOT, b"d", 0o755, ME).ino
    with cache.write() as tx:
        tx.put_xattr(ino, ACCESS, b"bad")
        tx.put_xattr(ino, DEFAULT, b"bad")
    assert error_of(fs.setattr, ino, mode=0o700) == errno.EIO
    assert error_of(fs.create, ino, b"f", 0o644, ME) == errno.EIO
