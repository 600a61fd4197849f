"""Changes behind the kernel's back, on a real mount: seen at once when `forget` has returned.

Each test first fills the kernel's caches, then changes by the filesystem itself, in the child. The
negative controls stand beside: without telling the kernel it goes on showing the old.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import mmap
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from s3ws_fs.core.types import Outdated
from s3ws_fs.fuse import notifier
from s3ws_fs.fuse.invalidate import (
    BATCH_MAX,
    TRIES_MAX,
    KernelCache,
    Notifier,
    entry_notice,
    inode_notice,
)
from tests.support.host import child_pids
from tests.support.mounting import mounted_layer

RSS_KIB_MAX = 12 * 1024


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
        attributes: Sequence[int] = (),
        renew: bool = False,
    ) -> list[int | None]:
        """Change, and have the kernel forget these; returns the inodes that calls returned."""
        ask: dict[str, Any] = {"calls": calls, "names": names, "inodes": inodes}
        ask |= {"attributes": attributes, "renew": renew}
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
def test_attributes_alone(back: Back, here: Path) -> None:
    path = here / "file"
    path.write_bytes(b"bytes")
    with path.open("rb") as file:
        assert os.fstat(file.fileno()).st_nlink == 1
        back.do(["link", _ino(path), _ino(here), "second"])
        assert os.fstat(file.fileno()).st_nlink == 1  # the control
        back.do(attributes=[_ino(path)])
        assert os.fstat(file.fileno()).st_nlink == 2
        assert file.read() == b"bytes"


@pytest.mark.fuse
def test_all_names_anew_at_once(back: Back, here: Path) -> None:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release < (6, 16):
        pytest.skip("the kernel has no epoch of names")
    inside = here / "inside"
    inside.mkdir()
    (here / "gone").write_bytes(b"x")
    here_ino = _ino(here)
    assert not (here / "new").exists()
    before = os.open(".", os.O_RDONLY)
    os.chdir(inside)
    try:
        back.do(["create", here_ino, "new", 0o600, "cred"], ["unlink", here_ino, "gone"])
        assert not (here / "new").exists() and (here / "gone").exists()  # the control
        back.do(renew=True)
        assert (here / "new").exists() and not (here / "gone").exists()
        # Who stands somewhere stays there.
        assert os.getcwd() == str(inside) and os.listdir(".") == []
        (here / "inside" / "later").touch()
        assert os.listdir(".") == ["later"] and os.getcwd() == str(inside)
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


# --- the process that does it, without a kernel --------------------------------------------------


class Fake:
    """Stands in for the process: answers each batch with `code`, or dies of it."""

    def __init__(self, nursery: trio.Nursery, code: int = 0, deaths: int = 0) -> None:
        self._nursery = nursery
        self._code = code
        self._deaths = deaths
        self.seen: list[list[bytes]] = []
        self.gate = trio.Event()
        self.gate.set()

    async def start(self, kernel_fd: int) -> Notifier:
        ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made = Notifier(ours)
        self._nursery.start_soon(self._serve, theirs, made)
        return made

    async def _serve(self, line: trio.socket.SocketType, made: Notifier) -> None:
        with line:
            while batch := await line.recv(notifier.BATCH_BYTES_MAX):
                await self.gate.wait()
                self.seen.append(list(_notices(batch)))
                if self._deaths:
                    self._deaths -= 1
                    break
                with contextlib.suppress(OSError):
                    await line.send(array.array("i", [self._code] * len(self.seen[-1])).tobytes())
        made.ended.set()

    def served(self) -> KernelCache:
        kernel = KernelCache(self.start)
        kernel.open(-1)
        return kernel


def _notices(batch: bytes) -> Iterator[bytes]:
    while batch:
        length = int.from_bytes(batch[:4], sys.byteorder)
        yield batch[:length]
        batch = batch[length:]


async def test_a_mount_that_is_gone_has_nothing_cached() -> None:
    async with trio.open_nursery() as nursery:
        kernel = Fake(nursery, errno.ENODEV).served()
        await kernel.forget(Outdated(inodes=(1,)))
        await kernel.close()


async def test_a_kernel_that_can_not_forget_is_an_error() -> None:
    async with trio.open_nursery() as nursery:
        kernel = Fake(nursery, errno.ENOSYS).served()
        with pytest.raises(OSError, match="not implemented"):
            await kernel.forget(Outdated(names=((1, b"x"),)))
        await kernel.close()
    await KernelCache().forget(Outdated(names=((1, b"x"),)))  # not served yet: nothing is cached


async def test_closing_waits_for_the_batch_under_way_and_no_more_is_begun() -> None:
    inodes = range(3 * BATCH_MAX)
    async with trio.open_nursery() as nursery:
        fake = Fake(nursery)
        kernel = fake.served()
        fake.gate = trio.Event()
        nursery.start_soon(kernel.forget, Outdated(inodes=tuple(inodes)))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(kernel.close)
        await trio.testing.wait_all_tasks_blocked()
        assert not fake.seen
        fake.gate.set()
    assert fake.seen == [[inode_notice(inode) for inode in inodes[:BATCH_MAX]]]
    await kernel.forget(Outdated(inodes=(7,)))
    assert len(fake.seen) == 1


async def test_a_batch_whose_process_died_is_handed_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with trio.open_nursery() as nursery:
        fake = Fake(nursery, deaths=TRIES_MAX - 1)
        kernel = fake.served()
        await kernel.forget(Outdated(names=((1, b"x"),), inodes=(1,)))
        assert fake.seen == [[entry_notice(1, b"x")]] * TRIES_MAX + [[inode_notice(1)]]
        await kernel.close()


async def test_processes_that_die_again_and_again_are_an_error() -> None:
    async with trio.open_nursery() as nursery:
        fake = Fake(nursery, deaths=TRIES_MAX)
        kernel = fake.served()
        with pytest.raises(OSError, match="died again and again"):
            await kernel.forget(Outdated(inodes=(1,)))
        assert len(fake.seen) == TRIES_MAX
        await kernel.forget(Outdated(inodes=(2,)))
        await kernel.close()


async def test_a_late_answer_is_not_taken_for_that_to_the_next_batch() -> None:
    async with trio.open_nursery() as nursery:
        fake = Fake(nursery, errno.ENOSYS)
        kernel = fake.served()
        fake.gate = trio.Event()
        with trio.move_on_after(0) as scope:
            await trio.testing.wait_all_tasks_blocked()
            await kernel.forget(Outdated(inodes=(1,)))
        assert scope.cancelled_caught
        fake._code = 0
        fake.gate.set()
        await kernel.forget(Outdated(inodes=(2,)))
        await kernel.close()
    assert fake.seen[-1] == [inode_notice(2)]


async def test_the_process_itself_does_all_of_a_batch(tmp_path: Path) -> None:
    """On a file instead of the kernel. It ends when it is hung up on, and is buried."""
    path = tmp_path / "kernel"
    names = tuple((1, b"%03d" % number + b"n" * 252) for number in range(BATCH_MAX + 1))
    with path.open("wb") as file:
        kernel = KernelCache()
        kernel.open(file.fileno())
        await kernel.forget(Outdated(names=names, inodes=(7,)))
        (pid,) = (
            pid
            for pid in child_pids(os.getpid())
            if b"notifier.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        status = Path(f"/proc/{pid}/status").read_text()
        held = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        await kernel.close()
    assert not Path(f"/proc/{pid}").exists()
    (rss_kib,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
    print(f"VmRSS {rss_kib} KiB")
    assert int(rss_kib) < RSS_KIB_MAX
    assert len([name for name in held if name.startswith("socket:")]) == 1, "only the line to us"
    assert list(_notices(path.read_bytes())) == [
        *(entry_notice(*name) for name in names),
        inode_notice(7),
    ]


async def test_a_process_that_rested_too_long_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "notifier.py"
    source = Path(notifier.__file__).read_text()
    assert "\nIDLE_S = 30.0\n" in source
    program.write_text(source.replace("\nIDLE_S = 30.0\n", "\nIDLE_S = 0.2\n"))
    monkeypatch.setattr(notifier, "__file__", str(program))
    path = tmp_path / "kernel"
    with path.open("wb") as file:
        kernel = KernelCache()
        kernel.open(file.fileno())
        await kernel.forget(Outdated(inodes=(1,)))
        assert kernel._notifier is not None
        await kernel._notifier.ended.wait()
        await kernel.forget(Outdated(inodes=(2,)))
        await kernel.close()
    assert list(_notices(path.read_bytes())) == [inode_notice(1), inode_notice(2)]


def test_a_process_without_its_daemon_ends(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, (tmp_path / "kernel").open("wb") as file:
        numbers = (file.fileno(), theirs.fileno())
        command = [sys.executable, "-I", "-S", "-E", notifier.__file__, *map(str, numbers)]
        with subprocess.Popen(command, pass_fds=numbers) as process:
            theirs.close()
            ours.send(inode_notice(1) + inode_notice(2))
            ours.close()
            assert process.wait(60) == 0
    assert list(_notices((tmp_path / "kernel").read_bytes())) == [inode_notice(1), inode_notice(2)]


@pytest.mark.fuse
def test_the_notifications_are_those_of_libfuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and numbers as in the kernel's fuse.h: what a real mount takes is tested above."""
    assert inode_notice(5) == struct.pack("=IiQQqq", 40, 2, 0, 5, 0, 0)
    assert entry_notice(6, b"ab") == struct.pack("=IiQQII", 35, 3, 0, 6, 2, 0) + b"ab\0"
