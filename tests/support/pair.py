"""Two directories side by side, one on a real mount and one plain: the same function on both.

Invariants
1. A scenario gets an empty directory and returns what it saw: values, or the name of an errno.
2. The plain directory is where pytest puts its own (ext4 or tmpfs): a scenario compares only what
   both of those do alike.
3. Forked children end with the block that made them, whatever happened in it.

Called by the tests of e2e.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import shutil
import signal
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from tests.support.mounting import mounted_workspace, workspace_config

T = TypeVar("T")

ANSWER_S_MAX: Final = 60.0

Line = socket.socket
"""A line between a forked child and its parent: see `say` and `hear`."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An empty directory on the mount, and an empty plain one."""

    here: Path
    native: Path

    def same(self, scenario: Callable[[Path], T]) -> T:
        """What the scenario saw, which must be the same in both."""
        wanted, got = scenario(self.native), scenario(self.here)
        assert got == wanted, f"here {got!r}, on a plain directory {wanted!r}"
        return got

    def both(self, scenario: Callable[[Path], T]) -> tuple[T, T]:
        """What the scenario saw: on the mount, and in the plain directory."""
        return scenario(self.here), scenario(self.native)


def has_user_xattrs(path: Path) -> bool:
    """Whether the filesystem keeps them: tmpfs does from Linux 6.6 on."""
    return bool(outcome(os.getxattr, path, "user.any") == "ENODATA")


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a call returns, or the name of the errno that it raises."""
    try:
        return function(*args, **kwargs)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


def opened(path: Any, flags: int, mode: int = 0o666) -> Any:
    """None when it can be opened so (it is closed again), or the name of the errno."""
    got = outcome(os.open, path, flags, mode)
    if isinstance(got, str):
        return got
    os.close(got)
    return None


def say(line: Line, word: bytes = b"x") -> None:
    """One byte to the other side."""
    line.sendall(word)


def hear(line: Line) -> bytes:
    """One byte from the other side; empty when it has ended. Raises TimeoutError."""
    return line.recv(1)


class Forked:
    """A function in a child process. `line` leads to it."""

    def __init__(self, function: Callable[[Line], Any]) -> None:
        self.line, theirs = socket.socketpair()
        self.line.settimeout(ANSWER_S_MAX)
        self._answers, answers = socket.socketpair()
        self._answers.settimeout(ANSWER_S_MAX)
        with warnings.catch_warnings():
            # The child only makes system calls and ends: it needs no lock that a thread may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            try:
                self.line.close()
                self._answers.close()
                theirs.settimeout(ANSWER_S_MAX)
                with contextlib.suppress(BrokenPipeError):
                    answers.sendall(_answer(function, theirs))
            finally:
                os._exit(0)
        theirs.close()
        answers.close()

    def result(self) -> Any:
        """What the function returned. Raises what it raised, AssertionError when it died."""
        raw = b""
        while piece := self._answers.recv(1 << 16):
            raw += piece
        assert raw, "the child ended without an answer"
        error, value = pickle.loads(raw)
        if error is not None:
            raise error
        return value

    def kill(self) -> None:
        """SIGKILL it and reap it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def close(self) -> None:
        """Invariant 3."""
        self.kill()
        self.line.close()
        self._answers.close()


def _answer(function: Callable[[Line], Any], line: Line) -> bytes:
    try:
        return pickle.dumps((None, function(line)))
    except OSError as exc:
        return pickle.dumps((exc, None))
    except BaseException:
        return pickle.dumps((AssertionError(traceback.format_exc()), None))


@contextlib.contextmanager
def forked(*functions: Callable[[Line], Any]) -> Iterator[list[Forked]]:
    """One child process for each function, until the end of the block."""
    with contextlib.ExitStack() as stack:
        children = []
        for function in functions:
            child = Forked(function)
            stack.callback(child.close)
            children.append(child)
        yield children


def at_once(functions: Sequence[Callable[[], T]]) -> list[T]:
    """What the functions return, each in a process of its own, all started by one signal."""

    def after_the_shot(function: Callable[[], T]) -> Callable[[Line], T]:
        def run(line: Line) -> T:
            say(line)
            hear(line)
            return function()

        return run

    with forked(*map(after_the_shot, functions)) as children:
        for child in children:
            assert hear(child.line), "a child died before it began"
        for child in children:
            say(child.line)
        return [child.result() for child in children]


def let_others_pass(base: Path) -> None:
    """pytest makes its directories 0700: let other users through (not: list)."""
    for directory in (base, *base.parents):
        if directory.stat().st_mode & 0o777 == 0o700:
            directory.chmod(0o711)


@pytest.fixture
def pair(here: Path, native: Path) -> Iterator[Pair]:
    """Empty directories for one test."""
    yield Pair(here, native)
    os.chdir("/")


@contextlib.contextmanager
def restored(base: Path, build: Callable[[Path], T]) -> Iterator[tuple[Path, T]]:
    """A workspace built by `build`, saved, and mounted by a host that has only the bucket.

    Gives its root and what `build` returned.
    """
    with mounted_workspace(workspace_config(base)) as workspace:
        built = build(workspace.mountpoint)
        workspace.signal()
        assert workspace.wait() == 0, workspace.log()
    shutil.rmtree(base / "cache")
    with mounted_workspace(workspace_config(base)) as workspace:
        yield workspace.mountpoint, built
