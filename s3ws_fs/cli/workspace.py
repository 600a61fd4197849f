"""Which workspace a command means, its store for reading, and its mount, which is asked to seal.

`--mountpoint` names a mount of this host. Without it: ids that are given as flags; the mount that
the current directory is in; or the settings, as for `s3ws mount`.

Invariants
1. The store is opened read-only: a command that looks changes nothing.
2. Of a mount, what it says counts (ids, prefix, bucket), except for flags: the environment may be
   of another workspace.

Called by cli.backups, cli.git, cli.history, cli.look, cli.fork and cli.mounting.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import click

from s3ws_fs.cli import report
from s3ws_fs.cli.mounting import setting_flags
from s3ws_fs.control import registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.config import AT_REF_CHARS_MAX, MountConfig
from s3ws_fs.core.errors import (
    ExitCode,
    UserError,
)
from s3ws_fs.transfer import points
from s3ws_fs.workspaces.mounts import registered, runtime_dir
from s3ws_fs.workspaces.reading import (
    Workspace,
    config_of,
    mount_of,
    of_mount,
    sealed_first,
)

_F = TypeVar("_F", bound=Callable[..., Any])


def workspace_flags(function: _F) -> _F:
    """`--mountpoint`, and a flag for each setting."""
    function = setting_flags()(function)
    return click.option(
        "-m",
        "--mountpoint",
        type=click.Path(path_type=str, readable=False),
        help="The workspace mounted there. Default: the mount that the current directory is in, "
        "or the workspace that the settings name.",
    )(function)


def workspace_place(function: _F) -> _F:
    """MOUNTPOINT as an argument, or `--mountpoint` as everywhere; and a flag for each setting."""

    @functools.wraps(function)
    def command(place: str | None, mountpoint: str | None, **more: Any) -> Any:
        if place is not None and mountpoint is not None:
            raise click.UsageError("Name the mount once: as an argument or by --mountpoint.")
        return function(mountpoint=mountpoint if place is None else place, **more)

    return click.argument(
        "place",
        metavar="[MOUNTPOINT]",
        required=False,
        type=click.Path(path_type=str, readable=False),
    )(workspace_flags(cast(_F, command)))


def chosen(mountpoint: str | None, overrides: dict[str, Any]) -> Workspace:
    """The workspace that is meant. Raises UserError (exit 3, 4)."""
    info = registered(mountpoint) if mountpoint is not None else None
    if info is None and not overrides.get("conversation_id"):
        info = mount_here()
    if info is not None:
        return Workspace(config_of(of_mount(info, overrides)), info)
    config = config_of(overrides)
    return Workspace(config, mount_of(config))


def mount_here() -> MountInfo | None:
    """The mount that the current directory is in."""
    try:
        # The kernel knows it by name: a dead mount is not touched.
        at = os.getcwd()  # noqa: PTH109
    except OSError:
        return None
    infos, _ = registry.list_mounts(runtime_dir())
    for info in sorted(infos, key=lambda info: -len(info.mountpoint)):
        if at == info.mountpoint or at.startswith(info.mountpoint.rstrip("/") + "/"):
            return info
    return None


def at_point(config: MountConfig, ref: str, *, as_json: bool) -> MountConfig:
    """The same mount, of the point that a reference means. Raises UserError (exit 2, 6, 17)."""
    workspace = Workspace(config, mount_of(config))
    with report.progress("seal", as_json=as_json) as on_event:
        sealed_first(workspace, [ref], on_event)
    with workspace.store() as store:
        point = points.resolve(store, ref, time.time_ns())
    return replace(
        config, at_number=point.number, at_hash=point.header_hash, at_ref=ref[:AT_REF_CHARS_MAX]
    )


def inside(path: str, info: MountInfo | None) -> bytes:
    """A path that a person gave, below the root of the workspace; b"" is the root.

    Absolute: below the mount point. Relative: to the current directory where that is in the mount,
    else to the root. Raises UserError (exit 2) when it is outside. Looks at no mounted file.
    """
    top = "/" if info is None else info.mountpoint
    here = top
    if info is not None and (mount := mount_here()) is not None and mount.mountpoint == top:
        here = os.getcwd()  # noqa: PTH109
    # A workspace without a mount has "/" as its own root, so that ".." can't leave it.
    found = os.path.normpath(os.path.join(here, path))  # noqa: PTH118
    if found == top:
        return b""
    below = top.rstrip("/") + "/"
    if not found.startswith(below):
        raise UserError(
            f"{path!a} is not in the workspace on {top!a}.",
            remedy="Name a path below the mount point.",
            exit_code=ExitCode.USAGE,
        )
    return os.fsencode(found[len(below) :])
