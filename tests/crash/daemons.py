"""SIGKILL at failpoints of a real daemon, and of its real worker, under a real mount.

`python -m tests.crash.daemons` tries all of CASES and prints figures; tests try some.

Where the daemon dies, programs see the mount die, and the next mount shows all that was answered.
Where the worker dies, nobody sees anything but a flush that is tried again. Always: the checker is
content, the next mount and a mount on another host show the model's files, and the end is clean.

Called by test_killed_daemons.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import stat
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from s3ws_fs.cache.checking import check_cache
from s3ws_fs.core import failpoints as fp
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.store.local import LocalStore
from s3ws_fs.store.scoped import ScopedStore
from tests.crash.rig import SYNC, Step, fast_directory, ignore, require_fine, require_mirror
from tests.crash.workloads import write
from tests.support.armed import KILL, Plan
from tests.support.files_model import XATTR, Files, Op, Shown, State, differences
from tests.support.mounting import Workspace, mounted_workspace, workspace_config

PAGE_BYTES: Final = 4096

FIRST: Final = "first"
SECOND: Final = "second"
DEAD: Final = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
"""What an operation says whose daemon dies."""
SYNC_TRIES: Final = 6

STEPS: Final[tuple[Step, ...]] = (
    Op("mkdir", "d"),
    Op("create", "d/a"),
    write("d/a", 3000),
    Op("create", "big"),
    write("big", 700_000),
    write("big", 700_000, 700_000),
    SYNC,
    Op("rename", "d", "e"),
    Op("create", "b"),
    write("b", 100),
    Op("fsync", "b"),
    Op("link", "b", "e/l"),
    Op("setxattr", "e/a", data=b"v"),
    Op("append", "e/a", data=b"more"),
    SYNC,
    Op("unlink", "b"),
    Op("rename", "e/a", "a"),
    Op("symlink", "s", data=b"a"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """Death at the n-th passing of a point, on the first host or on the second one."""

    point: str
    nth: int = 1
    host: str = FIRST


CASES: Final = (
    Case(fp.OPEN_NOTED),
    Case(fp.WORKSPACE_MADE),
    Case(fp.COMMIT_BEFORE, 5),
    Case(fp.COMMIT_AFTER, 5),
    Case(fp.BATCH_BEFORE, 3),
    Case(fp.BATCH_AFTER, 3),
    Case(fp.LOG_FLUSHING),
    Case(fp.LOG_FLUSHED),
    Case(fp.SYNC_FLUSHED, 2),
    Case(fp.SYNC_WRITTEN, 2),
    Case(fp.SYNC_AFTER, 2),
    Case(fp.FREEZE_BEFORE),
    Case(fp.FREEZE_AFTER, 2),
    Case(fp.SHIP_BEFORE),
    Case(fp.SHIP_AFTER),
    Case(fp.SEAL_BEFORE),
    Case(fp.SEAL_AFTER),
    Case(fp.SEAL_AFTER, 2),
    Case(fp.FORGET_BEFORE),
    Case(fp.FORGET_LOCATED),
    Case(fp.FORGET_BATCH, 2),
    Case(fp.FORGET_AFTER),
    Case(fp.FLUSH_SEALED, 2),
    Case(fp.MIRROR_BEFORE, 2),
    Case(fp.MIRROR_PUT_BEFORE, 2),
    Case(fp.MIRROR_PUT_AFTER, 3),
    Case(fp.MIRROR_DELETE_BEFORE),
    Case(fp.MIRROR_DELETE_AFTER),
    Case(fp.MIRROR_NOTED),
    Case(fp.MIRROR_AFTER),
    Case(fp.MIRROR_HINT),
    Case(fp.FINAL_BEFORE),
    Case(fp.FINAL_AFTER),
    Case(fp.CLOSE_BEFORE),
    Case(fp.CLOSE_SYNCED),
    Case(fp.CLOSE_AFTER),
    Case(fp.RESTORE_CLEARED, host=SECOND),
    Case(fp.RESTORE_FETCHED, host=SECOND),
    Case(fp.RESTORE_BATCH, 3, host=SECOND),
    Case(fp.RESTORE_LOADED, host=SECOND),
    Case(fp.RESTORE_AFTER, host=SECOND),
    Case(fp.HYDRATE_FETCHED, host=SECOND),
    Case(fp.HYDRATE_STORED, host=SECOND),
    Case(fp.HYDRATE_AFTER, host=SECOND),
    Case(fp.RECONCILE_AFTER, host=SECOND),
)


def operate(root: Path, op: Op) -> None:
    """One operation by one system call on a mount. Raises OSError."""
    path, other = root / op.path, root / op.other
    if op.kind == "create":
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    elif op.kind in ("write", "append", "fsync"):
        flags = {"append": os.O_RDWR | os.O_APPEND, "fsync": os.O_RDONLY}.get(op.kind, os.O_RDWR)
        fd = os.open(path, flags)
        try:
            if op.kind == "fsync":
                os.fsync(fd)
            elif op.kind == "append":
                assert os.write(fd, op.data) == len(op.data)
            else:
                assert os.pwrite(fd, op.data, op.at) == len(op.data)
        finally:
            # Its flush may find a dead daemon: what counts is what the call itself was told.
            with contextlib.suppress(OSError):
                os.close(fd)
    elif op.kind == "truncate":
        os.truncate(path, op.at)
    elif op.kind == "symlink":
        os.symlink(op.data, path)
    elif op.kind == "setxattr":
        os.setxattr(path, XATTR, op.data)
    elif op.kind in ("link", "rename"):
        getattr(os, op.kind)(path, other)
    else:
        getattr(os, op.kind)(path)


def shown_by(root: Path) -> State:
    """What a mount shows to programs."""
    found: dict[str, Shown] = {}
    inodes: dict[int, list[str]] = {}
    paths = [""]
    for above, directories, files in os.walk(root):
        below = Path(above).relative_to(root)
        paths += [str(below / name) for name in (*directories, *files)]
    for path in paths:
        inodes.setdefault((root / path).lstat().st_ino, []).append(path)
    for path in paths:
        status = (root / path).lstat()
        kind, data = "dir", b""
        if stat.S_ISLNK(status.st_mode):
            kind, data = "symlink", os.fsencode(os.readlink(root / path))
        elif stat.S_ISREG(status.st_mode):
            kind, data = "file", (root / path).read_bytes()
        xattrs: tuple[tuple[bytes, bytes], ...] = ()
        with contextlib.suppress(OSError):
            value = os.getxattr(root / path, XATTR, follow_symlinks=False)
            xattrs = ((XATTR, value),)
        found[path] = (kind, data, xattrs, tuple(sorted(inodes[status.st_ino])))
    return found


def requests_of(op: Op) -> list[Op]:
    """An operation as the kernel asks for it, after each request all that was asked by then.

    It ends a write's request at a page that it has not whole, and begins another.
    """
    first_bytes = -op.at % PAGE_BYTES
    if op.kind == "write" and 0 < first_bytes < len(op.data):
        return [replace(op, data=op.data[:first_bytes]), op]
    return [op]


class Trial:
    """One case, in a directory of its own."""

    def __init__(self, base: Path, case: Case) -> None:
        self.case = case
        base.mkdir(parents=True)
        for name in ("marks", "other"):
            (base / name).mkdir()
        # Nothing is flushed but by the steps, so that a point is passed where it is meant.
        self.config = workspace_config(base, debounce_min_s=600.0, debounce_max_s=3600.0)
        other = base / "other"
        self.other = replace(
            workspace_config(other), store=self.config.store, mountpoint=str(other / "mnt")
        )
        self.plan = Plan(case.point, KILL, str(base / "marks"), nth=case.nth)
        self.files = Files()
        self.in_flight: Op | None = None

    def run(self) -> None:
        """Die, and look. Raises AssertionError."""
        if self.case.host == SECOND:
            with mounted_workspace(self.config) as ws:
                self._steps(ws)
                self._end(ws)
            doomed, elsewhere = self.other, self.config
        else:
            doomed, elsewhere = self.config, self.other
        self._die(doomed)
        assert self.plan.struck, "nobody passed it"
        self._check(doomed)
        with mounted_workspace(doomed) as ws:
            self._same(ws, "the next mount")
            ws.control("sync")
            self._end(ws)
        self._check(doomed)
        if elsewhere is self.config:
            # Its own cache is older than what the second host sealed by now.
            elsewhere = replace(elsewhere, cache_dir=elsewhere.cache_dir + "-fresh")
            Path(elsewhere.cache_dir).mkdir()
        with mounted_workspace(elsewhere) as ws:
            self._same(ws, "another host")
            self._end(ws)
        store = LocalStore(str(self.config.store.path))
        require_mirror(ScopedStore(store, self.config.workspace.prefix), self.files.state())

    def _die(self, config: MountConfig) -> None:
        try:
            with mounted_workspace(config, env=self.plan.env()) as ws:
                if self.case.host == FIRST:
                    self._steps(ws)
                else:
                    self._until_struck(ws)
                if ws.process.poll() is None and not self._is_dead(ws):
                    ws.signal(signal.SIGTERM)
                ws.wait()
        except AssertionError:
            # It died before it was ready.
            if not self.plan.struck:
                raise

    def _until_struck(self, ws: Workspace) -> None:
        """Hydration goes on by itself; a sync comes past the rest."""
        with contextlib.suppress(OSError, UserError, ConnectionError):
            shown_by(ws.mountpoint)
            op = Op("create", "late")
            self.in_flight = op
            operate(ws.mountpoint, op)
            self.files.apply(op)
            self.in_flight = None
            self._sync(ws)

    def _is_dead(self, ws: Workspace) -> bool:
        try:
            ws.mountpoint.lstat()
            os.listdir(ws.mountpoint)
        except OSError as exc:
            return exc.errno in DEAD
        return False

    def _steps(self, ws: Workspace) -> None:
        """All steps, or as many as the daemon lives for."""
        for step in STEPS:
            if isinstance(step, str):
                if not self._sync(ws):
                    return
                continue
            try:
                operate(ws.mountpoint, step)
            except OSError as exc:
                assert exc.errno in DEAD, step
                self.in_flight = step
                return
            assert self.files.apply(step) == 0, step

    def _sync(self, ws: Workspace) -> bool:
        """Sync; once more when the worker died under it. False when the daemon is dead."""
        for _ in range(SYNC_TRIES):
            try:
                ws.control("sync")
            except UserError as exc:
                if exc.exit_code is not ExitCode.STORE:
                    break
            except (OSError, EOFError):
                break
            else:
                return True
        return ws.process.poll() is None and not self._is_dead(ws)

    def _same(self, ws: Workspace, what: str) -> None:
        wanted, got = self.files.state(), shown_by(ws.mountpoint)
        for op in () if self.in_flight is None else requests_of(self.in_flight):
            # It was not answered: each request of it is there as a whole, or not at all.
            if not differences(wanted, got):
                break
            assert self.files.apply(op) == 0
            wanted = self.files.state()
        self.in_flight = None
        assert not differences(wanted, got), f"{what}: {differences(wanted, got)}"

    def _end(self, ws: Workspace) -> None:
        ws.signal(signal.SIGTERM)
        assert ws.wait() == ExitCode.OK, ws.log()

    def _check(self, config: MountConfig) -> None:
        directory = Path(config.workspace_cache_dir)
        if (directory / "data" / "data.mdb").exists():
            require_fine(check_cache(directory, ignore).report)


def main() -> int:
    """Try all cases; the exit status says whether all held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("points", nargs="*", help="only these points")
    arguments = parser.parse_args()
    failures = 0
    started_s = time.monotonic()
    cases = [case for case in CASES if not arguments.points or case.point in arguments.points]
    for case in cases:
        with fast_directory("s3ws-daemons-") as base:
            try:
                Trial(Path(base) / "w", case).run()
            except Exception as exc:
                failures += 1
                print(f"FAILED {case}: {exc!r}"[:2000], flush=True)
            else:
                print(f"held: {case.point} ({case.nth}) on the {case.host} host", flush=True)
    print(f"{len(cases)} kills, {failures} failures, {time.monotonic() - started_s:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
