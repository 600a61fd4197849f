"""The same operations on a mount and on a plain directory: names, attributes, and comparing.

Invariants
1. Every operation is a method with plain arguments, done on both sides by the same user; its
   result (a value, or the name of an errno) must be the same, or Difference is raised.
2. After each, the names below the directory, the attributes of every inode and of every open
   handle, and which times moved, are the same (see look). What may differ: differences.
3. What was done is kept as lines of Python (`trace`): pasted into a test they do it again.
   So no method draws lots or depends on time.

Called through Twins (see twins).
"""

from __future__ import annotations

import functools
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.model.differences import Native
from tests.model.doing import (
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    Fill,
    When,
    acting_as,
    checked,
    fill,
    libc,
    operation,
    times_set,
    timespecs,
    unlike,
)
from tests.model.look import (
    DIFFERENCES_SHOWN,
    PLAIN,
    TWO_FILESYSTEMS,
    Difference,
    Watch,
    differences,
    look_pairs,
    on_both,
    outcome,
    tree,
    walk,
    xattrs_of,
)


class Names:
    """Operations by path. Paths are relative; `roots` are the two trees, the mount's first."""

    def __init__(self, mount: Path, plain: Path, native: Native) -> None:
        self.roots = (str(mount), str(plain))
        self.native = native
        self.uid = os.geteuid()
        self.trace: list[str] = []
        self.counts: Counter[str] = Counter()
        self.watch = Watch()
        self.known: list[str] = []
        self.failure = ""

    # --- doing the same ----------------------------------------------------------------------

    def at(self, side: int, path: str) -> str:
        """A path on one side."""
        return f"{self.roots[side]}/{path}"

    def both(self, do: Callable[[int], Any], *paths: str, atime_set: bool = False) -> Any:
        """`do(side)` on both sides, and a look at all, above all where `paths` stand."""
        with acting_as(self.uid):
            results = on_both(do)
        self.same(*results)
        self.look(*paths, atime_set=atime_set)
        return results[0]

    def same(self, mount: Any, plain: Any) -> None:
        """Two results that have to be one. Raises Difference."""
        if mount != plain:
            if isinstance(mount, bytes) and isinstance(plain, bytes):
                mount, plain = unlike(mount, plain)
            raise Difference(f"{self.trace[-1]}: {str(mount)[:300]}, beside {str(plain)[:300]}")

    def look(self, *paths: str, atime_set: bool = False) -> None:
        """Invariant 2. The listing is compared of the directories of `paths`."""
        for above in {os.path.dirname(path.rstrip("/")) for path in paths}:
            mount, plain = on_both(functools.partial(self._listed, above))
            if mount != plain:
                raise Difference(f"listing of {above!r}: {mount}, beside {plain}")
        self.known = walk(self.roots[PLAIN])
        seen = look_pairs(self.roots, ("", *self.known))
        seen += self.handle_pairs()
        self.watch.look(seen, touched=self.unlike_times(), atime_set=atime_set)

    def _listed(self, path: str, side: int) -> list[str]:
        return sorted(os.listdir(self.at(side, path)))

    def handle_pairs(self) -> list[tuple[str, os.stat_result, os.stat_result]]:
        """fstat of every open handle, on both sides."""
        return []

    def unlike_times(self) -> frozenset[int]:
        """Inodes of the mount whose times may differ after the operation just done."""
        return frozenset()

    @operation
    def compare(self) -> None:
        """Whole trees, with bytes and extended attributes, by the kernel's pages and without."""
        for dropped in (False, True):
            mount, plain = (tree(root, dropped=dropped) for root in self.roots)
            found = differences(plain, mount, ignore=TWO_FILESYSTEMS)
            if found:
                where = "read anew" if dropped else "as the kernel has it"
                raise Difference("\n".join([f"trees, {where}:", *found[:DIFFERENCES_SHOWN]]))
        self.look()

    def snippet(self) -> str:
        """What was done, as the body of a regression test."""
        lines = "\n".join(f"    {line}" for line in self.trace)
        return f"def test_NAME(t: Twins) -> None:\n{lines}\n    t.compare()"

    @operation
    def become(self, uid: int) -> None:
        """Be another user from now on."""
        self.uid = uid

    # --- names -------------------------------------------------------------------------------

    @operation
    def mkdir(self, path: str, mode: int) -> Any:
        return self.both(lambda side: os.mkdir(self.at(side, path), mode), path)

    @operation
    def mknod(self, path: str, kind: str, mode: int) -> Any:
        """A fifo, socket, (empty) file, or the character device null."""
        bits = {
            "fifo": stat.S_IFIFO,
            "socket": stat.S_IFSOCK,
            "file": stat.S_IFREG,
            "null": stat.S_IFCHR,
        }[kind]
        device = os.makedev(1, 3) if kind == "null" else 0
        return self.both(lambda side: os.mknod(self.at(side, path), bits | mode, device), path)

    @operation
    def symlink(self, target: str, path: str) -> Any:
        return self.both(lambda side: os.symlink(target, self.at(side, path)), path)

    @operation
    def readlink(self, path: str) -> Any:
        return self.both(lambda side: os.readlink(self.at(side, path)))

    @operation
    def link(self, old: str, new: str) -> Any:
        return self.both(
            lambda side: os.link(self.at(side, old), self.at(side, new), follow_symlinks=False),
            old,
            new,
        )

    @operation
    def unlink(self, path: str) -> Any:
        return self.both(lambda side: os.unlink(self.at(side, path)), path)

    @operation
    def rmdir(self, path: str) -> Any:
        return self.both(lambda side: os.rmdir(self.at(side, path)), path)

    @operation
    def rmtree(self, path: str) -> Any:
        return self.both(lambda side: shutil.rmtree(self.at(side, path)), path)

    @operation
    def rename(self, old: str, new: str, flags: int = 0) -> Any:
        """renameat2(2); `flags`: 0, NOREPLACE (1), EXCHANGE (2)."""

        def do(side: int) -> None:
            names = [os.fsencode(self.at(side, path)) for path in (old, new)]
            checked(libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], flags))

        return self.both(do, old, new)

    # --- attributes --------------------------------------------------------------------------

    @operation
    def chmod(self, path: str, mode: int) -> Any:
        return self.both(lambda side: os.chmod(self.at(side, path), mode), path)

    @operation
    def chown(self, path: str, uid: int, gid: int, follow: bool = False) -> Any:
        return self.both(
            lambda side: os.chown(self.at(side, path), uid, gid, follow_symlinks=follow), path
        )

    @operation
    def utime(self, path: str, atime: When, mtime: When, follow: bool = False) -> Any:
        """utimensat(2); what was set must be read again as it was set."""

        self.native.tick(is_touch="now" in (atime, mtime))

        def do(side: int) -> list[int]:
            name = os.fsencode(self.at(side, path))
            flags = 0 if follow else AT_SYMLINK_NOFOLLOW
            checked(libc.utimensat(AT_FDCWD, name, timespecs(atime, mtime), flags))
            return times_set(os.stat(name, follow_symlinks=follow), atime, mtime)

        return self.both(do, path, atime_set=True)

    @operation
    def truncate(self, path: str, size: int) -> Any:
        return self.both(lambda side: os.truncate(self.at(side, path), size), path)

    @operation
    def setxattr(self, path: str, name: str, data: Fill, flags: int = 0) -> Any:
        value = fill(data)
        is_same = value == outcome(lambda: dict(xattrs_of(self.at(PLAIN, path))).get(name))
        if is_same and not self.native.skips_same_xattr:
            return None
        return self.both(
            lambda side: os.setxattr(
                self.at(side, path), name, value, flags, follow_symlinks=False
            ),
            path,
        )

    @operation
    def getxattr(self, path: str, name: str) -> Any:
        return self.both(lambda side: os.getxattr(self.at(side, path), name, follow_symlinks=False))

    @operation
    def removexattr(self, path: str, name: str) -> Any:
        return self.both(
            lambda side: os.removexattr(self.at(side, path), name, follow_symlinks=False), path
        )

    @operation
    def listxattr(self, path: str) -> Any:
        return self.both(
            lambda side: sorted(os.listxattr(self.at(side, path), follow_symlinks=False))
        )

    # --- asking ------------------------------------------------------------------------------

    @operation
    def stat(self, path: str) -> Any:
        """The inode that the path leads to, by the inode's first name on that side."""

        def do(side: int) -> str:
            ino = os.stat(self.at(side, path)).st_ino
            for known in ("", *self.known):
                if os.lstat(self.at(side, known)).st_ino == ino:
                    return known
            return "(outside)"

        return self.both(do)

    @operation
    def access(self, path: str, mode: int) -> Any:
        return self.both(lambda side: os.access(self.at(side, path), mode, effective_ids=True))

    @operation
    def listdir(self, path: str) -> Any:
        return self.both(lambda side: sorted(os.listdir(self.at(side, path))))

    @operation
    def statvfs(self, path: str) -> Any:
        """The sizes belong to each side; they have to make sense, and names are as long."""

        def do(side: int) -> tuple[int, bool]:
            got = os.statvfs(self.at(side, path))
            sane = 0 <= got.f_bavail <= got.f_bfree <= got.f_blocks and got.f_ffree <= got.f_files
            return got.f_namemax, sane

        return self.both(do)
