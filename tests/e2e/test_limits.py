"""The limits of a workspace on a real mount: the right errno, the tree intact, and room again."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import trees
from tests.support.mounting import (
    Workspace,
    mounted_workspace,
    wait_until,
    workspace_config,
)

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

QUOTA_BYTES = 8 << 20
MIB = 1 << 20
FILES = 60
FILE_BYTES_MAX = 8 << 40


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    config = workspace_config(
        tmp_path_factory.mktemp("limits"), max_size_bytes=QUOTA_BYTES, max_inodes=FILES
    )
    with mounted_workspace(config) as mounted:
        yield mounted


@pytest.fixture
def here(workspace: Workspace) -> Iterator[Path]:
    """The mount, empty before and after."""
    yield workspace.mountpoint
    for entry in os.scandir(workspace.mountpoint):
        os.rmdir(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
    wait_until(lambda: used(workspace) == (0, 1))


def used(workspace: Workspace) -> tuple[int, int]:
    """(bytes, inodes) that count, as status says."""
    quota = workspace.status()["quota"]
    return quota["used_bytes"], quota["used_inodes"]


def fails(number: int, call: Callable[[], object]) -> None:
    """The call fails with this errno."""
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == number, caught.value


def wait_saved(workspace: Workspace) -> None:
    """Flushing goes on: everything is sealed and mirrored, and nobody asked for it."""
    wait_until(lambda: len(set(workspace.status()["generation"].values())) == 1, timeout_s=30)
    assert workspace.status()["health"]["state"] == "ok"


# --- the quota --------------------------------------------------------------------------------


def test_quota(workspace: Workspace, here: Path) -> None:
    block = os.urandom(MIB)
    for number in range(8):
        (here / str(number)).write_bytes(block)
    found = os.statvfs(here)
    assert (found.f_blocks * found.f_frsize, found.f_bavail) == (QUOTA_BYTES, 0)
    assert used(workspace)[0] == QUOTA_BYTES
    before = trees.manifest(here)
    # Root is not exempt (the mount's owner runs this), and nothing is changed by a refusal.
    fd = os.open(here / "0", os.O_WRONLY | os.O_APPEND)
    fails(errno.EDQUOT, lambda: os.write(fd, b"x"))
    fails(errno.EDQUOT, lambda: os.write(fd, bytes(3 * MIB)))
    os.close(fd)
    assert trees.differences(before, trees.manifest(here)) == []
    # What holds no more than before goes on: in place, sparse growth, names, attributes.
    with (here / "1").open("r+b") as file:
        file.write(block[::-1])
        file.flush()
        os.ftruncate(file.fileno(), 4 * MIB)
    assert (here / "1").read_bytes() == block[::-1] + bytes(3 * MIB)
    (here / "empty").touch()
    os.symlink("target", here / "symlink")
    os.link(here / "2", here / "link")
    (here / "2").rename(here / "renamed")
    os.setxattr(here / "3", b"user.x", b"y" * 1000)
    wait_saved(workspace)
    # Each way to make room makes it at once.
    ways: list[Callable[[], object]] = [
        lambda: (here / "3").unlink(),
        lambda: (here / "empty").rename(here / "4"),
        lambda: os.truncate(here / "5", 0),
        lambda: (here / "6").write_bytes(b""),
    ]
    for number, way in enumerate(ways):
        fails(errno.EDQUOT, lambda: (here / "more").write_bytes(b"x"))
        way()
        (here / f"again {number}").write_bytes(block)
        assert used(workspace)[0] == QUOTA_BYTES
    assert all((here / f"again {number}").read_bytes() == block for number in range(4))


def test_a_write_across_the_quota_is_a_short_one(workspace: Workspace, here: Path) -> None:
    """As on ext4: what fits is written, and the next write says why there is not more."""
    data = os.urandom(10 * MIB)
    (here / "other").write_bytes(data[: MIB + 5000])
    fd = os.open(here / "large", os.O_WRONLY | os.O_CREAT)
    fits = QUOTA_BYTES - MIB - 8192
    assert os.write(fd, data) == fits
    fails(errno.EDQUOT, lambda: os.write(fd, data))
    os.close(fd)
    assert (here / "large").read_bytes() == data[:fits]
    assert used(workspace)[0] == QUOTA_BYTES
    with pytest.raises(OSError, match="quota"):
        (here / "buffered").write_bytes(data)


def test_deleted_and_open_counts_until_it_is_closed(workspace: Workspace, here: Path) -> None:
    with (here / "open").open("w+b") as file:
        file.write(bytes(QUOTA_BYTES))
        file.flush()
        (here / "open").unlink()
        (here / "new").touch()
        fails(errno.EDQUOT, lambda: (here / "new").write_bytes(b"x"))
        assert os.pread(file.fileno(), 10, MIB) == bytes(10)
    wait_until(lambda: used(workspace)[0] == 0)
    (here / "new").write_bytes(bytes(QUOTA_BYTES))


def test_mmap_at_the_quota(workspace: Workspace, here: Path) -> None:
    """Pages of a mapping are written when they are synced: msync says that it failed."""
    (here / "full").write_bytes(bytes(QUOTA_BYTES))
    with (here / "sparse").open("w+b") as file:
        os.ftruncate(file.fileno(), MIB)
        with mmap.mmap(file.fileno(), MIB) as mapped:
            mapped[:10] = b"0123456789"
            with pytest.raises(OSError) as caught:
                mapped.flush()
            assert caught.value.errno in (errno.EDQUOT, errno.EIO, errno.ENOSPC)
            (here / "full").unlink()
            mapped[:10] = b"0123456789"
            mapped.flush()
    assert (here / "sparse").read_bytes()[:10] == b"0123456789"
    assert used(workspace)[0] == 4096


def test_many_writers_share_the_quota(workspace: Workspace, here: Path) -> None:
    def write(number: int) -> int:
        piece = bytes([number]) * 50_000
        written = 0
        fd = os.open(here / str(number), os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                written += os.write(fd, piece)
        except OSError as exc:
            assert exc.errno == errno.EDQUOT
        finally:
            os.close(fd)
        return written

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(write, range(8)))
    assert used(workspace)[0] == QUOTA_BYTES
    for number, count in enumerate(written):
        assert (here / str(number)).read_bytes() == bytes([number]) * count
    wait_saved(workspace)


def test_the_same_after_a_remount_and_after_the_cache_is_lost(tmp_path: Path) -> None:
    config = workspace_config(tmp_path, max_size_bytes=QUOTA_BYTES)
    with mounted_workspace(config) as first:
        (first.mountpoint / "a").write_bytes(os.urandom(6 * MIB))
        (first.mountpoint / "b").write_bytes(os.urandom(2 * MIB))
        os.truncate(first.mountpoint / "b", MIB + 1)
        count = used(first)
        assert count == (7 * MIB + 4096, 3)
        before = trees.manifest(first.mountpoint)
    with mounted_workspace(config) as again:
        assert used(again) == count
    cache = Path(config.workspace_cache_dir)
    cache.rename(tmp_path / "lost")
    # And with less than it holds already: nothing is lost, and only growing is refused.
    less = workspace_config(tmp_path, max_size_bytes=4 * MIB)
    with mounted_workspace(less) as smaller:
        here = smaller.mountpoint
        assert used(smaller) == count
        assert os.statvfs(here).f_bavail == 0
        assert trees.differences(before, trees.manifest(here)) == []
        fails(errno.EDQUOT, lambda: (here / "c").write_bytes(b"x"))
        with (here / "b").open("r+b") as file:
            file.write(b"in place")
        (here / "a").unlink()
        (here / "c").write_bytes(bytes(2 * MIB))
        assert (here / "b").read_bytes()[:8] == b"in place"


def test_number_of_files(workspace: Workspace, here: Path) -> None:
    for number in range(FILES - 1):
        (here / str(number)).touch()
    assert os.statvfs(here).f_favail == 0
    with socket.socket(socket.AF_UNIX) as sock:
        for way in (
            lambda: (here / "file").touch(),
            lambda: (here / "directory").mkdir(),
            lambda: os.symlink("x", here / "symlink"),
            lambda: os.mkfifo(here / "fifo"),
            lambda: sock.bind(str(here / "socket")),
            lambda: os.mknod(here / "node"),
        ):
            fails(errno.EDQUOT, way)
    assert sorted(os.listdir(here)) == sorted(str(number) for number in range(FILES - 1))
    os.link(here / "0", here / "link")
    (here / "1").write_bytes(b"data")
    (here / "1").rename(here / "2")
    (here / "one more").mkdir()
    fails(errno.EDQUOT, lambda: (here / "file").touch())
    # A name less is not an inode less.
    (here / "link").unlink()
    fails(errno.EDQUOT, lambda: (here / "file").touch())
    (here / "one more").rmdir()
    (here / "file").touch()
    assert used(workspace)[1] == FILES
    wait_saved(workspace)


# --- sizes and names --------------------------------------------------------------------------


def test_file_size(here: Path) -> None:
    with (here / "file").open("w+b") as file:
        fd = file.fileno()
        os.ftruncate(fd, FILE_BYTES_MAX)
        fails(errno.EFBIG, lambda: os.ftruncate(fd, FILE_BYTES_MAX + 1))
        assert os.pwrite(fd, b"last", FILE_BYTES_MAX - 4) == 4
        fails(errno.EFBIG, lambda: os.pwrite(fd, b"x", FILE_BYTES_MAX))
        fails(errno.EFBIG, lambda: os.pwrite(fd, b"x", (1 << 63) - 2))
        # Across the end: what fits, as on ext4.
        assert os.pwrite(fd, b"12345678", FILE_BYTES_MAX - 4) == 4
        assert os.fstat(fd).st_size == FILE_BYTES_MAX
        assert os.pread(fd, 10, FILE_BYTES_MAX - 5) == b"\x001234"
        os.ftruncate(fd, 0)


def test_rlimit_fsize(here: Path) -> None:
    """The kernel's limit of a process: a short write, then SIGXFSZ (EFBIG for who ignores it)."""
    script = textwrap.dedent(
        """
        import os, resource, signal, sys
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
        print(os.write(fd, bytes(20_000)))
        try:
            os.write(fd, b"x")
        except OSError as exc:
            print(exc.errno)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, here / "file"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["10000", str(errno.EFBIG)]
    assert (here / "file").stat().st_size == 10_000


def test_names_and_targets(here: Path) -> None:
    for kind in (Path.mkdir, Path.touch):
        kind(here / ("n" * 255))
        fails(errno.ENAMETOOLONG, lambda: (here / ("m" * 256)).touch())
        fails(errno.ENAMETOOLONG, lambda: (here / ("m" * 256)).stat())
        fails(errno.ENAMETOOLONG, lambda: (here / ("n" * 255)).rename(here / ("m" * 256)))
        path = here / ("n" * 255)
        path.rmdir() if path.is_dir() else path.unlink()
    os.symlink("t" * 4095, here / "symlink")
    assert os.readlink(here / "symlink") == "t" * 4095
    fails(errno.ENAMETOOLONG, lambda: os.symlink("t" * 4096, here / "longer"))
    assert os.listdir(here) == ["symlink"]


def test_extended_attributes(here: Path) -> None:
    path = here / "file"
    path.touch()
    large = os.urandom(64 * 1024)
    os.setxattr(path, b"user.large", large)
    assert os.getxattr(path, b"user.large") == large
    fails(errno.E2BIG, lambda: os.setxattr(path, b"user.larger", large + b"x"))
    name = b"user." + b"n" * 250
    os.setxattr(path, name, b"1")
    fails(errno.ERANGE, lambda: os.setxattr(path, name + b"n", b"1"))
    fails(errno.ENODATA, lambda: os.getxattr(path, b"user.absent"))
    fails(errno.ENODATA, lambda: os.removexattr(path, b"user.absent"))
    fails(errno.EEXIST, lambda: os.setxattr(path, name, b"2", os.XATTR_CREATE))
    fails(errno.ENODATA, lambda: os.setxattr(path, b"user.x", b"2", os.XATTR_REPLACE))
    stored = 0
    with pytest.raises(OSError) as caught:
        for stored in range(1000):
            os.setxattr(path, b"user.%0245d" % stored, b"")
    assert caught.value.errno == errno.ENOSPC
    assert len(os.listxattr(path)) == stored + 2
    os.removexattr(path, name)
    os.setxattr(path, b"user.fits", b"")
    assert os.getxattr(path, b"user.large") == large


# --- what the daemon itself may have ----------------------------------------------------------


def test_open_files_are_no_descriptors_of_the_daemon(workspace: Workspace, here: Path) -> None:
    """As many as a program may have: for the daemon a handle is a number."""
    (here / "file").write_bytes(b"x")
    descriptors = Path(f"/proc/{workspace.pid}/fd")
    before = len(list(descriptors.iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 10_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    held: list[int] = []
    try:
        held.extend(os.open(here / "file", os.O_RDWR) for _ in range(wanted // 2))
        held.extend(os.open(here, os.O_RDONLY) for _ in range(wanted // 4))
        assert len(list(descriptors.iterdir())) <= before + 2
        assert os.pread(held[-1 - wanted // 4], 1, 0) == b"x"
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_daemon_is_out_of_descriptors(tmp_path: Path) -> None:
    """The worker can't be started: files all the same, status says why, and it heals."""
    config = workspace_config(tmp_path)
    with mounted_workspace(config) as workspace:
        here = workspace.mountpoint
        (here / "before").write_bytes(b"before")
        wait_saved(workspace)
        worker = workspace.status()["worker_pid"]
        limits = resource.prlimit(workspace.pid, resource.RLIMIT_NOFILE)
        taken = max(int(fd.name) for fd in Path(f"/proc/{workspace.pid}/fd").iterdir()) + 1
        free_low = set(range(taken)) - {
            int(fd.name) for fd in Path(f"/proc/{workspace.pid}/fd").iterdir()
        }
        resource.prlimit(workspace.pid, resource.RLIMIT_NOFILE, (taken - len(free_low), limits[1]))
        if worker is not None:
            os.kill(worker, signal.SIGKILL)
        for number in range(100):
            (here / str(number)).write_bytes(b"%d" % number)
        assert (here / "before").read_bytes() == b"before"
        # One connection more than there are descriptors is refused or left waiting.
        path = workspace.config.runtime_dir
        assert Path(path).is_dir()
        wait_until(lambda: "Too many open files" in workspace.log(), timeout_s=30)
        resource.prlimit(workspace.pid, resource.RLIMIT_NOFILE, limits)
        wait_until(lambda: workspace.status()["health"]["state"] == "ok", timeout_s=60)
        wait_until(lambda: workspace.status()["dirty"]["records"] == 0, timeout_s=60)
        assert len(os.listdir(here)) == 101
        assert workspace.status()["faults"] == 0
        assert len(workspace.log().splitlines()) < 100
