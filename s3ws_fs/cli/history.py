"""`s3ws snapshot`, `snapshots` and `turn`.

Invariants
1. What is taken or removed is asked of the daemon of a mount: only it may write to the bucket.
2. `snapshots` without a living mount reads the bucket, which is opened for reading only.

Called by cli only.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import click

from s3ws_fs.cli import report
from s3ws_fs.cli.workspace import chosen, mount_here, workspace_place
from s3ws_fs.control import client, registry
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.history import KINDS, NAMED
from s3ws_fs.workspaces.mounts import registered, require_alive, runtime_dir

TIMEOUT_S: Final = 60.0
"""Default of `--timeout`: a snapshot is wanted now, or not at all."""

_TIMEOUT = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=TIMEOUT_S,
    show_default=True,
    help="Seconds to wait for the store.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_MOUNTPOINT = click.argument(
    "mountpoint", required=False, default=None, type=click.Path(path_type=str, readable=False)
)


def ask_daemon(
    mountpoint: str | None, cmd: str, args: dict[str, Any], timeout_s: float
) -> dict[str, Any]:
    """What the daemon of a mount answers; without MOUNTPOINT of that of the current directory.

    Raises UserError: exit 4 without a living mount, exit 6 when it takes too long.
    """
    info = mount_here() if mountpoint is None else registered(mountpoint)
    if info is None:
        raise UserError(
            "No mount point is named, and the current directory is in no mount of this host.",
            remedy="`s3ws status` lists the mounts.",
            exit_code=ExitCode.NOT_MOUNTED,
        )
    require_alive(info)
    socket_path = registry.socket_path(runtime_dir(), info.mountpoint)
    try:
        return client.request(socket_path, cmd, args, timeout_s=timeout_s)
    except client.DaemonSilentError as exc:
        raise UserError(
            exc.message,
            remedy="The store may not answer: `s3ws status` tells. Look at `s3ws snapshots` before "
            "you ask again.",
            exit_code=ExitCode.STORE,
        ) from exc


@click.command(short_help="Keep the tree as it is now, under a name.")
@_MOUNTPOINT
@click.option("--name", help="What to call it; the date and time when not given.")
@click.option("--delete", metavar="NAME", help="Remove a snapshot (turn:NAME: a turn's marks).")
@_TIMEOUT
@_JSON
def snapshot(
    mountpoint: str | None, name: str | None, delete: str | None, timeout_s: float, as_json: bool
) -> None:
    """Seal everything now, and keep that state until it is removed by --delete.

    MOUNTPOINT is the mount of the current directory when not given. Nothing is copied, and the
    mirror is not waited for. The same name at the same state again is no error.
    """
    if name is not None and delete is not None:
        raise click.UsageError("--name and --delete exclude each other.")
    args = {"name": name} if delete is None else {"delete": delete}
    result = ask_daemon(mountpoint, "snapshot", args, timeout_s)
    if as_json:
        report.echo_json(result)
    elif delete is not None:
        report.echo(f"removed {report.safe(delete)}")
    else:
        report.echo(_taken(result))


@click.group(short_help="Mark the beginning and the end of an agent's turn.")
def turn() -> None:
    """Mark the beginning and the end of a turn, so that `s3ws diff --turn NAME` tells what it
    changed. Marks go by themselves after WORKSPACE_SNAPSHOT_DAYS.
    """


def _turn_command(mark: str) -> click.Command:
    @click.command(name=mark, short_help=f"Mark the {mark} of a turn.")
    @click.argument("name")
    @_MOUNTPOINT
    @_TIMEOUT
    @_JSON
    def command(name: str, mountpoint: str | None, timeout_s: float, as_json: bool) -> None:
        result = ask_daemon(mountpoint, "turn", {"name": name, "mark": mark}, timeout_s)
        if as_json:
            report.echo_json(result)
        else:
            report.echo(_taken(result))

    command.help = f"Seal everything now, and mark it as the {mark} of turn NAME."
    return command


turn.add_command(_turn_command("begin"))
turn.add_command(_turn_command("end"))


def _taken(result: dict[str, Any]) -> str:
    stood = "" if result.get("is_new", True) else ", which stood already"
    return (
        f"snapshot {report.safe(str(result.get('ref')))}: #{result.get('number')}, "
        f"generation {result.get('generation')}{stood}"
    )


@click.command(short_help="List snapshots and marks of turns.")
@click.option("--kind", type=click.Choice(KINDS), help="Only those of one kind.")
@_JSON
@workspace_place
def snapshots(mountpoint: str | None, kind: str | None, as_json: bool, **overrides: Any) -> int:
    """List the snapshots of the workspace on MOUNTPOINT, or of the one that the settings name.

    Exit code 12 when one of them is damaged.
    """
    workspace = chosen(mountpoint, overrides)
    if workspace.info is not None and workspace.info.is_alive():
        result = ask_daemon(workspace.info.mountpoint, "snapshots", {}, TIMEOUT_S)
    else:
        result = workspace.snapshots()
    found = [each for each in result["snapshots"] if kind in (None, each["kind"])]
    if as_json:
        report.echo_json({"snapshots": found, "damaged": result["damaged"]})
    else:
        for line in lines(found):
            report.echo(line)
    for each in result["damaged"]:
        report.note(f"s3ws: {each['key']} is damaged: {each['why']}")
    return ExitCode.DAMAGED if result["damaged"] else ExitCode.OK


def lines(found: list[dict[str, Any]]) -> Iterator[str]:
    """A line each, for a person."""
    if not found:
        yield "no snapshots"
        return
    width = max(len(report.safe(each["ref"])) for each in found)
    for each in found:
        when = datetime.fromtimestamp(each["created_ns"] // 1_000_000_000, UTC)
        kind = "" if each["kind"] == NAMED else f"  {each['kind']}"
        yield (
            f"{report.safe(each['ref']):<{width}}  #{each['number']}  "
            f"{when:%Y-%m-%d %H:%M:%S} UTC  generation {each['generation']}{kind}"
        )
