"""Whatever the filesystem does, in any order, the checker finds nothing to say against it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.checking import Checked, check_cache, check_records
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.findings import Report
from s3ws_fs.core.types import ROOT_INO, NeedExtents
from s3ws_fs.fs.filesystem import FileSystem
from tests.cache.test_checking import BOOT, opened, quiet
from tests.support import caches
from tests.support.caches import CRED

numbers = st.integers(0, 30)
names = st.sampled_from([b"a", b"b", b"\xff\\", b"n" * 255])
offsets = st.sampled_from([0, 1, 5000, 32_768, 40_000, 100_000])
sizes = st.sampled_from([1, 100, 4096, 32_768, 70_000])

steps = st.one_of(
    st.tuples(st.sampled_from(["create", "mkdir", "symlink", "rmdir", "unlink"]), numbers, names),
    st.tuples(st.sampled_from(["write", "truncate"]), numbers, offsets, sizes),
    st.tuples(st.sampled_from(["link", "setxattr"]), numbers, numbers, names),
    st.tuples(st.just("rename"), numbers, names, numbers, names, st.sampled_from([0, 1, 2])),
    st.tuples(st.sampled_from(["seal", "mirror", "evict", "reap", "removexattr"])),
)


class Life:
    """Steps on a cache; what can't be done is refused by the filesystem and left out."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.fs: FileSystem = caches.filesystem(cache)
        self.inos = [ROOT_INO]

    def run(self, step: tuple[object, ...]) -> None:
        kind, *args = step
        do: Callable[..., object] = getattr(self, f"do_{kind}")
        try:
            do(*args)
        except FsError:
            return

    def at(self, number: int) -> int:
        return self.inos[number % len(self.inos)]

    def do_create(self, parent: int, name: bytes) -> None:
        self.inos.append(self.fs.create(self.at(parent), name, 0o644, CRED).ino)

    def do_mkdir(self, parent: int, name: bytes) -> None:
        self.inos.append(self.fs.mkdir(self.at(parent), name, 0o755, CRED).ino)

    def do_symlink(self, parent: int, name: bytes) -> None:
        self.inos.append(self.fs.symlink(self.at(parent), name, b"there", CRED).ino)

    def do_unlink(self, parent: int, name: bytes) -> None:
        self.fs.unlink(self.at(parent), name)

    def do_rmdir(self, parent: int, name: bytes) -> None:
        self.fs.rmdir(self.at(parent), name)

    def do_write(self, number: int, offset: int, size: int) -> None:
        self.fs.write(self.at(number), offset, bytes([size % 251]) * size)

    def do_truncate(self, number: int, size: int, _: int) -> None:
        self.fs.setattr(self.at(number), size=size)

    def do_link(self, number: int, parent: int, name: bytes) -> None:
        self.fs.link(self.at(number), self.at(parent), name)

    def do_rename(self, old: int, name: bytes, new: int, new_name: bytes, flags: int) -> None:
        self.fs.rename(self.at(old), name, self.at(new), new_name, flags)

    def do_setxattr(self, number: int, _: int, name: bytes) -> None:
        self.fs.setxattr(self.at(number), b"user." + name[:200], name)

    def do_removexattr(self) -> None:
        for ino in self.inos:
            for name in self.fs.listxattr(ino):
                self.fs.removexattr(ino, name)

    def do_seal(self) -> None:
        caches.seal(self.cache)

    def do_mirror(self) -> None:
        caches.seal(self.cache)
        caches.mirror(self.cache)

    def do_evict(self) -> None:
        self.cache.evict()

    def do_reap(self) -> None:
        for ino in self.inos:
            self.fs.forget(ino)
        self.fs.reap()


@settings(max_examples=60)
@given(st.lists(steps, min_size=10, max_size=60))
def test_any_life_is_clean(life: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as base:
        with opened(Path(base) / "ws") as cache:
            cache.set_restore_complete()
            lived = Life(cache)
            for step in life:
                lived.run(step)
            done = Checked(Report(), prefix=caches.PREFIX)
            check_records(cache, done, quiet)
            assert done.report.findings == []
        after = check_cache(Path(base) / "ws", quiet, boot_id=BOOT).report
        assert after.findings == []


def test_a_life_reaches_everything() -> None:
    """The steps above are not all refused."""
    with tempfile.TemporaryDirectory() as base, opened(Path(base) / "ws") as cache:
        lived = Life(cache)
        for step in (
            ("mkdir", 0, b"a"), ("create", 1, b"b"), ("write", 2, 40_000, 70_000),
            ("link", 2, 0, b"b"), ("setxattr", 2, 0, b"a"), ("seal",), ("evict",),
            ("mirror",), ("rename", 1, b"b", 0, b"a", 2), ("unlink", 0, b"a"), ("reap",),
            ("symlink", 0, b"\xff\\"), ("truncate", 2, 100_000, 0), ("removexattr",),
        ):  # fmt: skip
            lived.run(step)
        with cache.read() as view:
            assert view.resolve(b"b") is not None
            assert list(view.chunks(lived.inos[2])), "nothing was sealed"
        assert isinstance(lived.fs.read(lived.inos[2], 50_000, 10), NeedExtents | bytes)
