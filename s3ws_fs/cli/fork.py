"""`s3ws fork`: a new workspace that begins with another one's state.

Invariants
1. The source is only read; a mount of it on this host is asked to seal before, nothing else.
2. Both are of one user, bucket and root prefix: those of the settings. The ids of the new
   conversation are judged as those of any other.

Called by cli only.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from s3ws_fs.cli import report
from s3ws_fs.cli.mounting import setting_flags
from s3ws_fs.core import history
from s3ws_fs.core.config import WorkspaceId
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.forks import Origin
from s3ws_fs.launch import EventSink
from s3ws_fs.launch.end import counted
from s3ws_fs.store.factory import open_two
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points
from s3ws_fs.transfer.deadline import Deadline
from s3ws_fs.transfer.forking import Forked, Forker, Who
from s3ws_fs.transfer.gate import Gate
from s3ws_fs.transfer.wire import FencedError
from s3ws_fs.workspaces.reading import (
    Workspace,
    config_of,
    mount_of,
    sealed_first,
    store_errors,
)


@click.command(short_help="Make a new workspace that begins with another one's state.")
@click.argument("source", metavar="SRC_CONVERSATION")
@click.argument("target", metavar="DST_CONVERSATION")
@click.option("--at", "ref", default=history.HEAD, help="The point to begin with; head by default.")
@click.option("--json", "as_json", is_flag=True, help="Print the result, and progress, as JSON.")
@setting_flags(skip=("conversation_id", "read_only"))
def fork(source: str, target: str, ref: str, as_json: bool, **overrides: Any) -> None:
    """Make the workspace of DST_CONVERSATION from that of SRC_CONVERSATION, as of a point.

    The store copies the objects; no file passes through this host. From then on the two have
    nothing in common. A fork that was cut off is no workspace, and is made again by the same
    command. The mirror (files/) follows when the new workspace is mounted.

    \b
    Exit code 16: another host is making it, or had begun (try again when its lease has lapsed).
    18: DST_CONVERSATION has a workspace, or something else stands there.
    """
    started_s = time.monotonic()
    config = config_of(overrides | {"conversation_id": source})
    ids = config.workspace
    new = WorkspaceId(ids.user_id, target, ids.root_prefix)
    if new.prefix == ids.prefix:
        raise UserError(
            "A conversation can't be forked into itself.",
            remedy="Name another DST_CONVERSATION.",
            exit_code=ExitCode.USAGE,
        )
    workspace = Workspace(config, mount_of(config))
    with report.progress("fork", as_json=as_json) as on_event, store_errors(config):
        sealed_first(workspace, [ref], on_event)
        with _stores(workspace, new) as (src, dst), tempfile.TemporaryDirectory() as spool:
            dst.check()
            done = _fork(workspace, src, dst, ref, Path(spool), on_event)
            requests = {op: count for op, count in dst.counters.by_op().items() if count}
    duration_s = round(time.monotonic() - started_s, 3)
    if as_json:
        report.echo_json(
            asdict(done) | {"prefix": new.prefix, "requests": requests, "duration_s": duration_s}
        )
        return
    report.echo(
        f"{report.safe(new.prefix)} begins with {report.safe(ids.prefix)} as of "
        f"#{done.origin.number} (generation {done.origin.generation}): "
        f"{counted(done.inodes, 'file')}, {report.human_bytes(done.used_bytes)}, "
        f"{counted(done.objects, 'object')} copied, {counted(sum(requests.values()), 'request')}, "
        f"{report.human_seconds(duration_s)}"
    )


@contextmanager
def _stores(workspace: Workspace, new: WorkspaceId) -> Iterator[tuple[ScopedStore, ScopedStore]]:
    src, dst = open_two(workspace.config.store, workspace.config.workspace.prefix, new.prefix)
    try:
        yield src, dst
    finally:
        dst.close()


def _fork(
    workspace: Workspace,
    src: ScopedStore,
    dst: ScopedStore,
    ref: str,
    spool: Path,
    on_event: EventSink,
) -> Forked:
    config = workspace.config
    now_ns = time.time_ns()
    on_event({"phase": "reading the source"})
    survey = points.survey_points(src)
    point = points.resolve(src, ref, now_ns, survey)
    tables = points.load(src, point.number, survey)
    forker = Forker(
        src,
        dst,
        Who(socket.gethostname(), os.getpid(), now_ns, config.lease_s),
        gate=Gate(dst, deadline=Deadline()),
        pool=lambda: ThreadPoolExecutor(config.store.max_parallel, "fork"),
    )
    # Before the probe, which puts scratch objects.
    forker.require_free()
    if not dst.probe_conditional().safe and not config.store.allow_unconditional:
        raise UserError(
            "The store ignores conditional writes: two writers could overwrite each other.",
            remedy="Use a store that keeps If-None-Match and If-Match on PUT, or allow it with "
            "WORKSPACE_ALLOW_UNCONDITIONAL=1.",
            exit_code=ExitCode.STORE,
        )
    origin = Origin(src.prefix, survey.workspace, point.number, point.generation)
    try:
        return forker.run(origin, tables, spool, on_event)
    except FencedError as exc:
        raise UserError(
            f"{dst.prefix} was taken by another host while it was made: {exc.holder}.",
            remedy="See what stands there, then try again.",
            exit_code=ExitCode.FENCED,
        ) from exc
