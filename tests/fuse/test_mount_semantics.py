"""What programs see on the mount, by real system calls: one test a promise of docs/semantics.md."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from s3ws_fs.fuse.operations import READDIR_BATCH
from tests.support.mounting import Child, mounted_layer

pytestmark = pytest.mark.fuse

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
AT_FDCWD: Final = -100

_libc = ctypes.CDLL(None, use_errno=True)


def _renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    if _libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0) != 0:
        raise OSError(ctypes.get_errno(), "utimensat")


# --- names -----------------------------------------------------------------------------------


def test_a_file_is_created_read_and_removed(here: Path) -> None:
    path = here / "file"
    path.write_bytes(b"hello")
    assert path.read_bytes() == b"hello"
    assert os.listdir(here) == ["file"]
    path.unlink()
    assert not path.exists()
    assert os.listdir(here) == []


def test_an_absent_name_appears_when_it_is_made(here: Path) -> None:
    path = here / "later"
    for _ in range(2):
        assert not path.exists()  # the kernel remembers the absence
        path.touch()
        assert path.exists()
        path.unlink()


def test_exclusive_creation_fails_when_the_name_exists(here: Path) -> None:
    (here / "a").touch()
    with pytest.raises(FileExistsError):
        os.open(here / "a", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_names_of_any_bytes_survive(here: Path) -> None:
    names = [b"\xff\xfe", b"new\nline", b"sp ace", "été".encode(), b"x" * 255, b"-", b"\\"]
    for name in names:
        (Path(os.fsdecode(os.path.join(os.fsencode(here), name)))).write_bytes(name)
    assert sorted(os.listdir(os.fsencode(here))) == sorted(names)
    for name in names:
        assert Path(os.fsdecode(os.path.join(os.fsencode(here), name))).read_bytes() == name
    with pytest.raises(OSError, match="too long"):
        (here / ("x" * 256)).touch()


def test_rename_replaces_a_file_and_keeps_its_inode(here: Path) -> None:
    (here / "a").write_bytes(b"a")
    (here / "b").write_bytes(b"b")
    inode = (here / "a").stat().st_ino
    (here / "a").rename(here / "b")
    assert os.listdir(here) == ["b"]
    assert (here / "b").read_bytes() == b"a"
    assert (here / "b").stat().st_ino == inode


def test_rename_flags(here: Path) -> None:
    for name in "abc":
        (here / name).write_text(name)
    with pytest.raises(FileExistsError):
        _renameat2(here / "a", here / "b", RENAME_NOREPLACE)
    _renameat2(here / "c", here / "d", RENAME_NOREPLACE)
    _renameat2(here / "a", here / "b", RENAME_EXCHANGE)
    assert (here / "a").read_text() == "b"
    assert (here / "b").read_text() == "a"
    assert (here / "d").read_text() == "c"
    (here / "dir" / "sub").mkdir(parents=True)
    _renameat2(here / "a", here / "dir", RENAME_EXCHANGE)
    assert (here / "a" / "sub").is_dir()
    assert (here / "dir").read_text() == "b"
    with pytest.raises(FileNotFoundError):
        _renameat2(here / "b", here / "absent", RENAME_EXCHANGE)


def test_rename_of_directories(here: Path) -> None:
    (here / "a" / "b").mkdir(parents=True)
    (here / "a" / "b" / "f").write_text("x")
    (here / "empty").mkdir()
    (here / "a").rename(here / "empty")
    assert (here / "empty" / "b" / "f").read_text() == "x"
    with pytest.raises(OSError, match="Invalid argument") as caught:
        (here / "empty").rename(here / "empty" / "b" / "c")
    assert caught.value.errno == errno.EINVAL
    (here / "full").mkdir()
    (here / "full" / "x").touch()
    with pytest.raises(OSError, match="not empty"):
        (here / "empty").rename(here / "full")


def test_directories_count_their_subdirectories(here: Path) -> None:
    assert here.stat().st_nlink == 2
    (here / "a").mkdir()
    (here / "b").mkdir()
    assert here.stat().st_nlink == 4
    (here / "b").rename(here / "a" / "b")
    assert (here.stat().st_nlink, (here / "a").stat().st_nlink) == (3, 3)
    with pytest.raises(OSError, match="not empty"):
        (here / "a").rmdir()
    (here / "a" / "b").rmdir()
    (here / "a").rmdir()
    assert here.stat().st_nlink == 2


def test_symlinks_of_any_target(here: Path) -> None:
    for number, target in enumerate(("x", "/nowhere", "../up", "t" * 4095)):
        link = here / f"link{number}"
        link.symlink_to(target)
        assert os.readlink(link) == target
        assert link.lstat().st_size == len(target)
    (here / "x").write_text("through")
    assert (here / "link0").read_text() == "through"


def test_special_files_keep_type_and_number(here: Path) -> None:
    os.mkfifo(here / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(here)
        try:
            listener.bind("socket")
        finally:
            os.chdir("/")
    assert stat.S_ISFIFO((here / "fifo").stat().st_mode)
    assert stat.S_ISSOCK((here / "socket").stat().st_mode)
    if os.geteuid() == 0:
        os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        assert (here / "null").stat().st_rdev == os.makedev(1, 3)


# --- attributes ------------------------------------------------------------------------------


def test_modes_and_umask(here: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(here / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        (here / "d").mkdir()
    finally:
        os.umask(before)
    assert stat.S_IMODE((here / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((here / "d").stat().st_mode) == 0o750
    (here / "f").chmod(0o4711)
    assert stat.S_IMODE((here / "f").stat().st_mode) == 0o4711


def test_times_to_the_nanosecond(here: Path) -> None:
    path = here / "f"
    path.touch()
    os.utime(path, ns=(1_000_000_001, 2_000_000_003))
    info = path.stat()
    assert (info.st_atime_ns, info.st_mtime_ns) == (1_000_000_001, 2_000_000_003)
    _utimensat(path, (0, UTIME_OMIT), (5, 7))
    info = path.stat()
    assert (info.st_atime_ns, info.st_mtime_ns) == (1_000_000_001, 5_000_000_007)
    before = time.time_ns() - 100_000_000
    _utimensat(path, (0, UTIME_NOW), (0, UTIME_OMIT))
    info = path.stat()
    assert info.st_mtime_ns == 5_000_000_007
    assert before < info.st_atime_ns < time.time_ns() + 100_000_000
    assert info.st_ctime_ns > before
    os.utime(path, ns=(-1_500_000_000, -1))
    assert path.stat().st_atime_ns == -1_500_000_000
    assert path.stat().st_mtime_ns == -1


def test_a_write_changes_mtime_and_ctime_and_a_read_changes_nothing(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"1")
    os.utime(path, ns=(1, 1))
    before = path.stat()
    assert path.read_bytes() == b"1"
    assert path.stat() == before
    with path.open("ab") as file:
        file.write(b"2")
    after = path.stat()
    assert after.st_mtime_ns > 1
    assert after.st_ctime_ns > before.st_ctime_ns
    assert after.st_atime_ns == 1


def test_chown_by_root(here: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    (here / "f").touch()
    os.chown(here / "f", 1234, 2345)
    assert ((here / "f").stat().st_uid, (here / "f").stat().st_gid) == (1234, 2345)
    os.chown(here / "f", -1, 77)
    assert ((here / "f").stat().st_uid, (here / "f").stat().st_gid) == (1234, 77)


def test_files_in_a_setgid_directory_get_its_group(here: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    os.chown(here, 0, 4321)
    here.chmod(0o2775)
    (here / "f").touch()
    (here / "d").mkdir()
    assert (here / "f").stat().st_gid == 4321
    assert (here / "d").stat().st_gid == 4321
    assert (here / "d").stat().st_mode & stat.S_ISGID


def test_extended_attributes(here: Path) -> None:
    path = here / "f"
    path.touch()
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
    with pytest.raises(OSError, match="No data") as caught:
        os.setxattr(path, "user.b", b"2", os.XATTR_REPLACE)
    assert caught.value.errno == errno.ENODATA
    os.setxattr(path, "user.a", b"\0\xff", os.XATTR_REPLACE)
    os.setxattr(path, "user.empty", b"")
    assert os.getxattr(path, "user.a") == b"\0\xff"
    assert os.getxattr(path, "user.empty") == b""
    assert sorted(os.listxattr(path)) == ["user.a", "user.empty"]
    os.removexattr(path, "user.a")
    with pytest.raises(OSError, match="No data"):
        os.getxattr(path, "user.a")
    with pytest.raises(OSError, match="No data"):
        os.removexattr(path, "user.a")
    os.setxattr(path, "user.big", b"x" * 65_536)
    assert os.getxattr(path, "user.big") == b"x" * 65_536


def test_the_stacktrace_attribute_of_pyfuse3_is_harmless(layer: Child) -> None:
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(layer.mountpoint, "fuse_stacktrace", b"1")
    assert "Thread" not in layer.log()


# --- data ------------------------------------------------------------------------------------


def test_append_writes_at_the_end(here: Path) -> None:
    path = here / "f"
    with path.open("ab", buffering=0) as one, path.open("ab", buffering=0) as two:
        for number in range(50):
            (one, two)[number % 2].write(b"%02d" % number)
    assert path.read_bytes() == b"".join(b"%02d" % number for number in range(50))


def test_truncate_on_open_by_name_and_by_descriptor(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"0123456789")
    os.truncate(path, 4)
    assert path.read_bytes() == b"0123"
    with path.open("r+b") as file:
        file.truncate(8)
    assert path.read_bytes() == b"0123\0\0\0\0"
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert path.stat().st_size == 0
    assert path.read_bytes() == b""


def test_a_sparse_file_reads_zeros_and_takes_no_space(here: Path) -> None:
    path = here / "f"
    with path.open("wb") as file:
        file.write(b"start")
        file.seek(100 << 20)
        file.write(b"end")
    info = path.stat()
    assert info.st_size == (100 << 20) + 3
    assert info.st_blocks * 512 < 256 * 1024
    with path.open("rb") as file:
        assert file.read(10) == b"start\0\0\0\0\0"
        file.seek((100 << 20) - 5)
        assert file.read() == b"\0\0\0\0\0end"


def test_large_data_at_odd_offsets(here: Path) -> None:
    path = here / "f"
    data = os.urandom(5_000_011)
    with path.open("wb", buffering=0) as file:
        at = 0
        for size in (1, 4095, 32_767, 32_769, 1 << 20, 3_333_333, 10 << 20):
            file.write(data[at : at + size])
            at += size
    assert path.read_bytes() == data
    with path.open("r+b") as file:
        file.seek(32_760)
        file.write(b"x" * 20)
    expected = data[:32_760] + b"x" * 20 + data[32_780:]
    assert path.read_bytes() == expected


def test_an_unlinked_open_file_lives_until_it_is_closed(here: Path) -> None:
    path = here / "f"
    with path.open("w+b") as file:
        file.write(b"still here")
        file.flush()
        path.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        os.pwrite(file.fileno(), b"S", 0)
        assert os.pread(file.fileno(), 100, 0) == b"Still here"
        os.ftruncate(file.fileno(), 5)
        assert os.fstat(file.fileno()).st_size == 5
        path.write_bytes(b"another")
        assert os.pread(file.fileno(), 100, 0) == b"Still"
    assert path.read_bytes() == b"another"


def test_a_replaced_open_file_keeps_its_bytes(here: Path) -> None:
    (here / "f").write_bytes(b"old")
    with (here / "f").open("rb") as file:
        (here / "new").write_bytes(b"new")
        (here / "new").rename(here / "f")
        assert file.read() == b"old"
        assert os.fstat(file.fileno()).st_nlink == 0


def test_shared_mmap_between_processes(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"\0" * 10_000)
    script = (
        "import mmap,sys; f=open(sys.argv[1],'r+b'); m=mmap.mmap(f.fileno(),0);"
        "m[5000:5005]=b'child'; m.flush()"
    )
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        assert view[5000:5005] == b"child"
        view[0:6] = b"parent"
        view.flush()
    assert path.read_bytes()[:6] == b"parent"
    assert path.read_bytes()[5000:5005] == b"child"


def test_seek_hole_copy_file_range_and_sendfile(here: Path) -> None:
    data = os.urandom(100_000)
    (here / "a").write_bytes(data)
    with (here / "a").open("rb") as source, (here / "b").open("wb") as target:
        assert os.lseek(source.fileno(), 0, os.SEEK_HOLE) == len(data)
        assert os.lseek(source.fileno(), 0, os.SEEK_DATA) == 0
        done = 0
        while done < len(data):
            done += os.copy_file_range(source.fileno(), target.fileno(), len(data) - done)
    assert (here / "b").read_bytes() == data
    with (here / "a").open("rb") as source, (here / "c").open("wb") as target:
        assert os.sendfile(target.fileno(), source.fileno(), 0, len(data)) == len(data)
    assert (here / "c").read_bytes() == data


def test_what_the_kernel_cannot_do_here_fails_plainly(here: Path) -> None:
    with (here / "f").open("wb") as file, pytest.raises(OSError, match="not supported") as caught:
        _fallocate(file.fileno())
    assert caught.value.errno == errno.EOPNOTSUPP


def _fallocate(fd: int) -> None:
    if _libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(4096)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def test_fsync_of_files_and_directories_returns(here: Path) -> None:
    with (here / "f").open("wb") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.sync()


# --- locks -----------------------------------------------------------------------------------


def test_flock_and_fcntl_locks_hold_between_processes(here: Path) -> None:
    path = here / "f"
    path.touch()
    script = """
import fcntl, sys
f = open(sys.argv[1], "r+b")
try:
    getattr(fcntl, sys.argv[2])(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(9)
"""
    for kind in ("flock", "lockf"):
        command = [sys.executable, "-c", script, str(path), kind]
        with path.open("r+b") as file:
            getattr(fcntl, kind)(file, fcntl.LOCK_EX)
            assert subprocess.run(command, check=False).returncode == 9
        assert subprocess.run(command, check=False).returncode == 0


# --- directories -----------------------------------------------------------------------------


def test_a_large_directory_is_listed_whole(here: Path) -> None:
    names = {f"name-{number:05d}" for number in range(1_500)}
    for name in names:
        (here / name).touch()
    assert set(os.listdir(here)) == names
    with os.scandir(here) as entries:
        assert {entry.name for entry in entries if entry.is_file(follow_symlinks=False)} == names


def test_a_listing_stays_right_while_entries_come_and_go(here: Path) -> None:
    stay = {f"stay-{number:04d}" for number in range(700)}
    for name in stay:
        (here / name).touch()
        (here / name.replace("stay", "goes")).touch()
    seen: list[str] = []
    with os.scandir(here) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 2 == 0 and number < 1400:
                gone = here / f"goes-{number // 2:04d}"
                gone.unlink(missing_ok=True)
                (here / f"comes-{number:04d}").touch()
    assert len(seen) == len(set(seen)), "an entry was listed twice"
    assert stay <= set(seen), "an entry that stayed was not listed"


@pytest.mark.parametrize("count", [READDIR_BATCH - 1, READDIR_BATCH, 2 * READDIR_BATCH + 1])
def test_a_listing_shows_each_entry_with_its_own_attributes(here: Path, count: int) -> None:
    for number in range(count):
        os.truncate(_touched(here / f"f{number}"), number)
        os.chmod(here / f"f{number}", 0o400 + number)
    assert len(os.listdir(here)) == count
    with os.scandir(here) as entries:
        for entry in entries:
            number = int(entry.name[1:])
            found = entry.stat(follow_symlinks=False)
            assert (found.st_size, stat.S_IMODE(found.st_mode)) == (number, 0o400 + number)
            assert (found.st_ino, found.st_nlink) == (entry.inode(), 1)


def _touched(path: Path) -> Path:
    path.touch()
    return path


def test_seekdir_comes_back_to_the_same_place(here: Path) -> None:
    for number in range(300):
        (here / f"n{number}").touch()
    libc = _libc
    libc.opendir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    libc.readdir.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(libc.opendir(os.fsencode(here)))

    def name() -> bytes:
        entry = libc.readdir(handle)
        return ctypes.string_at(entry + 19) if entry else b""

    for _ in range(150):
        name()
    place = libc.telldir(handle)
    following = [name() for _ in range(20)]
    libc.seekdir(handle, ctypes.c_long(place))
    assert [name() for _ in range(20)] == following
    libc.rewinddir(handle)
    assert {name(), name()} == {b".", b".."}
    libc.closedir(handle)


def test_dot_and_dotdot(here: Path) -> None:
    (here / "a" / "b").mkdir(parents=True)
    assert (here / "a" / "b" / "..").stat().st_ino == (here / "a").stat().st_ino
    listing = subprocess.run(
        ["ls", "-fai", str(here / "a")], capture_output=True, text=True, check=True
    ).stdout.split()
    numbers = dict(zip(listing[1::2], listing[0::2], strict=True))
    assert int(numbers["."]) == (here / "a").stat().st_ino
    assert int(numbers[".."]) == here.stat().st_ino
    assert int(numbers["b"]) == (here / "a" / "b").stat().st_ino


# --- the whole -------------------------------------------------------------------------------


def test_df_shows_the_quota(tmp_path: Path) -> None:
    with mounted_layer(tmp_path, quota_bytes=10 << 20, quota_inodes=100) as child:
        path = child.mountpoint / "f"
        info = os.statvfs(child.mountpoint)
        assert info.f_blocks * info.f_frsize == 10 << 20
        assert info.f_files == 100
        path.write_bytes(b"x" * (4 << 20))
        after = os.statvfs(child.mountpoint)
        assert (info.f_bavail - after.f_bavail) * info.f_frsize == 4 << 20
        assert info.f_ffree - after.f_ffree == 1
        with pytest.raises(OSError, match="quota") as caught:
            (child.mountpoint / "g").write_bytes(b"x" * (7 << 20))
        assert caught.value.errno == errno.EDQUOT
        assert path.read_bytes() == b"x" * (4 << 20)
        for number in range(97):
            (child.mountpoint / f"n{number}").touch()
        with pytest.raises(OSError, match="quota"):
            (child.mountpoint / "one-too-many").touch()


def _as_user(uid: int, gid: int, script: str, path: Path) -> subprocess.CompletedProcess[str]:
    """A shell script as another user; `$1` is the path. (Our Python may be out of its reach.)"""
    return subprocess.run(
        ["sh", "-c", script, "sh", str(path)],
        user=uid,
        group=gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


def _reachable(base: Path) -> None:
    """pytest makes its directories 0700: let other users pass."""
    for directory in (base, *base.parents):
        if directory.stat().st_mode & 0o777 == 0o700:
            directory.chmod(0o711)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users_are_let_in_and_permissions_hold(layer: Child, here: Path) -> None:
    _reachable(layer.mountpoint.parent)
    (here / "secret").write_text("x")
    (here / "secret").chmod(0o600)
    (here / "open").mkdir()
    (here / "open").chmod(0o777)
    assert "Permission denied" in _as_user(10001, 10001, 'cat "$1"', here / "secret").stderr
    made = _as_user(10001, 10001, 'echo y >"$1"', here / "open" / "f")
    assert made.returncode == 0, made.stderr
    info = (here / "open" / "f").stat()
    assert (info.st_uid, info.st_gid) == (10001, 10001)
    denied = _as_user(10002, 10002, 'chmod 0 "$1"', here / "open" / "f")
    assert "not permitted" in denied.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_write_by_another_user_clears_setuid(layer: Child, here: Path) -> None:
    _reachable(layer.mountpoint.parent)
    path = here / "program"
    path.write_bytes(b"x")
    os.chown(path, 10001, 10001)
    path.chmod(0o4777)
    done = _as_user(10002, 10002, 'echo y >>"$1"', path)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_ids_are_mapped_both_ways(tmp_path: Path) -> None:
    with mounted_layer(tmp_path, uid_map=[[0, 10001]], gid_map=[[0, 10002]]) as child:
        _reachable(child.mountpoint.parent)
        assert child.mountpoint.stat().st_uid == 10001
        done = _as_user(10001, 10002, 'echo y >"$1"', child.mountpoint / "f")
        assert done.returncode == 0, done.stderr
        info = (child.mountpoint / "f").stat()
        assert (info.st_uid, info.st_gid) == (10001, 10002)
        os.chown(child.mountpoint / "f", 10001, 5)
        info = (child.mountpoint / "f").stat()
        assert (info.st_uid, info.st_gid) == (10001, 5)
    with mounted_layer(tmp_path) as child:
        info = (child.mountpoint / "f").stat()
        assert (info.st_uid, info.st_gid) == (0, 5), "stored as root's"


# --- faults ----------------------------------------------------------------------------------


def test_no_fault_of_a_handler_takes_the_mount_away(tmp_path: Path) -> None:
    with mounted_layer(tmp_path, faulty=True) as child:
        for _ in range(30):
            with pytest.raises(OSError, match="Input/output error") as caught:
                (child.mountpoint / "fault-lookup").stat()
            assert caught.value.errno == errno.EIO
        with pytest.raises(OSError, match="Input/output error"):
            (child.mountpoint / "fault-create").touch()
        with pytest.raises(OSError, match="Input/output error"):
            (child.mountpoint / "f").write_bytes(b"fault-write")
        (child.mountpoint / "g").touch()
        (child.mountpoint / "g").unlink()  # its FORGET raises as well
        assert os.listdir(child.mountpoint) == ["f"]
        assert child.log().count("lookup failed") == 1, "logged once, with its traceback"
        child.signal()
        assert child.wait() == 0
