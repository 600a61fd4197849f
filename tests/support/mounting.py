"""Real mounts for tests: a daemon, or the fuse layer alone, in a child process.

Invariants
1. Whatever a test does, nothing is left behind: the process is ended by its id, the connection is
   aborted, the mount point is cleared; also when the test failed or the daemon hangs.
2. Nothing here waits by time alone: every wait is for a condition, with a deadline.

Called by the tests of fuse, daemon and e2e.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from s3ws_fs.control import client, registry
from s3ws_fs.core.bounds import LEASE_S_MIN
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.core.errors import UserError
from s3ws_fs.fuse import table
from s3ws_fs.holder import HOLDER_PROGRAM

REPOSITORY: Final = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S: Final = 30.0
EXIT_TIMEOUT_S: Final = 30.0


def loaded_by(module: str) -> list[str]:
    """The modules that a fresh process has after importing this one."""
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def require_fuse() -> None:
    """Skip the test, saying why, where mounting is impossible."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing or not accessible")


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 10.0, what: str = "") -> None:
    """Poll a real condition; fail the test when it does not come true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what or condition}")
        time.sleep(0.01)


def clear_mountpoint(mountpoint: Path) -> None:
    """Abort the connection and take the mount away, whatever its daemon does."""
    number = table.connection_id(str(mountpoint))
    if number is None:
        return
    with contextlib.suppress(OSError):
        Path(f"/sys/fs/fuse/connections/{number}/abort").write_text("1")
    for command in (["umount", "-f"], ["umount", "-l"], ["fusermount3", "-u", "-z"]):
        subprocess.run([*command, str(mountpoint)], capture_output=True, check=False)
        if not table.is_mounted(str(mountpoint)):
            return


@dataclass
class Child:
    """A child process that serves a mount."""

    process: subprocess.Popen[bytes]
    mountpoint: Path
    log_path: Path
    events: list[dict[str, Any]]

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        """What it logged so far."""
        return self.log_path.read_text(errors="replace")

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = EXIT_TIMEOUT_S) -> int:
        """Its exit status. Fails the test when it does not end."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"pid {self.pid} did not end:\n{self.log()}") from None

    def kill(self) -> None:
        """SIGKILL, as the out-of-memory killer does; the dead mount stays."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Invariant 1."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                clear_mountpoint(self.mountpoint)
                self.process.wait()
        clear_mountpoint(self.mountpoint)


@dataclass
class Workspace(Child):
    """A mounted workspace with a whole daemon."""

    config: MountConfig
    is_held: bool = False
    """The process is a holder, and the daemon its child."""

    def daemon_pid(self) -> int:
        """The daemon's own process id."""
        if not self.is_held:
            return self.pid
        info = registry.read(self.config.runtime_dir, self.config.mountpoint)
        assert info is not None, "no daemon is registered"
        return info.pid

    def kill(self) -> None:
        """SIGKILL, the holder first: as when a container dies; the dead mount stays."""
        daemon = os.pidfd_open(self.daemon_pid())
        try:
            super().kill()
            _kill(daemon)
        finally:
            os.close(daemon)

    def kill_daemon(self) -> None:
        """SIGKILL the daemon alone; returns when another one serves. Only with a holder."""
        killed = self.daemon_pid()
        daemon = os.pidfd_open(killed)
        try:
            _kill(daemon)
        finally:
            os.close(daemon)

        def serves() -> bool:
            if self.daemon_pid() == killed:
                return False
            try:
                return bool(self.status()["state"] == "ready")
            except UserError:
                return False

        wait_until(serves, timeout_s=READY_TIMEOUT_S, what=self.log())

    def end(self) -> None:
        """Invariant 1, of both."""
        try:
            daemon = os.pidfd_open(self.daemon_pid())
        except (AssertionError, ProcessLookupError):
            super().end()
            return
        try:
            super().end()
            _kill(daemon)
        finally:
            os.close(daemon)

    def control(self, cmd: str, *, timeout_s: float = 60.0, **args: Any) -> dict[str, Any]:
        """One request over the control socket. Raises what the daemon answered."""
        path = registry.socket_path(self.config.runtime_dir, self.config.mountpoint)
        return client.request(path, cmd, args, timeout_s=timeout_s)

    def status(self) -> dict[str, Any]:
        """The status document."""
        return self.control("status")


def _kill(pidfd: int) -> None:
    """SIGKILL a process, if it still runs, and wait for its end."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(EXIT_TIMEOUT_S * 1000), "a killed process did not end"


def workspace_config(base: Path, **overrides: Any) -> MountConfig:
    """A configuration below `base`: local store, quick flushes, every directory of its own."""
    for name in ("mnt", "store", "cache", "run"):
        with contextlib.suppress(FileExistsError):
            os.mkdir(base / name, 0o700)
    values: dict[str, Any] = {
        "mountpoint": str(base / "mnt"),
        "workspace": WorkspaceId("user-1", "test-123"),
        "store": StoreConfig(type="local", path=str(base / "store")),
        "cache_dir": str(base / "cache"),
        "runtime_dir": str(base / "run"),
        "debounce_min_s": 0.2,
        "unmount_grace_s": 1.0,
        "sync_point_interval_s": 1.0,
        "lease_s": LEASE_S_MIN,
        "allow_other": os.geteuid() == 0,
        "root_uid": os.getuid(),
        "root_gid": os.getgid(),
    }
    return MountConfig(**(values | overrides))


@contextlib.contextmanager
def mounted_workspace(
    config: MountConfig, *, env: Mapping[str, str] | None = None, held: bool = False
) -> Iterator[Workspace]:
    """Mount by a real daemon process, and end it for sure. Raises AssertionError with its log.

    With `held` a holder starts it, and another when it dies.
    """
    require_fuse()
    fd = os.memfd_create("config")
    os.write(fd, config.dumps())
    os.lseek(fd, 0, os.SEEK_SET)
    log_path = Path(config.cache_dir) / "test-daemon.log"
    command, of_daemon = [sys.executable, "-m", "s3ws_fs.daemon"], []
    if held:
        of_daemon = ["--", *command]
        command = [sys.executable, "-I", "-S", "-E", HOLDER_PROGRAM]
        command += ["--mountpoint", config.mountpoint]
    try:
        command += ["--config-fd", str(fd)]
        process, events = _spawn(command, log_path, (fd,), env or {}, of_daemon)
    finally:
        os.close(fd)
    child = Workspace(process, Path(config.mountpoint), log_path, events, config, held)
    try:
        if not events or events[-1]["event"] != "ready":
            raise AssertionError(f"not ready: {events}\n{child.log()}")
        yield child
    finally:
        child.end()


@contextlib.contextmanager
def mounted_layer(base: Path, **options: Any) -> Iterator[Child]:
    """The fuse layer over a filesystem on a cache, without store and flusher (see fuse_child)."""
    require_fuse()
    mountpoint = base / "mnt"
    with contextlib.suppress(FileExistsError):
        os.mkdir(mountpoint)
    log_path = base / "child.log"
    arguments = json.dumps({"mountpoint": str(mountpoint), "cache": str(base / "cache")} | options)
    command = [sys.executable, "-m", "tests.support.fuse_child", arguments]
    process, events = _spawn(command, log_path, (), {})
    child = Child(process, mountpoint, log_path, events)
    try:
        if not events or events[-1]["event"] != "ready":
            raise AssertionError(f"not ready: {events}\n{child.log()}")
        yield child
    finally:
        child.end()


def _spawn(
    command: list[str],
    log_path: Path,
    fds: tuple[int, ...],
    env: Mapping[str, str],
    further: Sequence[str] = (),
) -> tuple[subprocess.Popen[bytes], list[dict[str, Any]]]:
    """Start a child and read its ready pipe to the end."""
    ready, theirs = os.pipe()
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*command, "--ready-fd", str(theirs), *further],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **env},
            pass_fds=(theirs, *fds),
            start_new_session=True,
        )
    os.close(theirs)
    watchdog_s = time.monotonic() + READY_TIMEOUT_S
    events: list[dict[str, Any]] = []
    with os.fdopen(ready) as lines:
        for line in lines:
            events.append(json.loads(line))
            if time.monotonic() > watchdog_s:
                break
    return process, events
