"""`s3ws delete`: a conversation's workspace goes, from the bucket and from this host.

Invariants
1. Nothing is deleted before a person agreed, or --yes was given.
2. What somebody has mounted is refused, here (exit 5) and elsewhere (exit 16, by the lease), unless
   --take-over is given.
3. Exit code 0 only when nothing is left below the prefix. What stays in other places is said: older
   versions, caches in use, other hosts' caches.

Called by cli only.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from s3ws_fs.cache.inspect import open_readonly
from s3ws_fs.cache.removing import caches_of, remove_cache
from s3ws_fs.cli import report
from s3ws_fs.cli.fleet import STORE_SETTINGS
from s3ws_fs.cli.mounting import setting_flags
from s3ws_fs.cli.rewind import is_at_terminal
from s3ws_fs.control import registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import CacheError, ExitCode, UserError
from s3ws_fs.fuse import table
from s3ws_fs.launch import EventSink
from s3ws_fs.launch.end import counted
from s3ws_fs.launch.preflight import clear_if_dead
from s3ws_fs.settings import OPTIONS
from s3ws_fs.store.base import Keeps
from s3ws_fs.store.factory import open_store
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.deadline import Deadline
from s3ws_fs.transfer.deleting import Deleted, Deleter
from s3ws_fs.transfer.forking import Who
from s3ws_fs.transfer.gate import Gate
from s3ws_fs.transfer.tally import Tally, tally
from s3ws_fs.transfer.wire import FencedError
from s3ws_fs.workspaces.mounts import runtime_dir
from s3ws_fs.workspaces.reading import config_of, store_errors, writes

LEFT_SHOWN_MAX: Final = 20
_FLAGS: Final = (*STORE_SETTINGS, "user_id", "cache_dir", "allow_unconditional", "lease_s")


@dataclass(slots=True)
class Outcome:
    """What became of it."""

    config: MountConfig
    found: Tally
    keeps: Keeps = field(default_factory=Keeps)
    deleted: Deleted = field(default_factory=Deleted)
    caches: list[str] = field(default_factory=list)
    caches_left: dict[str, str] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    duration_s: float = 0.0

    @property
    def exit_code(self) -> int:
        """6 when something is left in the bucket."""
        return ExitCode.STORE if self.deleted.failures else ExitCode.OK

    def to_json(self, *, dry_run: bool) -> dict[str, Any]:
        """For a program."""
        done = self.deleted
        return {
            "prefix": self.config.workspace.prefix,
            "location": self.config.store.location,
            "dry_run": dry_run,
            "found": self.found.to_json(),
            "deleted": {"objects": done.objects, "bytes": done.bytes},
            "left": [
                {"key": failure.key, "reason": failure.error.detail} for failure in done.failures
            ],
            "caches": self.caches,
            "caches_left": [{"path": p, "reason": why} for p, why in self.caches_left.items()],
            **asdict(self.keeps),
            "requests": self.requests,
            "duration_s": self.duration_s,
        }


@click.command(short_help="Delete a conversation's workspace, with history and backups.")
@click.argument("conversation")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted.")
@click.option("--take-over", is_flag=True, help="Delete it although somebody has it mounted.")
@click.option("--keep-cache", is_flag=True, help="Leave the caches on this host.")
@click.option("--json", "as_json", is_flag=True, help="Print the result, and progress, as JSON.")
@setting_flags(skip=[name for name in OPTIONS if name not in _FLAGS])
def delete(
    conversation: str,
    yes: bool,
    dry_run: bool,
    take_over: bool,
    keep_cache: bool,
    as_json: bool,
    **overrides: Any,
) -> int:
    """Delete the workspace of CONVERSATION: files, journal, history, snapshots, backups, git
    bundles, and its caches on this host.

    There is no way back, but for versions that the bucket keeps by itself. A deletion that was cut
    off leaves no workspace, and is finished by the same command. The conversation's events/ are not
    touched.

    \b
    Exit code 5: it is mounted on this host. 16: another host has it mounted. 6: something could not
    be deleted; it is listed.
    """
    started_s = time.monotonic()
    config = config_of(overrides | {"conversation_id": conversation})
    mounts = _mounts(config)
    if not take_over:
        _refuse_mounted(mounts)
    with _asking(config, as_json, read_only=True) as (store, on_event):
        on_event({"phase": "counting"})
        outcome = Outcome(config, tally(store), store.keeps())
    caches = [] if keep_cache else _caches(config, mounts)
    if dry_run or not yes:
        _show(outcome, caches, as_json=as_json, dry_run=dry_run)
        if dry_run:
            return ExitCode.OK
        if not _agreed():
            report.note("nothing was changed")
            return ExitCode.USAGE
    with _asking(config, as_json, read_only=False) as (store, on_event):
        _delete(outcome, store, take_over, on_event)
    _forget_mounts(mounts)
    for path in caches:
        why = remove_cache(path, config.workspace.prefix)
        if why:
            outcome.caches_left[str(path)] = why
        else:
            outcome.caches.append(str(path))
    outcome.duration_s = round(time.monotonic() - started_s, 3)
    if as_json:
        report.echo_json(outcome.to_json(dry_run=False))
    else:
        _say(outcome)
    return outcome.exit_code


@contextmanager
def _asking(
    config: MountConfig, as_json: bool, *, read_only: bool
) -> Iterator[tuple[ScopedStore, EventSink]]:
    with report.progress("delete", as_json=as_json) as on_event, store_errors(config):
        store = open_store(config.store, config.workspace.prefix, read_only=read_only)
        try:
            yield store, on_event
        finally:
            store.close()


# --- this host


def _mounts(config: MountConfig) -> list[MountInfo]:
    """The mounts of the workspace on this host, living or dead."""
    infos, _ = registry.list_mounts(runtime_dir())
    place = (config.workspace.prefix, config.store.location)
    return [info for info in infos if (info.prefix, info.store_location) == place]


def _refuse_mounted(mounts: list[MountInfo]) -> None:
    for info in mounts:
        if info.is_alive():
            raise UserError(
                f"The workspace is mounted on {info.mountpoint!a}"
                f"{'' if writes(info) else ' (read-only)'}.",
                remedy=f"Unmount it first: s3ws umount {info.mountpoint!a}. With --take-over it is "
                "deleted all the same, and that mount can save nothing more.",
                exit_code=ExitCode.ALREADY_MOUNTED,
            )


def _caches(config: MountConfig, mounts: list[MountInfo]) -> list[Path]:
    found = caches_of(Path(config.workspace_cache_dir))
    named = [Path(info.cache_path) for info in mounts]
    return found + [path for path in dict.fromkeys(named) if path.is_dir() and path not in found]


def _forget_mounts(mounts: list[MountInfo]) -> None:
    """Dead mounts of it: there is nothing left that they could save."""
    for info in mounts:
        if info.is_alive():
            continue
        registry.remove(runtime_dir(), info.mountpoint, pid=info.pid)
        if table.is_mounted(info.mountpoint):
            try:
                clear_if_dead(info.mountpoint)
            except UserError as exc:
                report.note(f"s3ws: {exc.message} {exc.remedy}")


def _unsaved(cache: Path) -> str:
    try:
        with open_readonly(cache) as inspector:
            records, files, _ = inspector.dirty_summary()
    except (CacheError, OSError):
        return "what it holds unsaved can't be read"
    if not records:
        return "nothing unsaved in it"
    return f"{counted(records, 'change')} in it, of {counted(files, 'file')}, were NEVER SAVED"


# --- the bucket


def _delete(outcome: Outcome, store: ScopedStore, take_over: bool, on_event: EventSink) -> None:
    config = outcome.config
    if not outcome.found.objects:
        return
    if not store.probe_conditional().safe and not config.store.allow_unconditional:
        raise UserError(
            "The store ignores conditional writes: the lease means nothing there.",
            remedy="See that nobody has it mounted, then allow it by "
            "WORKSPACE_ALLOW_UNCONDITIONAL=1.",
            exit_code=ExitCode.STORE,
        )
    deleter = Deleter(
        store,
        Who(socket.gethostname(), os.getpid(), time.time_ns(), config.lease_s),
        take_over=take_over,
        gate=Gate(store, deadline=Deadline()),
        pool=lambda: ThreadPoolExecutor(config.store.max_parallel, "delete"),
    )
    try:
        outcome.deleted = deleter.run(on_event)
    except FencedError as exc:
        raise UserError(
            f"{store.prefix} was taken by another host while it was deleted: {exc.holder}.",
            remedy="See what stands there (`s3ws list`), then try again.",
            exit_code=ExitCode.FENCED,
        ) from exc
    except UserError as exc:
        if exc.exit_code is not ExitCode.HELD:
            raise
        raise UserError(
            exc.message,
            remedy="Unmount it there. If that host is gone: delete when the lease has lapsed, or "
            "at once with --take-over. Nothing was changed.",
            exit_code=ExitCode.HELD,
        ) from exc
    outcome.requests = {op: count for op, count in store.counters.by_op().items() if count}


# --- as text


def _show(outcome: Outcome, caches: list[Path], *, as_json: bool, dry_run: bool) -> None:
    if as_json and dry_run:
        document = outcome.to_json(dry_run=True)
        report.echo_json(document | {"caches": [str(path) for path in caches]})
        return
    for line in _plan_lines(outcome, caches):
        click.echo(line, err=not dry_run)


def _plan_lines(outcome: Outcome, caches: list[Path]) -> Iterator[str]:
    config, found = outcome.config, outcome.found
    yield report.safe(f"{config.workspace.prefix} in {config.store.location}")
    if found.objects:
        parts = ", ".join(
            f"{name} {report.human_bytes(area.bytes)}"
            for name, area in found.areas.items()
            if area.objects
        )
        yield f"  {counted(found.objects, 'object')}, {report.human_bytes(found.bytes)} ({parts})"
    else:
        yield "  nothing stands there"
    for path in caches:
        yield report.safe(f"  cache of this host: {path}: {_unsaved(path)}")


def _agreed() -> bool:
    if not is_at_terminal():
        raise UserError(
            "`s3ws delete` asks before it deletes anything, and there is no terminal.",
            remedy="Look with --dry-run, then say --yes.",
            exit_code=ExitCode.USAGE,
        )
    return click.confirm("Delete all of it? There is no way back.", err=True)


def _say(outcome: Outcome) -> None:
    done, config = outcome.deleted, outcome.config
    where = report.safe(config.workspace.prefix)
    if done.failures:
        report.note(f"s3ws: {counted(done.failed, 'object')} below {where} could not be deleted:")
        for failure in done.failures[:LEFT_SHOWN_MAX]:
            report.note(f"    {failure.key}: {failure.error.detail}")
        if done.failed > LEFT_SHOWN_MAX:
            report.note(f"    and {done.failed - LEFT_SHOWN_MAX} more")
        report.note("  What is left is no workspace. Remove the reason, then run it again.")
    elif not outcome.found.objects:
        report.echo(f"nothing stands below {where}")
    else:
        report.echo(
            f"deleted {where}: {counted(outcome.found.objects, 'object')}, "
            f"{report.human_bytes(outcome.found.bytes)}, in "
            f"{report.human_seconds(outcome.duration_s)}"
        )
    for path in outcome.caches:
        report.echo(f"removed the cache {report.safe(path)}")
    for path, why in outcome.caches_left.items():
        report.note(f"s3ws: the cache {path} stays: {why}")
    if outcome.found.objects:
        for text in kept_lines(outcome.keeps):
            report.note(f"s3ws: {text}")


def kept_lines(keeps: Keeps) -> list[str]:
    """What the bucket keeps all the same."""
    lines = {
        "off": [],
        "unknown": [
            "whether the bucket keeps older versions is not known (s3:GetBucketVersioning)"
        ],
    }.get(
        keeps.versions,
        [
            f"the bucket's versioning is {keeps.versions}: what was deleted stays as older versions"
            " until a lifecycle rule (NoncurrentVersionExpiration) or somebody removes them"
        ],
    )
    if keeps.lock == "enabled":
        lines = [
            *lines,
            "the bucket has object lock: versions under retention or a legal hold stay until that "
            "ends",
        ]
    return lines
