"""Starting a mount: in the background until it is ready, or in place of this process.

What is started is the holder, which starts the daemon, and another when that one dies.

Invariants
1. The configuration reaches the daemon by an inherited memory file, never by argv, a file on disk
   or the environment; secrets travel in the environment of the child only.
2. `mount` returns only when the daemon said "ready"; otherwise it raises and leaves none behind.
3. A mount in the background says nothing to the service manager of whoever started it; one in the
   foreground is the service.

Called by cli and the manager (in a thread). The daemon's side of the agreement: `--config-fd N`
(MountConfig.loads of everything up to end of file), `--ready-fd M` (lines as in control.wire:
progress, then ready or error), ExitCode as exit status, and its registry entry written before
ready and removed at its end only when everything is saved.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from s3ws_fs.control import logfile, registry, servicemanager, wire
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.holder import HOLDER_PROGRAM
from s3ws_fs.launch.preflight import prepare, refuse_if_mounted

EventSink = Callable[[dict[str, Any]], None]

DAEMON_MODULE: Final = "s3ws_fs.daemon"
SILENCE_TIMEOUT_S: Final = 300.0
"""No word from a starting daemon for this long, and it is ended. Each progress line counts anew."""
TERMINATE_TIMEOUT_S: Final = 15.0
LOG_TAIL_LINES: Final = 1
_LOG_TAIL_BYTES: Final = 4096
_PIPE_READ_BYTES: Final = 64 * 1024


def ignore(_event: dict[str, Any]) -> None:
    """An event sink that drops everything."""


def mount(
    config: MountConfig,
    *,
    on_event: EventSink = ignore,
    nonempty: bool = False,
    secret_env: Mapping[str, str] | None = None,
) -> MountInfo:
    """Start a daemon and wait until its mount is ready. `secret_env` joins the child's environment.

    Raises UserError with the exit code that `s3ws mount` documents.
    """
    prepare(config, nonempty=nonempty)
    with _launch_lock(config):
        # Again, now that nobody else can be starting one.
        refuse_if_mounted(config)
        log = logfile.log_path(config.workspace_cache_dir)
        try:
            _spawn_and_wait(config, log, on_event, secret_env or {})
        except _DiedError as exc:
            raise UserError(
                f"The daemon for {config.mountpoint!a} ended while starting (exit status "
                f"{exc.status}).{_log_tail(log)}",
                remedy=f"Its log is {log!a}.",
                exit_code=_exit_code(exc.status),
            ) from None
        info = registry.read(config.runtime_dir, config.mountpoint)
    if info is None:
        raise UserError(
            f"{config.mountpoint!a} was mounted, but its daemon is gone already.",
            remedy=f"Its log is {log!a}.",
        )
    return info


def exec_foreground(config: MountConfig, *, nonempty: bool = False) -> NoReturn:
    """Become the holder: same process id, same terminal. Returns never; raises UserError."""
    prepare(config, nonempty=nonempty)
    fd = _config_fd(config)
    os.set_inheritable(fd, True)
    command = _command(config, fd, None)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, _environment({}))  # noqa: S606 - no shell is wanted


class _DiedError(Exception):
    """The daemon ended before it said ready or error; `status` as subprocess reports it."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)


def _spawn_and_wait(
    config: MountConfig, log: str, on_event: EventSink, secret_env: Mapping[str, str]
) -> None:
    config_fd = _config_fd(config)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    try:
        log_fd = logfile.open_log(log)
        try:
            process = subprocess.Popen(
                _command(config, config_fd, ready_write),
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                cwd="/",
                env=_without_manager(_environment(secret_env)),
                pass_fds=(config_fd, ready_write),
                start_new_session=True,
            )
        finally:
            os.close(log_fd)
            os.close(config_fd)
            os.close(ready_write)
        try:
            _wait_until_ready(ready_read, process, on_event)
        except BaseException:
            _terminate(process)
            raise
        # It outlives us on purpose; without this, Popen warns about a child still running.
        process.returncode = 0
    finally:
        os.close(ready_read)


def _wait_until_ready(fd: int, process: subprocess.Popen[bytes], on_event: EventSink) -> None:
    for line in _lines(fd):
        message = wire.decode(line)
        kind = message.get("event")
        if kind == "ready":
            return
        if kind == "error":
            raise wire.error_from(message.get("error"))
        on_event(message)
    raise _DiedError(process.wait(timeout=TERMINATE_TIMEOUT_S))


def _lines(fd: int) -> Iterator[bytes]:
    """Lines from a pipe up to its end. Raises UserError after SILENCE_TIMEOUT_S without a byte."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = bytearray()
    while True:
        if not poll.poll(SILENCE_TIMEOUT_S * 1000):
            raise UserError(
                f"The daemon did not get ready: no progress for {SILENCE_TIMEOUT_S:g} s.",
                remedy="Its log says where it stopped; is the store reachable?",
            )
        chunk = os.read(fd, _PIPE_READ_BYTES)
        if not chunk:
            return
        data += chunk
        *whole, rest = bytes(data).split(b"\n")
        data = bytearray(rest)
        yield from whole


def _terminate(process: subprocess.Popen[bytes]) -> None:
    """End a daemon that is not ready; what it has in the cache stays."""
    process.terminate()
    try:
        process.wait(timeout=TERMINATE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _config_fd(config: MountConfig) -> int:
    # A memory file, not a pipe: written whole before anybody reads, whatever its size.
    fd = os.memfd_create("s3ws-config", os.MFD_CLOEXEC)
    os.write(fd, config.dumps())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _command(config: MountConfig, config_fd: int, ready_fd: int | None) -> list[str]:
    # Isolated: nothing of the environment is for the holder, which passes it on.
    holder = [sys.executable, "-I", "-S", "-E", HOLDER_PROGRAM, "--mountpoint", config.mountpoint]
    holder += ["--config-fd", str(config_fd), "--log-format", config.log_format]
    # -P: what lies in the current directory is no module of ours.
    daemon = [sys.executable, "-P", "-m", DAEMON_MODULE]
    if ready_fd is not None:
        holder += ["--ready-fd", str(ready_fd)]
        daemon.append("--log-file")
    return [*holder, "--", *daemon]


def _environment(secret_env: Mapping[str, str]) -> dict[str, str]:
    environ = {**os.environ, **secret_env}
    home = str(Path(__file__).resolve().parents[2])
    if home not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        # Run from a checkout: the child must find the same package from its own directory.
        paths = [home, *environ.get("PYTHONPATH", "").split(os.pathsep)]
        environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    return environ


def _without_manager(environ: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name != servicemanager.VARIABLE}


def _exit_code(status: int) -> ExitCode:
    try:
        code = ExitCode(status)
    except ValueError:
        return ExitCode.INTERNAL
    return ExitCode.INTERNAL if code is ExitCode.OK else code


@contextmanager
def _launch_lock(config: MountConfig) -> Iterator[None]:
    """One launch at a time for a mount point; the kernel drops the lock when we die."""
    path = Path(registry.socket_path(config.runtime_dir, config.mountpoint)).with_suffix(".lock")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another `s3ws mount` of {config.mountpoint!a} is under way.",
                remedy="Wait for it to end.",
                exit_code=ExitCode.ALREADY_MOUNTED,
            ) from None
        yield
    finally:
        os.close(fd)


def _log_tail(path: str) -> str:
    """The last lines of the daemon's log, for an error that has nothing better to say."""
    try:
        with Path(path).open("rb") as source:
            source.seek(max(0, source.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            lines = source.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        return ""
    return "".join(f"\n  {line}" for line in lines)
