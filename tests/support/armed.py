"""Failpoints armed: in this process, or in children that a test starts, and in theirs.

A `Plan` names a point, which passing of it counts, and what happens then. `Plan.env` is the
environment of a child that obeys it: the directory `arming` goes on PYTHONPATH, where Python
finds a `sitecustomize` that calls `install_from_environment`. Daemon and transfer worker inherit
it.

Invariants
1. A plan strikes once in all processes together: a file says that it did, so that whoever is
   started again does not die again.
2. Passings are counted in each process apart. With `log`, every passing in every process is a
   line in that file: how often which point is passed.
3. Nothing of this is part of the program: it sets `failpoints.hook`, that is all.

Called by the tests of crash and daemon, and by sitecustomize.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from s3ws_fs.core import failpoints
from s3ws_fs.core.errors import ConflictError, PermanentError, TransientError

VARIABLE: Final = "S3WS_TEST_FAILPOINT"
ARMING: Final = Path(__file__).parent / "arming"
REPOSITORY: Final = Path(__file__).parents[2]
ANY: Final = "*"
"""As a plan's point: all of them."""

KILL: Final = "kill"
STOP: Final = "stop"
WATCH: Final = "watch"
"""Actions that raise nothing; `watch` only writes the log."""


def _lmdb_error(name: str) -> Exception:
    # Not above: a process that is only watched may not know lmdb.
    import lmdb

    if name == "MapFullError":
        return lmdb.MapFullError("injected: MDB_MAP_FULL")
    code = errno.ENOSPC if name == "enospc" else errno.EIO
    return lmdb.DiskError(f"injected: {os.strerror(code)}")


ERRORS: Final[dict[str, Callable[[str], Exception]]] = {
    "eio": lambda point: OSError(errno.EIO, f"injected at {point}"),
    "enospc": lambda point: OSError(errno.ENOSPC, f"injected at {point}"),
    "lmdb-eio": lambda _: _lmdb_error("eio"),
    "lmdb-enospc": lambda _: _lmdb_error("enospc"),
    "lmdb-map-full": lambda _: _lmdb_error("MapFullError"),
    "transient": lambda point: TransientError(point, "", "injected: may or may not be applied"),
    "permanent": lambda point: PermanentError(point, "", "injected: refused"),
    "conflict": lambda point: ConflictError(point, "", "injected: a condition did not hold"),
}
"""Actions that raise, by name."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens at the `nth` passing of `point`. `marks` is a directory of the test."""

    point: str
    action: str
    marks: str
    nth: int = 1
    log: bool = False

    @property
    def struck(self) -> bool:
        """Whether it has happened."""
        return self._mark.exists()

    @property
    def _mark(self) -> Path:
        return Path(self.marks) / f"struck {self.point.replace('*', 'any')} {self.nth}"

    @property
    def _log(self) -> Path:
        return Path(self.marks) / "passed"

    def passed(self) -> Counter[str]:
        """How often each point was passed so far, in all processes (needs `log`)."""
        with contextlib.suppress(FileNotFoundError):
            return Counter(self._log.read_text().split())
        return Counter()

    def env(self) -> dict[str, str]:
        """The environment that arms it in a child and in all that the child starts."""
        path = f"{ARMING}{os.pathsep}{REPOSITORY}"
        return {VARIABLE: json.dumps(asdict(self)), "PYTHONPATH": path}


class Listener:
    """A hook that obeys a plan. Thread-safe: the worker passes points in several threads."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._count = 0
        self._lock = threading.Lock()

    def __call__(self, point: str) -> None:
        plan = self._plan
        if plan.log:
            fd = os.open(plan._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(fd, f"{point}\n".encode())
            os.close(fd)
        if plan.action == WATCH or plan.point not in (ANY, point):
            return
        with self._lock:
            self._count += 1
            if self._count != plan.nth or not self._mark():
                return
        if plan.action == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        elif plan.action == STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            raise ERRORS[plan.action](point)

    def _mark(self) -> bool:
        """Invariant 1: whether nobody struck before."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            os.close(os.open(self._plan._mark, flags, 0o600))
        except FileExistsError:
            return False
        return True


_thread = threading.local()
"""Where `Trigger` keeps which point was passed last."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """SIGKILL at a point of one's choice, again and again, in processes that run already.

    Whoever passes a point whose name is a file in `directory` dies there; unless the file says
    "always", it is removed before. If it says "hold", the thread stays there for good, and the
    process goes on without it. The point `answer.before` counts only when a commit was the last
    thing before it: requests that change nothing pass it too.

    without: "resend" makes the kernel one that does not send unanswered requests again; "once"
    forgets what was done for those; "mount(2)" leaves the mounting to fusermount3; "flush" has the
    next flush of the database or its log fail, once, when a file of that name is in `directory`.
    """

    directory: str
    without: str = ""

    def env(self) -> dict[str, str]:
        """As Plan.env."""
        path = f"{ARMING}{os.pathsep}{REPOSITORY}"
        return {VARIABLE: json.dumps(asdict(self)), "PYTHONPATH": path}

    def set(self, point: str, *, always: bool = False) -> None:
        """From now on, die there."""
        self._arm(point, "always" if always else "once")

    def _arm(self, point: str, what: str) -> None:
        temporary = Path(self.directory, f".{point}")
        temporary.write_text(what)
        temporary.rename(Path(self.directory, point))

    def hold(self, point: str) -> None:
        """From now on, the first thread to pass there stays there until its process dies."""
        self._arm(point, "hold")

    def is_set(self, point: str) -> bool:
        """Whether nobody died there so far (or it is for always)."""
        return Path(self.directory, point).exists()

    def unset(self, point: str) -> None:
        """Do not die there any more."""
        Path(self.directory, point).unlink(missing_ok=True)

    def __call__(self, point: str) -> None:
        path = Path(self.directory, point)
        before, _thread.point = getattr(_thread, "point", ""), point
        if point == failpoints.ANSWER_BEFORE and before != failpoints.COMMIT_AFTER:
            return
        try:
            what = path.read_text()
        except FileNotFoundError:
            return
        if what != "always":
            path.unlink()
        if what == "hold":
            threading.Event().wait()
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()


def _do_without(what: str, directory: Path) -> None:
    if what == "once":
        from s3ws_fs.fuse.once import Once

        Once._settle = lambda self, key: None  # type: ignore[method-assign]
    elif what == "mount(2)":
        from s3ws_fs.fuse import mount

        mount._mount_directly = lambda *_: None
    elif what == "flush":
        from s3ws_fs.cache import durability
        from s3ws_fs.cache.syncpoint import SyncPoints

        waiting: Any = durability
        flush, flush_log = SyncPoints._flush, waiting.flush

        def fails_once(self: SyncPoints) -> None:
            with contextlib.suppress(FileNotFoundError):
                (directory / what).unlink()
                raise _lmdb_error("eio")
            flush(self)

        def log_fails_once(fds: list[int]) -> None:
            with contextlib.suppress(FileNotFoundError):
                (directory / what).unlink()
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            flush_log(fds)

        SyncPoints._flush = fails_once  # type: ignore[method-assign]
        waiting.flush = log_fails_once
    elif what == "resend":
        from s3ws_fs.holder import memory

        memory.HAS_RESEND = 0
        before = memory.Memory.set_init

        def set_init(self: memory.Memory, request: bytes, reply: bytes) -> None:
            # Without the second word of flags, as before Linux 5.17.
            before(self, request[: memory.FLAGS2_AT], reply)

        memory.Memory.set_init = set_init  # type: ignore[method-assign]


def install_from_environment() -> None:
    """Obey what the environment names, for the rest of this process's life."""
    given = json.loads(os.environ[VARIABLE])
    if "directory" in given:
        failpoints.hook = Trigger(**given)
        _do_without(given["without"], Path(given["directory"]))
        return
    failpoints.hook = Listener(Plan(**given))


@contextlib.contextmanager
def listening(hook: Callable[[str], None]) -> Iterator[None]:
    """Have `hook` told of every point passed in this process."""
    before = failpoints.hook
    failpoints.hook = hook
    try:
        yield
    finally:
        failpoints.hook = before


def killed_in_a_fork(plan: Plan, work: Callable[[], object]) -> int:
    """Do it armed, in a process of its own; returns that one's exit status (waitpid)."""
    with warnings.catch_warnings():
        # The child has one thread, and uses nothing that another may have locked.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    status = 1
    try:
        failpoints.hook = Listener(plan)
        work()
        status = 0
    finally:
        os._exit(status)
