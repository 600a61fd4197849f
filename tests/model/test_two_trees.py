"""The same random work on a real mount and on a plain directory: they never differ.

Every operation is done on both sides, and its result (a value or an errno) compared at once; whole
trees at checkpoints. In between the daemon is killed, its worker is killed, the workspace is
unmounted, and mounted again on its cache or from the bucket alone, while flushes follow each other
without a pause.

A longer run, with a seed of its own:  python -m tests.model.test_two_trees --seed 7 --seconds 600
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import mmap
import os
import random
import shutil
import signal
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from s3ws_fs.core.limits import EXTENT_BYTES
from tests.support import trees
from tests.support.buckets import LocalBucket, mirror_differences
from tests.support.mounting import (
    Workspace,
    clear_mountpoint,
    mounted_workspace,
    wait_until,
    workspace_config,
)

pytestmark = [pytest.mark.e2e, pytest.mark.fuse, pytest.mark.slow]

SHORT_S: Final = 12.0
HANDLES_MAX: Final = 6
DEPTH_MAX: Final = 4
FILE_BYTES_MAX: Final = 6 << 20
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
AT_FDCWD: Final = -100
NAMES: Final = ("a", "b", "c", "d", "e", "f", "g", "100%", "%41", "ü", "x y", "back\\slash")
_libc = ctypes.CDLL(None, use_errno=True)


def rename2(old: str, new: str, flags: int) -> None:
    """renameat2(2). Raises OSError."""
    args = (AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)
    if _libc.renameat2(*args):
        raise OSError(ctypes.get_errno(), "renameat2")


class Difference(AssertionError):
    """The two sides are not the same."""


class Twins:
    """A mount and a directory beside it. `sides` are their roots, the mount first."""

    def __init__(self, mount: Path, plain: Path, rng: random.Random) -> None:
        self.sides = (str(mount), str(plain))
        self.rng = rng
        self.handles: list[tuple[int, int]] = []
        self.counts: Counter[str] = Counter()
        self.trace: list[str] = []

    # --- doing the same --------------------------------------------------------------------

    def both(self, what: str, do: Callable[[str, int], Any]) -> Any:
        """`do(root, side)` on both sides; the common result. Raises Difference."""
        results: list[Any] = []
        for side, root in enumerate(self.sides):
            try:
                results.append(do(root, side))
            except OSError as exc:
                results.append(f"errno {errno.errorcode.get(exc.errno or 0, exc.errno)}")
        self.trace.append(f"{what} -> {str(results[0])[:60]}")
        if results[0] != results[1]:
            first, second = (str(result)[:300] for result in results)
            last = "\n".join(self.trace[-40:])
            raise Difference(f"{what}: mount {first}, directory {second}\n{last}")
        return results[0]

    def path(self) -> str:
        """Some path: mostly one that exists, sometimes a new one."""
        rng = self.rng
        known = self.known() if rng.random() < 0.6 else []
        if known:
            return rng.choice(known)
        above = rng.choice(["", *self.known(stat.S_ISDIR)])
        if above.count("/") > DEPTH_MAX:
            above = ""
        return os.path.join(above, rng.choice(NAMES))

    def known(self, kind: Callable[[int], bool] | None = None) -> list[str]:
        """Paths that exist (by the plain directory), of a kind."""
        root = self.sides[1]
        found = []
        for top, names, files in os.walk(root):
            for name in (*names, *files):
                path = os.path.join(top, name)
                if kind is None or kind(os.lstat(path).st_mode):
                    found.append(os.path.relpath(path, root))
        return sorted(found)

    def file(self) -> str:
        """A regular file if there is one."""
        known = self.known(stat.S_ISREG)
        return self.rng.choice(known) if known and self.rng.random() < 0.9 else self.path()

    def offset(self) -> int:
        """Around the edges of extents, and anywhere."""
        rng = self.rng
        if rng.random() < 0.5:
            edge = rng.randrange(0, 8) * EXTENT_BYTES
            return max(0, edge + rng.choice((-4097, -1, 0, 1, 4096, 100)))
        return rng.choice(
            (0, rng.randrange(1 << 12), rng.randrange(1 << 20), rng.randrange(4 << 20))
        )

    def data(self) -> bytes:
        """Bytes of a few sizes; not compressible, not all zeros (and sometimes all zeros)."""
        rng = self.rng
        size = rng.choice((1, 10, 100, 4096, EXTENT_BYTES, rng.randrange(1, 200_000)))
        if rng.random() < 0.03:
            size = rng.randrange(1 << 20, 3 << 20)
        return bytes(size) if rng.random() < 0.05 else rng.randbytes(size)

    def step(self) -> None:
        """One random operation."""
        name = self.rng.choices(_NAMES, _WEIGHTS)[0]
        self.counts[name] += 1
        getattr(self, "op_" + name)()

    # --- operations ------------------------------------------------------------------------

    def op_create(self) -> None:
        path, data = self.path(), self.data()
        mode = self.rng.choice((0o644, 0o600, 0o755))

        def do(root: str, _: int) -> int:
            fd = os.open(f"{root}/{path}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode)
            try:
                return os.write(fd, data)
            finally:
                os.close(fd)

        self.both(f"create {path} {len(data)}", do)

    def op_overwrite(self) -> None:
        path, data = self.file(), self.data()

        def do(root: str, _: int) -> int:
            fd = os.open(f"{root}/{path}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
            try:
                return os.write(fd, data)
            finally:
                os.close(fd)

        self.both(f"O_TRUNC {path} {len(data)}", do)

    def op_save(self) -> None:
        """As editors do: a temporary file, fsync, rename over the old one."""
        path, data = self.file(), self.data()

        def do(root: str, _: int) -> None:
            fd = os.open(f"{root}/.tmp", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
            try:
                os.write(fd, data)
                if self.rng.random() < 0.1:
                    os.fsync(fd)
            finally:
                os.close(fd)
            try:
                os.rename(f"{root}/.tmp", f"{root}/{path}")
            except OSError:
                os.unlink(f"{root}/.tmp")
                raise

        self.both(f"save {path} {len(data)}", do)

    def op_write(self) -> None:
        path, data, offset = self.file(), self.data(), self.offset()

        def do(root: str, _: int) -> int:
            fd = os.open(f"{root}/{path}", os.O_RDWR)
            try:
                return os.pwrite(fd, data, offset)
            finally:
                os.close(fd)

        self.both(f"write {path} {offset}+{len(data)}", do)

    def op_append(self) -> None:
        path, data = self.file(), self.data()[:5000]

        def do(root: str, _: int) -> int:
            fd = os.open(f"{root}/{path}", os.O_WRONLY | os.O_APPEND)
            try:
                return os.write(fd, data)
            finally:
                os.close(fd)

        self.both(f"append {path} {len(data)}", do)

    def op_read(self) -> None:
        path, offset, size = self.file(), self.offset(), self.rng.randrange(1, 300_000)

        def do(root: str, _: int) -> bytes:
            fd = os.open(f"{root}/{path}", os.O_RDONLY)
            try:
                return os.pread(fd, size, offset)
            finally:
                os.close(fd)

        self.both(f"read {path} {offset}+{size}", do)

    def op_truncate(self) -> None:
        path = self.file()
        size = self.rng.choice((0, self.offset(), self.offset(), self.offset()))
        self.both(f"truncate {path} {size}", lambda root, _: os.truncate(f"{root}/{path}", size))

    def op_regrow(self) -> None:
        """Down, up and written again within a moment: what was there must not come back."""
        path, low, high = self.file(), self.offset(), self.offset()
        data = self.data()[:40_000] if self.rng.random() < 0.5 else b""

        def do(root: str, _: int) -> None:
            fd = os.open(f"{root}/{path}", os.O_RDWR)
            try:
                os.ftruncate(fd, low)
                os.ftruncate(fd, low + high)
                if data:
                    os.pwrite(fd, data, low + high // 2)
            finally:
                os.close(fd)

        self.both(f"regrow {path} {low} {low + high} {len(data)}", do)

    def op_rename(self) -> None:
        old, new = self.path(), self.path()
        flags = self.rng.choice((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE))
        self.both(
            f"rename {old} {new} {flags}",
            lambda root, _: rename2(f"{root}/{old}", f"{root}/{new}", flags),
        )

    def op_link(self) -> None:
        old, new = self.file(), self.path()
        self.both(
            f"link {old} {new}",
            lambda root, _: os.link(f"{root}/{old}", f"{root}/{new}", follow_symlinks=False),
        )

    def op_symlink(self) -> None:
        path, target = self.path(), self.path() * self.rng.choice((1, 1, 50))
        self.both(f"symlink {path}", lambda root, _: os.symlink(target, f"{root}/{path}"))

    def op_unlink(self) -> None:
        path = self.path()
        self.both(f"unlink {path}", lambda root, _: os.unlink(f"{root}/{path}"))

    def op_mkdir(self) -> None:
        path = self.path()
        self.both(f"mkdir {path}", lambda root, _: os.mkdir(f"{root}/{path}", 0o755))

    def op_rmdir(self) -> None:
        path = self.path()
        self.both(f"rmdir {path}", lambda root, _: os.rmdir(f"{root}/{path}"))

    def op_rmtree(self) -> None:
        known = self.known(stat.S_ISDIR)
        if known:
            path = self.rng.choice(known)
            self.both(f"rmtree {path}", lambda root, _: shutil.rmtree(f"{root}/{path}"))

    def op_chmod(self) -> None:
        path, mode = self.path(), self.rng.choice((0o600, 0o644, 0o755, 0o777, 0o1755, 0o2755))
        self.both(f"chmod {path} {mode:o}", lambda root, _: os.chmod(f"{root}/{path}", mode))

    def op_chown(self) -> None:
        path = self.path()
        uid = self.rng.choice((0, 1000, 10001)) if os.geteuid() == 0 else os.getuid()
        self.both(f"chown {path} {uid}", lambda root, _: os.lchown(f"{root}/{path}", uid, -1))

    def op_utimens(self) -> None:
        path = self.path()
        times = (self.rng.randrange(2**60), self.rng.randrange(2**60))

        def do(root: str, _: int) -> int:
            os.utime(f"{root}/{path}", ns=times, follow_symlinks=False)
            return os.lstat(f"{root}/{path}").st_mtime_ns

        self.both(f"utimens {path}", do)

    def op_xattr(self) -> None:
        path, name = self.path(), "user." + self.rng.choice(("a", "b", "c"))
        value = self.rng.randbytes(self.rng.randrange(200))
        if self.rng.random() < 0.3:
            self.both(f"removexattr {path}", lambda r, _: os.removexattr(f"{r}/{path}", name))
        else:
            flags = self.rng.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
            self.both(
                f"setxattr {path}", lambda r, _: os.setxattr(f"{r}/{path}", name, value, flags)
            )

    def op_mmap(self) -> None:
        path, at, data = self.file(), self.rng.random(), self.data()[:70_000]

        def do(root: str, _: int) -> int:
            fd = os.open(f"{root}/{path}", os.O_RDWR)
            try:
                size = os.fstat(fd).st_size
                if size <= len(data):
                    return 0
                start = int(at * (size - len(data)))
                with mmap.mmap(fd, size) as view:
                    view[start : start + len(data)] = data
                    view.flush()
                return start
            finally:
                os.close(fd)

        self.both(f"mmap {path} {len(data)}", do)

    def op_stat(self) -> None:
        path = self.path()

        def do(root: str, _: int) -> tuple[int, ...]:
            found = os.lstat(f"{root}/{path}")
            size = found.st_size if not stat.S_ISDIR(found.st_mode) else 0
            return (found.st_mode, found.st_uid, found.st_gid, size, found.st_nlink)

        self.both(f"stat {path}", do)

    def op_list(self) -> None:
        path = self.path()
        self.both(f"list {path}", lambda root, _: sorted(os.listdir(f"{root}/{path}")))

    # --- open handles ----------------------------------------------------------------------

    def op_open(self) -> None:
        if len(self.handles) >= HANDLES_MAX:
            return
        path = self.file()
        opened: list[int] = []

        def do(root: str, _: int) -> str:
            opened.append(os.open(f"{root}/{path}", os.O_RDWR))
            return "opened"

        if self.both(f"open {path}", do) == "opened":
            self.handles.append((opened[0], opened[1]))

    def op_handle(self) -> None:
        if not self.handles:
            return
        index = self.rng.randrange(len(self.handles))
        pair = self.handles[index]
        offset, data = self.offset(), self.data()
        what = self.rng.choice(("write", "read", "truncate", "stat", "close", "fsync"))

        def do(_: str, side: int) -> Any:
            fd = pair[side]
            match what:
                case "write":
                    return os.pwrite(fd, data, offset)
                case "read":
                    return os.pread(fd, 200_000, offset)
                case "truncate":
                    return os.ftruncate(fd, offset)
                case "fsync":
                    return os.fsync(fd)
                case "close":
                    return os.close(fd)
                case _:
                    found = os.fstat(fd)
                    return found.st_size, found.st_nlink

        self.both(f"handle {what} {offset}", do)
        if what == "close":
            del self.handles[index]

    def close_handles(self) -> None:
        """Close all; what a dead mount says to that does not matter."""
        for pair in self.handles:
            for fd in pair:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.handles.clear()

    # --- whole trees -----------------------------------------------------------------------

    def compare(self) -> trees.Manifest:
        """Both trees, but for times and holes; the mount's. Raises Difference."""
        ours, theirs = (trees.manifest(root) for root in self.sides)
        found = trees.differences(_timeless(ours), _timeless(theirs))
        if found:
            raise Difference("\n".join([*found[:20], "…", *self.trace[-40:]]))
        return ours


_OPERATIONS: Final = {
    "create": 8, "overwrite": 4, "save": 4, "write": 10, "append": 4, "read": 6, "truncate": 4,
    "regrow": 4, "rename": 6, "link": 2, "symlink": 2, "unlink": 3, "mkdir": 4, "rmdir": 1,
    "rmtree": 0.3, "chmod": 2, "chown": 1, "utimens": 2, "xattr": 3, "mmap": 3, "stat": 3,
    "list": 2, "open": 3, "handle": 12,
}  # fmt: skip
_NAMES: Final = tuple(_OPERATIONS)
_WEIGHTS: Final = tuple(_OPERATIONS.values())


def _timeless(manifest: trees.Manifest) -> trees.Manifest:
    names = {"mtime_ns": 0, "holes": False}
    return {
        path: type(node)(
            **{field: names.get(field, getattr(node, field)) for field in node.__dataclass_fields__}
        )
        for path, node in manifest.items()
        if path != b"."
    }


class Run:
    """A workspace that is killed, ended and mounted again while the twins work on it."""

    def __init__(self, base: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.base = base
        self.config = workspace_config(
            base,
            debounce_min_s=0.05,
            debounce_max_s=0.5,
            max_size_bytes=2 << 30,
            sync_point_interval_s=0.5,
        )
        plain = base / "plain"
        plain.mkdir()
        self.twins = Twins(base / "mnt", plain, self.rng)
        self.bucket = LocalBucket(base / "store")
        self.prefix = self.config.workspace.prefix
        self._stack = contextlib.ExitStack()
        self.daemon: Workspace | None = None
        self.events: Counter[str] = Counter()

    def mount(self) -> Workspace:
        """Mount on whatever cache there is."""
        self._stack = contextlib.ExitStack()
        self.daemon = self._stack.enter_context(mounted_workspace(self.config))
        return self.daemon

    def end(self) -> None:
        """Nothing is left behind."""
        self.twins.close_handles()
        self._stack.close()

    def _ended(self) -> trees.Manifest:
        """Unmount; everything must be saved, and the mirror must be the tree."""
        assert self.daemon is not None
        before = self.twins.compare()
        self._check_counters()
        self.twins.close_handles()
        self.daemon.signal(signal.SIGTERM)
        code = self.daemon.wait(120)
        assert code == 0, f"exit {code}\n{self.daemon.log()[-4000:]}"
        found = mirror_differences(self.bucket, self.prefix, before, set())
        if found:
            raise Difference("mirror:\n" + "\n".join(found[:20]))
        self._stack.close()
        return before

    def _check_counters(self) -> None:
        """What the quota counts is what the files hold (orphans go when their handles do)."""
        assert self.daemon is not None
        self.twins.close_handles()
        seen = {}
        for path in (b".", *trees.walk(os.fsencode(self.twins.sides[0]))):
            info = os.lstat(os.path.join(os.fsencode(self.twins.sides[0]), path))
            seen[info.st_ino] = 0 if stat.S_ISDIR(info.st_mode) else info.st_blocks * 512
        wanted = (sum(seen.values()), len(seen))

        def counted() -> tuple[int, int]:
            quota = self.daemon.status()["quota"]  # type: ignore[union-attr]
            return quota["used_bytes"], quota["used_inodes"]

        with contextlib.suppress(AssertionError):
            wait_until(lambda: counted() == wanted, timeout_s=8)
        if counted() != wanted:
            last = "\n".join(self.twins.trace[-60:])
            raise Difference(f"counted {counted()}, held {wanted}\n{last}")

    def do_compare(self) -> None:
        """A checkpoint of both trees."""
        self.twins.compare()

    def do_sync(self) -> None:
        """`s3ws sync` in between."""
        assert self.daemon is not None
        self.daemon.control("sync")

    def do_kill(self) -> None:
        """SIGKILL the daemon, and go on with its cache."""
        assert self.daemon is not None
        self.daemon.kill()
        self.twins.close_handles()
        clear_mountpoint(Path(self.config.mountpoint))
        self._stack.close()
        self.mount()
        self.twins.compare()

    def do_kill_worker(self) -> None:
        """SIGKILL the worker, whatever it is doing."""
        assert self.daemon is not None
        pid = self.daemon.status()["worker_pid"]
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def do_remount(self) -> None:
        """Unmount and mount on the same cache."""
        before = self._ended()
        self.mount()
        self._same(before)

    def do_fresh(self) -> None:
        """Unmount, lose the cache, mount from the bucket; then often work while it is cold."""
        before = self._ended()
        shutil.rmtree(self.config.cache_dir)
        os.mkdir(self.config.cache_dir, 0o700)
        self.mount()
        if self.rng.random() < 0.5:
            self._same(before)

    def _same(self, before: trees.Manifest) -> None:
        found = trees.differences(before, trees.manifest(self.twins.sides[0]))
        if found:
            raise Difference("after a mount:\n" + "\n".join(found[:20]))

    def work(self, seconds: float) -> None:
        """Work until the time is over, then end, mount from the bucket alone, and compare."""
        until = time.monotonic() + seconds
        self.mount()
        while time.monotonic() < until:
            for _ in range(self.rng.randrange(5, 120)):
                self.twins.step()
            name = self.rng.choices(
                ("compare", "sync", "kill", "kill_worker", "remount", "fresh"), (2, 2, 3, 4, 1, 3)
            )[0]
            self.events[name] += 1
            self.twins.trace.append(f"--- {name}")
            getattr(self, "do_" + name)()
            del self.twins.trace[:-200]
        self.do_fresh()
        self._ended()


@contextlib.contextmanager
def running(base: Path, seed: int) -> Iterator[Run]:
    """A run that ends for sure."""
    run = Run(base, seed)
    try:
        yield run
    finally:
        run.end()


def test_two_trees(tmp_path: Path) -> None:
    seed = 1 if os.environ.get("CI") else random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    with running(tmp_path, seed) as run:
        run.work(SHORT_S)
    print(sum(run.twins.counts.values()), "operations;", dict(run.events))


def main() -> None:
    """The long form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--base", type=Path, default=None)
    args = parser.parse_args()
    base = Path(tempfile.mkdtemp(dir=args.base, prefix=f"two-trees-{args.seed}-"))
    print(f"seed {args.seed} in {base}", flush=True)
    with running(base, args.seed) as run:
        try:
            run.work(args.seconds)
        finally:
            print(sum(run.twins.counts.values()), "operations;", dict(run.events), flush=True)
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
