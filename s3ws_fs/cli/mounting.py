"""`s3ws mount`, `s3ws umount` and `s3ws restart`.

Invariants
1. Every setting has a flag, made from settings.OPTIONS: no setting is reachable one way only.
2. No flag takes a secret.
3. `umount` of several mounts tries each, and ends with the code of the first that failed.

Called by cli only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import click

from s3ws_fs import launch
from s3ws_fs.cli import report
from s3ws_fs.cli.render_git import git_troubles
from s3ws_fs.control import wire
from s3ws_fs.core.bounds import POLICIES
from s3ws_fs.core.errors import UserError
from s3ws_fs.settings import OPTIONS, Option, Settings
from s3ws_fs.settings.sources import default_storage_path
from s3ws_fs.workspaces.mounts import runtime_dir
from s3ws_fs.workspaces.storage import make_default_store

_F = TypeVar("_F", bound=Callable[..., Any])

_SWITCHES = ("verify_tls", "allow_unconditional", "allow_other", "read_only")
_CHOICES = {
    "storage_type": ("s3", "local"),
    "addressing_style": ("auto", "path", "virtual"),
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("text", "json"),
    "outside_changes": POLICIES,
}


def setting_flags(skip: Sequence[str] = ()) -> Callable[[_F], _F]:
    """A flag for each setting, save those of `skip`."""

    def add(function: _F) -> _F:
        for name, option in reversed(OPTIONS.items()):
            if name not in skip:
                function = _setting_flag(name, option)(function)
        return function

    return add


def _setting_flag(name: str, option: Option) -> Callable[[_F], _F]:
    flag = "--" + name.removesuffix("_s").replace("_", "-")
    text = f"{option.help} [{option.variable}]"
    if name in _SWITCHES:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    if name in _CHOICES:
        choice = click.Choice(_CHOICES[name], case_sensitive=False)
        return click.option(flag, name, type=choice, help=text)
    metavar = "VALUE" if name.endswith(("_map", "mode")) else None
    return click.option(flag, name, metavar=metavar, help=text)


@click.command()
@click.argument("mountpoint", type=click.Path(path_type=str, readable=False))
@click.option("--foreground", is_flag=True, help="Stay, and end with the mount (for containers).")
@click.option("--nonempty", is_flag=True, help="Mount over a directory that is not empty.")
@click.option(
    "--take-over",
    is_flag=True,
    help="Take the workspace from the mount that holds it, which can save nothing more.",
)
@click.option(
    "--at",
    "ref",
    metavar="REF",
    help="Show one point in history, read-only: a snapshot, #N, a time, … (docs/history.md).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the mount as JSON.")
@setting_flags()
def mount(
    mountpoint: str,
    foreground: bool,
    nonempty: bool,
    take_over: bool,
    ref: str | None,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Mount a workspace on MOUNTPOINT and return when it is ready.

    Which workspace, and where it is stored, come from the environment (the variable in brackets)
    or from the flags. Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or an AWS
    profile, never from a flag.
    """
    if ref is not None:
        if take_over or overrides.get("read_only") is False:
            raise click.UsageError("--at shows a point read-only: it takes no workspace over.")
        overrides["read_only"] = True
    settings = Settings.load(os.environ, overrides)
    config = settings.mount_config(launch.canonical_mountpoint(mountpoint))
    config = replace(config, take_over=take_over)
    make_default_store(settings, default_storage_path(os.environ, os.geteuid()))
    if ref is not None:
        from s3ws_fs.cli.workspace import at_point  # which imports this module

        config = at_point(config, ref, as_json=as_json)
    if foreground:
        launch.exec_foreground(config, nonempty=nonempty)
    with report.progress("mount", as_json=as_json) as on_event:
        info = launch.mount(config, on_event=on_event, nonempty=nonempty)
    if as_json:
        report.echo_json(
            {
                "mountpoint": info.mountpoint,
                "pid": info.pid,
                "workspace": config.workspace.to_json() | {"prefix": config.workspace.prefix},
                "store": {"type": info.store_type, "location": info.store_location},
                "cache": {"path": info.cache_path},
                "log": info.log_path,
            }
        )
        return
    report.echo(
        f"mounted {report.safe(info.prefix)} of {report.safe(info.store_location)} "
        f"on {report.safe(info.mountpoint)}"
    )


@click.command()
@click.argument(
    "mountpoints", nargs=-1, required=True, type=click.Path(path_type=str, readable=False)
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait for the final flush (it goes on afterwards); no limit by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print results, and progress, as JSON.")
def umount(mountpoints: tuple[str, ...], timeout_s: float | None, as_json: bool) -> int:
    """End mounts: save everything, then return.

    Exit code 0 means that all of it is in the bucket. Otherwise what is not is listed; the cache
    keeps it, and the next mount goes on saving.
    """
    failed: int = 0
    results: list[dict[str, Any]] = []
    paths = [launch.canonical_mountpoint(given) for given in mountpoints]
    # Run inside the mount, this very process would keep it busy.
    os.chdir("/")
    for path in paths:
        try:
            with report.progress(f"umount {path}", as_json=as_json) as on_event:
                result = launch.umount_and_wait(
                    path, runtime_dir(), on_event=on_event, timeout_s=timeout_s
                )
        except UserError as exc:
            failed = failed or int(exc.exit_code)
            results.append({"mountpoint": path, "saved": False, "error": wire.error_object(exc)})
            report.report_user_error(exc)
        else:
            results.append({"mountpoint": path, **result})
            if not as_json:
                saved = "" if result.get("read_only") else ": everything is saved"
                report.echo(f"unmounted {report.safe(path)}{saved}")
                for text in git_troubles(result.get("git")):
                    report.note(f"s3ws: git: {text}")
    if as_json:
        report.echo_json(results)
    return failed


@click.command()
@click.argument("mountpoint", type=click.Path(path_type=str, readable=False))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def restart(mountpoint: str, as_json: bool) -> None:
    """Put the installed version under a mount, which stays: after an upgrade.

    Programs that use it wait a moment; files stay open, and no call fails. Exit code 15: this mount
    can't (no holder, or a kernel before 6.9); 14: the new daemon did not come up.
    """
    result = launch.restart(launch.canonical_mountpoint(mountpoint), runtime_dir())
    if as_json:
        report.echo_json(result)
        return
    report.echo(
        f"{report.safe(result['mountpoint'])} goes on with s3ws {result['version']} "
        f"(daemon {result['pid']}), after a pause of {report.human_seconds(result['pause_s'])}"
    )
