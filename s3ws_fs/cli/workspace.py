"""Which workspace a command means, its store for reading, and its mount, which is asked to seal.

`--mountpoint` names a mount of this host. Without it: ids that are given as flags; the mount that
the current directory is in; or the settings, as for `s3ws mount`.

Invariants
1. The store is opened read-only: a command that looks changes nothing.
2. Of a mount, what it says counts (ids, prefix, bucket), except for flags: the environment may be
   of another workspace.

Called by cli.history, cli.look, cli.fork and cli.mounting.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import click

from s3ws_fs import launch
from s3ws_fs.cli import report
from s3ws_fs.cli.check import NOWHERE, reachable
from s3ws_fs.cli.mounting import registered, runtime_dir, setting_flags
from s3ws_fs.control import client, registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core import history
from s3ws_fs.core.config import AT_REF_CHARS_MAX, MountConfig
from s3ws_fs.core.errors import (
    ExitCode,
    FormatError,
    UserError,
)
from s3ws_fs.settings import Settings
from s3ws_fs.store.factory import open_store
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points

_F = TypeVar("_F", bound=Callable[..., Any])

_S3_LOCATION: Final = re.compile(r"s3://([^ /]+)(?: \((.+)\))?")
_LOCAL_LOCATION: Final = "file://"
_WRITERS_CACHE: Final = re.compile(r"-[0-9a-f]{16}$")


def workspace_flags(function: _F) -> _F:
    """`--mountpoint`, and a flag for each setting."""
    function = setting_flags()(function)
    return click.option(
        "-m",
        "--mountpoint",
        type=click.Path(path_type=str),
        help="The workspace mounted there. Default: the mount that the current directory is in, "
        "or the workspace that the settings name.",
    )(function)


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace, and the mount of this host that is meant, if there is one."""

    config: MountConfig
    info: MountInfo | None

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.config.workspace.prefix} in {self.config.store.location}"

    @contextmanager
    def store(self) -> Iterator[ScopedStore]:
        """Its store, for reading. StoreError and FormatError of the block become UserError."""
        config = self.config
        with store_errors(config):
            opened = open_store(config.store, config.workspace.prefix, read_only=True)
            try:
                yield opened
            finally:
                opened.close()

    def seal(self, on_event: launch.EventSink) -> None:
        """Ask its mount to seal what is there now; without a living mount there is nothing to ask.

        It does not wait for the mirror. Raises UserError when the mount can't (exit 6, 9).
        """
        info = self.info if self.info is not None and _writes(self.info) else mount_of(self.config)
        if info is None or not info.is_alive():
            return
        path = registry.socket_path(runtime_dir(), info.mountpoint)
        on_event({"phase": "sealing"})
        client.request(path, "seal", timeout_s=None)


_UNSEALED: Final = (history.HEAD, history.GENERATION)
"""Forms of references that may mean what is not sealed yet."""


def sealed_first(workspace: Workspace, refs: Iterable[str], on_event: launch.EventSink) -> None:
    """Seal what is there now when one of the references may mean it. Raises UserError."""
    now_ns = time.time_ns()
    if any(history.parse_ref(ref, now_ns).form in _UNSEALED for ref in refs):
        workspace.seal(on_event)


def chosen(mountpoint: str | None, overrides: dict[str, Any]) -> Workspace:
    """The workspace that is meant. Raises UserError (exit 3, 4)."""
    info = registered(mountpoint) if mountpoint is not None else None
    if info is None and not overrides.get("conversation_id"):
        info = mount_here()
    if info is not None:
        return Workspace(config_of(_of_mount(info, overrides)), info)
    config = config_of(overrides)
    return Workspace(config, mount_of(config))


def mount_of(config: MountConfig) -> MountInfo | None:
    """The mount of this host that writes the workspace; None when there is none."""
    infos, _ = registry.list_mounts(runtime_dir())
    place = (config.workspace.prefix, config.store.location)
    for info in infos:
        if (info.prefix, info.store_location) == place and _writes(info) and info.is_alive():
            return info
    return None


def _writes(info: MountInfo) -> bool:
    """Whether it is a mount for writing: the caches of others have something behind the digest."""
    return _WRITERS_CACHE.search(info.cache_path) is not None


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


def _of_mount(info: MountInfo, overrides: dict[str, Any]) -> dict[str, Any]:
    tail = f"conversations/{info.user_id}/{info.conversation_id}/workspace/"
    said: dict[str, Any] = {
        "user_id": info.user_id,
        "conversation_id": info.conversation_id,
        "prefix": info.prefix.removesuffix(tail) or None,
        "storage_type": info.store_type,
    }
    match = _S3_LOCATION.fullmatch(info.store_location)
    if match is not None:
        said |= {"bucket": match[1], "endpoint_url": match[2]}
    elif info.store_location.startswith(_LOCAL_LOCATION):
        said["storage_path"] = info.store_location.removeprefix(_LOCAL_LOCATION)
    given = {name: value for name, value in overrides.items() if value is not None}
    return said | given


def config_of(overrides: dict[str, Any]) -> MountConfig:
    """The configuration that the settings name."""
    return Settings.load(os.environ, overrides).mount_config(NOWHERE)


@contextmanager
def store_errors(config: MountConfig) -> Iterator[None]:
    """Errors of the store and of what stands in it, as a person reads them (exit 6)."""
    try:
        with reachable(config, "used"):
            yield
    except FormatError as exc:
        raise UserError(
            f"The workspace in {config.store.location} is damaged: {exc}",
            remedy="`s3ws check --bucket` says what; nothing was changed.",
            exit_code=ExitCode.STORE,
        ) from exc
