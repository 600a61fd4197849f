"""What is agreed on with the kernel, and what it means on a real mount."""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3ws_fs.fuse.greeting import AUTO_INVAL_DATA, shown
from tests.support.actors import as_user, require_root
from tests.support.mounting import Child, mounted_layer

OTHER_FLAGS = 1 << 3 | 1 << 13
CAPS = "security.capability"
NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")
"""cap_net_raw=ep"""


def request(flags: int) -> bytes:
    return struct.pack("=IIQ24xIIII", 104, 26, 2, 7, 45, 1 << 17, flags) + bytes(range(48))


def reply(flags: int) -> bytes:
    return struct.pack("=IiQIIII", 80, 0, 2, 7, 31, 1 << 17, flags) + bytes(range(48))


def test_the_first_daemon_decides() -> None:
    offer = request(AUTO_INVAL_DATA | OTHER_FLAGS)
    assert shown(offer, b"", keeps_pages=True) == request(OTHER_FLAGS)
    assert shown(offer, b"", keeps_pages=False) == offer
    assert shown(request(OTHER_FLAGS), b"", keeps_pages=True) == request(OTHER_FLAGS)


@pytest.mark.parametrize("inval", [0, AUTO_INVAL_DATA])
@pytest.mark.parametrize("keeps_pages", [False, True])
def test_a_later_daemon_does_as_the_first(inval: int, keeps_pages: bool) -> None:
    offer = request(AUTO_INVAL_DATA | OTHER_FLAGS)
    assert shown(offer, reply(inval | OTHER_FLAGS), keeps_pages=keeps_pages) == request(
        inval | OTHER_FLAGS
    )


def test_messages_that_are_too_short_stay_as_they_are() -> None:
    short = request(AUTO_INVAL_DATA)[:50]
    assert shown(short, b"", keeps_pages=True) == short


# --- on a mount ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["greeted", "by-libfuse"])
def mount(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Child]:
    """As it is with a holder, and as libfuse alone does it: nothing of the above is taken then."""
    with mounted_layer(tmp_path_factory.mktemp("greeting"), unheld=request.param) as child:
        child.mountpoint.chmod(0o777)
        yield child


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    with mounted_layer(tmp_path_factory.mktemp("traced"), traced=True) as child:
        yield child


def test_what_was_written_is_not_asked_for(traced: Child) -> None:
    path = traced.mountpoint / "written"
    path.write_bytes(b"a" * 100_000)
    with path.open("r+b", buffering=0) as file:
        file.write(b"b")
        assert path.stat().st_size == 100_000
        assert path.read_bytes() == b"b" + b"a" * 99_999
        file.seek(200_000)
        file.write(b"c")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        assert path.stat().st_size == 200_001
        assert path.read_bytes()[:1] == b"b"
    ino = path.stat().st_ino
    reads = [line for line in traced.log().splitlines() if f" read {ino} " in line]
    # Of what nobody wrote the kernel has no pages.
    assert all(int(line.split()[-2]) >= 98_304 for line in reads), reads


def _cut(name: str) -> None:
    os.truncate(name, 3)


def _cut_at_open(name: str) -> None:
    os.close(os.open(name, os.O_WRONLY | os.O_TRUNC))


def _write(name: str) -> None:
    fd = os.open(name, os.O_WRONLY)
    os.pwrite(fd, b"new", 2)
    os.close(fd)


def _append(name: str) -> None:
    with open(name, "ab", buffering=0) as file:
        file.write(b"more")


def _write_directly(name: str) -> None:
    fd = os.open(name, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as page:
        os.pwritev(fd, [page], 0)
    os.close(fd)


def _copy_into(name: str) -> None:
    with open("source", "rb") as source, open(name, "r+b") as file:
        os.copy_file_range(source.fileno(), file.fileno(), 6)


def _nothing(name: str) -> None:
    os.utime(name, (5, 5))
    open(name, "rb").close()


CHANGES = [_cut, _cut_at_open, _write, _append, _write_directly, _copy_into]


def _file(mount: Child, name: str, mode: int, owner: int) -> Path:
    path = mount.mountpoint / name
    path.write_bytes(b"x" * 8192)
    (mount.mountpoint / "source").write_bytes(b"source")
    os.chown(path, owner, owner)
    path.chmod(mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    return path


@pytest.mark.parametrize(
    ("mode", "left"), [(0o6777, 0o777), (0o4766, 0o766), (0o2777, 0o777), (0o2766, 0o2766)]
)
@pytest.mark.parametrize("change", CHANGES)
def test_whoever_changes_bytes_takes_the_bits_away(
    mount: Child, change: Callable[[str], None], mode: int, left: int
) -> None:
    require_root()
    name = f"user {change.__name__} {mode:o}"
    path = _file(mount, name, mode, owner=1000)
    as_user(1000, 1000, [], lambda: change(name), cwd=mount.mountpoint)
    assert stat.S_IMODE(path.stat().st_mode) == left
    # Again, when there is nothing left to take, and after they came back.
    as_user(1000, 1000, [], lambda: change(name), cwd=mount.mountpoint)
    path.chmod(mode)
    as_user(1000, 1000, [], lambda: change(name), cwd=mount.mountpoint)
    assert stat.S_IMODE(path.stat().st_mode) == left


@pytest.mark.parametrize("change", [*CHANGES, _nothing])
def test_root_leaves_them(
    mount: Child, change: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    require_root()
    name = f"root {change.__name__}"
    path = _file(mount, name, 0o6777, owner=1000)
    monkeypatch.chdir(mount.mountpoint)
    change(name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o6777


def test_another_owner_or_group_takes_them_from_files(mount: Child) -> None:
    require_root()
    for number, (uid, gid) in enumerate([(1001, -1), (-1, 1001), (1001, 1001), (1000, 1000)]):
        path = _file(mount, f"chown {number}", 0o6777, owner=1000)
        os.chown(path, uid, gid)
        assert stat.S_IMODE(path.stat().st_mode) == 0o777
    path = _file(mount, "chgrp", 0o6777, owner=1000)
    as_user(1000, 1000, [], lambda: os.chown("chgrp", -1, 1000), cwd=mount.mountpoint)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    directory = mount.mountpoint / "chown of a directory"
    directory.mkdir()
    directory.chmod(0o6777)
    os.chown(directory, 1001, 1001)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o6777


@pytest.mark.parametrize("change", [*CHANGES, lambda name: os.chown(name, 5, 5)])
def test_capabilities_of_a_file_go_with_its_bytes_and_its_owner(
    mount: Child, change: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    require_root()
    name = f"caps {getattr(change, '__name__', '')}"
    path = _file(mount, name, 0o755, owner=1000)
    monkeypatch.chdir(mount.mountpoint)
    _write(name)  # the kernel knows now that there are none
    for _ in range(2):
        os.setxattr(path, CAPS, NET_RAW)
        assert os.getxattr(path, CAPS)
        change(name)
        assert CAPS not in os.listxattr(path)
