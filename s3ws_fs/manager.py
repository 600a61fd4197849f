"""The Python API: a workspace as an object, for asyncio and trio programs alike.

    storage = S3Storage(bucket="workspaces", endpoint_url="http://127.0.0.1:9000")
    async with WorkspaceManager(storage, "conversation", "user", "/workspace") as workspace:
        ...                               # files under /workspace are the workspace
        await workspace.manual_sync()     # now they are in the bucket
                                          # leaving: final flush, unmounted

Invariants
1. The mount is a process of its own (as with `s3ws mount`): it survives this program, and nothing
   of the filesystem runs in it. Blocking calls are made in a thread.
2. `cleanup` returns only when everything is saved; otherwise it raises, and may be called again.
3. Keys given to S3Storage go into the environment of the mount's process and nowhere else.
4. A cancelled call ends only when its thread did, so that no half-made mount is left unnoticed.

Called by other people's programs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import unquote, urlsplit

import sniffio

from s3ws_fs import launch
from s3ws_fs.control import client, registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.config import AddressingStyle, MountConfig, StoreConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.settings import Settings

__all__ = ["LocalStorage", "S3Storage", "WorkspaceManager"]

_T = TypeVar("_T")


class HasStoreConfig(Protocol):
    """Anything that says where the bucket is."""

    @property
    def config(self) -> StoreConfig:
        """Where the bucket is."""


@dataclass(frozen=True, slots=True)
class S3Storage:
    """A bucket on S3, MinIO or the like. What is not given comes from AWS's own variables.

    Keys are better left to the environment or a profile; given here, they reach the mount's
    process by its environment and are shown nowhere.
    """

    bucket: str
    endpoint_url: str | None = None
    region: str | None = None
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    verify_tls: bool = True
    ca_bundle: str | None = None
    addressing_style: AddressingStyle = "auto"
    max_parallel: int = 10

    @property
    def config(self) -> StoreConfig:
        """Where the bucket is. Raises UserError for values that can't be."""
        return StoreConfig(
            type="s3",
            bucket=self.bucket,
            endpoint_url=self.endpoint_url,
            region=self.region,
            verify_tls=self.verify_tls,
            ca_bundle=self.ca_bundle,
            addressing_style=self.addressing_style,
            max_parallel=self.max_parallel,
        )

    @property
    def secret_env(self) -> dict[str, str]:
        """Variables for the mount's process, empty when no keys were given."""
        if self.access_key is None and self.secret_key is None:
            return {}
        return {
            "AWS_ACCESS_KEY_ID": self.access_key or "",
            "AWS_SECRET_ACCESS_KEY": self.secret_key or "",
            # Also when empty: a token in our own environment belongs to other keys.
            "AWS_SESSION_TOKEN": self.session_token or "",
        }


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """A directory laid out exactly as the bucket would be."""

    path: str | os.PathLike[str]

    @property
    def config(self) -> StoreConfig:
        """Where the directory is."""
        return StoreConfig(type="local", path=str(Path(self.path).expanduser().resolve()))


Storage = StoreConfig | Settings | str | HasStoreConfig


class WorkspaceManager:
    """One workspace on one mount point.

    `storage`: S3Storage, LocalStorage, "s3://bucket", "file:///directory", a StoreConfig, a
    Settings, or any object with such a `config`. Other settings come from the environment and
    from `options` (names as in s3ws_fs.settings, e.g. `max_size_mb=100`).

    The constructor raises UserError for bad ids and settings; it touches nothing.
    """

    def __init__(
        self,
        storage: Storage,
        conversation_id: str,
        user_id: str,
        workspace_path: str | os.PathLike[str],
        **options: Any,
    ) -> None:
        ids = {"conversation_id": conversation_id, "user_id": user_id}
        self._config = _mount_config(storage, os.fspath(workspace_path), {**options, **ids})
        self._secret_env: Mapping[str, str] = getattr(storage, "secret_env", {})
        self._mounted = False

    @property
    def config(self) -> MountConfig:
        """What the mount is made from."""
        return self._config

    @property
    def mountpoint(self) -> str:
        """The canonical path of the workspace."""
        return self._config.mountpoint

    async def initialize(self, *, take_over: bool = False, adopt: bool = False) -> None:
        """Mount the workspace; return when it is ready. Nothing happens when it is already.

        `take_over`: from the mount that holds it, which can save nothing more then.
        `adopt`: a living mount of this very workspace there, of an earlier run of the program or of
        another one, is taken for ours, with the settings it has.
        Raises UserError with the exit code that `s3ws mount` would have.
        """
        await _in_thread(lambda: self._initialize(take_over, adopt))

    async def manual_sync(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Flush now; return {"sealed", "mirrored", …} when all is in the bucket.

        Raises UserError (exit code 4: not mounted; 7: not saved within `timeout_s` seconds).
        """
        return await _in_thread(lambda: self._sync(timeout_s))

    async def backup(self) -> dict[str, Any]:
        """Put a tar.gz of the workspace as it is now into the bucket; one is made every
        `backup_interval_s` seconds anyway while something changes.

        Returns {"name", "bytes", "entries", …}. Raises UserError (exit code 4: not mounted; 6: the
        store refused).
        """
        return await _in_thread(lambda: client.request(self._socket(), "backup", timeout_s=None))

    async def status(self) -> dict[str, Any]:
        """The status document (`s3ws status --json`). Raises UserError when not mounted."""
        return await _in_thread(lambda: client.request(self._socket(), "status"))

    async def cleanup(self, timeout_s: float | None = None) -> None:
        """Final flush and unmount. Nothing happens when it was not (or is no longer) mounted.

        Raises UserError when not everything is saved (exit code 7; a ReplyError's
        details["unsaved"] lists the paths) or a program still uses the mount (11).
        """
        await _in_thread(lambda: self._cleanup(timeout_s))

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.cleanup()

    # --- in a thread -----------------------------------------------------------------------

    def _socket(self) -> str:
        return registry.socket_path(self._config.runtime_dir, self.mountpoint)

    def _own_entry(self) -> MountInfo | None:
        """The registered mount, if it is this workspace's."""
        info = registry.read(self._config.runtime_dir, self.mountpoint)
        same = info is not None and info.cache_path == self._config.workspace_cache_dir
        return info if same else None

    def _initialize(self, take_over: bool, adopt: bool) -> None:
        info = self._own_entry()
        if (self._mounted or adopt) and info is not None and info.is_alive():
            self._mounted = True
            return
        launch.mount(replace(self._config, take_over=take_over), secret_env=self._secret_env)
        self._mounted = True

    def _sync(self, timeout_s: float | None) -> dict[str, Any]:
        try:
            return client.request(self._socket(), "sync", timeout_s=timeout_s)
        except client.DaemonSilentError as exc:
            raise UserError(exc.message, remedy=exc.remedy, exit_code=ExitCode.NOT_SAVED) from exc

    def _cleanup(self, timeout_s: float | None) -> None:
        # No entry: it never was mounted, or another way of unmounting saved everything.
        if self._mounted and self._own_entry() is not None:
            launch.umount_and_wait(self.mountpoint, self._config.runtime_dir, timeout_s=timeout_s)
        self._mounted = False


def _mount_config(storage: Storage, path: str, overrides: dict[str, Any]) -> MountConfig:
    mountpoint = launch.canonical_mountpoint(path)
    if isinstance(storage, Settings):
        settings = Settings.model_validate({**storage.model_dump(), **overrides})
        return settings.mount_config(mountpoint)
    if isinstance(storage, str):
        return _from_url(storage, overrides).mount_config(mountpoint)
    store = storage if isinstance(storage, StoreConfig) else storage.config
    if store.type == "local":
        where = {"storage_type": "local", "storage_path": store.path}
        return Settings.load(os.environ, {**overrides, **where}).mount_config(mountpoint)
    where = {
        "storage_type": "s3",
        "bucket": store.bucket,
        "endpoint_url": store.endpoint_url,
        "region": store.region,
        "ca_bundle": store.ca_bundle,
    }
    config = Settings.load(os.environ, {**overrides, **where}).mount_config(mountpoint)
    # Endpoint, region and CA bundle of the environment fill what the storage leaves open.
    found = config.store
    return replace(
        config,
        store=replace(
            store,
            endpoint_url=found.endpoint_url,
            region=found.region,
            ca_bundle=found.ca_bundle,
        ),
    )


def _from_url(url: str, overrides: dict[str, Any]) -> Settings:
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc and "@" not in parts.netloc:
        where = {"storage_type": "s3", "bucket": parts.netloc, "prefix": parts.path.strip("/")}
    elif parts.scheme == "file" and not parts.netloc and parts.path:
        where = {"storage_type": "local", "storage_path": unquote(parts.path)}
    else:
        raise UserError(
            "The storage URL is neither s3://bucket[/prefix] nor file:///directory.",
            remedy="Use one of these, an S3Storage or a LocalStorage.",
            exit_code=ExitCode.BAD_SETTINGS,
        )
    if not where.get("prefix", True):
        del where["prefix"]
    return Settings.load(os.environ, {**overrides, **where})


async def _in_thread(function: Callable[[], _T]) -> _T:
    """Run a blocking function in a thread of the running async library; see invariant 4."""
    if sniffio.current_async_library() == "trio":
        import trio

        return await trio.to_thread.run_sync(function)
    task = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            # Looked at, so that asyncio does not report it as lost: the cancellation wins.
            task.exception()
        raise
