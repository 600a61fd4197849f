"""What only a restore shows: all that names, paths, times and files can be survives the bucket.

One workspace is built, saved and mounted anew by a host that has nothing but the bucket.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from s3ws_fs.core.limits import TIME_NS_MAX, TIME_NS_MIN
from tests.support.pair import outcome, restored
from tests.support.syscalls import FileHandle, handle_of, open_handle

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

TIB: Final = 1 << 40
DEPTH: Final = 25
LEVEL: Final = "level" * 50
TIMES_NS: Final = (
    0,
    1,
    -1,
    -2_208_988_800_123_456_789,  # 1900
    TIME_NS_MIN,
    4_294_967_296_000_000_001,  # 2106, 32 bits and one
    TIME_NS_MAX,
)
NAMES: Final = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]

Found = tuple[Path, dict[str, Any]]

_handles: dict[str, FileHandle] = {}
"""Of files of the first mount: good on the second, as inode numbers are the workspace's own."""


def _build(top: Path) -> dict[str, Any]:
    for part in (_times, _names, _deep, _sparse, _special, _links, _owners):
        part(top / part.__name__)
    return {
        os.fspath(path.relative_to(top)): _seen(path)
        for part in top.iterdir()
        if part.name != "_deep"
        for path in (part, *part.rglob("*"))
    }


def _seen(path: Path) -> tuple[int, ...]:
    """All that stat shows but the device."""
    info = path.lstat()
    return (
        info.st_mode,
        info.st_ino,
        info.st_nlink,
        info.st_uid,
        info.st_gid,
        info.st_rdev,
        info.st_size,
        info.st_blocks,
        info.st_atime_ns,
        info.st_mtime_ns,
        info.st_ctime_ns,
    )


def _times(top: Path) -> None:
    top.mkdir()
    for number, when_ns in enumerate(TIMES_NS):
        for kind in ("file", "dir", "link"):
            path = top / f"{kind}{number}"
            if kind == "file":
                path.touch()
            elif kind == "dir":
                path.mkdir()
            else:
                path.symlink_to("x")
            os.utime(path, ns=(when_ns, TIMES_NS[number - 1]), follow_symlinks=False)


def _names(top: Path) -> None:
    top.mkdir()
    for name in NAMES:
        with open(os.fsencode(top) + b"/" + name, "xb") as file:
            file.write(name)
    os.mkdir(os.fsencode(top) + b"/" + b"\xff" * 255)


def _deep(top: Path) -> None:
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir(LEVEL, dir_fd=fd)
        below = os.open(LEVEL, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    bottom = os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.write(bottom, b"far down")
    os.close(bottom)
    os.close(fd)


def _sparse(top: Path) -> None:
    top.mkdir()
    fd = os.open(top / "tebibyte", os.O_CREAT | os.O_WRONLY)
    os.pwrite(fd, b"end", TIB - 3)
    os.pwrite(fd, b"middle", TIB // 2)
    os.close(fd)
    fd = os.open(top / "only a hole", os.O_CREAT | os.O_WRONLY)
    os.ftruncate(fd, TIB)
    os.close(fd)


def _special(top: Path) -> None:
    top.mkdir()
    os.mkfifo(top / "fifo", 0o640)
    os.chdir(top)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    os.chdir("/")


def _links(top: Path) -> None:
    (top / "a").mkdir(parents=True)
    (top / "b").mkdir()
    (top / "a" / "one").write_bytes(b"one inode")
    for name in ("a", "a/one"):
        _handles[name] = handle_of(top / name)
    os.link(top / "a" / "one", top / "b" / "two")
    os.symlink("../nowhere", top / "b" / "dangling")
    os.symlink("loop", top / "loop")


def _owners(top: Path) -> None:
    top.mkdir()
    top.chmod(0o1777)
    for number, mode in enumerate((0o000, 0o4711, 0o2755, 0o644)):
        (top / f"{number}").touch()
        if os.geteuid() == 0:
            os.chown(top / f"{number}", 10_000 + number, 4_000_000_000)
        (top / f"{number}").chmod(mode)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    with restored(tmp_path_factory.mktemp("restored"), _build) as built:
        yield built


def test_every_attribute_is_as_it_was(found: Found) -> None:
    """Inode numbers and ctime included."""
    top, before = found
    after = {path: _seen(top / path) for path in before}
    assert {path for path in before if before[path] != after[path]} == set()


def test_times_to_the_nanosecond_from_1677_to_2262(found: Found) -> None:
    top = found[0] / "_times"
    for number, when_ns in enumerate(TIMES_NS):
        for kind in ("file", "dir", "link"):
            info = (top / f"{kind}{number}").lstat()
            assert (info.st_atime_ns, info.st_mtime_ns) == (when_ns, TIMES_NS[number - 1])


def test_names_of_every_byte(found: Found) -> None:
    top = os.fsencode(found[0] / "_names")
    assert sorted(os.listdir(top)) == sorted([*NAMES, b"\xff" * 255])
    for name in NAMES:
        with open(top + b"/" + name, "rb") as file:
            assert file.read() == name


def test_a_tree_deeper_than_any_path(found: Found) -> None:
    fd = os.open(found[0] / "_deep", os.O_RDONLY)
    for _ in range(DEPTH):
        below = os.open(LEVEL, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    bottom = os.open("bottom", os.O_RDONLY, dir_fd=fd)
    assert os.read(bottom, 99) == b"far down"
    os.close(bottom)
    os.close(fd)


def test_a_file_of_a_tebibyte(found: Found) -> None:
    path = found[0] / "_sparse" / "tebibyte"
    fd = os.open(path, os.O_RDWR)
    assert os.pread(fd, 9, TIB - 6) == b"\0\0\0end"
    assert os.pread(fd, 8, TIB // 2 - 1) == b"\0middle\0"
    assert os.pread(fd, 100_000, TIB // 4) == bytes(100_000)
    os.pwrite(fd, b"new", TIB // 2 + 1)
    assert os.pread(fd, 8, TIB // 2 - 1) == b"\0mnewle\0"
    os.close(fd)
    hole = (found[0] / "_sparse" / "only a hole").stat()
    assert (hole.st_size, hole.st_blocks) == (TIB, 0)


def test_fifos_and_sockets_still_work(found: Found) -> None:
    top = found[0] / "_special"
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((top / "fifo").read_bytes()))
    reader.start()
    (top / "fifo").write_bytes(b"through the fifo")
    reader.join()
    assert got == [b"through the fifo"]
    os.chdir(top)
    try:
        with socket.socket(socket.AF_UNIX) as client:
            assert outcome(client.connect, "socket") == "ECONNREFUSED", "nobody listens any more"
    finally:
        os.chdir("/")
    assert stat.S_ISSOCK((top / "socket").stat().st_mode)


def test_file_handles_are_good_on_the_next_mount(found: Found) -> None:
    for name, handle in _handles.items():
        try:
            fd = open_handle(found[0], handle, os.O_RDONLY)
        except PermissionError:
            pytest.skip("open_by_handle_at needs CAP_DAC_READ_SEARCH")
        assert os.fstat(fd).st_ino == (found[0] / "_links" / name).stat().st_ino
        os.close(fd)


def test_hard_links_are_one_inode(found: Found) -> None:
    top = found[0] / "_links"
    assert (top / "a" / "one").samefile(top / "b" / "two")
    (top / "a" / "one").write_bytes(b"changed")
    assert (top / "b" / "two").read_bytes() == b"changed"
    assert outcome(os.stat, top / "loop") == "ELOOP"
    assert outcome(os.stat, top / "b" / "dangling") == "ENOENT"
