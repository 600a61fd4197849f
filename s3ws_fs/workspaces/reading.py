"""A workspace and its store, for reading.

Invariants
1. The store is opened read-only: who looks changes nothing.
2. Of a mount, what it says counts (ids, prefix, bucket), except for what is given: the environment
   may be of another workspace.

Called by the commands and the status page.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from s3ws_fs import launch
from s3ws_fs.control import client, registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core import history
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import (
    ExitCode,
    FormatError,
    NotFoundError,
    StoreError,
    UserError,
)
from s3ws_fs.settings import Settings
from s3ws_fs.store.factory import open_store
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import journaling, snaps
from s3ws_fs.workspaces.mounts import runtime_dir

_S3_LOCATION: Final = re.compile(r"s3://([^ /]+)(?: \((.+)\))?")
_LOCAL_LOCATION: Final = "file://"
_WRITERS_CACHE: Final = re.compile(r"-[0-9a-f]{16}$")
NOWHERE: Final = "/proc/self/nowhere"
"""Mount point of a configuration that is not for mounting."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace, and the mount of this host that is meant, if there is one."""

    config: MountConfig
    info: MountInfo | None

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.config.workspace.prefix} in {self.config.store.location}"

    def open(self) -> ScopedStore:
        """Its store, for reading, which the caller closes. Raises StoreError."""
        return open_store(self.config.store, self.config.workspace.prefix, read_only=True)

    @contextmanager
    def store(self) -> Iterator[ScopedStore]:
        """Its store, for reading. StoreError and FormatError of the block become UserError."""
        with store_errors(self.config):
            opened = self.open()
            try:
                yield opened
            finally:
                opened.close()

    def seal(self, on_event: launch.EventSink) -> None:
        """Ask its mount to seal what is there now; without a living mount there is nothing to ask.

        It does not wait for the mirror. Raises UserError when the mount can't (exit 6, 9).
        """
        info = self.info if self.info is not None and writes(self.info) else mount_of(self.config)
        if info is None or not info.is_alive():
            return
        path = registry.socket_path(runtime_dir(), info.mountpoint)
        on_event({"phase": "sealing"})
        client.request(path, "seal", timeout_s=None)

    def snapshots(self) -> dict[str, Any]:
        """Snapshots and marks, as the bucket has them. Raises UserError."""
        with self.store() as store:
            uuid = journaling.read_workspace(store)
            if uuid is None:
                raise UserError(
                    f"There is no workspace {self.name}.",
                    remedy="Check the ids and the bucket.",
                    exit_code=ExitCode.NO_SUCH_POINT,
                )
            with ThreadPoolExecutor(self.config.store.max_parallel, "snapshots") as pool:
                found, damaged = snaps.read_all(store, uuid, {}, pool)
        return {
            "snapshots": snaps.list_json(found),
            "damaged": [{"key": key, "why": why} for key, why in damaged],
        }


_UNSEALED: Final = (history.HEAD, history.GENERATION)
"""Forms of references that may mean what is not sealed yet."""


def sealed_first(workspace: Workspace, refs: Iterable[str], on_event: launch.EventSink) -> None:
    """Seal what is there now when one of the references may mean it. Raises UserError."""
    now_ns = time.time_ns()
    if any(history.parse_ref(ref, now_ns).form in _UNSEALED for ref in refs):
        workspace.seal(on_event)


def mount_of(config: MountConfig) -> MountInfo | None:
    """The mount of this host that writes the workspace; None when there is none."""
    infos, _ = registry.list_mounts(runtime_dir())
    place = (config.workspace.prefix, config.store.location)
    for info in infos:
        if (info.prefix, info.store_location) == place and writes(info) and info.is_alive():
            return info
    return None


def writes(info: MountInfo) -> bool:
    """Whether it is a mount for writing: the caches of others have something behind the digest."""
    return _WRITERS_CACHE.search(info.cache_path) is not None


def of_mount(info: MountInfo, overrides: dict[str, Any]) -> dict[str, Any]:
    """Settings that name the workspace of a mount, but for those that are given."""
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


@contextmanager
def reachable(config: MountConfig, what: str = "read") -> Iterator[None]:
    """Errors of the store, as a person reads them (exit 6): it can't be `what`."""
    try:
        if config.store.path is not None and not Path(config.store.path).is_dir():
            # Opening it would make it.
            raise NotFoundError("open", config.store.path, "there is no such directory")
        yield
    except StoreError as exc:
        raise UserError(
            f"The store {config.store.location} can't be {what}: {exc}",
            remedy="Check endpoint, credentials and bucket; nothing was changed.",
            exit_code=ExitCode.STORE,
        ) from exc
