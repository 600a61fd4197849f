"""What OpenHands runs at its hooks: a process each, as `integrations.openhands` told it to.

Invariants
1. It ends with 0 or 1, never with 2: that would keep the agent from stopping, and an outage of the
   bucket is nothing that an agent could mend. What failed stands on standard error, which OpenHands
   records with the conversation.
2. It waits for the store no longer than its `--timeout`, which is below that of the hook; and while
   the store is known to be away only DEGRADED_S: an agent does not wait for what comes by itself.
3. It imports nothing from the current directory, which is the workspace (`-P`), and little besides:
   it runs at every message.

Called by OpenHands: `python -P -m s3ws_fs.integrations.openhands_hook EVENT …`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from s3ws_fs.control import client, registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.ids import canonical_id
from s3ws_fs.core.plaintext import safe
from s3ws_fs.integrations import turns

OK: Final = 0
FAILED: Final = 1
DEGRADED_S: Final = 5.0
SESSION_VARIABLE: Final = "OPENHANDS_SESSION_ID"


def session_start(info: MountInfo, socket_path: str, timeout_s: float) -> str:
    """The mount is there, it is the session's, and it serves. Raises UserError."""
    session = os.environ.get(SESSION_VARIABLE, "")
    if session and canonical_id(session, what="session id") != info.conversation_id:
        raise UserError(
            f"{info.mountpoint!a} is the workspace of conversation {info.conversation_id}, "
            f"not of {session!a}.",
            remedy="Give each conversation a workspace of its own.",
            exit_code=ExitCode.BAD_SETTINGS,
        )
    status = client.request(socket_path, "status", timeout_s=timeout_s)
    return f"the workspace is {status['state']}, sealed {status['generation']['sealed']}"


def user_prompt_submit(info: MountInfo, socket_path: str, timeout_s: float) -> str:
    """A turn begins, unless one is under way."""
    name, is_new = turns.begin(socket_path, timeout_s)
    return f"turn {name} {'begins' if is_new else 'goes on'}"


def stop(info: MountInfo, socket_path: str, timeout_s: float) -> str:
    """The agent finished: the turn ends, and everything is in the bucket. Raises UserError."""
    name, done = turns.finish(socket_path, timeout_s)
    ended = "" if name is None else f"turn {name} has ended, "
    return f"{ended}everything is saved: sealed {done['sealed']}, mirrored {done['mirrored']}"


Event = Callable[[MountInfo, str, float], str]

EVENTS: Final[dict[str, Event]] = {
    "session_start": session_start,
    "user_prompt_submit": user_prompt_submit,
    "stop": stop,
    # Also of an agent that was paused, failed, or left waiting: then its turn ends here.
    "session_end": stop,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one hook; its exit code."""
    try:
        asked = _parse(arguments)
        said = _run(asked.event, asked.mountpoint, asked.runtime_dir, asked.timeout)
    except UserError as exc:
        return _failed(f"{exc.message}\n{exc.remedy}")
    except Exception as exc:
        return _failed(f"{type(exc).__name__}: {exc}")
    sys.stdout.write(f"s3ws: {safe(said)}\n")
    return OK


def _run(event: str, mountpoint: str, runtime_dir: str, timeout_s: float) -> str:
    info = _mounted(runtime_dir, mountpoint)
    socket_path = registry.socket_path(runtime_dir, mountpoint)
    health = client.request(socket_path, "status", timeout_s=timeout_s)["health"]
    if health["state"] != "ok":
        timeout_s = min(timeout_s, DEGRADED_S)
    try:
        return EVENTS[event](info, socket_path, timeout_s)
    except client.DaemonSilentError as exc:
        why = f": {health['error']}" if health["error"] else "."
        raise UserError(
            f"The store did not answer within {timeout_s:g} s{why}",
            remedy="Work goes on; what is not saved yet is saved when the store answers.",
            exit_code=ExitCode.NOT_SAVED,
        ) from exc


def _parse(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="openhands_hook", exit_on_error=False)
    parser.add_argument("event", choices=EVENTS)
    parser.add_argument("--mountpoint", required=True)
    parser.add_argument("--runtime-dir", required=True)
    parser.add_argument("--timeout", type=float, required=True)
    try:
        return parser.parse_args(arguments)
    except (argparse.ArgumentError, SystemExit) as exc:
        raise UserError(
            f"The hook's command is not understood ({exc}).",
            remedy="Take it from ConversationWorkspace.hook_config().",
            exit_code=ExitCode.USAGE,
        ) from None


def _mounted(runtime_dir: str, mountpoint: str) -> MountInfo:
    info = registry.read(runtime_dir, mountpoint)
    if info is None or not info.is_alive():
        what = "is not mounted" if info is None else "has a daemon that is dead"
        raise UserError(
            f"{mountpoint!a} {what}.",
            remedy="Mount the workspace: what its cache holds is saved then.",
            exit_code=ExitCode.NOT_MOUNTED,
        )
    return info


def _failed(text: str) -> int:
    for line in text.strip().splitlines():
        sys.stderr.write(f"s3ws: {safe(line)}\n")
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
