"""What other users may and may not do: errno and side effects, on the mount and natively.

The kernel decides (default_permissions) from the attributes we give it: these tests say that it has
the right ones at every moment, and that what it takes away (setuid, setgid) is taken away here too.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Callable
from errno import EACCES, ENODATA, EPERM
from pathlib import Path
from typing import Final

import pytest

from tests.support.actors import require_root
from tests.support.conformance import Call, Case, User, disagreements, on_descriptor, opened
from tests.support.pair import Pair

pytestmark = [pytest.mark.e2e, pytest.mark.fuse]

TEAM: Final = 52_000
OWNER: Final = User(52_001, 52_001, (TEAM,))
OTHER: Final = User(52_002, 52_002)
MEMBER: Final = User(52_003, 52_003, (5, TEAM, 6))
NEW: Final = os.O_CREAT | os.O_WRONLY


def _file(path: str, mode: int, *, uid: int = OWNER.uid, gid: int = OWNER.gid) -> None:
    Path(path).write_bytes(b"#!/bin/sh\n")
    os.chown(path, uid, gid)
    os.chmod(path, mode)


def _directory(path: str, mode: int, *, uid: int = OWNER.uid, gid: int = OWNER.gid) -> None:
    os.mkdir(path)
    os.chown(path, uid, gid)
    os.chmod(path, mode)


def build() -> None:
    """Everything is OWNER's, but for what says otherwise; the current directory is everybody's."""
    os.chmod(".", 0o777)
    for path, mode in (
        ("closed", 0o700),
        ("readable", 0o755),
        ("through", 0o711),
        ("list only", 0o744),
        ("for all", 0o777),
        ("sticky of owner", 0o1777),
    ):
        _directory(path, mode)
        _file(f"{path}/file", 0o644)
        _directory(f"{path}/dir", 0o755)
    _directory("for team", 0o770, gid=TEAM)
    _file("for team/file", 0o640, gid=TEAM)
    _directory("sticky", 0o1777, uid=0, gid=0)
    _file("sticky/owners", 0o666)
    _directory("sticky/owners dir", 0o777)
    _file("sticky/others", 0o666, uid=OTHER.uid)
    _file("sticky of owner/others", 0o666, uid=OTHER.uid)
    _directory("setgid", 0o2777, gid=TEAM)
    _file("file", 0o644)
    _file("secret", 0o600)
    _file("open to all", 0o666)
    _file("teams", 0o660, gid=TEAM)
    _file("not for the team", 0o604, gid=TEAM)
    _file("setuid", 0o6777)
    _file("program", 0o755)
    _file("mandatory", 0o2766)
    _file("of another group", 0o644, gid=OTHER.gid)
    os.symlink("secret", "link")
    os.lchown("link", OWNER.uid, OWNER.gid)
    with contextlib.suppress(PermissionError):
        # Root of a container may lack the capability.
        os.setxattr("file", "trusted.a", b"1")


def of(user: User) -> Callable[[str, int | None, Call], Case]:
    """Makes cases of a user."""
    return lambda what, wanted, call: Case(f"{user.uid}: {what}", call, wanted, user)


owner, other, member = of(OWNER), of(OTHER), of(MEMBER)

REACHING: Final = [
    other("stat in a closed directory", EACCES, lambda: os.stat("closed/file")),
    other("open in it", EACCES, lambda: opened("closed/file", os.O_RDONLY)),
    other("list it", EACCES, lambda: os.listdir("closed")),
    other("unlink in it", EACCES, lambda: os.unlink("closed/file")),
    other("look for what is not in it", EACCES, lambda: os.stat("closed/none")),
    other("enter it", EACCES, lambda: os.chdir("closed")),
    owner("open in a closed directory", 0, lambda: opened("closed/file", os.O_RDWR)),
    other("list what one may pass", EACCES, lambda: os.listdir("through")),
    other("open there by name", 0, lambda: opened("through/file", os.O_RDONLY)),
    other("list what one may not pass", 0, lambda: os.listdir("list only")),
    other("stat there", EACCES, lambda: os.stat("list only/file")),
    other("read a secret", EACCES, lambda: opened("secret", os.O_RDONLY)),
    other("read it by a link", EACCES, lambda: opened("link", os.O_RDONLY)),
    other("write what is readable", EACCES, lambda: opened("file", os.O_WRONLY)),
    other("truncate it", EACCES, lambda: os.truncate("file", 0)),
    other("open it truncating", EACCES, lambda: opened("file", os.O_RDONLY | os.O_TRUNC)),
    other("append to what is for all", 0, lambda: _append("open to all")),
    other("run what is no program", EACCES, lambda: subprocess.run(["./file"], check=True)),
    other("run a program", 0, lambda: subprocess.run(["./program"], check=True)),
    other("read the team's", EACCES, lambda: opened("teams", os.O_RDONLY)),
    other("read what is not for the team", 0, lambda: opened("not for the team", os.O_RDONLY)),
    member("read it", EACCES, lambda: opened("not for the team", os.O_RDONLY)),
    member("write the team's", 0, lambda: _append("teams")),
    member("create in the team's", 0, lambda: opened("for team/new", NEW)),
    member("write in the team's", EACCES, lambda: opened("for team/file", os.O_WRONLY)),
    other("create in the team's", EACCES, lambda: opened("for team/new", NEW)),
    other("not to touch atime", EPERM, lambda: opened("file", os.O_RDONLY | os.O_NOATIME)),
]

NAMES: Final = [
    *(
        other(f"{what} in a directory that is only readable", EACCES, call)
        for what, call in (
            ("create", lambda: opened("readable/new", NEW)),
            ("mkdir", lambda: os.mkdir("readable/new")),
            ("mkfifo", lambda: os.mkfifo("readable/new")),
            ("symlink", lambda: os.symlink("x", "readable/new")),
            ("link", lambda: os.link("open to all", "readable/new")),
            ("unlink", lambda: os.unlink("readable/file")),
            ("rmdir", lambda: os.rmdir("readable/dir")),
            ("rename from", lambda: os.rename("readable/file", "for all/new")),
            ("rename to", lambda: os.rename("for all/file", "readable/new")),
            ("rename", lambda: os.rename("readable/file", "readable/new")),
        )
    ),
    other("create where all may", 0, lambda: opened("for all/new", NEW, 0o666)),
    other("unlink where all may", 0, lambda: os.unlink("for all/file")),
    other("rmdir where all may", 0, lambda: os.rmdir("for all/dir")),
    other("rename where all may", 0, lambda: os.rename("for all/file", "new")),
    other("rename a directory in place", 0, lambda: os.rename("for all/dir", "for all/new")),
    # Its ".." would change, and it is not writable to them.
    other("move a directory of somebody", EACCES, lambda: os.rename("for all/dir", "new")),
    other("mknod of a device", EPERM, lambda: os.mknod("new", stat.S_IFCHR | 0o600, 0x103)),
    other("mkfifo", 0, lambda: os.mkfifo("new", 0o666)),
    other("unlink in a sticky directory", EPERM, lambda: os.unlink("sticky/owners")),
    other("rmdir there", EPERM, lambda: os.rmdir("sticky/owners dir")),
    other("rename there", EPERM, lambda: os.rename("sticky/owners", "sticky/new")),
    other("rename over it there", EPERM, lambda: os.rename("sticky/others", "sticky/owners")),
    other("rename from outside over it", EPERM, lambda: os.rename("for all/file", "sticky/owners")),
    other("unlink one's own there", 0, lambda: os.unlink("sticky/others")),
    other("rename one's own there", 0, lambda: os.rename("sticky/others", "sticky/new")),
    owner("unlink in one's sticky directory", 0, lambda: os.unlink("sticky of owner/others")),
    other("the same by another", EPERM, lambda: os.unlink("sticky of owner/file")),
    # What the machine's fs.protected_* say, it says on both sides.
    other("create over what is another's", None, lambda: opened("sticky/owners", NEW)),
    other("link what one can't write", None, lambda: os.link("secret", "new")),
    other("link what is setuid", None, lambda: os.link("setuid", "new")),
    other("link what one may write", 0, lambda: os.link("open to all", "new")),
]

OWNING: Final = [
    other("chmod", EPERM, lambda: os.chmod("file", 0o777)),
    other("chmod what is for all", EPERM, lambda: os.chmod("open to all", 0o777)),
    other("chown to oneself", EPERM, lambda: os.chown("open to all", OTHER.uid, -1)),
    other("chgrp to oneself", EPERM, lambda: os.chown("open to all", -1, OTHER.gid)),
    other("lchown", EPERM, lambda: os.lchown("link", OTHER.uid, -1)),
    other("times to now", EACCES, lambda: os.utime("file")),
    other("times to now of what is for all", 0, lambda: os.utime("open to all")),
    other("times by hand", EPERM, lambda: os.utime("open to all", ns=(1, 2))),
    owner("times by hand", 0, lambda: os.utime("file", ns=(1, 2))),
    owner("give away", EPERM, lambda: os.chown("file", OTHER.uid, -1)),
    owner("chown to oneself", 0, lambda: os.chown("file", OWNER.uid, OWNER.gid)),
    owner("chgrp to a group of others", EPERM, lambda: os.chown("file", -1, OTHER.gid)),
    owner("chgrp to one's group", 0, lambda: os.chown("file", -1, TEAM)),
    owner("chgrp of a directory", 0, lambda: os.chown("for all", OWNER.uid, TEAM)),
    owner("chmod", 0, lambda: os.chmod("file", 0o4711)),
    owner("setgid with its group", 0, lambda: os.chmod("file", 0o2755)),
    other("setxattr", EACCES, lambda: os.setxattr("file", "user.a", b"1")),
    owner("setxattr trusted", EPERM, lambda: os.setxattr("file", "trusted.a", b"2")),
    owner("getxattr trusted", ENODATA, lambda: os.getxattr("file", "trusted.a")),
    owner("removexattr trusted", EPERM, lambda: os.removexattr("file", "trusted.a")),
]

TAKEN_AWAY: Final = [
    # The call succeeds, and what it may not give is missing from the new mode.
    owner("setgid with a group of others", 0, lambda: os.chmod("of another group", 0o2755)),
    owner("chgrp of setuid", 0, lambda: os.chown("setuid", -1, TEAM)),
    owner("chown of setuid to oneself", 0, lambda: os.chown("setuid", OWNER.uid, -1)),
    owner("chown of nothing", 0, lambda: os.chown("setuid", -1, -1)),
    owner("write to setuid", 0, lambda: _append("setuid")),
    other("write to setuid", 0, lambda: _append("setuid")),
    other("truncate setuid", 0, lambda: os.truncate("setuid", 3)),
    other("truncate setuid to the same", 0, lambda: os.truncate("setuid", 10)),
    other("ftruncate setuid", 0, lambda: on_descriptor("setuid", os.O_WRONLY, _cut)),
    other("open setuid truncating", 0, lambda: opened("setuid", os.O_WRONLY | os.O_TRUNC)),
    other("write nothing to setuid", 0, lambda: on_descriptor("setuid", os.O_WRONLY, _nothing)),
    # Setgid that the group can't use: newer kernels take it away, but not of a FUSE filesystem.
    Case("write to setgid without x", lambda: _append("mandatory"), 0, OTHER, alone=True),
    Case("root writes to setuid", lambda: _append("setuid"), 0),
    Case("root truncates setuid", lambda: os.truncate("setuid", 3), 0),
    Case("root gives setuid away", lambda: os.chown("setuid", OTHER.uid, OTHER.gid), 0),
    Case("root gives a setuid directory away", lambda: os.chown("setgid", OTHER.uid, -1), 0),
    member("create in a setgid directory", 0, lambda: opened("setgid/new", NEW, 0o2775)),
    other("create there", 0, lambda: opened("setgid/new", NEW, 0o2775)),
    other("mkfifo there", 0, lambda: os.mkfifo("setgid/new", 0o2775)),
    member("mkdir in a setgid directory", 0, lambda: os.mkdir("setgid/new", 0o755)),
    other("mkdir there", 0, lambda: os.mkdir("setgid/new", 0o2755)),
    other("symlink there", 0, lambda: os.symlink("x", "setgid/new")),
]


def _append(path: str) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(b"more")


def _cut(fd: int) -> None:
    os.ftruncate(fd, 3)


def _nothing(fd: int) -> None:
    os.write(fd, b"")


@pytest.mark.parametrize(
    "cases",
    [REACHING, NAMES, OWNING, TAKEN_AWAY],
    ids=["reaching", "names", "owning", "taken away"],
)
def test_errnos_of_other_users(pair: Pair, cases: list[Case]) -> None:
    require_root()
    assert disagreements(pair, build, cases) == []
