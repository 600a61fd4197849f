"""`s3ws-volumes [--socket PATH] [--state-dir DIR]`: the volume plugin for Docker and podman.

Invariants
1. One plugin a state directory (a lock that goes with the process).
2. SIGTERM and SIGINT end it after the requests under way; mounts stay, and the next plugin knows
   them. No signal is blocked meanwhile: the mounts would inherit that.
3. A service manager hears READY when it listens.

Called by the entry point `s3ws-volumes` and by `python -m s3ws_fs.integrations.volumes`.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from s3ws_fs import __version__
from s3ws_fs.cli.report import report_user_error
from s3ws_fs.control.paths import ensure_private_dir
from s3ws_fs.control.servicemanager import ServiceManager
from s3ws_fs.core.errors import ExitCode, S3wsError, UserError
from s3ws_fs.daemon import logs
from s3ws_fs.integrations.volumes.driver import Driver, Places
from s3ws_fs.integrations.volumes.server import Server
from s3ws_fs.workspaces.mounts import runtime_dir

log = logging.getLogger("s3ws_fs.volumes")

ENDING: Final = (signal.SIGTERM, signal.SIGINT)
ROOT_SOCKET: Final = "/run/docker/plugins/s3ws.sock"
"""Where Docker looks for plugins: this one is called s3ws there."""
ROOT_STATE: Final = "/var/lib/s3ws-volumes"


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; the exit status."""
    parser = argparse.ArgumentParser(
        prog="s3ws-volumes",
        description="Workspaces as volumes of Docker and podman (docs/host.md). Settings come from"
        " WORKSPACE_* and AWS_* variables; options of a volume override them.",
    )
    is_root = os.geteuid() == 0
    home = Path("~").expanduser()
    parser.add_argument(
        "--socket", default=ROOT_SOCKET if is_root else f"{home}/.s3ws-volumes.sock"
    )
    state = ROOT_STATE if is_root else f"{home}/.local/share/s3ws-volumes"
    parser.add_argument("--state-dir", default=state)
    parser.add_argument("--version", action="version", version=f"s3ws {__version__}")
    given = parser.parse_args(arguments)
    try:
        logs.set_up(
            os.environ.get("WORKSPACE_LOG_LEVEL") or "info",
            "json" if os.environ.get("WORKSPACE_LOG_FORMAT") == "json" else "text",
        )
        return _serve(str(Path(given.socket).absolute()), os.path.realpath(given.state_dir))
    except UserError as exc:
        report_user_error(exc, prefix="s3ws-volumes")
        return int(exc.exit_code)
    except (S3wsError, OSError) as exc:
        report_user_error(UserError(str(exc)), prefix="s3ws-volumes")
        return int(ExitCode.INTERNAL)


def _serve(socket_path: str, state_dir: str) -> int:
    wait_for_signal = _signals()
    manager = ServiceManager.of(os.environ)
    ensure_private_dir(state_dir)
    lock = os.open(f"{state_dir}/lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"Another plugin has the volumes of {state_dir!a}.",
            remedy="End it, or name another directory by --state-dir.",
            exit_code=ExitCode.ALREADY_MOUNTED,
        ) from None
    places = Places(state_dir, runtime_dir())
    driver = Driver(places, os.environ, allow_other=os.geteuid() == 0)
    server = Server(socket_path, driver)
    stop = threading.Event()
    threads = [
        threading.Thread(target=server.serve_forever, name="server"),
        threading.Thread(target=driver.keep_tidy, args=(stop,), name="tidy"),
    ]
    for thread in threads:
        thread.start()
    count = len(driver.names())
    log.info("listening on %s, volumes known: %d", socket_path, count)
    manager.tell(READY=1, STATUS=f"listening on {socket_path}; volumes known: {count}")
    log.info("%s: ending; mounts stay", wait_for_signal())
    manager.tell(STOPPING=1, STATUS="ending after the requests under way; mounts stay")
    stop.set()
    server.close()
    for thread in threads:
        thread.join()
    os.close(lock)
    return 0


def _signals() -> Callable[[], str]:
    """Note signals from now on; what is returned waits for one, and gives its name."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    for ending in ENDING:
        signal.signal(ending, lambda number, _frame: _write(write_fd, number))

    def wait() -> str:
        return signal.Signals(os.read(read_fd, 1)[0]).name

    return wait


def _write(fd: int, number: int) -> None:
    os.write(fd, bytes([number]))


if __name__ == "__main__":
    sys.exit(main())
