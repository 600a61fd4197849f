"""`s3ws backup`, `s3ws backups` and `s3ws restore-backup`.

Invariants
1. `backups` and `restore-backup` read the bucket alone, with or without a mount, and change nothing
   in it.
2. A directory that is not empty is restored into only when the person says so, and nothing in it
   is overwritten (snapshot/extract.py).

Called by cli only.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from s3ws_fs import launch
from s3ws_fs.cli import report
from s3ws_fs.cli.workspace import chosen, workspace_flags, workspace_place
from s3ws_fs.control import client, registry
from s3ws_fs.core import backups as core
from s3ws_fs.core.backups import Backup
from s3ws_fs.core.errors import ExitCode, FormatError, UserError
from s3ws_fs.launch import EventSink
from s3ws_fs.snapshot.extract import Restored, restore, select
from s3ws_fs.snapshot.reading import BackupReader, Entry, list_backups, open_backup, open_local
from s3ws_fs.workspaces.mounts import registered, runtime_dir

LINES_MAX: Final = 1000
"""Paths printed of each kind; `--json` has all."""


@click.command()
@click.argument("mountpoint", type=click.Path(path_type=str, readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print the result, and progress, as JSON.")
def backup(mountpoint: str, as_json: bool) -> None:
    """Make a backup of the workspace mounted at MOUNTPOINT now, and put it into the bucket."""
    info = registered(launch.canonical_mountpoint(mountpoint))
    if not info.is_alive():
        raise UserError(
            f"The daemon of {info.mountpoint!a} is dead (it was {info.pid}).",
            remedy="Mount again with the same settings, then back up.",
            exit_code=ExitCode.NOT_MOUNTED,
        )
    with report.progress("backup", as_json=as_json) as on_event:
        path = registry.socket_path(runtime_dir(), info.mountpoint)
        # It takes as long as it takes.
        done = client.request(path, "backup", {}, timeout_s=None, on_event=on_event)
    if as_json:
        report.echo_json(done)
        return
    report.echo(
        f"{done['name']}: {done['entries']} entries, "
        f"{report.human_bytes(done['raw_bytes'])} as {report.human_bytes(done['bytes'])}, "
        f"in {report.human_seconds(done['took_s'])}"
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@workspace_place
def backups(mountpoint: str | None, as_json: bool, **overrides: Any) -> None:
    """List the backups of the workspace of MOUNTPOINT, or of the one the settings name."""
    workspace = chosen(mountpoint, overrides)
    config = workspace.config
    with workspace.store() as store, ThreadPoolExecutor(config.store.max_parallel) as pool:
        found = list_backups(store, pool)
    if as_json:
        report.echo_json(
            {"prefix": config.workspace.prefix, "backups": [b.to_json() for b in found]}
        )
        return
    for one in found:
        report.echo(_backup_line(one))
    if not found:
        report.echo("there are no backups")


def _backup_line(one: Backup) -> str:
    if not one.good:
        return f"{one.name}  {core.iso(one.time_s)}  not whole"
    said = one.to_json()
    entries, raw = said["entries"], said["raw_bytes"]
    missing = f", without {one.missing} files that were only in the bucket" if one.missing else ""
    return (
        f"{one.name}  {core.iso(one.time_s)}  {report.human_bytes(one.archive_bytes or 0)}"
        f" ({entries} entries, {report.human_bytes(raw or 0)}{missing})"
    )


@click.command("restore-backup")
@click.argument("backup", metavar="BACKUP")
@click.argument(
    "paths", nargs=-1, metavar="[PATH]...", type=click.Path(path_type=str, readable=False)
)
@click.option(
    "--to", "directory", type=click.Path(path_type=str, readable=False), help="Where to: DIR."
)
@click.option("--list", "only_list", is_flag=True, help="Only show what is in it.")
@click.option(
    "--merge",
    is_flag=True,
    help="Restore into a directory that is not empty; what stands there stays.",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Also restore setuid and setgid bits, devices, and every extended attribute.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report, and progress, as JSON.")
@workspace_flags
def restore_backup(
    backup: str,
    paths: tuple[str, ...],
    directory: str | None,
    only_list: bool,
    merge: bool,
    trust: bool,
    mountpoint: str | None,
    as_json: bool,
    **overrides: Any,
) -> int:
    """Restore BACKUP, or some PATHs of it, into a directory.

    BACKUP is `latest`, a name or time as `s3ws backups` shows it, or the path of an archive on this
    machine, its index beside it. Read straight from the bucket: no mount is needed. Exit code 7
    when something could not be restored; 12 when the backup is damaged.
    """
    if directory is None and not only_list:
        raise click.UsageError("Say where to, by --to DIR (or look at it by --list).")
    wanted = [os.fsencode(path) for path in paths]
    with _opened(backup, mountpoint, overrides) as (reader, parallel):
        if only_list:
            return _list(reader, wanted, as_json=as_json)
        assert directory is not None
        select(reader, wanted)
        started_s = time.monotonic()
        with (
            _target(directory, merge=merge) as fd,
            ThreadPoolExecutor(parallel, "fetch") as pool,
            report.progress("restore", as_json=as_json) as on_event,
        ):
            done = restore(
                reader, fd, wanted, trusted=trust, pool=pool, progress=_telling(on_event)
            )
    return _report(reader, done, directory, time.monotonic() - started_s, as_json=as_json)


def _telling(on_event: EventSink) -> Any:
    def tell(done: int, total: int) -> None:
        on_event({"event": "progress", "phase": "restoring", "done": done, "total": total})

    return tell


# --- which backup, and where to


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except FormatError as exc:
        raise UserError(
            f"The backup is damaged: {exc}",
            remedy="Take another one (`s3ws backups`). The workspace itself is in the journal.",
            exit_code=ExitCode.DAMAGED,
        ) from exc


@contextmanager
def _opened(
    backup: str, mountpoint: str | None, overrides: dict[str, Any]
) -> Iterator[tuple[BackupReader, int]]:
    if backup.endswith(core.ARCHIVE_SUFFIX) and Path(backup).is_file():
        with _damage():
            yield open_local(Path(backup)), 1
        return
    workspace = chosen(mountpoint, overrides)
    parallel = workspace.config.store.max_parallel
    with workspace.store() as store, _damage():
        with ThreadPoolExecutor(parallel) as pool:
            wanted = core.choose(list_backups(store, pool), backup)
        yield open_backup(store, wanted.name), parallel


@contextmanager
def _target(directory: str, *, merge: bool) -> Iterator[int]:
    try:
        Path(directory).mkdir(mode=0o700, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise UserError(
            f"{directory!a} can't be used: {exc.strerror}.",
            remedy="Name a directory of yours, or one whose parent exists.",
            exit_code=ExitCode.USAGE,
        ) from exc
    try:
        with os.scandir(fd) as entries:
            is_empty = next(entries, None) is None
        if not is_empty and not merge:
            raise UserError(
                f"{directory!a} is not empty: nothing was restored.",
                remedy="Name an empty or new directory, or add --merge: what stands there stays.",
                exit_code=ExitCode.USAGE,
            )
        yield fd
    finally:
        os.close(fd)


# --- what is said


def _list(reader: BackupReader, wanted: list[bytes], *, as_json: bool) -> int:
    ranges = select(reader, wanted)
    entries = [entry for entry in reader.index.entries if ranges.is_all or _is_in(entry, wanted)]
    if as_json:
        report.echo_json(
            {
                "name": reader.name,
                "head": reader.index.head,
                "entries": [e.to_json() for e in entries],
            }
        )
        return ExitCode.OK
    for entry in entries:
        report.echo(_entry_line(entry))
    return ExitCode.OK


def _is_in(entry: Entry, wanted: list[bytes]) -> bool:
    cleaned = [b"/".join(p for p in path.split(b"/") if p not in (b"", b".")) for path in wanted]
    return any(entry.path == path or entry.path.startswith(path + b"/") for path in cleaned)


_TYPE_BITS: Final = {
    "file": stat.S_IFREG,
    "link": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}


def _entry_line(entry: Entry) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime_ns // 1_000_000_000))
    arrow = {"symlink": " -> ", "link": " is "}.get(entry.type)
    target = "" if arrow is None else arrow + report.safe_name(entry.target)
    return (
        f"{stat.filemode(_TYPE_BITS[entry.type] | entry.mode)} {entry.uid}/{entry.gid} "
        f"{entry.size:>12} {when} {report.safe_name(entry.path or b'.')}{target}"
    )


def _report(
    reader: BackupReader, done: Restored, directory: str, took_s: float, *, as_json: bool
) -> int:
    code = ExitCode.NOT_SAVED if done.failed else ExitCode.OK
    if as_json:
        report.echo_json(
            {
                "name": reader.name,
                "directory": directory,
                "exit_code": int(code),
                "entries": done.entries,
                "bytes": done.data_bytes,
                "took_s": round(took_s, 3),
                "not_restored": _reasons(done.failed),
                "notes": _reasons(done.notes),
            }
        )
        return code
    report.echo(
        f"{done.entries} entries, {report.human_bytes(done.data_bytes)}, of {reader.name} are in "
        f"{report.safe(directory)}"
    )
    for title, found in (("NOT RESTORED", done.failed), ("restored, but", done.notes)):
        for number, (path, why) in enumerate(sorted(found.items())):
            if number == LINES_MAX:
                report.echo("  and more (see --json)")
                break
            if number == 0:
                report.echo(f"{title}:")
            report.echo(f"  {report.safe_name(path or b'.')}: {report.safe(why)}")
    return code


def _reasons(found: dict[bytes, str]) -> list[dict[str, Any]]:
    return [report.json_name(path) | {"reason": why} for path, why in sorted(found.items())]
