"""Changes behind the kernel's back, on a real mount: seen at once when `forget` has returned.

Each test first fills the kernel's caches, then changes by the filesystem itself, in the child. The
negative controls stand beside: without telling the kernel it goes on showing the old.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from s3ws_fs.core.types import Outdated
from s3ws_fs.fuse import invalidate
from s3ws_fs.fuse.invalidate import BATCH_MAX, KernelCache
from tests.support.mounting import mounted_layer


class Back:
    """The mount, and the way behind the kernel."""

    def __init__(self, mountpoint: Path, stream: socket.socket) -> None:
        self.root = mountpoint
        self._stream = stream

    def do(
        self,
        *calls: Sequence[Any],
        names: Sequence[tuple[int, str]] = (),
        inodes: Sequence[int] = (),
    ) -> list[int | None]:
        """Change, and have the kernel forget these; returns the inodes that calls returned."""
        ask = {"calls": calls, "names": names, "inodes": inodes}
        self._stream.sendall(json.dumps(ask).encode())
        answer = json.loads(self._stream.recv(1 << 16))
        assert isinstance(answer, list)
        return answer


@pytest.fixture(scope="module")
def back(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Back]:
    base = tmp_path_factory.mktemp("behind")
    path = str(base / "socket")
    with mounted_layer(base, behind=path) as child, socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(30)
        stream.connect(path)
        yield Back(child.mountpoint, stream)


@pytest.fixture
def here(back: Back, request: pytest.FixtureRequest) -> Path:
    """An empty directory on the mount."""
    directory = back.root / str(request.node.name)[:200]
    directory.mkdir()
    return directory


def _ino(path: Path) -> int:
    return path.lstat().st_ino


@pytest.mark.fuse
def test_a_name_that_was_absent_appears(back: Back, here: Path) -> None:
    with pytest.raises(FileNotFoundError):
        (here / "new").stat()
    assert os.listdir(here) == []
    (ino,) = back.do(["create", _ino(here), "new", 0o600, "cred"])
    with pytest.raises(FileNotFoundError):
        (here / "new").stat()  # the control: nobody told the kernel
    back.do(names=[(_ino(here), "new")], inodes=[_ino(here)])
    assert (here / "new").stat().st_ino == ino
    assert os.listdir(here) == ["new"]


@pytest.mark.fuse
def test_a_name_that_went_is_absent(back: Back, here: Path) -> None:
    path = here / "gone"
    path.write_bytes(b"x")
    here_ino, mtime_ns = _ino(here), here.stat().st_mtime_ns
    back.do(["unlink", here_ino, "gone"])
    assert path.exists()  # the control
    back.do(names=[(here_ino, "gone")], inodes=[here_ino])
    assert not path.exists()
    assert os.listdir(here) == []
    with pytest.raises(FileNotFoundError):
        path.open("rb")
    assert here.stat().st_mtime_ns > mtime_ns


@pytest.mark.fuse
def test_a_replaced_file_is_the_new_one_and_the_old_stays_open(back: Back, here: Path) -> None:
    path = here / "file"
    path.write_bytes(b"old")
    here_ino = _ino(here)
    with path.open("rb") as old:
        assert old.read() == b"old"
        (ino,) = back.do(["create", here_ino, "other", 0o600, "cred"])
        back.do(["write", ino, 0, "newer"], ["rename", here_ino, "other", here_ino, "file", 0])
        assert path.read_bytes() == b"old"  # the control
        back.do(names=[(here_ino, "other"), (here_ino, "file")], inodes=[here_ino])
        assert path.read_bytes() == b"newer"
        assert (path.stat().st_size, path.stat().st_ino) == (5, ino)
        assert os.listdir(here) == ["file"]
        old.seek(0)
        assert old.read() == b"old"


@pytest.mark.fuse
def test_bytes_changed_in_place_reach_open_files_and_memory_maps(back: Back, here: Path) -> None:
    path = here / "file"
    path.write_bytes(b"a" * 5000)
    ino, mtime_ns = _ino(path), path.stat().st_mtime_ns
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:3] == os.pread(file.fileno(), 3, 0) == b"aaa"
        back.do(["write", ino, 1, "bb"])
        assert os.pread(file.fileno(), 3, 0) == b"aaa"  # the control
        back.do(inodes=[ino])
        assert mapped[:4] == os.pread(file.fileno(), 4, 0) == b"abba"
        back.do(["write", ino, 5000, "tail"], inodes=[ino])
        assert os.pread(file.fileno(), 100, 4998) == b"aatail"
        assert os.fstat(file.fileno()).st_size == 5004
    assert path.stat().st_mtime_ns > mtime_ns


@pytest.mark.fuse
def test_a_renamed_tree_stands_at_its_new_place_also_for_who_is_inside(
    back: Back, here: Path
) -> None:
    inside = here / "a" / "b"
    inside.mkdir(parents=True)
    (inside / "file").write_bytes(b"x")
    assert not (here / "c").exists()
    here_ino, before = _ino(here), os.open(".", os.O_RDONLY)
    os.chdir(inside)
    try:
        back.do(
            ["rename", here_ino, "a", here_ino, "c", 0],
            names=[(here_ino, "a"), (here_ino, "c")],
            inodes=[here_ino],
        )
        assert sorted(os.listdir(here)) == ["c"]
        assert (here / "c" / "b" / "file").read_bytes() == b"x"
        assert not (here / "a").exists()
        assert os.listdir(".") == ["file"]
        assert os.getcwd() == str(here / "c" / "b")
    finally:
        os.fchdir(before)
        os.close(before)


@pytest.mark.fuse
def test_what_the_kernel_never_saw_is_no_error(back: Back, here: Path) -> None:
    (ino,) = back.do(["mkdir", _ino(here), "unseen", 0o700, "cred"])
    assert ino is not None
    many = [(ino, f"n{number}") for number in range(BATCH_MAX + 1)]
    back.do(names=[*many, (10**9, "x")], inodes=[ino, 10**9, *range(2000, 2001 + BATCH_MAX)])
    back.do(names=[(_ino(here), "unseen")], inodes=[_ino(here)])
    assert os.listdir(here) == ["unseen"]


# --- without a kernel --------------------------------------------------------------------------


def _served() -> KernelCache:
    kernel = KernelCache()
    kernel.open()
    return kernel


def _failing(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(code, "told by the test")

    return fail


async def test_a_mount_that_is_gone_has_nothing_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "invalidate_inode", _failing(errno.ENODEV))
    await _served().forget(Outdated(inodes=(1,)))


async def test_a_kernel_that_can_not_forget_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "invalidate_entry", _failing(errno.ENOSYS))
    with pytest.raises(OSError, match="told by the test"):
        await _served().forget(Outdated(names=((1, b"x"),)))
    await KernelCache().forget(Outdated(names=((1, b"x"),)))  # not served yet: nothing is cached


async def test_closing_waits_for_the_batch_under_way_and_no_more_is_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = _served()
    done: list[int] = []

    def record(_: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
        trio.from_thread.run(trio.testing.wait_all_tasks_blocked)
        done.extend(inodes)

    monkeypatch.setattr(invalidate, "_invalidate", record)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.forget, Outdated(inodes=tuple(range(3 * BATCH_MAX))))
        await trio.testing.wait_all_tasks_blocked()
        await kernel.close()
        assert done == list(range(BATCH_MAX))
    await kernel.forget(Outdated(inodes=(7,)))
    assert done == list(range(BATCH_MAX))
