"""Volumes: one is the workspace of one conversation, mounted while somebody uses it.

Invariants
1. A volume is mounted from its first use to the end of its last; `unmount` of the last returns only
   when everything is saved, or raises and says what goes on in the background.
2. A use is noted after the mount stands, and its end before the mount goes. So a plugin that dies
   anywhere between leaves at worst a mount without uses, which the next one ends (`tidy`).
3. No two volumes are one workspace: they would refuse each other's mounts.
4. Mounts are processes of their own: they live on when the plugin ends, whatever ends it.
5. Removing a volume forgets it; the workspace stays in the bucket.
6. One thing at a time is done to a volume; others do not wait for it.

Called by volumes.server, from its threads, and by the plugin's entry.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from s3ws_fs import launch
from s3ws_fs.control import client, registry
from s3ws_fs.control.paths import make_private
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, S3wsError, UserError
from s3ws_fs.fuse import table
from s3ws_fs.integrations import options
from s3ws_fs.integrations.volumes.state import State, Volume

log = logging.getLogger("s3ws_fs.volumes")

NAME_CHARS_MAX: Final = 128
ID_CHARS_MAX: Final = 512
UNMOUNT_S_MAX: Final = 100.0
"""How long `unmount` waits for the final flush: Docker asks no longer than 120 s. It goes on."""
BUSY_S_MAX: Final = 10.0
"""A container that ends may keep the mount busy for a moment; each try waits a second by itself."""
STATUS_S_MAX: Final = 2.0
TIDY_EVERY_S: Final = 30.0
"""Between two tries to end a mount that nobody uses and that was still busy."""

_CONVERSATION: Final = "WORKSPACE_CONVERSATION_ID"
_VOLUME_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)


@dataclass(frozen=True)
class Places:
    """Directories: of the state, of the mount points, of the control sockets."""

    state: str
    runtime: str

    @property
    def mounts(self) -> str:
        """Where mount points are."""
        return f"{self.state}/mounts"


class Driver:
    """The volumes of one plugin."""

    def __init__(self, places: Places, environ: Mapping[str, str], *, allow_other: bool) -> None:
        """Raises FormatError, OSError, UserError when the state can't be read."""
        self._places = places
        # Each volume is a conversation of its own.
        self._environ = {name: value for name, value in environ.items() if name != _CONVERSATION}
        self._allow_other = allow_other
        self._state = State(places.state)
        make_private(Path(places.mounts))
        self._lock = threading.Lock()
        """Over the state and the table of locks."""
        self._locks: dict[str, threading.Lock] = {}
        self._left = threading.Event()
        """There may be mounts that nobody uses."""

    # --- what Docker asks ------------------------------------------------------------------

    def create(self, name: str, given: Mapping[str, str]) -> None:
        """A volume of this name. The same again is no error. Raises UserError."""
        if not _VOLUME_NAME.fullmatch(name) or len(name) > NAME_CHARS_MAX:
            raise _bad(f"{name[:256]!a} can't be the name of a volume.")
        config, _ = self._config(name, given)
        cache = config.workspace_cache_dir
        with self._lock:
            known = self._state.volumes.get(name)
            if known is not None:
                if known.options != dict(given):
                    raise _bad(f"The volume {name} exists with other options.")
                return
            for other in self._state.volumes.values():
                if other.cache == cache:
                    raise _bad(f"The volume {other.name} is this workspace already.")
            self._state.add(name, dict(given), cache)
        log.info("volume %s: %s", name, config.workspace.prefix)

    def remove(self, name: str) -> None:
        """Forget a volume that nobody uses. Raises UserError."""
        with self._doing(name):
            volume = self._volume(name)
            if volume.uses:
                raise UserError(f"The volume {name} is in use.", exit_code=ExitCode.BUSY)
            self._end(volume)
            with contextlib.suppress(OSError):
                Path(self.mountpoint(name)).rmdir()
            with self._lock:
                self._state.remove(name)
        log.info("volume %s is forgotten; its workspace stays in the bucket", name)

    def mount(self, name: str, ident: str) -> str:
        """Begin a use; the path where the workspace stands, ready. Raises UserError."""
        if not ident or len(ident) > ID_CHARS_MAX:
            raise _bad(f"A use needs an id of at most {ID_CHARS_MAX} characters.")
        with self._doing(name):
            volume = self._volume(name)
            self._stand(volume)
            try:
                with self._lock:
                    self._state.use(name, ident)
            except BaseException:
                self._left.set()
                raise
        log.info("volume %s: used by %d", name, len(self._volume(name).uses))
        return self.mountpoint(name)

    def unmount(self, name: str, ident: str) -> None:
        """End a use; after the last, return when everything is saved. Raises UserError."""
        with self._doing(name):
            with self._lock:
                if name in self._state.volumes:
                    self._state.release(name, ident)
            volume = self._volume(name)
            if volume.uses:
                log.info("volume %s: still used by %d", name, len(volume.uses))
                return
            self._end(volume)
        log.info("volume %s: unmounted, everything is saved", name)

    def path(self, name: str) -> str:
        """Where it is mounted; "" while it is not."""
        volume = self._volume(name)
        return self.mountpoint(name) if volume.uses else ""

    def describe(self, name: str) -> dict[str, Any]:
        """A volume for Docker's `volume inspect`."""
        volume = self._volume(name)
        return {
            "Name": name,
            "Mountpoint": self.path(name),
            "CreatedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(volume.created_s)),
            "Status": {"uses": len(volume.uses), **self._told(volume)},
        }

    def names(self) -> list[str]:
        """All volumes."""
        return sorted(self._state.volumes)

    # --- afterwards ------------------------------------------------------------------------

    def tidy(self) -> None:
        """End mounts without uses: after a plugin that died, or of a volume that was busy."""
        self._left.clear()
        for name in self.names():
            with contextlib.suppress(KeyError, UserError), self._doing(name):
                volume = self._volume(name)
                if self._is_left(volume):
                    self._end(volume)

    def keep_tidy(self, stop: threading.Event) -> None:
        """Until `stop`: `tidy` now, and again while something is left."""
        self._left.set()
        while not stop.is_set():
            if self._left.is_set():
                self.tidy()
            stop.wait(TIDY_EVERY_S)

    # --- the mounts ------------------------------------------------------------------------

    def mountpoint(self, name: str) -> str:
        """Where a volume is mounted while somebody uses it."""
        return f"{self._places.mounts}/{name}"

    def _config(self, name: str, given: Mapping[str, str]) -> tuple[MountConfig, dict[str, str]]:
        """The mount that options ask for, and variables for its processes. Raises UserError."""
        wanted = options.read(given.items())
        if wanted.nonempty:
            raise _bad("A volume is never mounted over files: nonempty is no option here.")
        if _CONVERSATION not in wanted.environ:
            wanted.overrides.setdefault("conversation_id", name)
        environ = {**self._environ, **wanted.environ}
        if "WORKSPACE_ALLOW_OTHER" not in environ:
            wanted.overrides.setdefault("allow_other", self._allow_other)
        config = wanted.settings(environ).mount_config(self.mountpoint(name))
        return replace(config, runtime_dir=self._places.runtime), wanted.environ

    def _stand(self, volume: Volume) -> None:
        """Have the workspace mounted and ready."""
        config, environ = self._config(volume.name, volume.options)
        info = registry.read(self._places.runtime, config.mountpoint)
        if info is not None and info.is_alive():
            if table.is_mounted(config.mountpoint):
                return
            self._wait_for_the_last(config.mountpoint, info)
        launch.mount(config, secret_env=environ)

    def _wait_for_the_last(self, mountpoint: str, info: MountInfo) -> None:
        """The daemon of an earlier mount still saves; what it can't, the next one goes on with."""
        try:
            launch.umount_and_wait(mountpoint, self._places.runtime, timeout_s=UNMOUNT_S_MAX)
        except UserError as exc:
            if info.is_alive():
                raise
            log.warning("%s: %s", mountpoint, exc)

    def _end(self, volume: Volume) -> None:
        """Have it unmounted, and everything saved. Raises UserError."""
        mountpoint, runtime = self.mountpoint(volume.name), self._places.runtime
        if registry.read(runtime, mountpoint) is None:
            return
        busy_until_s = time.monotonic() + BUSY_S_MAX
        while True:
            try:
                launch.umount_and_wait(mountpoint, runtime, timeout_s=UNMOUNT_S_MAX)
                return
            except UserError as exc:
                is_busy = exc.exit_code is ExitCode.BUSY
                if is_busy and time.monotonic() < busy_until_s:
                    continue
                if table.is_mounted(mountpoint):
                    self._left.set()
                log.error("volume %s: %s", volume.name, exc)
                raise

    def _is_left(self, volume: Volume) -> bool:
        """Whether it is mounted although nobody uses it."""
        if volume.uses:
            return False
        info = registry.read(self._places.runtime, self.mountpoint(volume.name))
        return info is not None and info.is_alive()

    def _told(self, volume: Volume) -> dict[str, Any]:
        """What its workspace is, and what the daemon says of itself, if there is one."""
        try:
            config, _ = self._config(volume.name, volume.options)
        except UserError as exc:
            return {"error": exc.message}
        told = {"workspace": config.workspace.prefix, "store": config.store.location}
        path = registry.socket_path(config.runtime_dir, config.mountpoint)
        try:
            document = client.request(path, "status", timeout_s=STATUS_S_MAX)
            dirty = document["dirty"]
            return {
                **told,
                "state": document["state"],
                "files_pending": dirty["files"],
                "oldest_pending_s": dirty["oldest_age_s"],
                "health": document["health"]["state"],
            }
        except (S3wsError, OSError, KeyError, TypeError):
            return {**told, "state": "not mounted"}

    # --- locks -----------------------------------------------------------------------------

    def _volume(self, name: str) -> Volume:
        volume = self._state.volumes.get(name)
        if volume is None:
            raise UserError(f"There is no volume {name[:256]!a}.", exit_code=ExitCode.NOT_MOUNTED)
        return volume

    @contextlib.contextmanager
    def _doing(self, name: str) -> Iterator[None]:
        """Invariant 6."""
        self._volume(name)
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            yield


def _bad(message: str) -> UserError:
    return UserError(message, exit_code=ExitCode.BAD_SETTINGS)
