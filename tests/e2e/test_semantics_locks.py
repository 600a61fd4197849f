"""Locks between processes, and what else processes on one host use a file for to meet.

Every wait is for another process's word over a socket, or for the lock itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.mounting import wait_until
from tests.support.pair import Forked, Line, Pair, forked, hear, outcome, say

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

F_OFD_GETLK: Final = 36
F_OFD_SETLK: Final = 37
F_OFD_SETLKW: Final = 38
_FLOCK: Final = "hhqqi4x"

ROUNDS: Final = 60
WORKERS: Final = 3


def _lock_struct(kind: int, start: int, length: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)


def _flock(fd: int, kind: int, *, wait: bool) -> None:
    fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)


_KINDS: Final = {
    fcntl.LOCK_EX: fcntl.F_WRLCK,
    fcntl.LOCK_SH: fcntl.F_RDLCK,
    fcntl.LOCK_UN: fcntl.F_UNLCK,
}


def _fcntl(fd: int, kind: int, *, wait: bool) -> None:
    command = fcntl.F_SETLKW if wait else fcntl.F_SETLK
    fcntl.fcntl(fd, command, _lock_struct(_KINDS[kind], 5, 10))


def _ofd(fd: int, kind: int, *, wait: bool) -> None:
    fcntl.fcntl(fd, F_OFD_SETLKW if wait else F_OFD_SETLK, _lock_struct(_KINDS[kind], 5, 10))


KINDS: Final[dict[str, Callable[..., None]]] = {"flock": _flock, "fcntl": _fcntl, "ofd": _ofd}

every_kind = pytest.mark.parametrize("lock", KINDS.values(), ids=KINDS)


def _is_blocked(child: Forked) -> bool:
    """Whether it sleeps in the kernel (for the lock: it does nothing else)."""
    stat = Path(f"/proc/{child.pid}/stat").read_text()
    return stat.rsplit(")", 1)[1].split()[0] == "S"


@every_kind
def test_a_waiter_wakes_when_the_lock_is_let_go(pair: Pair, lock: Callable[..., None]) -> None:
    def waiter(path: Path, line: Line) -> str:
        fd = os.open(path, os.O_RDWR)
        refused = outcome(lock, fd, fcntl.LOCK_EX, wait=False)
        say(line)
        lock(fd, fcntl.LOCK_EX, wait=True)
        os.write(fd, b"got it")
        say(line)
        return str(refused)

    def scenario(top: Path) -> list[Any]:
        path = top / "f"
        path.touch()
        fd = os.open(path, os.O_RDWR)
        lock(fd, fcntl.LOCK_EX, wait=False)
        with forked(functools.partial(waiter, path)) as (child,):
            hear(child.line)
            wait_until(lambda: _is_blocked(child), what="the waiter does not wait")
            seen: list[Any] = [path.read_bytes()]
            lock(fd, fcntl.LOCK_UN, wait=False)
            hear(child.line)
            seen += [path.read_bytes(), child.result()]
        os.close(fd)
        return seen

    got = pair.same(scenario)
    assert got[:2] == [b"", b"got it"]
    assert got[2] in ("EAGAIN", "EACCES")


@every_kind
@pytest.mark.parametrize("end", ["close", "death"])
def test_a_lock_ends_with_its_holder(pair: Pair, lock: Callable[..., None], end: str) -> None:
    def holder(path: Path, line: Line) -> None:
        fd = os.open(path, os.O_RDWR)
        lock(fd, fcntl.LOCK_EX, wait=True)
        say(line)
        hear(line)
        os.close(fd)
        say(line)
        hear(line)

    def scenario(top: Path) -> list[Any]:
        path = top / "f"
        path.touch()
        fd = os.open(path, os.O_RDWR)
        with forked(functools.partial(holder, path)) as (child,):
            hear(child.line)
            seen: list[Any] = [outcome(lock, fd, fcntl.LOCK_EX, wait=False) is None]
            if end == "death":
                os.kill(child.pid, signal.SIGKILL)
            else:
                say(child.line)
                hear(child.line)
            lock(fd, fcntl.LOCK_EX, wait=True)
        os.close(fd)
        return seen

    assert pair.same(scenario) == [False]


@every_kind
def test_readers_share_and_writers_do_not(pair: Pair, lock: Callable[..., None]) -> None:
    def other(path: Path, line: Line) -> list[bool]:
        fd = os.open(path, os.O_RDWR)
        kinds = (fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_EX)
        return [outcome(lock, fd, kind, wait=False) is None for kind in kinds]

    def scenario(top: Path) -> Any:
        path = top / "f"
        path.touch()
        fd = os.open(path, os.O_RDWR)
        lock(fd, fcntl.LOCK_SH, wait=False)
        with forked(functools.partial(other, path)) as (child,):
            seen = child.result()
        lock(fd, fcntl.LOCK_EX, wait=False)
        with forked(functools.partial(other, path)) as (child,):
            seen += child.result()
        os.close(fd)
        return seen

    assert pair.same(scenario) == [True, True, False, False, True, False]


@every_kind
def test_a_counter_behind_a_lock_counts_right(pair: Pair, lock: Callable[..., None]) -> None:
    def work(path: Path, line: Line) -> None:
        say(line)
        hear(line)
        for _ in range(ROUNDS):
            fd = os.open(path, os.O_RDWR)
            lock(fd, fcntl.LOCK_EX, wait=True)
            count = int(os.pread(fd, 20, 0))
            os.pwrite(fd, b"%d" % (count + 1), 0)
            os.close(fd)

    def scenario(top: Path) -> int:
        path = top / "f"
        path.write_bytes(b"0")
        with forked(*[functools.partial(work, path)] * WORKERS) as children:
            for child in children:
                hear(child.line)
            for child in children:
                say(child.line)
            for child in children:
                child.result()
        return int(path.read_bytes())

    assert pair.same(scenario) == ROUNDS * WORKERS


def test_record_locks_are_by_range_and_say_who_holds_them(pair: Pair) -> None:
    def other(path: Path, line: Line) -> list[Any]:
        fd = os.open(path, os.O_RDWR)
        seen: list[Any] = []
        for start, length in ((0, 10), (10, 10), (25, 0)):
            seen.append(outcome(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start))
        for command in (fcntl.F_GETLK, F_OFD_GETLK):
            raw = fcntl.fcntl(fd, command, _lock_struct(fcntl.F_WRLCK, 0, 30))
            kind, _, start, length, pid = struct.unpack(_FLOCK, raw)
            seen.append((kind, start, length, pid == os.getppid()))
        return seen

    def scenario(top: Path) -> Any:
        path = top / "f"
        path.touch()
        fd = os.open(path, os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 10)
        with forked(functools.partial(other, path)) as (child,):
            seen = child.result()
        # Closing any descriptor of the file ends this process's record locks.
        os.close(os.open(path, os.O_RDONLY))
        with forked(functools.partial(other, path)) as (child,):
            seen += child.result()[:3]
        os.close(fd)
        return seen

    seen = pair.same(scenario)
    assert (seen[0], seen[2]) == (None, None)
    assert seen[1] in ("EAGAIN", "EACCES")


def test_ofd_locks_belong_to_the_open_file(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        (top / "f").touch()
        one, two = (os.open(top / "f", os.O_RDWR) for _ in range(2))
        twin = os.dup(one)
        _ofd(one, fcntl.LOCK_EX, wait=False)
        seen: list[Any] = [outcome(_ofd, two, fcntl.LOCK_EX, wait=False)]
        seen.append(outcome(_ofd, twin, fcntl.LOCK_EX, wait=False))
        os.close(one)
        seen.append(outcome(_ofd, two, fcntl.LOCK_EX, wait=False))
        os.close(twin)
        seen.append(outcome(_ofd, two, fcntl.LOCK_EX, wait=False))
        os.close(two)
        return seen

    assert pair.same(scenario) == ["EAGAIN", None, "EAGAIN", None]


def test_two_that_wait_for_each_other_are_told(pair: Pair) -> None:
    """The kernel finds the deadlock of record locks."""

    def other(path: Path, line: Line) -> None:
        fd = os.open(path, os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)
        say(line)
        hear(line)
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)

    def scenario(top: Path) -> Any:
        path = top / "f"
        path.touch()
        fd = os.open(path, os.O_RDWR)
        with forked(functools.partial(other, path)) as (child,):
            hear(child.line)
            fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
            say(child.line)
            wait_until(lambda: _is_blocked(child))
            got = outcome(fcntl.lockf, fd, fcntl.LOCK_EX, 1, 1)
        os.close(fd)
        return got

    assert pair.same(scenario) == errno.errorcode[errno.EDEADLK]


def test_locks_need_the_right_kind_of_descriptor(pair: Pair) -> None:
    def scenario(top: Path) -> list[Any]:
        (top / "f").touch()
        reader, writer = os.open(top / "f", os.O_RDONLY), os.open(top / "f", os.O_WRONLY)
        directory = os.open(top, os.O_RDONLY)
        seen = [
            outcome(fcntl.lockf, reader, fcntl.LOCK_EX),
            outcome(fcntl.lockf, writer, fcntl.LOCK_SH),
            outcome(fcntl.flock, reader, fcntl.LOCK_EX),
            outcome(fcntl.flock, directory, fcntl.LOCK_EX | fcntl.LOCK_NB),
        ]
        for fd in (reader, writer, directory):
            os.close(fd)
        return seen

    assert pair.same(scenario) == ["EBADF", "EBADF", None, None]


# --- fifos, sockets, notifications -----------------------------------------------------------


def test_a_fifo_joins_two_processes(pair: Pair) -> None:
    def writer(path: Path, _line: Line) -> None:
        with path.open("wb", buffering=0) as out:
            for number in range(100):
                out.write(b"%03d" % number)

    def scenario(top: Path) -> Any:
        os.mkfifo(top / "fifo")
        nobody = outcome(os.open, top / "fifo", os.O_WRONLY | os.O_NONBLOCK)
        with forked(functools.partial(writer, top / "fifo")) as (child,):
            with (top / "fifo").open("rb") as source:
                text = source.read()
            child.result()
        return nobody, text, (top / "fifo").stat().st_size

    assert pair.same(scenario) == ("ENXIO", b"".join(b"%03d" % n for n in range(100)), 0)


def test_a_socket_joins_two_processes(pair: Pair) -> None:
    def client(top: Path, _line: Line) -> bytes:
        os.chdir(top)  # the address of a socket is short
        with socket.socket(socket.AF_UNIX) as line:
            line.connect("socket")
            line.sendall(b"question")
            return line.recv(100)

    def scenario(top: Path) -> list[Any]:
        os.chdir(top)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
            listener.listen()
            with forked(functools.partial(client, top)) as (child,):
                connection, _ = listener.accept()
                with connection:
                    seen: list[Any] = [connection.recv(100)]
                    connection.sendall(b"answer")
                    seen.append(child.result())
            with socket.socket(socket.AF_UNIX) as second:
                seen.append(outcome(second.bind, "socket"))
        with socket.socket(socket.AF_UNIX) as late:
            seen.append(outcome(late.connect, "socket"))
        seen.append(outcome(os.open, "socket", os.O_RDONLY))
        os.unlink("socket")
        return seen

    wanted = [b"question", b"answer", "EADDRINUSE", "ECONNREFUSED", "ENXIO"]
    assert pair.same(scenario) == wanted


def test_inotify_sees_what_local_processes_do(pair: Pair) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def work(top: Path, _line: Line) -> None:
        (top / "a").write_bytes(b"x")
        os.rename(top / "a", top / "b")
        os.chmod(top / "b", 0o600)
        (top / "b").read_bytes()
        os.mkdir(top / "d")
        os.unlink(top / "b")
        os.rmdir(top / "d")

    def scenario(top: Path) -> list[tuple[int, bytes]]:
        fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert libc.inotify_add_watch(fd, os.fsencode(top), 0xFFF) > 0
        with forked(functools.partial(work, top)) as (child,):
            child.result()
        seen = []
        with contextlib.suppress(BlockingIOError):
            while True:
                raw, at = os.read(fd, 65_536), 0
                while at < len(raw):
                    _, mask, _, length = struct.unpack_from("iIII", raw, at)
                    seen.append((mask, raw[at + 16 : at + 16 + length].rstrip(b"\0")))
                    at += 16 + length
        os.close(fd)
        return seen

    assert len(pair.same(scenario)) >= 12


def test_polling_a_file_says_ready(pair: Pair) -> None:
    def scenario(top: Path) -> int:
        with (top / "f").open("w+b") as file:
            poll = select.poll()
            poll.register(file, select.POLLIN | select.POLLOUT)
            return poll.poll(0)[0][1]

    assert pair.same(scenario) == select.POLLIN | select.POLLOUT
