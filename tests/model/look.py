"""Looking at two trees at once, and saying where they differ.

Invariants
1. Looking changes nothing that is compared later (atime is compared on the mount alone, which is
   noatime).
2. Inodes pair up: what is one inode on one side is one inode on the other, over time as well; an
   inode number of the mount is never given to another file.
3. Of times it is compared whether they moved; a time that was set is compared as a value by who
   set it. The mount's access time moves only for `utime`.

Called by tests.model.twins and tests.model.world.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Final

from tests.model.differences import holds_too_much, shown

MOUNT: Final = 0
PLAIN: Final = 1
BYTES_AT_ONCE: Final = 1 << 20
DIFFERENCES_SHOWN: Final = 20
VALUE_CHARS: Final = 200
HANDLE: Final = "handle "
"""What the labels of handles begin with; others are paths."""


class Difference(AssertionError):
    """The two sides are not the same."""


def on_both(do: Callable[[int], Any]) -> list[Any]:
    """The outcomes of `do(side)`, the mount's first."""
    return [outcome(functools.partial(do, side)) for side in (MOUNT, PLAIN)]


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the name of its errno."""
    try:
        return call()
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, str(exc.errno))


def walk(root: str) -> list[str]:
    """All names below `root`, relative to it, parents before children, sorted. Raises OSError."""
    found: list[str] = []
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                path = os.path.join(below, entry.name)
                found.append(path)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
    return sorted(found)


def drop_pages(fd: int) -> None:
    """Let the kernel forget its clean pages of a file: the next read asks who really has them."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_of(fd: int, *, size: int) -> bytes:
    """A file's bytes, and one more if there is one beyond its size."""
    parts, offset = [], 0
    while offset <= size and (piece := os.pread(fd, BYTES_AT_ONCE, offset)):
        parts.append(piece)
        offset += len(piece)
    return b"".join(parts)


def content(path: str, *, dropped: bool) -> bytes:
    """A regular file's bytes; `dropped`: not from the kernel's pages. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if dropped:
            drop_pages(fd)
        return bytes_of(fd, size=os.fstat(fd).st_size)
    finally:
        os.close(fd)


def xattrs_of(path: str) -> tuple[tuple[str, bytes], ...]:
    """All extended attributes, sorted. Raises OSError."""
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


@dataclass(frozen=True, slots=True)
class Entry:
    """Everything about a name."""

    shown: tuple[int, ...]
    ino: int
    times: tuple[int, int, int]
    xattrs: Any
    target: Any
    sha256: Any


Tree = dict[str, Entry]


def tree(root: str, *, dropped: bool, with_bytes: bool = True) -> Tree:
    """What stands below `root`, itself included as "". Raises OSError."""
    return {path: _entry(f"{root}/{path}", dropped, with_bytes) for path in ("", *walk(root))}


def _entry(path: str, dropped: bool, with_bytes: bool) -> Entry:
    info = os.lstat(path)
    target: Any = None
    sha256: Any = None
    if stat.S_ISLNK(info.st_mode):
        target = os.readlink(path)
    elif stat.S_ISREG(info.st_mode) and with_bytes:
        body = outcome(lambda: content(path, dropped=dropped))
        sha256 = hashlib.sha256(body).hexdigest() if isinstance(body, bytes) else body
    times = (info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns)
    xattrs = outcome(lambda: xattrs_of(path))
    return Entry(shown(info), info.st_ino, times, xattrs, target, sha256)


TWO_FILESYSTEMS: Final = frozenset(("ino", "times"))
"""Fields of Entry whose values belong to one side."""


def differences(wanted: Tree, got: Tree, *, ignore: Iterable[str] = ()) -> list[str]:
    """Every difference in words; `ignore`: fields of Entry."""
    names = [field.name for field in fields(Entry) if field.name not in set(ignore)]
    found = []
    for path in sorted(wanted.keys() | got.keys()):
        old, new = wanted.get(path), got.get(path)
        if old is None or new is None:
            found.append(f"{path!r}: {'is not wanted' if old is None else 'is missing'}")
            continue
        found += [
            f"{path!r}: {name} {str(is_now)[:VALUE_CHARS]}, wanted {str(wanted_now)[:VALUE_CHARS]}"
            for name in names
            if (is_now := getattr(new, name)) != (wanted_now := getattr(old, name))
        ]
    return found


@dataclass(slots=True)
class _Known:
    """An inode as it was last seen: (atime, mtime, ctime) of the mount, (mtime, ctime) beside."""

    plain_ino: int
    mount: tuple[int, int, int]
    plain: tuple[int, int]


class Watch:
    """Remembers the inodes of both sides from one look to the next (invariants 2 and 3)."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._newest = self._floor = 0
        self.is_of_mount = True
        """Whether the first side is a mount of ours: noatime, no inode number given twice."""
        self.loose: set[int] = set()
        """Inodes (of the mount) with stores through a mapping that nobody wrote back yet."""

    def look(
        self,
        seen: Iterable[tuple[str, os.stat_result, os.stat_result]],
        *,
        touched: frozenset[int] = frozenset(),
        atime_set: bool = False,
    ) -> None:
        """Compare what was seen (label, on the mount, beside). Raises Difference.

        touched: inodes of the mount whose times are not compared this time.
        """
        now: dict[int, _Known] = {}
        pairs: dict[int, int] = {}
        self._floor = self._newest
        for label, mount, plain in seen:
            if shown(mount) != shown(plain):
                raise Difference(
                    f"{label}: (mode, uid, gid, nlink, size, rdev) is {shown(mount)}, "
                    f"beside {shown(plain)}"
                )
            if self.is_of_mount and holds_too_much(mount):
                raise Difference(f"{label}: {mount.st_size} bytes in {mount.st_blocks} blocks")
            if now.get(mount.st_ino, _NOBODY).plain_ino not in (0, plain.st_ino) or (
                pairs.setdefault(plain.st_ino, mount.st_ino) != mount.st_ino
            ):
                raise Difference(f"{label}: shares its inode on one side only")
            now[mount.st_ino] = self._compare(label, mount, plain, touched, atime_set)
        self._known = now

    def _compare(
        self,
        label: str,
        mount: os.stat_result,
        plain: os.stat_result,
        touched: frozenset[int],
        atime_set: bool,
    ) -> _Known:
        ino = mount.st_ino
        known = _Known(
            plain.st_ino,
            (mount.st_atime_ns, mount.st_mtime_ns, mount.st_ctime_ns),
            (plain.st_mtime_ns, plain.st_ctime_ns),
        )
        before = self._known.get(ino)
        if before is None or before.plain_ino != plain.st_ino:
            # A handle may be of a file that stands outside the directory (by a symlink).
            is_old = ino <= self._floor and not label.startswith(HANDLE)
            if self.is_of_mount and (before is not None or is_old):
                raise Difference(f"{label}: inode number {ino} was another file's before")
            self._newest = max(ino, self._newest)
            return known
        if self.is_of_mount and known.mount[0] != before.mount[0] and not atime_set:
            raise Difference(f"{label}: atime moved from {before.mount[0]} to {known.mount[0]}")
        if ino in touched or ino in self.loose:
            return known
        for index, name in enumerate(("mtime", "ctime")):
            moved = known.mount[index + 1] - before.mount[index + 1]
            wanted = known.plain[index] - before.plain[index]
            if bool(moved) != bool(wanted):
                raise Difference(f"{label}: {name} moved by {moved} ns, beside by {wanted} ns")
        return known


_NOBODY: Final = _Known(0, (0, 0, 0), (0, 0))


def look_pairs(
    roots: tuple[str, str], paths: Iterable[str]
) -> list[tuple[str, os.stat_result, os.stat_result]]:
    """lstat of the same paths on both sides. Raises Difference where one side has none."""
    found = []
    for path in paths:
        infos: list[os.stat_result | None] = []
        for root in roots:
            info = None
            with contextlib.suppress(OSError):
                info = os.lstat(f"{root}/{path}")
            infos.append(info)
        mount, plain = infos
        if mount is None or plain is None:
            where = "on the mount" if mount is None else "beside"
            raise Difference(f"{path!r} can't be seen {where}")
        found.append((path, mount, plain))
    return found
