"""A host of its own: cache, runtime directory, mount point, and the `s3ws` command on it.

Invariants
1. Everything is done by the command in a process of its own, as a person does it.
2. `end` leaves nothing behind, whatever happened: the daemon and its children end by their ids (the
   connection aborted first when the daemon hangs), and the mount point is cleared.
3. The settings of whoever runs the tests play no part.

Called by the tests of e2e and crash, and by scripts/acceptance.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from s3ws_fs.control import client, registry
from s3ws_fs.core.errors import UserError
from tests.support.mounting import REPOSITORY, clear_mountpoint, require_fuse, wait_until

COMMAND_S_MAX: Final = 600.0
EXIT_S_MAX: Final = 30.0
LOG_TAIL_CHARS: Final = 6000
_FOREIGN: Final = ("WORKSPACE_", "AWS_", "FILE_STORE", "S3WS_", "OH_")

QUICK: Final = {
    "WORKSPACE_SYNC_DEBOUNCE_MIN": "0.2",
    "WORKSPACE_SYNC_DEBOUNCE_MAX": "2",
    "WORKSPACE_SYNC_POINT_INTERVAL": "1",
    "WORKSPACE_UNMOUNT_GRACE": "1",
    "WORKSPACE_LEASE_S": "3",
}
"""Settings for tests: flushes soon after a change, and a lease that is short."""

NEVER_BY_ITSELF: Final = {
    "WORKSPACE_SYNC_DEBOUNCE_MIN": "3600",
    "WORKSPACE_SYNC_DEBOUNCE_MAX": "3600",
}
"""Settings with which only `sync` and the end flush."""


class Host:
    """One host with one workspace. `env` finds the bucket; `settings` are further variables."""

    def __init__(
        self,
        base: Path,
        env: Mapping[str, str],
        *,
        user: str = "user-1",
        conversation: str = "test-123",
        settings: Mapping[str, str] = QUICK,
    ) -> None:
        base.mkdir(parents=True, exist_ok=True)
        self.base = base
        self.mountpoint = base / "workspace"
        self.cache = base / "cache"
        self.runtime = base / "run"
        self.mountpoint.mkdir(exist_ok=True)
        self.settings = {
            "WORKSPACE_USER_ID": user,
            "WORKSPACE_CONVERSATION_ID": conversation,
            "WORKSPACE_CACHE_DIR": str(self.cache),
            "WORKSPACE_RUNTIME_DIR": str(self.runtime),
            "WORKSPACE_ALLOW_OTHER": "true" if os.geteuid() == 0 else "false",
            **env,
            **settings,
        }
        self.prefix = f"conversations/{user}/{conversation}/workspace/"

    @property
    def env(self) -> dict[str, str]:
        """The whole environment of a command on this host."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
        return {**kept, "PYTHONPATH": str(REPOSITORY), **self.settings}

    def elsewhere(self, base: Path) -> Host:
        """The same workspace on another host, without a cache. Not mounted."""
        other = Host(base, {}, settings=self.settings)
        other.settings |= {
            "WORKSPACE_CACHE_DIR": str(other.cache),
            "WORKSPACE_RUNTIME_DIR": str(other.runtime),
        }
        return other

    # --- the command -----------------------------------------------------------------------

    def s3ws(
        self, *words: str | os.PathLike[str], ok: int | None = 0, timeout_s: float = COMMAND_S_MAX
    ) -> subprocess.CompletedProcess[str]:
        """Run `s3ws`; AssertionError when its exit code is not `ok` (None: any)."""
        done = subprocess.run(
            [sys.executable, "-m", "s3ws_fs", *(os.fspath(word) for word in words)],
            env=self.env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout_s,
            check=False,
        )
        if ok is not None and done.returncode != ok:
            raise AssertionError(
                f"s3ws {words[0]}: exit code {done.returncode}, wanted {ok}\n"
                f"{done.stdout}\n{done.stderr}\n{self.log_tail()}"
            )
        return done

    def json(self, *words: str | os.PathLike[str], ok: int | None = 0) -> Any:
        """The JSON document that a command prints with --json."""
        done = self.s3ws(*words, "--json", ok=ok)
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise AssertionError(f"s3ws {words}: not JSON: {done.stdout!r}") from None

    def mount(self, *flags: str, take_over: bool = False) -> dict[str, Any]:
        """Mount; the document that says what was mounted.

        `take_over`: from the mount of a host that is gone, or is not asked.
        """
        require_fuse()
        if take_over:
            flags = (*flags, "--take-over")
        document = self.json("mount", self.mountpoint, *flags)
        assert isinstance(document, dict)
        return document

    def umount(self) -> None:
        """Unmount: everything is saved afterwards."""
        self.s3ws("umount", self.mountpoint)

    def sync(self) -> dict[str, Any]:
        """Flush; everything is sealed and mirrored afterwards."""
        document = self.json("sync", self.mountpoint)
        assert isinstance(document, dict)
        return document

    def status(self) -> dict[str, Any]:
        """The status document."""
        document = self.json("status", self.mountpoint)
        assert isinstance(document, dict)
        return document

    def now(self) -> dict[str, Any]:
        """The status document by the control socket: for polling, without a process each time."""
        return client.request(self.socket_path, "status")

    def unmirrored(self) -> set[str]:
        """Paths that status says can't stand under files/."""
        return {item["path"] for item in self.now()["mirror"]["unmirrored"]}

    # --- the daemon ------------------------------------------------------------------------

    @property
    def socket_path(self) -> str:
        """Where the daemon listens."""
        return registry.socket_path(str(self.runtime), str(self.mountpoint))

    def info(self) -> registry.MountInfo | None:
        """The registered mount."""
        return registry.read(str(self.runtime), str(self.mountpoint))

    def pid(self) -> int:
        """Process id of the daemon. AssertionError when the mount has none, and gets none."""
        info = self.info()
        assert info is not None and info.is_alive(), "no daemon is running"
        return info.pid

    def workspace_cache(self) -> Path:
        """The directory of the workspace's cache. AssertionError unless there is exactly one."""
        (directory,) = (path for path in self.cache.iterdir() if path.is_dir())
        return directory

    def kill(self) -> None:
        """SIGKILL holder and daemon, as when the container dies; the dead mount stays."""
        info = self.info()
        assert info is not None and info.is_alive(), "no daemon is running"
        kill_all(info)

    def kill_daemon(self, *, wait: bool = True) -> int:
        """SIGKILL the daemon, as the out-of-memory killer does: its holder starts another.

        Returns the process id of the one that was killed. With `wait`, the next one serves.
        """
        pid = self.pid()
        children = _children(pid)
        fd = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            wait_for_exit(fd)
        finally:
            os.close(fd)
        if wait:
            self.wait_for_successor(pid)
        _end_all(children)
        return pid

    def wait_for_successor(self, pid: int) -> None:
        """Until another daemon than `pid` serves."""

        def serves() -> bool:
            info = self.info()
            if info is None or info.pid == pid:
                return False
            try:
                return bool(self.now()["state"] == "ready")
            except UserError:
                return False

        wait_until(serves, timeout_s=EXIT_S_MAX, what=f"a successor of daemon {pid}")

    def signal_and_wait(self, number: int, *, timeout_s: float = EXIT_S_MAX) -> None:
        """Send the daemon a signal and wait until it and its holder have ended."""
        pid = self.pid()
        info = self.info()
        assert info is not None
        fds = [os.pidfd_open(process) for process in info.processes()]
        try:
            os.kill(pid, number)
            for fd in fds:
                wait_for_exit(fd, timeout_s)
        finally:
            for fd in fds:
                os.close(fd)

    def lose_cache(self) -> None:
        """The disk is lost. Nothing may be mounted."""
        assert not os.path.ismount(self.mountpoint)
        shutil.rmtree(self.cache)

    def log_tail(self) -> str:
        """The end of the daemon's log, if there is one."""
        texts = []
        for path in sorted(self.cache.rglob("*.log")) if self.cache.is_dir() else ():
            text = path.read_text(errors="replace")
            texts.append(f"--- {path.name}\n{text[-LOG_TAIL_CHARS:]}")
        return "\n".join(texts)

    def end(self) -> None:
        """Invariant 2. Nothing is saved by this."""
        info = self.info()
        if info is not None and info.is_alive():
            kill_all(info, meanwhile=lambda: clear_mountpoint(self.mountpoint))
        clear_mountpoint(self.mountpoint)


def kill_all(info: registry.MountInfo, meanwhile: Callable[[], None] = lambda: None) -> None:
    """SIGKILL the holder, so that it starts no other, and then the daemon; its children end.

    Where this process is the one that started them, it buries them too.
    """
    daemons = [info.pid] if info.daemon_is_alive() else []
    victims = []
    if info.holder_pid is not None and info.holder_is_alive():
        with contextlib.suppress(ProcessLookupError):
            victims.append(os.pidfd_open(info.holder_pid))
            signal.pidfd_send_signal(victims[0], signal.SIGSTOP)
            # Its child is the daemon: maybe another than was registered so far.
            daemons = child_pids(info.holder_pid)
            signal.pidfd_send_signal(victims[0], signal.SIGKILL)
    children = []
    for pid in daemons:
        with contextlib.suppress(ProcessLookupError):
            victims.append(os.pidfd_open(pid))
            children += _children(pid)
            signal.pidfd_send_signal(victims[-1], signal.SIGKILL)
    try:
        meanwhile()
        for fd in victims:
            wait_for_exit(fd)
        for pid in (info.holder_pid or info.pid, info.pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    finally:
        for fd in victims:
            os.close(fd)
        _end_all(children)


def wait_for_exit(pidfd: int, timeout_s: float = EXIT_S_MAX) -> None:
    """Wait until the process ended. AssertionError when it does not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(timeout_s * 1000), f"the process did not end within {timeout_s:g} s"


def child_pids(pid: int) -> list[int]:
    """The direct children of a process, whichever thread started them."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def _children(pid: int) -> list[int]:
    """Descriptors (pidfd) of the direct children of a process."""
    found = []
    for child in child_pids(pid):
        with contextlib.suppress(ProcessLookupError):
            found.append(os.pidfd_open(child))
    return found


def _end_all(pidfds: list[int]) -> None:
    """Children of a dead daemon end by themselves; what does not is killed, and that is a fault."""
    late = 0
    for fd in pidfds:
        try:
            wait_for_exit(fd)
        except AssertionError:
            late += 1
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)
    assert not late, f"{late} children outlived the killed daemon"


HostMaker = Callable[..., Host]
"""`make(bucket, name, **options of Host)`."""
