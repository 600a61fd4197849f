"""`s3ws restore` and `s3ws undo`: an earlier state of a mounted workspace, brought back.

Invariants
1. Without --yes nothing is changed before a person at a terminal saw what would be, and agreed.
   What was shown is what is restored: the point is asked for by its number then.
2. The daemon does it all; this only asks, and tells.

Called by cli only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import click

from s3ws_fs.cli import report
from s3ws_fs.control import client, registry, wire
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.rewind import answer_json, path_bytes
from s3ws_fs.workspaces.mounts import registered, runtime_dir

SHOWN_MAX: Final = 20
"""Paths of each kind that a person is shown; --json has more."""

_KINDS: Final = (("added", "+"), ("changed", "~"), ("deleted", "-"), ("kept", "="))


def _flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing."),
        click.option("-y", "--yes", is_flag=True, help="Don't ask."),
        click.option(
            "--all",
            "everything",
            is_flag=True,
            help="Bring back local paths too (caches, node_modules, temp files).",
        ),
    ):
        command = option(command)
    return command


@click.command(short_help="Bring back an earlier state of a mount, whole or in part.")
@click.argument("snapshot")
@click.argument("mountpoint", type=click.Path(path_type=str, readable=False))
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@_flags
def restore(
    snapshot: str,
    mountpoint: str,
    paths: tuple[str, ...],
    everything: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Bring the workspace on MOUNTPOINT, or some PATHs of it, back to SNAPSHOT.

    SNAPSHOT is a name, #N, gen:N, a time or 15m, turn:NAME, head (see `s3ws snapshots`). A PATH is
    relative to the workspace's root, or absolute below MOUNTPOINT. The state before becomes a
    snapshot first: `s3ws undo MOUNTPOINT` brings it back. Open files keep what they have. Local
    paths (caches, node_modules, temp files) stay, unless --all or named.
    """
    info = _living(mountpoint)
    inside = [_inside(info, path) for path in paths]
    asking = _Asking(info, {"everything": everything}, yes, dry_run, as_json)
    return asking.run("restore", {"ref": snapshot, "paths": inside})


@click.command(short_help="Bring back what stood before the last restore, or undo.")
@click.argument("mountpoint", type=click.Path(path_type=str, readable=False))
@_flags
def undo(mountpoint: str, everything: bool, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Bring the workspace on MOUNTPOINT back to what it was before the last restore or undo.

    The state now becomes a snapshot first: undoing an undo is a redo.
    """
    asking = _Asking(_living(mountpoint), {"everything": everything}, yes, dry_run, as_json)
    return asking.run("undo", {})


def _living(mountpoint: str) -> MountInfo:
    info = registered(mountpoint)
    if not info.is_alive():
        raise UserError(
            f"The daemon of {info.mountpoint!a} is dead (it was {info.pid}).",
            remedy="Mount again with the same settings, then restore.",
            exit_code=ExitCode.NOT_MOUNTED,
        )
    return info


def _inside(info: MountInfo, path: str) -> str:
    """A path relative to the workspace's root. No mounted file is looked at."""
    if not path.startswith("/"):
        return os.path.normpath(path)
    below = os.path.relpath(os.path.normpath(path), info.mountpoint)
    if below.split("/", 1)[0] == "..":
        raise UserError(
            f"{path!a} is not below {info.mountpoint!a}.",
            remedy="Name a path relative to the workspace's root.",
            exit_code=ExitCode.USAGE,
        )
    return below


def is_at_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


class _Asking:
    """One restore or undo: shown, agreed to, done."""

    def __init__(
        self, info: MountInfo, args: dict[str, Any], yes: bool, dry_run: bool, as_json: bool
    ) -> None:
        self._info = info
        self._args = args
        self._yes = yes
        self._dry_run = dry_run
        self._as_json = as_json

    def run(self, cmd: str, args: dict[str, Any]) -> int:
        """Raises UserError."""
        if self._dry_run:
            self._say(self._request(cmd, args | {"dry_run": True}))
            return ExitCode.OK
        if not self._yes:
            if not is_at_terminal():
                raise UserError(
                    f"`s3ws {cmd}` asks before it changes anything, and there is no terminal.",
                    remedy="Look with --dry-run, then say --yes.",
                    exit_code=ExitCode.USAGE,
                )
            found = self._request(cmd, args | {"dry_run": True})
            for line in lines(found, self._info.mountpoint):
                click.echo(line, err=True)
            if not found["is_nothing"] and not click.confirm("Go on?", err=True):
                report.note("nothing was changed")
                return ExitCode.USAGE
            if "ref" in args:
                args = args | {"ref": f"#{found['point']['number']}"}
        self._say(self._request(cmd, args))
        return ExitCode.OK

    def _request(self, cmd: str, args: dict[str, Any]) -> dict[str, Any]:
        path = registry.socket_path(runtime_dir(), self._info.mountpoint)
        args = self._args | args
        try:
            wire.encode_request(cmd, args)
        except wire.ProtocolError as exc:
            raise UserError(
                f"These are too many paths for one request: {exc}.",
                remedy="Name the directories above them.",
                exit_code=ExitCode.USAGE,
            ) from exc
        with report.progress(cmd, as_json=self._as_json) as on_event:
            return client.request(path, cmd, args, on_event=on_event, timeout_s=None)

    def _say(self, found: dict[str, Any]) -> None:
        if self._as_json:
            report.echo_json(answer_json(found))
            return
        for line in lines(found, self._info.mountpoint):
            report.echo(line)


def lines(found: dict[str, Any], mountpoint: str) -> Iterator[str]:
    """The answer for a person."""
    point = _point(found["point"])
    if found["is_nothing"]:
        yield f"nothing to do: the tree is as it was at {point}"
        return
    done = bool(found["restored"])
    counts = ", ".join(
        f"{found[kind]['count']} {kind}" for kind, _ in _KINDS if found[kind]["count"]
    )
    back, gone = (report.human_bytes(found[name]) for name in ("bytes_back", "bytes_gone"))
    yield f"{'restored' if done else 'would restore'} {point}: {counts or 'attributes only'}"
    if done:
        yield f"  {back} came back, {gone} went"
    else:
        yield f"  {back} would come back, {gone} would go"
    for kind, sign in _KINDS:
        paths = found[kind]["paths"][:SHOWN_MAX]
        for path in paths:
            yield f"  {sign} {report.safe_name(path_bytes(path)) or '.'}"
        if found[kind]["count"] > len(paths):
            yield f"  {sign} and {found[kind]['count'] - len(paths)} more"
    if done and not found["is_shown"]:
        restart = f"s3ws restart {report.safe(mountpoint)}"
        yield f"some names may still be shown as before: `{restart}` ends that"
    if done:
        yield f"`s3ws undo {report.safe(mountpoint)}` brings back what was before"


def _point(point: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(point["created_ns"] / 1e9, UTC)
    snapshot = point["snapshot"]
    name = ""
    if snapshot is not None:
        name = f", {snapshot['kind']}" + (f" {snapshot['name']}" if snapshot["name"] else "")
    return f"#{point['number']} of {when:%Y-%m-%d %H:%M:%S} UTC{report.safe(name)}"
