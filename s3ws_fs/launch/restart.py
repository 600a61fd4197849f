"""Putting a new daemon under a living mount: after an upgrade, or to be rid of one gone wrong.

Invariants
1. Programs that use the mount wait while it is done; none of their calls fails.
2. `restart` returns only when another daemon serves; otherwise it raises.

Called by cli and the manager (in a thread).
"""

from __future__ import annotations

import time
from typing import Any, Final

from s3ws_fs.control import client, registry
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.launch.end import SUCCESSOR_POLL_S, wait_for_successor
from s3ws_fs.launch.preflight import read_info

RESTART_TIMEOUT_S: Final = 120.0


def restart(
    mountpoint: str, runtime_dir: str, *, timeout_s: float = RESTART_TIMEOUT_S
) -> dict[str, Any]:
    """Swap the daemon for the installed version; {"pid", "version", "was": {...}, "pause_s"}.

    Raises UserError: not mounted (4), it can't be done (15), the next daemon did not come (14).
    """
    info = read_info(runtime_dir, mountpoint)
    if info is None or not info.daemon_is_alive():
        raise UserError(
            f"{mountpoint!a} has no living daemon.",
            remedy="`s3ws status` shows how it is.",
            exit_code=ExitCode.NOT_MOUNTED,
        )
    path = registry.socket_path(runtime_dir, mountpoint)
    deadline = time.monotonic() + timeout_s
    was = client.request(path, "restart", timeout_s=timeout_s)
    started = time.monotonic()
    while wait_for_successor(info, runtime_dir, deadline - time.monotonic()):
        try:
            status = client.request(path, "status", timeout_s=timeout_s)
        except (client.DaemonGoneError, UserError):
            # It starts; or it died as well, and another follows.
            status = {}
        if status.get("state") == "ready":
            pause_s = round(time.monotonic() - started, 3)
            return {
                "mountpoint": mountpoint,
                "pid": status["pid"],
                "version": status["version"],
                "was": was,
                "pause_s": pause_s,
            }
        time.sleep(SUCCESSOR_POLL_S)
    raise UserError(
        f"No other daemon went on with {mountpoint!a}.",
        remedy=f"Its log says why: {info.log_path!a}. The cache keeps everything; "
        "`s3ws status` shows how it is.",
        exit_code=ExitCode.GAVE_UP,
    )
