"""`s3ws watch`: what changes in a mount, as it changes.

Invariants
1. Each change is printed at once, on a line of its own; names are made safe, in JSON too.
2. What was missed is said, in its place.
3. ctrl-C and the end of the mount end it.

Called by cli only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from s3ws_fs.cli import report
from s3ws_fs.cli.workspace import mount_here
from s3ws_fs.core.changefeed import RENAMED, RESTORED, Change
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.workspaces.mounts import registered, require_alive
from s3ws_fs.workspaces.watching import Batch, Watch


@click.command(short_help="Show what changes in a mount, as it changes.")
@click.argument("mountpoint", required=False, type=click.Path(path_type=str, readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option("--until", type=click.IntRange(min=0), help="End at this generation.")
def watch(mountpoint: str | None, as_json: bool, until: int | None) -> int:
    """Show each change of the mount on MOUNTPOINT (or of the current directory): its generation,
    what it was, and the path.

    Changes of one tenth of a second are told together, a file that is written again and again once.
    It costs the daemon about a tenth more processor time while files are written, and nothing
    while nothing changes; it ends with the mount, or by ctrl-C.
    """
    info = registered(mountpoint) if mountpoint is not None else mount_here()
    if info is None:
        raise UserError(
            "The current directory is in no mount.",
            remedy="Name a mount point; `s3ws status` lists them.",
            exit_code=ExitCode.NOT_MOUNTED,
        )
    require_alive(info)
    for batch in Watch(info).run():
        for line in json_lines(batch) if as_json else text_lines(batch):
            report.echo(line)
        sys.stdout.flush()
        if until is not None and batch.generation >= until:
            return ExitCode.OK
    report.note("s3ws: the mount ended")
    return ExitCode.OK


def text_lines(batch: Batch) -> Iterator[str]:
    """For a person."""
    when = time.strftime("%H:%M:%S")
    if not batch.changes and not batch.lost and batch.since is None:
        yield f"{when} {batch.generation:>9}  watching from here on"
    if batch.since is not None:
        yield f"{when} {batch.generation:>9}  MISSED what changed since {batch.since}"
    for change in batch.changes:
        yield f"{when} {change.generation:>9}  {change.what:<10}  {_path(change)}"
    if batch.lost:
        yield f"{when} {batch.generation:>9}  MISSED {batch.lost} more changes: too many at once"


def _path(change: Change) -> str:
    if change.what == RESTORED:
        return "many paths (a restore)"
    name = report.safe_name(change.path) or "."
    if change.what == RENAMED and change.was is not None:
        return f"{report.safe_name(change.was)} -> {name}"
    return name


def json_lines(batch: Batch) -> Iterator[str]:
    """For a program."""
    now_s = round(time.time(), 3)

    def line(what: str, **more: Any) -> str:
        return json.dumps({"when_s": now_s, "what": what, **more})

    if not batch.changes and not batch.lost and batch.since is None:
        yield line("watching", generation=batch.generation)
    if batch.since is not None:
        yield line("missed", generation=batch.generation, since=batch.since)
    for change in batch.changes:
        more: dict[str, Any] = {"generation": change.generation}
        if change.what != RESTORED:
            more["path"] = report.json_name(change.path)
        if change.was is not None:
            more["was"] = report.json_name(change.was)
        yield line(change.what, **more)
    if batch.lost:
        yield line("missed", generation=batch.generation, lost=batch.lost)
