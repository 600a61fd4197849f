"""A table of system calls, each made on the mount and on a plain directory, and all they changed.

Invariants
1. Every call starts from a whole tree of known inodes, whose times lie before the clock's present.
2. What a call changed is read by lstat of every inode of the tree, before and after: a failed call
   changes nothing, a successful one the same as on the plain directory.
3. atime is compared on the mount alone: nothing but utimensat changes it there.

Called by tests/e2e/test_errnos*.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from tests.support.actors import as_user, errno_of
from tests.support.mounting import wait_until
from tests.support.pair import Pair

AT_FDCWD: Final = -100
NOREPLACE: Final = 1
EXCHANGE: Final = 2
TREE: Final = "t"
TIMES: Final = ("atime", "mtime", "ctime")
OLD_NS: Final = 1_000_000_000_000_000_000

LONGEST_NAME: Final = "n" * 255
LONG_NAME: Final = "n" * 256
LONGEST_PATH: Final = "./" * 2047 + "q"
"""4,095 bytes, PATH_MAX with the NUL at its end; no such file."""
LONG_PATH: Final = "./" * 2047 + "qq"

_libc = ctypes.CDLL(None, use_errno=True)

Call = Callable[[], object]


@dataclass(frozen=True)
class User:
    """Who calls. None instead of a User: whoever runs the tests."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """A call in the tree's directory. `wanted`: its errno, 0 for success, None: as natively.

    `alone`: the plain directory has its own way (a tmpfs, say): only the mount is asked.
    """

    what: str
    call: Call
    wanted: int | None
    user: User | None = None
    alone: bool = False


@dataclass(frozen=True)
class Outcome:
    """The errno of a call, and each (path, field) that it changed."""

    error: str
    changed: frozenset[tuple[str, str]]


Snapshot = dict[str, dict[str, Any]]


def case(what: str, wanted: int | None, call: Call, *, alone: bool = False) -> Case:
    """A case of whoever runs the tests."""
    return Case(what, call, wanted, alone=alone)


def paths(what: str, call: Callable[[str], object], *, absent: int = errno.ENOENT) -> list[Case]:
    """The cases that every call with a path has, in a tree with a file, a fifo, and links."""
    wrong = {
        "absent": ("none", absent),
        "in an absent directory": ("none/x", errno.ENOENT),
        "nothing": ("", errno.ENOENT),
        "below a file": ("file/x", errno.ENOTDIR),
        "below a fifo": ("fifo/x", errno.ENOTDIR),
        "below a dangling link": ("dangling/x", errno.ENOENT),
        "through a loop": ("loop/x", errno.ELOOP),
        "a name of 255 bytes": (LONGEST_NAME, absent),
        "a name of 256 bytes": (LONG_NAME, errno.ENAMETOOLONG),
        "a directory of 256 bytes": (f"{LONG_NAME}/x", errno.ENAMETOOLONG),
        "a path of 4,095 bytes": (LONGEST_PATH, absent),
        "a path of 4,096 bytes": (LONG_PATH, errno.ENAMETOOLONG),
    }
    return [
        Case(f"{what} {words}", partial(call, path), wanted)
        for words, (path, wanted) in wrong.items()
    ]


def build_one_of_everything() -> None:
    """The tree of the cases that need no other user, in the current directory."""
    for directory in ("empty", "full", "full/sub", "other"):
        os.mkdir(directory)
    for file in ("file", "full/entry", "other/file"):
        Path(file).write_bytes(b"some bytes")
    os.link("file", "twin")
    os.symlink("loop", "loop")
    os.symlink("none", "dangling")
    os.symlink("file", "to file")
    os.symlink("full", "to full")
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("socket")
    for path in ("file", "empty", "full", "fifo"):
        os.utime(path, ns=(OLD_NS, OLD_NS))


def renameat2(old: str, new: str, flags: int) -> None:
    """renameat2(2). Raises OSError."""
    if _libc.renameat2(AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def opened(path: str, flags: int, mode: int = 0o644) -> None:
    """open(2) and close(2)."""
    os.close(os.open(path, flags, mode))


def on_descriptor(path: str, flags: int, call: Callable[[int], object]) -> None:
    """open(2), a call on the descriptor, close(2)."""
    fd = os.open(path, flags)
    try:
        call(fd)
    finally:
        os.close(fd)


def name(code: int) -> str:
    """The name of an errno, "OK" for 0."""
    return errno.errorcode[code] if code else "OK"


def snapshot(top: Path, *, atime: bool) -> Snapshot:
    """What lstat says of each inode below `top`, and its bytes or target, by path."""
    seen: Snapshot = {}
    for path in [top, *sorted(top.rglob("*"))]:
        info = path.lstat()
        fields: dict[str, Any] = {
            "mode": oct(info.st_mode),
            "owner": (info.st_uid, info.st_gid),
            "mtime": info.st_mtime_ns,
            "ctime": info.st_ctime_ns,
        }
        if atime:
            fields["atime"] = info.st_atime_ns
        if not stat.S_ISDIR(info.st_mode):
            # A directory's link count and size are a filesystem's own affair.
            fields |= {"nlink": info.st_nlink, "size": info.st_size}
        if stat.S_ISREG(info.st_mode) and os.access(path, os.R_OK):
            fields["bytes"] = path.read_bytes()
        if path.is_symlink():
            fields["target"] = os.readlink(path)
        seen[str(path.relative_to(top))] = fields
    return seen


def changes(before: Snapshot, after: Snapshot) -> frozenset[tuple[str, str]]:
    """(path, what) of everything that differs: a time by name, all else with its new value."""
    found = {(path, "gone") for path in before.keys() - after.keys()}
    for path in after.keys() - before.keys():
        found.add((path, f"new {after[path]['mode']} {after[path]['owner']}"))
    for path in before.keys() & after.keys():
        for field, value in after[path].items():
            if before[path].get(field) != value:
                found.add((path, field if field in TIMES else f"{field} {value!r:.60}"))
    return frozenset(found)


def _clock_goes_on(top: Path) -> None:
    """Wait until a change now has a later ctime than everything below `top` (invariant 1)."""
    newest_ns = max(path.lstat().st_ctime_ns for path in [top, *top.rglob("*")])
    probe = top.parent / f"{top.name}.probe"
    probe.touch()

    def later() -> bool:
        probe.chmod(0o600)
        return probe.stat().st_ctime_ns > newest_ns

    wait_until(later, what="the filesystem's clock stands")
    probe.unlink()


class Side:
    """One of the two directories, with a tree made by `build` in it, made anew when changed."""

    def __init__(self, base: Path, build: Callable[[], None], *, atime: bool) -> None:
        self._base = base
        self._build = build
        self._atime = atime
        self._number = 0
        self._top: Path | None = None

    def run(self, case: Case) -> Outcome:
        """Make the call; the tree is left alone when it failed."""
        top = self._tree()
        before = snapshot(top, atime=self._atime)
        user = case.user
        if user is None:
            with contextlib.chdir(top):
                code = errno_of(case.call)
        else:
            code = as_user(user.uid, user.gid, user.groups, lambda: errno_of(case.call), cwd=top)
        changed = changes(before, snapshot(top, atime=self._atime))
        if changed:
            self._top = None
        return Outcome(name(code), changed)

    def _tree(self) -> Path:
        if self._top is None:
            self._number += 1
            parent = self._base / f"{TREE}{self._number}"
            parent.mkdir()
            self._top = parent / TREE
            self._top.mkdir()
            with contextlib.chdir(self._top):
                self._build()
            _clock_goes_on(self._top)
        return self._top


def disagreements(pair: Pair, build: Callable[[], None], cases: Iterable[Case]) -> list[str]:
    """Run every case on both sides; in words, each that is not as it should be."""
    here, native = Side(pair.here, build, atime=True), Side(pair.native, build, atime=False)
    found: list[str] = []
    for case in cases:
        ours = here.run(case)
        if case.wanted is not None and ours.error != name(case.wanted):
            found.append(f"{case.what}: {ours.error}, should be {name(case.wanted)}")
        if ours.error != "OK" and ours.changed:
            found.append(f"{case.what}: failed with {ours.error} and changed {_words(ours)}")
        if not case.alone:
            theirs = native.run(case)
            if ours.error != theirs.error:
                found.append(f"{case.what}: {ours.error}, natively {theirs.error}")
            without = frozenset(item for item in ours.changed if item[1] != "atime")
            if without != theirs.changed:
                found.append(f"{case.what}: changed {_words(ours)}, natively {_words(theirs)}")
    return found


def _words(outcome: Outcome) -> Sequence[str]:
    return sorted(f"{path}: {field}" for path, field in outcome.changed) or ["nothing"]
