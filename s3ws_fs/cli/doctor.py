"""`s3ws doctor`: is all there that a mount needs, and what to do where it is not?

Invariants
1. Every check is made, whatever another found; what depends on one that failed is skipped.
2. Exit code 0 when nothing failed (warnings are none); else that of the first that failed, which
   is the one `s3ws mount` would end with.

Called by cli only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, Final

import click

from s3ws_fs.cli import report
from s3ws_fs.cli.mounting import setting_flags
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import UserError
from s3ws_fs.launch.end import counted
from s3ws_fs.workspaces import diagnosis, doctor_host
from s3ws_fs.workspaces.diagnosis import FAILED, WARNING, Check
from s3ws_fs.workspaces.doctor_store import store_checks
from s3ws_fs.workspaces.reading import config_of

DOCTOR: Final = "s3ws-doctor"
"""Ids whose prefix is probed when no workspace is named."""
_COLUMNS: Final = 20


@click.command(short_help="Check host, settings and bucket, each with its remedy.")
@click.option("--no-write", is_flag=True, help="Write no scratch objects to the bucket.")
@click.option("--no-store", is_flag=True, help="Leave the bucket alone: only this host.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@setting_flags()
def doctor(no_write: bool, no_store: bool, as_json: bool, **overrides: Any) -> int:
    """Check what a mount needs: FUSE and the right to mount, settings, the disk of the caches,
    credentials, the bucket, conditional writes, the clock, versions.

    Settings and credentials are those of `s3ws mount`; without ids the bucket is tried at a prefix
    of its own. Scratch objects are removed at once. Exit code: 0, or that of the first failure.
    """
    checks: list[Check] = []
    for check in _checks(overrides, write=not no_write, with_store=not no_store):
        checks.append(check)
        if not as_json:
            for line in lines(check):
                report.echo(line)
    code = diagnosis.exit_code(checks)
    if as_json:
        report.echo_json({"checks": [check.to_json() for check in checks], "exit_code": int(code)})
    else:
        report.echo(summary(checks))
    return code


def _checks(overrides: dict[str, Any], *, write: bool, with_store: bool) -> Iterator[Check]:
    yield doctor_host.versions()
    yield doctor_host.kernel()
    device = doctor_host.fuse_device()
    yield device
    yield doctor_host.fusermount()
    if device.exit_code:
        yield diagnosis.skipped("mounting", "without the device")
    else:
        yield doctor_host.trial_mount()
    config, settings = _settings(overrides)
    yield settings
    yield doctor_host.allow_other(config)
    if config is not None:
        yield doctor_host.directory("cache directory", config.cache_dir, "WORKSPACE_CACHE_DIR")
        yield doctor_host.directory("sockets", config.runtime_dir, "WORKSPACE_RUNTIME_DIR")
    yield doctor_host.cache_disk(config)
    yield doctor_host.mounts()
    if config is not None and with_store:
        yield from store_checks(config, write=write)


def _settings(overrides: dict[str, Any]) -> tuple[MountConfig | None, Check]:
    named = {
        name: overrides.get(name) or os.environ.get(f"WORKSPACE_{name.upper()}") or DOCTOR
        for name in ("user_id", "conversation_id")
    }
    try:
        config = config_of(overrides | named)
    except UserError as exc:
        return None, diagnosis.failed("settings", exc.message, exc.remedy, exc.exit_code)
    ids = [f"WORKSPACE_{name.upper()}" for name, value in named.items() if value == DOCTOR]
    if ids:
        text = f"good; {' and '.join(ids)} not given, which a mount needs"
        return config, diagnosis.ok("settings", text)
    return config, diagnosis.ok("settings", f"good; {config.workspace.prefix}")


def lines(check: Check) -> Iterator[str]:
    """One check for a person."""
    state = check.state.upper() if check.state == FAILED else check.state
    yield f"{state:<8} {check.name:<{_COLUMNS}} {report.safe(check.detail)}"
    if check.remedy:
        yield f"{'':<8} {'':<{_COLUMNS}} {report.safe(check.remedy)}"


def summary(checks: Iterable[Check]) -> str:
    """How it went."""
    states = [check.state for check in checks]
    count, warnings = states.count(FAILED), states.count(WARNING)
    if not count and not warnings:
        return "all is well"
    return f"{count} failed, {counted(warnings, 'warning')}"
