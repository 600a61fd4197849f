"""Modes and owners: who may change them, what changes clear, and what new files get.

Everything is done by another user in a process of its own, on the mount and in a plain directory.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.actors import as_user, require_root
from tests.support.pair import Pair, outcome
from tests.support.people import FURTHER, GROUP, NOBODYS, OTHER, WHO, owned

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]


@pytest.fixture(autouse=True)
def _as_root() -> None:
    require_root()


@pytest.fixture(autouse=True)
def _umask() -> Any:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("who", WHO)
def test_who_may_change_modes_and_owners(pair: Pair, who: str) -> None:
    def look(name: str) -> tuple[int, int, str]:
        info = os.stat(name)
        return info.st_uid, info.st_gid, oct(stat.S_IMODE(info.st_mode))

    def act() -> list[Any]:
        seen: list[Any] = []
        for name in ("file", "program", "dir"):
            for call, *arguments in (
                (os.chmod, name, 0o640),
                (os.chmod, name, 0o2755),
                (os.chmod, name, 0o6755),
                (os.chown, name, -1, GROUP),
                (os.chmod, name, 0o6755),
                (os.chown, name, -1, FURTHER),
                (os.chown, name, -1, NOBODYS),
                (os.chown, name, OTHER, -1),
                (os.chown, name, os.getuid(), -1),
                (os.chown, name, -1, -1),
                (os.chmod, name, 0o4711),
                (os.chown, name, -1, os.getgid()),
            ):
                seen += [outcome(call, *arguments), look(name)]
        return seen

    def scenario(top: Path) -> list[Any]:
        (top / "file").touch()
        (top / "program").touch()
        (top / "dir").mkdir()
        top.chmod(0o755)
        owned(top / "file", 0o644)
        owned(top / "program", 0o6755)
        owned(top / "dir", 0o2775)
        got = as_user(*WHO[who], act, cwd=top)
        assert isinstance(got, list)
        return got

    pair.same(scenario)


@pytest.mark.parametrize("who", WHO)
def test_setuid_and_setgid_go_when_the_file_changes(pair: Pair, who: str) -> None:
    """By write, truncation, copying and chown; root keeps them but for chown; directories keep."""

    def look(name: str) -> str:
        return oct(stat.S_IMODE(os.stat(name).st_mode))

    def write(name: str) -> None:
        fd = os.open(name, os.O_WRONLY)
        os.write(fd, b"new")
        os.close(fd)

    def write_nothing(name: str) -> None:
        fd = os.open(name, os.O_WRONLY)
        os.write(fd, b"")
        os.close(fd)

    def copy(name: str) -> None:
        fd = os.open(name, os.O_RDWR)
        os.copy_file_range(fd, fd, 2, 0, 5)
        os.close(fd)

    def append(name: str) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.writev(fd, [b"new"])
        os.close(fd)

    acts: Sequence[Callable[[str], object]] = (
        write,
        write_nothing,
        append,
        copy,
        lambda name: os.truncate(name, 3),
        lambda name: os.truncate(name, 30),
        lambda name: os.close(os.open(name, os.O_WRONLY | os.O_TRUNC)),
        lambda name: os.chown(name, -1, os.getgid()),
        lambda name: os.chown(name, os.getuid(), -1),
        lambda name: os.chown(name, -1, -1),
        os.utime,
        lambda name: os.listxattr(name),
        lambda name: os.rename(name, name),
        lambda name: os.link(name, name + " twin"),
    )
    cases = [
        (f"{mode:o} {number}", mode, act)
        for mode, (number, act) in itertools.product((0o6777, 0o2757, 0o4766), enumerate(acts))
    ]

    def scenario(top: Path) -> list[Any]:
        owned(top, 0o777)
        for name, mode, _ in cases:
            (top / name).write_bytes(b"content")
            owned(top / name, mode)
        got = as_user(
            *WHO[who],
            lambda: [(name, outcome(act, name), look(name)) for name, _, act in cases],
            cwd=top,
        )
        assert isinstance(got, list)
        return got

    pair.same(scenario)


def test_what_a_user_makes_is_the_users(pair: Pair) -> None:
    def act() -> list[Any]:
        os.umask(0o027)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o6777))
        os.mkdir("dir", 0o7777)
        os.symlink("x", "link")
        os.mkfifo("fifo", 0o666)
        seen: list[Any] = [outcome(os.mknod, "node", stat.S_IFCHR | 0o600, os.makedev(1, 3))]
        os.mkdir("shared/dir")
        os.close(os.open("shared/file", os.O_CREAT | os.O_WRONLY, 0o2775))
        os.close(os.open("shared/plain", os.O_CREAT | os.O_WRONLY, 0o775))
        return seen

    def scenario(top: Path) -> list[Any]:
        top.chmod(0o777)
        (top / "shared").mkdir()
        owned(top / "shared", 0o2777, 0, FURTHER)
        seen = as_user(OTHER, NOBODYS, (GROUP,), act, cwd=top)
        for path in sorted(top.rglob("*")):
            info = path.lstat()
            seen.append((path.name, info.st_uid, info.st_gid, oct(info.st_mode)))
        return seen

    assert pair.same(scenario)[0] == "EPERM"
