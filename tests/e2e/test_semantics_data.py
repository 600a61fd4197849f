"""Bytes: sparse files, mmap, preallocation, and every way the kernel has to copy."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from s3ws_fs.core.limits import EXTENT_BYTES, FILE_BYTES_MAX
from tests.support.pair import Line, Pair, forked, hear, outcome, say
from tests.support.syscalls import call

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

PAGE: Final = mmap.PAGESIZE
TIB: Final = 1 << 40


def _used(path: Path) -> int:
    return path.stat().st_blocks * 512


def _free(top: Path) -> int:
    info = os.statvfs(top)
    return info.f_bavail * info.f_frsize


# --- sparse files ----------------------------------------------------------------------------


def test_a_file_of_a_tebibyte(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        fd = os.open(top / "f", os.O_CREAT | os.O_RDWR)
        os.pwrite(fd, b"end", TIB - 3)
        os.pwrite(fd, b"middle", TIB // 2)
        seen: list[Any] = [os.fstat(fd).st_size, os.pread(fd, 8, TIB - 6)]
        seen += [os.pread(fd, 10, TIB // 2 - 2), os.pread(fd, 1 << 20, TIB // 3) == bytes(1 << 20)]
        seen += [os.pread(fd, 8, TIB), os.pread(fd, 8, 2 * TIB)]
        os.ftruncate(fd, TIB // 2 + 3)
        os.ftruncate(fd, TIB)
        seen += [os.pread(fd, 10, TIB // 2 - 2), os.fstat(fd).st_size]
        seen.append(os.fstat(fd).st_blocks * 512 <= 4 * EXTENT_BYTES)
        os.close(fd)
        return seen

    assert pair.same(scenario)[0] == TIB


def test_space_is_that_of_the_bytes_held(pair: Pair) -> None:
    """st_blocks, du and df say the same; a hole counts nothing; what was given back is free."""
    top, path = pair.here, pair.here / "f"
    free = _free(top)
    with path.open("wb") as file:
        file.truncate(TIB)
        assert _used(path) == 0
        file.seek(10 * EXTENT_BYTES)
        file.write(b"x")
        file.flush()
        assert _used(path) == 4096
        file.seek(21 * EXTENT_BYTES - 1)
        file.write(b"x")
        file.flush()
        # An extent is held from its start to the last byte that was written in it.
        assert _used(path) == 4096 + EXTENT_BYTES
        file.seek(0)
        file.write(b"y" * 1_000_000)
    used = _used(path)
    du = subprocess.run(["du", "-B1", path], capture_output=True, text=True, check=True).stdout
    assert int(du.split()[0]) == used == free - _free(top)
    os.truncate(path, EXTENT_BYTES + 1)
    assert _used(path) == EXTENT_BYTES + 4096 == free - _free(top)
    os.truncate(path, 0)
    assert _used(path) == 0
    assert _free(top) == free


def test_the_largest_file(pair: Pair) -> None:
    fd = os.open(pair.here / "f", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, FILE_BYTES_MAX)
    assert os.pwrite(fd, b"x", FILE_BYTES_MAX - 1) == 1
    assert outcome(os.pwrite, fd, b"x", FILE_BYTES_MAX) == "EFBIG"
    assert outcome(os.ftruncate, fd, FILE_BYTES_MAX + 1) == "EFBIG"
    assert os.fstat(fd).st_size == FILE_BYTES_MAX
    os.close(fd)


def test_holes_and_data_by_lseek(pair: Pair) -> None:
    """The kernel's own answer, as this protocol version leaves it: all is data, then one hole."""

    def scenario(top: Path) -> list[Any]:
        fd = os.open(top / "f", os.O_CREAT | os.O_RDWR)
        os.ftruncate(fd, 1 << 20)
        os.pwrite(fd, b"x", 500_000)
        seen = [
            outcome(os.lseek, fd, 1 << 20, os.SEEK_DATA),
            outcome(os.lseek, fd, 1 << 20, os.SEEK_HOLE),
            outcome(os.lseek, fd, 2 << 20, os.SEEK_HOLE),
            # A copier that goes by these finds every byte that is there.
            outcome(os.lseek, fd, 499_999, os.SEEK_DATA) <= 500_000,
        ]
        os.close(fd)
        return seen

    assert pair.same(scenario)[:2] == ["ENXIO", "ENXIO"]
    with (pair.here / "g").open("wb") as file:
        file.truncate(1 << 20)
        assert os.lseek(file.fileno(), 7, os.SEEK_DATA) == 7
        assert os.lseek(file.fileno(), 7, os.SEEK_HOLE) == 1 << 20


def test_preallocation(pair: Pair) -> None:
    """posix_fallocate works by glibc's writing; what exists stays; fallocate(2) itself does not."""

    def scenario(top: Path) -> list[Any]:
        fd = os.open(top / "f", os.O_CREAT | os.O_RDWR)
        os.write(fd, b"kept" * 1000)
        os.posix_fallocate(fd, 1000, 500_000)
        seen = [os.fstat(fd).st_size, os.pread(fd, 4000, 0) == b"kept" * 1000]
        seen += [os.pread(fd, 497_000, 4000) == bytes(497_000)]
        seen.append(outcome(os.posix_fallocate, fd, 0, 0))
        seen.append(os.fstat(fd).st_blocks * 512 >= 500_000)
        os.close(fd)
        readonly = os.open(top / "f", os.O_RDONLY)
        seen.append(outcome(os.posix_fallocate, readonly, 0, 10))
        os.close(readonly)
        return seen

    assert pair.same(scenario)[0] == 501_000
    with (pair.here / "f").open("r+b") as file:
        for mode in (0, 1, 3, 16):
            with pytest.raises(OSError, match="not supported"):
                call("fallocate", file.fileno(), mode, ctypes.c_long(0), ctypes.c_long(4096))


# --- mmap ------------------------------------------------------------------------------------


def test_mmap_read_and_write_are_one_file(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        path = top / "f"
        path.write_bytes(b"-" * 100_000)
        fd = os.open(path, os.O_RDWR)
        seen: list[Any] = []
        with mmap.mmap(fd, 0) as shared, mmap.mmap(fd, 0, access=mmap.ACCESS_COPY) as private:
            assert private[0:1] == b"-"
            os.pwrite(fd, b"written", 50_000)
            seen.append(shared[50_000:50_007])
            shared[60_000:60_006] = b"mapped"
            seen += [os.pread(fd, 6, 60_000), private[60_000:60_006]]
            private[70_000:70_003] = b"own"
            seen += [os.pread(fd, 3, 70_000), shared[70_000:70_003], private[70_000:70_003]]
            shared.flush()
        seen.append(path.read_bytes()[60_000:60_006])
        os.close(fd)
        return seen

    assert pair.same(scenario)[0] == b"written"


def test_a_mapping_outlives_its_descriptor_and_its_name(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        path = top / "f"
        path.write_bytes(b"a" * 3 * PAGE)
        os.link(path, top / "twin")
        fd = os.open(path, os.O_RDWR)
        view = mmap.mmap(fd, 0)
        os.close(fd)
        path.unlink()
        view[PAGE : PAGE + 5] = b"after"
        view.close()
        return [(top / "twin").read_bytes()[PAGE : PAGE + 5]]

    assert pair.same(scenario) == [b"after"]


def test_mmap_across_truncation(pair: Pair) -> None:
    """Beyond the end: zeros to the end of the page; and zeros where a file was cut and grew."""

    def scenario(top: Path) -> list[Any]:
        path = top / "f"
        path.write_bytes(b"x" * 3 * PAGE)
        fd = os.open(path, os.O_RDWR)
        with mmap.mmap(fd, 3 * PAGE) as view:
            seen: list[Any] = [view[-1:]]
            os.ftruncate(fd, PAGE + 10)
            seen.append(view[PAGE : PAGE + 20])
            os.ftruncate(fd, 3 * PAGE)
            seen += [view[PAGE : PAGE + 20], view[2 * PAGE :] == bytes(PAGE)]
            os.ftruncate(fd, 10)
            os.pwrite(fd, b"far", 100)
            seen += [os.pread(fd, 30, 0), view[0:110]]
            os.ftruncate(fd, 3 * PAGE)
            view[2 * PAGE : 2 * PAGE + 3] = b"new"
        seen.append(os.pread(fd, 3, 2 * PAGE))
        os.close(fd)
        return seen

    seen = pair.same(scenario)
    assert seen[2] == b"x" * 10 + bytes(10)


@pytest.mark.parametrize("how", ["read", "write"])
def test_a_mapping_beyond_the_end_is_a_bus_error(pair: Pair, how: str) -> None:
    script = """
import mmap, os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 3 * mmap.PAGESIZE)
view = mmap.mmap(fd, 0)
view[-1]
os.ftruncate(fd, 1)
if sys.argv[2] == "read":
    view[2 * mmap.PAGESIZE]
else:
    view[2 * mmap.PAGESIZE] = 1
"""

    def scenario(top: Path) -> int:
        command = [sys.executable, "-I", "-c", script, str(top / "f"), how]
        return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode

    assert pair.same(scenario) == -signal.SIGBUS


def test_two_processes_share_a_mapping(pair: Pair) -> None:
    """No call in between: both see one page."""

    def other(path: Path, line: Line) -> bytes:
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            say(line)
            hear(line)
            seen = view[0:4]
            view[8:12] = b"pong"
            say(line)
            hear(line)
            return seen

    def scenario(top: Path) -> list[bytes]:
        path = top / "f"
        path.write_bytes(bytes(2 * PAGE))
        with (
            path.open("r+b") as file,
            mmap.mmap(file.fileno(), 0) as view,
            forked(functools.partial(other, path)) as (child,),
        ):
            hear(child.line)
            view[0:4] = b"ping"
            say(child.line)
            hear(child.line)
            seen = [view[8:12], os.pread(file.fileno(), 4, 8)]
            say(child.line)
            return [*seen, child.result()]

    assert pair.same(scenario) == [b"pong", b"pong", b"ping"]


def test_what_was_mapped_is_saved_without_msync(pair: Pair) -> None:
    def dirty(path: Path) -> None:
        file = path.open("r+b")
        view = mmap.mmap(file.fileno(), 0)
        view[0:5] = b"dirty"
        os._exit(0)  # neither msync nor munmap nor close

    def scenario(top: Path) -> bytes:
        path = top / "f"
        path.write_bytes(b"-" * PAGE)
        with forked(lambda _line: dirty(path)) as (child,):
            assert hear(child.line) == b""
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        try:
            return os.pread(fd, 6, 0)
        finally:
            os.close(fd)

    assert pair.same(scenario) == b"dirty-"


# --- ways to copy and to write ---------------------------------------------------------------


def _copied(top: Path, copy: Callable[[int, int, int], int]) -> list[Any]:
    data = bytes(range(256)) * 1000
    (top / "from").write_bytes(data)
    old, new = os.open(top / "from", os.O_RDONLY), os.open(top / "to", os.O_CREAT | os.O_RDWR)
    done = 0
    while done < len(data) and (count := copy(old, new, len(data) - done)):
        done += count
    os.close(old)
    os.close(new)
    return [done, (top / "to").read_bytes() == data]


def _by_splice(old: int, new: int, count: int) -> int:
    out, into = os.pipe()
    try:
        moved = os.splice(old, into, min(count, 65_536))
        left = moved
        while left:
            left -= os.splice(out, new, left)
        return moved
    finally:
        os.close(out)
        os.close(into)


@pytest.mark.parametrize(
    "copy",
    [
        os.copy_file_range,
        lambda old, new, count: os.sendfile(new, old, None, count),
        _by_splice,
        lambda old, new, count: os.writev(new, [b"", os.read(old, min(count, 9_999))]),
    ],
    ids=["copy_file_range", "sendfile", "splice", "writev"],
)
def test_copying(pair: Pair, copy: Callable[[int, int, int], int]) -> None:
    assert pair.same(lambda top: _copied(top, copy)) == [256_000, True]


def test_copying_within_a_file(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        fd = os.open(top / "f", os.O_CREAT | os.O_RDWR)
        os.write(fd, b"abcdefgh" * 1000)
        seen = [os.copy_file_range(fd, fd, 100, 0, 200_000), os.fstat(fd).st_size]
        seen.append(outcome(os.copy_file_range, fd, fd, 100, 0, 50))  # overlapping
        seen.append(os.copy_file_range(fd, fd, 100, 300_000, 0))  # beyond the end
        os.close(fd)
        return seen

    assert pair.same(scenario) == [100, 200_100, "EINVAL", 0]


def test_vectors_and_flags(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        fd = os.open(top / "f", os.O_CREAT | os.O_RDWR)
        seen: list[Any] = [os.writev(fd, [b"one", b"", b"two", b"x" * 70_000])]
        first, second = bytearray(4), bytearray(4)
        seen += [os.preadv(fd, [first, second], 1), bytes(first), bytes(second)]
        seen += [os.pwritev(fd, [b"A", b"B"], 3), os.pread(fd, 7, 0)]
        seen += [os.pwritev(fd, [b"end"], 0, os.RWF_APPEND), os.fstat(fd).st_size]
        seen += [os.pwritev(fd, [b"D"], 0, os.RWF_DSYNC), os.pread(fd, 2, 0)]
        seen += [outcome(os.pread, fd, 1, -1), outcome(os.lseek, fd, -1, os.SEEK_SET)]
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        seen.append(os.pread(fd, 3, 70_006))
        os.close(fd)
        return seen

    assert pair.same(scenario)[0] == 70_006


def test_direct_io_works_and_sees_the_page_cache(pair: Pair) -> None:
    """Not compared: tmpfs learned O_DIRECT late. Unaligned is accepted here; ext4 wants blocks."""
    path = pair.here / "f"
    path.write_bytes(b"a" * 2 * PAGE)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, PAGE) as page:
        page[:] = b"b" * PAGE
        assert os.pwritev(fd, [page], PAGE) == PAGE
        assert os.preadv(fd, [page], 0) == PAGE
        assert page[:] == b"a" * PAGE
    assert os.pread(fd, 3, PAGE - 1) == b"abb"
    assert path.read_bytes() == b"a" * PAGE + b"b" * PAGE
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0:3] = b"map"
        view.flush()
        assert os.pread(fd, 3, 0) == b"map"
        os.pwrite(fd, b"dio", 10)
        assert view[10:13] == b"dio"
    os.close(fd)
