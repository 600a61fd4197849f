"""The two-tree oracle as a hypothesis state machine: which operation comes next, and on what.

Invariants
1. An example is a function of what hypothesis draws: paths are picked from those that stand there,
   in sorted order. So a failure replays and shrinks.
2. An example works in a directory of its own; when one fails, the next begins with a new mount,
   cache and bucket.
3. An event (a kill, an unmount, …) is rare within an example, and `ending` names the one with which
   every example of a round ends.

Called by tests.model.test_two_trees.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from s3ws_fs.core.limits import EXTENT_BYTES
from tests.model.doing import EXCHANGE, NOREPLACE
from tests.model.look import PLAIN
from tests.model.picks import (
    DIR_MODES,
    FILE_MODES,
    IS_ROOT,
    OFFSET_MAX,
    OPENS,
    TARGETS,
    XATTRS,
    Place,
    fills,
    handle_of,
    ids,
    new_places,
    numbers,
    offsets,
    path_of,
    places,
    sizes,
    whens,
    xattr_of,
)
from tests.model.twins import Twins
from tests.model.world import EVENTS, Home

HANDLES_MAX: Final = 8
MAPS_MAX: Final = 4
RARELY: Final = 12
SOMETIMES: Final = 2
"""One event in so many draws, more or less, of `maybe_event` and `maybe_sync`."""


def when(condition: Callable[[Twins], Any]) -> Callable[[Any], Any]:
    """A rule for when the condition holds."""
    return precondition(lambda self: bool(condition(self.t)))


class TwoTrees(RuleBasedStateMachine):
    """The machine. `home` and `ending` are set on a subclass (see `a_round`)."""

    home: ClassVar[Home]
    ending: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()
        self._stack = contextlib.ExitStack()
        self.t: Twins = self._stack.enter_context(self.home.world().twins())
        self.home.examples += 1

    def teardown(self) -> None:
        failing = True
        try:
            if not self.t.failure:
                self.t.compare()
                if self.ending and self.t.trace[:-1]:
                    self.t.event(self.ending)
                    self.t.compare()
                self._stack.close()
                failing = False
        finally:
            if failing:
                self.home.first_failure = self.home.first_failure or self.t.failure
                with contextlib.suppress(OSError):
                    self._stack.close()
                self.home.leave()

    def path(self, place: Place, kind: str = "") -> str:
        return path_of(self.t, place, kind)

    def handle(self, number: int, *, is_dir: bool = False) -> int:
        return handle_of(self.t, number, is_dir)

    def mapping(self, number: int) -> int:
        return [*self.t.maps][number % len(self.t.maps)]

    # --- what stands there at first ------------------------------------------------------------

    @initialize(lot=st.integers(0, 2))
    def begin(self, lot: int) -> None:
        """An empty directory, or one in which something can happen at once."""
        if lot == 0:
            return
        t = self.t
        t.mkdir("d", 0o755)
        t.mkdir("d/a", 0o777)
        for seed, path in enumerate(("a", "d/b", "d/a/c"), 1):
            handle = t.open(path, "rdwr creat", 0o666)
            t.write(handle, (seed, seed * EXTENT_BYTES - 100))
            if lot == 1:
                t.close(handle)

    # --- open files --------------------------------------------------------------------------

    @when(lambda t: len(t.handles) < HANDLES_MAX)
    @rule(place=places, flags=st.sampled_from(OPENS), mode=st.sampled_from(FILE_MODES))
    def open(self, place: Place, flags: str, mode: int) -> None:
        self._open(place, flags, mode)

    @when(lambda t: len(t.handles) < HANDLES_MAX)
    @rule(place=new_places, mode=st.sampled_from(FILE_MODES), data=fills)
    def create(self, place: Place, mode: int, data: tuple[int, int]) -> None:
        handle = self._open(place, "rdwr creat", mode)
        if handle is not None:
            self.t.write(handle, data)

    def _open(self, place: Place, flags: str, mode: int) -> int | None:
        path = self.path(place, "dir" if "directory" in flags else "file")
        # A device on a mount is no device (nodev): that says nothing about a filesystem.
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.stat(self.t.at(PLAIN, path)).st_mode):
                return None
        got = self.t.open(path, flags, mode)
        return got if isinstance(got, int) else None

    @when(lambda t: t.handles)
    @rule(handle=numbers)
    def close(self, handle: int) -> None:
        self.t.close(self.handle(handle))

    @when(lambda t: t.handles)
    @rule(handle=numbers, data=fills, offset=st.one_of(st.none(), offsets))
    def write(self, handle: int, data: tuple[int, int], offset: int | None) -> None:
        if offset is None:
            self.t.write(self.handle(handle), data)
        else:
            self.t.pwrite(self.handle(handle), offset, data)

    @when(lambda t: t.handles)
    @rule(handle=numbers, data=st.lists(fills, max_size=3))
    def writev(self, handle: int, data: list[tuple[int, int]]) -> None:
        self.t.writev(self.handle(handle), data)

    @when(lambda t: t.handles)
    @rule(handle=numbers, size=sizes, offset=st.one_of(st.none(), offsets))
    def read(self, handle: int, size: int, offset: int | None) -> None:
        if offset is None:
            self.t.read(self.handle(handle), size)
        else:
            self.t.pread(self.handle(handle), offset, size)

    @when(lambda t: t.handles)
    @rule(handle=numbers, offset=offsets, back=st.booleans(), whence=st.integers(0, 2))
    def lseek(self, handle: int, offset: int, back: bool, whence: int) -> None:
        number = self.handle(handle)
        # The position of a directory is the filesystem's own affair: see seekdir.
        if not stat.S_ISDIR(self.t.handles[number].mode):
            self.t.lseek(number, -offset if back else offset, whence)

    @when(lambda t: t.handles)
    @rule(handle=numbers, size=offsets)
    def ftruncate(self, handle: int, size: int) -> None:
        self.t.ftruncate(self.handle(handle), size)

    @rule(place=places, size=offsets)
    def truncate(self, place: Place, size: int) -> None:
        self.t.truncate(self.path(place, "file"), size)

    @when(lambda t: t.handles)
    @rule(handle=numbers, offset=offsets, size=sizes)
    def posix_fallocate(self, handle: int, offset: int, size: int) -> None:
        self.t.posix_fallocate(self.handle(handle), offset, size)

    @when(lambda t: t.handles)
    @rule(handle=numbers, other=numbers, size=sizes, at=offsets, to=offsets)
    def copy_file_range(self, handle: int, other: int, size: int, at: int, to: int) -> None:
        self.t.copy_file_range(self.handle(handle), self.handle(other), size, at, to)

    @when(lambda t: t.handles)
    @rule(handle=numbers, what=st.sampled_from(("drop", "fsync", "fdatasync")))
    def settle(self, handle: int, what: str) -> None:
        number = self.handle(handle)
        if what == "drop":
            self.t.drop(number)
        else:
            self.t.fsync(number, what == "fdatasync")

    @when(lambda t: t.handles)
    @rule(
        handle=numbers,
        kind=st.sampled_from(("read", "write", "free")),
        span=st.one_of(st.none(), st.tuples(st.integers(0, 3), st.integers(0, 3))),
    )
    def lock(self, handle: int, kind: str, span: tuple[int, int] | None) -> None:
        if span is None:
            self.t.flock(self.handle(handle), kind)
        else:
            self.t.ofd_lock(self.handle(handle), kind, *span)

    @when(lambda t: len(t.handles) < HANDLES_MAX)
    @rule(place=places)
    def opendir(self, place: Place) -> None:
        self.t.open(self.path(place, "dir"), "rdonly directory")

    @when(lambda t: t.handles)
    @rule(
        handle=numbers,
        size=st.sampled_from((300, 600, 40_000)),
        back=st.one_of(st.none(), st.none(), st.integers(0, 5)),
    )
    def readdir(self, handle: int, size: int, back: int | None) -> None:
        number = self.handle(handle, is_dir=True)
        if back is None:
            self.t.readdir(number, size)
        else:
            self.t.seekdir(number, back)

    # --- mappings ----------------------------------------------------------------------------

    @when(lambda t: t.handles and len(t.maps) < MAPS_MAX)
    @rule(
        handle=numbers,
        start=st.sampled_from((0, 0, 4096, EXTENT_BYTES)),
        size=st.integers(1, OFFSET_MAX),
        shared=st.booleans(),
        writable=st.booleans(),
    )
    def map(self, handle: int, start: int, size: int, shared: bool, writable: bool) -> None:
        self.t.map(self.handle(handle), start, size, shared, writable)

    @when(lambda t: t.maps)
    @rule(number=numbers, at=offsets, size=sizes)
    def map_read(self, number: int, at: int, size: int) -> None:
        self.t.map_read(self.mapping(number), at, size)

    @when(lambda t: t.maps)
    @rule(number=numbers, at=offsets, data=fills)
    def map_write(self, number: int, at: int, data: tuple[int, int]) -> None:
        self.t.map_write(self.mapping(number), at, data)

    @when(lambda t: t.maps)
    @rule(number=numbers, is_over=st.booleans())
    def msync(self, number: int, is_over: bool) -> None:
        if is_over:
            self.t.unmap(self.mapping(number))
        else:
            self.t.msync(self.mapping(number))

    # --- names -------------------------------------------------------------------------------

    @rule(place=new_places, mode=st.sampled_from(DIR_MODES))
    def mkdir(self, place: Place, mode: int) -> None:
        self.t.mkdir(self.path(place, "new"), mode)

    @rule(
        place=new_places,
        kind=st.sampled_from(("fifo", "socket", "file", "null")),
        mode=st.sampled_from(FILE_MODES),
    )
    def mknod(self, place: Place, kind: str, mode: int) -> None:
        self.t.mknod(self.path(place, "new"), kind, mode)

    @rule(to=st.sampled_from(TARGETS), place=new_places)
    def symlink(self, to: str, place: Place) -> None:
        self.t.symlink(to, self.path(place, "new"))

    @rule(old=places, new=new_places)
    def link(self, old: Place, new: Place) -> None:
        self.t.link(self.path(old, "file"), self.path(new, "new"))

    @rule(place=places)
    def unlink(self, place: Place) -> None:
        self.t.unlink(self.path(place, "file"))

    @rule(place=places)
    def rmdir(self, place: Place) -> None:
        self.t.rmdir(self.path(place, "dir"))

    @rule(old=places, new=st.one_of(places, new_places), flags=st.just(0))
    def rename(self, old: Place, new: Place, flags: int) -> None:
        self.t.rename(self.path(old), self.path(new), flags)

    @rule(
        old=places, new=st.one_of(places, new_places), flags=st.sampled_from((EXCHANGE, NOREPLACE))
    )
    def rename2(self, old: Place, new: Place, flags: int) -> None:
        self.t.rename(self.path(old), self.path(new), flags)

    # --- attributes --------------------------------------------------------------------------

    @rule(place=places, mode=st.sampled_from((*FILE_MODES, *DIR_MODES)), handle=numbers)
    def chmod(self, place: Place, mode: int, handle: int) -> None:
        if self.t.handles and handle % 2:
            number = self.handle(handle)
            is_dir = stat.S_ISDIR(self.t.handles[number].mode)
            self.t.fchmod(number, mode if IS_ROOT or not is_dir else mode | 0o700)
        else:
            self.t.chmod(self.path(place), mode if IS_ROOT else mode | 0o700)

    @rule(place=places, uid=ids, gid=ids, how=st.integers(0, 3), handle=numbers)
    def chown(self, place: Place, uid: int, gid: int, how: int, handle: int) -> None:
        if self.t.handles and how == 3:
            self.t.fchown(self.handle(handle), uid, gid)
        else:
            self.t.chown(self.path(place), uid, gid, how == 2)

    @rule(place=places, atime=whens, mtime=whens, follow=st.booleans())
    def utime(self, place: Place, atime: Any, mtime: Any, follow: bool) -> None:
        self.t.utime(self.path(place), atime, mtime, follow)

    @when(lambda t: t.native.has_user_xattrs)
    @rule(
        place=places,
        name=st.sampled_from(XATTRS),
        data=st.tuples(st.integers(0, 9), st.sampled_from((0, 1, 20, 300))),
        flags=st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
    )
    def setxattr(self, place: Place, name: str, data: tuple[int, int], flags: int) -> None:
        self.t.setxattr(self.path(place), name, data, flags)

    @when(lambda t: t.native.has_user_xattrs)
    @rule(
        place=places,
        name=st.sampled_from(XATTRS),
        what=st.sampled_from(("getxattr", "removexattr", "removexattr", "listxattr", "set")),
        number=numbers,
        data=st.tuples(st.integers(0, 9), st.sampled_from((0, 1, 20, 300))),
    )
    def xattr(self, place: Place, name: str, what: str, number: int, data: tuple[int, int]) -> None:
        """Mostly of one that is there."""
        path, name = xattr_of(self.t, number, (self.path(place), name))
        match what:
            case "set":
                self.t.setxattr(path, name, data, 0)
            case "listxattr":
                self.t.listxattr(path)
            case _:
                getattr(self.t, what)(path, name)

    # --- asking, and what happens beside -----------------------------------------------------

    @rule(
        place=places,
        what=st.sampled_from(("stat", "listdir", "readlink", "statvfs", "access")),
        mode=st.integers(0, 7),
    )
    def ask(self, place: Place, what: str, mode: int) -> None:
        arguments = (mode,) if what == "access" else ()
        getattr(self.t, what)(self.path(place), *arguments)

    @precondition(lambda self: IS_ROOT)
    @rule(uid=st.sampled_from((0, 0, 0, 1000)))
    def become(self, uid: int) -> None:
        if uid != self.t.uid:
            self.t.become(uid)

    @rule(lot=st.integers(0, SOMETIMES))
    def maybe_sync(self, lot: int) -> None:
        """What is sealed before it changes again takes another way than what is not."""
        if lot == SOMETIMES:
            self.t.event("sync")

    @rule(lot=st.integers(0, RARELY), name=st.sampled_from((*EVENTS, "fresh_cold")))
    def maybe_event(self, lot: int, name: str) -> None:
        if lot == RARELY:
            self.t.event(name)
        elif lot == RARELY - 1:
            self.t.compare()
