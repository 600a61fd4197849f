"""`python -m s3ws_fs.daemon --config-fd N [--ready-fd M]`: the process behind a mount.

From a holder also [--log-file] --holder-fd K --memory-fd L, and for a daemon that follows another
--device-fd D --restarts COUNT --restarted-by TEXT (see daemon.held).

Invariants
1. The configuration comes by a descriptor, read to its end; nothing secret stands in argv, and
   credentials are kept for the transfer worker alone (transfer.client).
2. The ready descriptor gets JSON lines: progress, then `ready` or `error`, and is closed then.
3. The exit status is an `ExitCode`; 0 only when everything was saved.
4. A service manager (NOTIFY_SOCKET) hears how it goes; the launcher passes it on only where the
   mount is the service (`s3ws mount --foreground`).
5. Standard error is the log. With --ready-fd or --log-file it is the log file that the launcher
   opened, and the launcher made this a session of its own.

Called by `__main__`, which `s3ws_fs.launch` starts.
"""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

import trio

from s3ws_fs.control import logfile, wire
from s3ws_fs.control.servicemanager import ServiceManager
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.daemon import logs
from s3ws_fs.daemon.commands import only_error
from s3ws_fs.daemon.daemon import Daemon
from s3ws_fs.daemon.held import HolderLine
from s3ws_fs.transfer.client import withhold_credentials

log = logging.getLogger("s3ws_fs.daemon")


class ReadyPipe:
    """Says to the launcher how the start goes; silent when there is none or it went away.

    A launcher that does not read misses progress, and delays nothing but the last word.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_blocking(fd, False)

    def __call__(self, event: dict[str, Any]) -> None:
        if self._fd is None:
            return
        last = event["event"] in ("ready", "error")
        try:
            os.set_blocking(self._fd, last)
            os.write(self._fd, wire.encode(event))
        except BlockingIOError:
            return
        except OSError:
            last = True
        if last:
            self.close()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def main() -> int:
    """Run one mount to its end; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m s3ws_fs.daemon")
    parser.add_argument("--config-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--log-file", action="store_true")
    for number in ("--holder-fd", "--memory-fd", "--device-fd", "--restarts"):
        parser.add_argument(number, type=int)
    parser.add_argument("--restarted-by", default="")
    arguments = parser.parse_args()
    report = ReadyPipe(arguments.ready_fd)
    manager = ServiceManager.of(os.environ)
    withhold_credentials()
    try:
        with os.fdopen(arguments.config_fd, "rb") as source:
            config = MountConfig.loads(source.read())
        about = {"workspace": config.workspace.prefix, "mountpoint": config.mountpoint}
        logs.set_up(config.log_level, config.log_format, about=about)
        detached = arguments.ready_fd is not None or arguments.log_file
        log_path = logfile.log_path(config.workspace_cache_dir) if detached else None
        life = Daemon(config, report, log_path=log_path, line=_line(arguments), manager=manager)
        return int(trio.run(life.run).exit_code)
    except BaseException as exc:
        error = _user_error(exc)
        log.error("%s", error, exc_info=None if error is only_error(exc) else exc)
        report({"event": "error", "error": wire.error_object(error)})
        return int(error.exit_code)
    finally:
        report.close()
        logs.summarise(at_end=True)


def _line(arguments: argparse.Namespace) -> HolderLine | None:
    if arguments.holder_fd is None:
        return None
    line = HolderLine(
        arguments.holder_fd,
        arguments.memory_fd,
        kernel_fd=arguments.device_fd,
        restarts=arguments.restarts or 0,
        restarted_by=arguments.restarted_by,
    )
    if line.restarts:
        log.warning(
            "following a daemon that ended (%s); restart %d", line.restarted_by, line.restarts
        )
    return line


def _user_error(exc: BaseException) -> UserError:
    """The error to show for whatever ended the daemon."""
    exc = only_error(exc)
    if isinstance(exc, UserError):
        return exc
    return UserError(
        f"the daemon failed: {type(exc).__name__}: {exc}",
        remedy="this is a fault of s3ws; the log has the details, the cache keeps everything",
        exit_code=ExitCode.INTERNAL,
    )
