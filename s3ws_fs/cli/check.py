"""`s3ws check`: is everything whole, in the caches of this host and in the bucket?

Invariants
1. Without `--repair` nothing is changed; a daemon may be at work on the cache meanwhile.
2. `--repair` touches a cache only when nobody mounts it, and never the bucket: what the bucket
   lacks is marked in the cache, and the next mount ships it.
3. Exit code 0 only when nothing is wrong (any more).

Called by cli only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from s3ws_fs.cache.checking import Checked, check_cache
from s3ws_fs.cache.reader import open_reader
from s3ws_fs.cache.repair import Needs, repair_cache
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.cli import report
from s3ws_fs.cli.mounting import setting_flags
from s3ws_fs.control import registry
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import CacheError, ExitCode, UserError
from s3ws_fs.core.findings import Finding, Report, Severity
from s3ws_fs.fuse import table
from s3ws_fs.launch import EventSink
from s3ws_fs.settings import Settings
from s3ws_fs.store.factory import open_store
from s3ws_fs.transfer.audit import LocalSide, audit
from s3ws_fs.workspaces.mounts import registered, runtime_dir
from s3ws_fs.workspaces.reading import NOWHERE, reachable

PATHS_SHOWN: Final = 10
"""Paths printed with one finding; `--json` has more."""


@dataclass(slots=True)
class Part:
    """One thing that was checked: a cache, or the bucket."""

    kind: str
    where: str
    report: Report
    needs: Needs = field(default_factory=Needs)


@click.command()
@click.argument("mountpoint", required=False, type=click.Path(path_type=str, readable=False))
@click.option(
    "--cache",
    "caches",
    multiple=True,
    type=click.Path(path_type=str, readable=False),
    help="The cache directory of a workspace (several times for several).",
)
@click.option("--bucket", "with_bucket", is_flag=True, help="Check the bucket too: every object.")
@click.option("--quick", is_flag=True, help="Read records only, no bytes of files.")
@click.option("--repair", is_flag=True, help="Repair what can be without guessing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report, and progress, as JSON.")
@setting_flags(skip=("bucket",))
def check(
    mountpoint: str | None,
    caches: tuple[str, ...],
    with_bucket: bool,
    quick: bool,
    repair: bool,
    as_json: bool,
    **overrides: Any,
) -> int:
    """Verify the cache of MOUNTPOINT, of --cache, or of all mounts of this host.

    Works beside a running daemon and after a dead one, without a network. With --bucket also the
    workspace in the bucket, with or without a cache: settings and credentials are those of mount.

    \b
    Exit code 0: nothing is wrong. (A mirror that is behind a busy mount is pending, not wrong.)
    12: damage. 13: no damage, but somebody else changed or added something.
    """
    parts: list[Part] = []
    with report.progress("check", as_json=as_json) as on_event:
        if with_bucket:
            config, directory = _workspace(mountpoint, caches, overrides)
            parts += _check_all(config, directory, on_event, quick=quick, repair=repair)
        else:
            for directory in _directories(mountpoint, caches, overrides):
                parts += _check_local(directory, on_event, quick=quick, repair=repair)
    code = exit_code(parts)
    if as_json:
        report.echo_json(document(parts, code))
    else:
        for line in lines(parts):
            report.echo(line)
    return code


# --- what to check


def _directories(
    mountpoint: str | None, caches: Sequence[str], overrides: dict[str, Any]
) -> list[Path]:
    if mountpoint is not None:
        return [Path(registered(mountpoint).cache_path), *map(Path, caches)]
    if caches:
        return [Path(given) for given in caches]
    infos, _ = registry.list_mounts(runtime_dir())
    found = [Path(info.cache_path) for info in infos]
    if not found and not _has_ids(overrides):
        raise UserError(
            "Nothing is mounted here, and no cache is named.",
            remedy="Name a mount point, a cache by --cache, or a workspace by its ids.",
            exit_code=ExitCode.NOT_MOUNTED,
        )
    return found or [Path(_config(overrides).workspace_cache_dir)]


def _has_ids(overrides: dict[str, Any]) -> bool:
    given = overrides.get("conversation_id"), os.environ.get("WORKSPACE_CONVERSATION_ID")
    return any(given)


def _config(overrides: dict[str, Any]) -> MountConfig:
    return Settings.load(os.environ, overrides).mount_config(NOWHERE)


def _workspace(
    mountpoint: str | None, caches: Sequence[str], overrides: dict[str, Any]
) -> tuple[MountConfig, Path | None]:
    """The workspace, and its cache when there is one on this host."""
    directory: Path | None = Path(caches[0]) if caches else None
    if mountpoint is not None:
        info = registered(mountpoint)
        ids = {"user_id": info.user_id, "conversation_id": info.conversation_id}
        # What the mount says counts; the environment may be of another workspace.
        tail = f"conversations/{info.user_id}/{info.conversation_id}/workspace/"
        overrides = overrides | ids | {"prefix": info.prefix.removesuffix(tail) or None}
        directory = Path(info.cache_path)
    config = _config(overrides)
    if directory is None:
        directory = Path(config.workspace_cache_dir)
        if not (directory / DATA_DIR / DATA_FILE).exists():
            return config, None
    return config, directory


# --- checking


def _check_local(
    directory: Path, on_event: EventSink, *, quick: bool, repair: bool
) -> Iterator[Part]:
    checked = check_cache(directory, on_event, quick=quick)
    if repair and _is_repairable(checked.report):
        yield _repaired(directory, checked, on_event, Needs())
    else:
        yield Part("cache", str(directory), checked.report)


def _check_all(
    config: MountConfig, directory: Path | None, on_event: EventSink, *, quick: bool, repair: bool
) -> list[Part]:
    checked = None
    if directory is not None:
        checked = check_cache(directory, on_event, quick=quick)
        _refuse_another(config, checked, directory)
    bucket = _audit(config, directory, checked, on_event, quick=quick)
    if checked is None or directory is None:
        return [bucket]
    is_repairable = bool(bucket.needs) or _is_repairable(checked.report)
    if repair and is_repairable:
        local = _repaired(directory, checked, on_event, bucket.needs)
    else:
        local = Part("cache", str(directory), checked.report)
    return [local, bucket]


def _refuse_another(config: MountConfig, checked: Checked, directory: Path) -> None:
    if checked.prefix and checked.prefix != config.workspace.prefix:
        raise CacheError(
            f"the cache in {directory} is of {checked.prefix}, not of {config.workspace.prefix}",
            remedy="Name the cache of this workspace, or the workspace of this cache by its ids.",
        )


def _audit(
    config: MountConfig,
    directory: Path | None,
    checked: Checked | None,
    on_event: EventSink,
    *,
    quick: bool,
) -> Part:
    with reachable(config), _local_side(directory, checked) as local:
        store = open_store(config.store, config.workspace.prefix, read_only=True)
        try:
            with ThreadPoolExecutor(config.store.max_parallel, "audit") as pool:
                done = audit(store, pool, on_event, local=local, quick=quick)
        finally:
            store.close()
    where = f"{config.workspace.prefix} of {config.store.location}"
    if checked is None and not done.report.checked["objects"]:
        raise UserError(
            f"There is no workspace {where}.",
            remedy="Check the ids and the bucket.",
            exit_code=ExitCode.BAD_SETTINGS,
        )
    return Part("bucket", where, done.report, done.needs)


@contextmanager
def _local_side(directory: Path | None, checked: Checked | None) -> Iterator[LocalSide | None]:
    # A cache that has to go back to its sync point first is no witness.
    if directory is None or checked is None or checked.tables is None or checked.is_copy:
        yield None
        return
    with open_reader(directory) as reader:
        yield LocalSide(reader, checked.tables, checked.values or {})


# --- repair


def _is_repairable(found: Report) -> bool:
    return any(finding.repairable for finding in found.findings)


def _repaired(directory: Path, checked: Checked, on_event: EventSink, needs: Needs) -> Part:
    infos, _ = registry.list_mounts(runtime_dir())
    for info in infos:
        same = os.path.realpath(info.cache_path) == os.path.realpath(directory)
        if same and (info.is_alive() or table.is_mounted(info.mountpoint)):
            raise UserError(
                f"The cache in {str(directory)!a} is mounted on {info.mountpoint!a}: nothing was "
                "repaired.",
                remedy="Run `s3ws umount` first (after a daemon's death too), then repair.",
                exit_code=ExitCode.ALREADY_MOUNTED,
            )
    after = repair_cache(directory, checked, on_event, needs)
    return Part("cache", str(directory), after)


# --- what is said


def exit_code(parts: Sequence[Part]) -> ExitCode:
    """By the worst finding."""
    if any(part.report.has_damage for part in parts):
        return ExitCode.DAMAGED
    return ExitCode.OK if all(part.report.ok for part in parts) else ExitCode.CHANGED_OUTSIDE


def document(parts: Sequence[Part], code: ExitCode) -> dict[str, Any]:
    """The report for a program."""
    counts = {each.value: sum(p.report.counts[each] for p in parts) for each in Severity}
    return {
        "ok": code == ExitCode.OK,
        "exit_code": int(code),
        "counts": counts | {"repaired": sum(part.report.repaired for part in parts)},
        "checked": [
            {"kind": part.kind, "where": part.where, **part.report.checked} for part in parts
        ],
        "findings": [
            _finding_json(part, finding) for part in parts for finding in part.report.findings
        ],
        "omitted": sum(part.report.omitted for part in parts),
    }


def _finding_json(part: Part, finding: Finding) -> dict[str, Any]:
    return {
        "of": part.kind,
        "severity": finding.severity.value,
        "code": finding.code,
        "where": report.safe(finding.where),
        "message": report.safe(finding.message),
        "paths": [report.json_name(path) for path in finding.paths],
        "paths_total": finding.paths_total,
        "repairable": finding.repairable,
        "repaired": finding.repaired,
    }


def lines(parts: Sequence[Part]) -> Iterator[str]:
    """The report for a person."""
    for part in parts:
        verdict = "whole" if part.report.ok else _counts(part.report)
        yield f"{part.kind} {report.safe(part.where)}: {verdict}"
        for finding in part.report.findings:
            yield from _finding_lines(finding)
        if part.report.omitted:
            yield f"  and {part.report.omitted} more"
        checked = part.report.checked
        seen = ", ".join(f"{number} {name}" for name, number in checked.items() if number)
        yield f"  looked at: {seen.replace('_', ' ') or 'nothing'}"


def _counts(found: Report) -> str:
    said = [f"{found.counts[each]} {each.value}" for each in Severity if found.counts[each]]
    return ", ".join(said)


def _finding_lines(finding: Finding) -> Iterator[str]:
    state = "repaired" if finding.repaired else finding.severity.value
    hint = " (--repair can help)" if finding.repairable and not finding.repaired else ""
    text = f"{report.safe(finding.where)}: {report.safe(finding.message)}{hint}"
    yield f"  {state:<8} {finding.code:<17} {text}"
    for path in finding.paths[:PATHS_SHOWN]:
        yield f"      {report.safe_name(path) or '.'}"
    if finding.paths_total > PATHS_SHOWN:
        yield f"      and {finding.paths_total - min(PATHS_SHOWN, len(finding.paths))} more"
