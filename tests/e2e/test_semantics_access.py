"""Who may do what: the kernel decides from our attributes, for root, owners, groups and strangers.

Everything is done by another user in a process of its own, on the mount and in a plain directory.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.actors import as_user, require_root
from tests.support.mounting import mounted_workspace, workspace_config
from tests.support.pair import Pair, has_user_xattrs, let_others_pass, opened, outcome
from tests.support.people import GROUP, NOBODYS, OTHER, OWNER, WHO, owned
from tests.support.syscalls import UTIME_NOW, UTIME_OMIT, utimensat

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

SCRIPT: Final = b"#!/bin/sh\nexit 7\n"


@pytest.fixture(autouse=True)
def _as_root() -> None:
    require_root()


@pytest.fixture(autouse=True)
def _umask() -> Any:
    before = os.umask(0o022)
    yield
    os.umask(before)


def _run(path: str) -> Any:
    """Exit status of the program; the errno of exec."""
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(path, [path])
        except OSError as exc:
            os._exit(100 + (exc.errno or 0))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _acts_on_attributes(name: str) -> list[Any]:
    return [
        outcome(os.getxattr, name, "user.x"),
        outcome(os.setxattr, name, "user.x", b"2"),
        outcome(os.removexattr, name, "user.x"),
        outcome(os.listxattr, name),
    ]


def _acts_on_a_file(name: str) -> list[Any]:
    return [
        opened(name, os.O_RDONLY),
        opened(name, os.O_WRONLY),
        opened(name, os.O_RDWR),
        opened(name, os.O_WRONLY | os.O_TRUNC | os.O_CREAT),
        opened(name, os.O_RDONLY | os.O_NOATIME),
        outcome(os.truncate, name, 5),
        [outcome(os.access, name, mode) for mode in (os.R_OK, os.W_OK, os.X_OK)],
        [
            outcome(os.access, name, mode, effective_ids=True)
            for mode in (os.R_OK, os.W_OK, os.X_OK, os.F_OK)
        ],
        outcome(os.utime, name),
        outcome(os.utime, name, ns=(1, 1)),
        stat.S_IMODE(os.stat(name).st_mode),
    ]


@pytest.mark.parametrize("what", ["content", "attributes"])
@pytest.mark.parametrize("who", WHO)
def test_bits_of_files(pair: Pair, who: str, what: str) -> None:
    modes = [0o000, 0o400, 0o200, 0o600, 0o040, 0o060, 0o004, 0o006, 0o077, 0o707, 0o604, 0o777]
    act = _acts_on_a_file if what == "content" else _acts_on_attributes
    if what == "attributes" and not has_user_xattrs(pair.native):
        pytest.skip("the plain directory's filesystem has no user extended attributes")

    def scenario(top: Path) -> list[Any]:
        top.chmod(0o755)
        for mode in modes:
            path = top / oct(mode)
            path.write_bytes(b"content")
            if what == "attributes":
                os.setxattr(path, "user.x", b"1")
            owned(path, mode)
        got = as_user(*WHO[who], lambda: [(oct(m), act(oct(m))) for m in modes], cwd=top)
        assert isinstance(got, list)
        return got

    pair.same(scenario)


@pytest.mark.parametrize("who", WHO)
def test_bits_for_running_programs(pair: Pair, who: str) -> None:
    """Root too needs one x bit somewhere."""
    modes = [0o644, 0o744, 0o654, 0o645, 0o100, 0o111, 0o555, 0o000]

    def scenario(top: Path) -> list[Any]:
        top.chmod(0o755)
        for mode in modes:
            (top / oct(mode)).write_bytes(SCRIPT)
            owned(top / oct(mode), mode)
        got = as_user(*WHO[who], lambda: [(oct(m), _run(f"./{m:#o}")) for m in modes], cwd=top)
        assert isinstance(got, list)
        return got

    pair.same(scenario)


def _acts_in_a_directory() -> list[Any]:
    return [
        outcome(lambda: sorted(os.listdir("d"))),
        outcome(lambda: os.stat("d/f").st_size),
        opened("d/f", os.O_RDONLY),
        opened("d/new", os.O_WRONLY | os.O_CREAT),
        opened("d/f", os.O_WRONLY | os.O_CREAT),
        outcome(os.mkdir, "d/sub"),
        outcome(os.symlink, "x", "d/link"),
        outcome(os.mkfifo, "d/fifo"),
        outcome(os.link, "mine", "d/linked"),
        outcome(os.rename, "d/f", "d/moved"),
        outcome(os.unlink, "d/f"),
        outcome(os.rmdir, "d/full"),
        outcome(os.chdir, "d"),
        outcome(lambda: sorted(os.listdir())),
        outcome(os.access, ".", os.W_OK | os.X_OK),
    ]


@pytest.mark.parametrize("who", WHO)
def test_bits_of_directories(pair: Pair, who: str) -> None:
    def scenario(top: Path) -> list[Any]:
        top.chmod(0o755)
        seen = []
        for number, mode in enumerate((0, 0o500, 0o300, 0o700, 0o050, 0o030, 0o070, 0o704, 0o777)):
            below = top / str(number)
            below.mkdir()
            (below / "d" / "full" / "x").mkdir(parents=True)
            (below / "d" / "f").write_bytes(b"data")
            (below / "mine").touch()
            os.chown(below / "mine", WHO[who][0], WHO[who][1])
            owned(below / "d", mode)
            seen.append([oct(mode), *as_user(*WHO[who], _acts_in_a_directory, cwd=below)])
            names = [(path.name, path.lstat()) for path in sorted((below / "d").iterdir())]
            seen.append([(n, i.st_uid, i.st_gid, stat.S_IMODE(i.st_mode)) for n, i in names])
        return seen

    pair.same(scenario)


@pytest.mark.parametrize("who", WHO)
def test_sticky_directories(pair: Pair, who: str) -> None:
    """Removing and renaming is for the entry's owner, the directory's owner, and root."""

    def act() -> list[Any]:
        return [
            outcome(os.unlink, "d/root's"),
            outcome(os.unlink, "d/owner's"),
            outcome(os.rename, "d/other's", "d/renamed"),
            outcome(os.rename, "d/owner's too", "d/renamed too"),
            outcome(os.rmdir, "d/root's dir"),
            outcome(os.rename, "mine", "d/root's too"),
            sorted(os.listdir("d")),
        ]

    def scenario(top: Path) -> list[Any]:
        seen = []
        for uid, gid in ((0, 0), (OWNER, GROUP)):
            below = top / f"{uid}"
            (below / "d").mkdir(parents=True)
            for name, owner in (
                ("root's", 0),
                ("root's too", 0),
                ("owner's", OWNER),
                ("owner's too", OWNER),
                ("other's", OTHER),
            ):
                (below / "d" / name).touch()
                owned(below / "d" / name, 0o666, owner, GROUP)
            (below / "d" / "root's dir").mkdir()
            (below / "mine").touch()
            owned(below / "mine", 0o644, WHO[who][0], GROUP)
            owned(below, 0o777)
            owned(below / "d", 0o1777, uid, gid)
            seen.append(as_user(*WHO[who], act, cwd=below))
        return seen

    pair.same(scenario)


def test_times_are_for_owners_and_now_for_who_may_write(pair: Pair) -> None:
    now, omit, given = (0, UTIME_NOW), (0, UTIME_OMIT), (1, 1)

    def act() -> list[Any]:
        return [
            outcome(utimensat, name, *times)
            for name in ("writable", "readable")
            for times in (
                (now, now),
                (given, given),
                (now, omit),
                (omit, now),
                (omit, given),
                (now, given),
                (omit, omit),
            )
        ]

    def scenario(top: Path) -> list[Any]:
        for name, mode in (("writable", 0o666), ("readable", 0o644)):
            (top / name).touch()
            owned(top / name, mode)
        return [as_user(*WHO[who], act, cwd=top) for who in ("owner", "other", "root")]

    seen = pair.same(scenario)
    assert seen[1] == [None, *["EPERM"] * 5, None, "EACCES", *["EPERM"] * 5, None]


def test_links_to_what_is_not_ours(pair: Pair) -> None:
    """Only compared: /proc/sys/fs/protected_hardlinks decides."""

    def act() -> list[Any]:
        return [
            outcome(os.link, "foreign", "linked"),
            outcome(os.link, "foreign writable", "linked too"),
            outcome(os.link, "setuid", "linked three"),
            outcome(os.rename, "foreign", "renamed"),
            outcome(os.unlink, "renamed"),
        ]

    def scenario(top: Path) -> list[Any]:
        top.chmod(0o777)
        for name, mode in (("foreign", 0o600), ("foreign writable", 0o666), ("setuid", 0o4755)):
            (top / name).touch()
            owned(top / name, mode, 0, 0)
        got = as_user(*WHO["other"], act, cwd=top)
        assert isinstance(got, list)
        return got

    pair.same(scenario)


def test_an_open_descriptor_keeps_its_rights(pair: Pair) -> None:
    def act() -> list[Any]:
        reader, writer = os.open("f", os.O_RDONLY), os.open("f", os.O_WRONLY)
        directory = os.open("d", os.O_RDONLY)
        os.chmod("f", 0)
        os.chmod("d", 0)
        seen = [
            outcome(os.write, writer, b"new"),
            outcome(os.read, reader, 3),
            outcome(os.write, reader, b"x"),
            outcome(os.read, writer, 1),
            outcome(os.ftruncate, writer, 1),
            outcome(os.ftruncate, reader, 1),
            outcome(os.listdir, directory),
            outcome(os.open, "inside", os.O_RDONLY, dir_fd=directory),
            opened("f", os.O_RDONLY),
        ]
        os.chmod("f", 0o600)
        return [*seen, opened("f", os.O_RDONLY)]

    def scenario(top: Path) -> list[Any]:
        (top / "f").write_bytes(b"old")
        (top / "d").mkdir()
        (top / "d" / "inside").touch()
        for name in ("f", "d"):
            owned(top / name, 0o700)
        got = as_user(*WHO["owner"], act, cwd=top)
        assert isinstance(got, list)
        return got

    assert pair.same(scenario)[:3] == [3, b"new", "EBADF"]


def test_without_allow_other_nobody_else_gets_in(tmp_path: Path) -> None:
    """Not even to see that it is there; and the owner of the mount is not disturbed."""
    let_others_pass(tmp_path)
    with mounted_workspace(workspace_config(tmp_path, allow_other=False)) as workspace:
        top = workspace.mountpoint
        top.chmod(0o777)
        (top / "f").touch()

        def act() -> list[Any]:
            return [
                outcome(call, top / name)
                for call in (os.stat, os.listdir, os.chdir)
                for name in ("", "f")
            ] + [outcome(os.open, top / "new", os.O_CREAT | os.O_WRONLY)]

        assert set(as_user(OTHER, NOBODYS, (), act)) == {"EACCES"}
        assert os.listdir(top) == ["f"]
