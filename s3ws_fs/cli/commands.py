"""`s3ws status`, `sync`, `ls` and `version`.

Invariants
1. A mount whose daemon is dead or silent is shown as such, never left out.
2. `ls` reads the cache alone, beside a living or a dead daemon, and changes nothing.

Called by cli only.
"""

from __future__ import annotations

import os
import platform
import stat
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import click

import s3ws_fs
from s3ws_fs import launch
from s3ws_fs.cache import inspect
from s3ws_fs.cli import render, report
from s3ws_fs.cli.render_git import git_troubles
from s3ws_fs.control import client, registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.workspaces.mounts import require_alive, runtime_dir, status_document, status_documents

_LIBRARIES: Final = ("pyfuse3", "lmdb", "trio", "boto3")


def _info(mountpoint: str) -> MountInfo:
    info = registry.read(runtime_dir(), mountpoint)
    if info is None:
        raise UserError(
            f"{mountpoint!a} is not mounted.",
            remedy="`s3ws status` lists the mounts of this host.",
            exit_code=ExitCode.NOT_MOUNTED,
        )
    return info


@click.command()
@click.argument("mountpoint", required=False, type=click.Path(path_type=str, readable=False))
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the status document (without MOUNTPOINT: a list of them).",
)
def status(mountpoint: str | None, as_json: bool) -> int:
    """Show how far a mount is saved, or all mounts of this host.

    With MOUNTPOINT the exit code is 4 when its daemon is dead.
    """
    if mountpoint is not None:
        document = status_document(_info(launch.canonical_mountpoint(mountpoint)))
        if as_json:
            report.echo_json(document)
        else:
            report.echo("\n".join(render.status_lines(document)))
        return ExitCode.NOT_MOUNTED if document["state"] == "dead" else ExitCode.OK
    infos, damaged = registry.list_mounts(runtime_dir())
    documents = status_documents(infos)
    if as_json:
        report.echo_json(documents)
    elif documents:
        report.echo("\n\n".join("\n".join(render.status_lines(doc)) for doc in documents))
    else:
        report.echo("nothing is mounted")
    for path in damaged:
        report.note(f"s3ws: the entry {path!a} is damaged; remove it if no daemon belongs to it")
    return ExitCode.OK


@click.command()
@click.argument("mountpoint", type=click.Path(path_type=str, readable=False))
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait; no limit by default.",
)
@click.option(
    "--outside",
    is_flag=True,
    help="Look before for objects that others changed, added or deleted (one request a thousand).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result, and progress, as JSON.")
def sync(mountpoint: str, timeout_s: float | None, outside: bool, as_json: bool) -> None:
    """Flush now; return when everything is sealed and mirrored.

    Of a read-only mount: show now what is sealed by now.
    """
    info = _info(launch.canonical_mountpoint(mountpoint))
    require_alive(info)
    started = time.monotonic()
    with report.progress("sync", as_json=as_json) as on_event:
        try:
            result = client.request(
                registry.socket_path(runtime_dir(), info.mountpoint),
                "sync",
                {"outside": True} if outside else {},
                on_event=on_event,
                timeout_s=timeout_s,
            )
        except client.DaemonSilentError as exc:
            raise UserError(exc.message, remedy=exc.remedy, exit_code=ExitCode.NOT_SAVED) from exc
    if as_json:
        report.echo_json(result)
        return
    taken = result.get("duration_s", time.monotonic() - started)
    if result.get("read_only"):
        report.echo(
            f"up to date: segment {result.get('segment')}, generation {result.get('generation')}, "
            f"in {report.human_seconds(taken)}"
        )
        return
    report.echo(
        f"everything is saved: sealed {result.get('sealed')}, mirrored {result.get('mirrored')}, "
        f"in {report.human_seconds(taken)}"
    )
    for text in git_troubles(result.get("git")):
        report.note(f"s3ws: git: {text}")


@click.command(short_help="List files with how far each is saved.")
@click.argument("path", required=False, default=".", type=click.Path(path_type=str, readable=False))
@click.option("-l", "long", is_flag=True, help="Mode, owner, size, time and state of each.")
@click.option("-R", "--recursive", is_flag=True, help="Whole trees.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def ls(path: str, long: bool, recursive: bool, as_json: bool) -> None:
    """List MOUNTPOINT[/PATH] as it stands in the cache, with the state of each file.

    State is dirty (not in the bucket yet), sealed (in the journal), or mirrored (readable under
    files/ too); and warm, partial or cold: whether its bytes are on this host.
    """
    info, inside = _find_mount(path)
    try:
        with inspect.open_readonly(Path(info.cache_path)) as inspector:
            rows = _walk(inspector, inside, recursive)
            if as_json:
                report.echo_json([entry.to_json(where) for where, entry in rows])
                return
            for where, entry in rows:
                report.echo(render.entry_line(where, entry, long=long))
    except FileNotFoundError:
        raise UserError(
            f"There is no {os.fsdecode(inside)!a} in the workspace on {info.mountpoint!a}.",
            remedy="List the directory above it.",
            exit_code=ExitCode.USAGE,
        ) from None


def _find_mount(path: str) -> tuple[MountInfo, bytes]:
    """The mount that holds `path`, and the path inside it. Looks at no mounted file."""
    absolute = os.path.normpath(os.path.join(os.getcwd(), path))  # noqa: PTH109, PTH118
    infos, _ = registry.list_mounts(runtime_dir())
    # By the name as given first, so that a dead or hanging mount is not touched.
    for candidate in (absolute, os.path.realpath(absolute)):
        for info in sorted(infos, key=lambda info: -len(info.mountpoint)):
            if candidate == info.mountpoint:
                return info, b""
            if candidate.startswith(info.mountpoint.rstrip("/") + "/"):
                return info, os.fsencode(candidate[len(info.mountpoint.rstrip("/")) + 1 :])
    raise UserError(
        f"{path!a} is in no mount of this host.",
        remedy="`s3ws status` lists them.",
        exit_code=ExitCode.NOT_MOUNTED,
    )


def _walk(
    inspector: inspect.Inspector, top: bytes, recursive: bool
) -> Iterator[tuple[bytes, inspect.Entry]]:
    """Entries with their directory's path relative to `top`, parents before children."""
    pending = [b""]
    while pending:
        below = pending.pop()
        children: list[bytes] = []
        try:
            entries = inspector.listdir(b"/".join(part for part in (top, below) if part))
        except FileNotFoundError:
            if not below:
                raise
            # Removed since its parent was read: the daemon goes on while we look.
            continue
        for entry in entries:
            yield below, entry
            if recursive and stat.S_ISDIR(entry.attr.mode):
                children.append(below + b"/" + entry.name if below else entry.name)
        pending.extend(reversed(children))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def version(as_json: bool) -> None:
    """Print the versions of s3ws and of what it stands on."""
    versions = {"s3ws": s3ws_fs.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    if as_json:
        report.echo_json({"version": s3ws_fs.__version__, "components": versions})
        return
    for name, number in versions.items():
        report.echo(f"{name} {number}")
