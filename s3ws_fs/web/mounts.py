"""The mounts of this host as the page shows them.

Invariants
1. A mount is named by its key (registry.mount_key): no path of this host comes from a browser.
2. However many browsers look, a daemon is asked at most every FRESH_S seconds; and it is asked
   every BACKGROUND_S when nobody looks, so that the charts have a past.
3. One cache is open in this process at a time: LMDB opens none twice.

Blocking; called by web.routes and web.server in threads.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from s3ws_fs.cache import inspect
from s3ws_fs.control import client, registry
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.plaintext import safe
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.web.samples import MOUNTS_MAX, Samples, sample_of
from s3ws_fs.web.stores import Stores
from s3ws_fs.workspaces.mounts import ASKED_AT_ONCE, runtime_dir, status_document
from s3ws_fs.workspaces.reading import Workspace, config_of, of_mount

FRESH_S: Final = 0.9
BACKGROUND_S: Final = 30.0
STATUS_S: Final = 3.0
"""A daemon that does not answer for so long is shown as silent."""
LISTED_MAX: Final = 500
"""Mounts in the list; the page says how many more there are."""
_KEY: Final = re.compile(r"[0-9a-f]{16}")
_SUMMARY: Final = (
    "state", "read_only", "generation", "dirty", "health", "quota", "unsaved", "error", "uptime_s",
)  # fmt: skip


class Mounts:
    """Thread-safe."""

    def __init__(self) -> None:
        self.directory = runtime_dir()
        self._lock = threading.Lock()
        self._caches = threading.Lock()
        self._samples = Samples()
        self._stores = Stores()
        self._asked: dict[str, tuple[float, dict[str, Any]]] = {}

    def find(self, key: str) -> MountInfo:
        """The mount of a key. Raises UserError (exit 4)."""
        if _KEY.fullmatch(key):
            for info in registry.list_mounts(self.directory)[0]:
                if registry.mount_key(info.mountpoint) == key:
                    return info
        raise UserError(
            "This mount is not there (any more).",
            remedy="Go back to the list of mounts.",
            exit_code=ExitCode.NOT_MOUNTED,
        )

    def request(
        self,
        info: MountInfo,
        cmd: str,
        args: dict[str, Any],
        timeout_s: float | None = client.STATUS_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Ask the daemon of a mount. Raises UserError."""
        path = registry.socket_path(self.directory, info.mountpoint)
        return client.request(path, cmd, args, timeout_s=timeout_s)

    def document(self, info: MountInfo) -> dict[str, Any]:
        """The status of a mount, not older than FRESH_S."""
        key = registry.mount_key(info.mountpoint)
        with self._lock:
            at_s, document = self._asked.get(key, (0.0, {}))
            if document and time.monotonic() - at_s < FRESH_S:
                return document
        if info.is_alive():
            document = status_document(info, counts=True, timeout_s=STATUS_S)
        else:
            with self._caches:
                document = status_document(info, counts=True, timeout_s=STATUS_S)
        with self._lock:
            if len(self._asked) > MOUNTS_MAX + LISTED_MAX:
                self._asked.clear()
            self._asked[key] = time.monotonic(), document
            if "generation" in document:
                self._samples.note(key, sample_of(document, time.time()))
        return document

    def list(self) -> dict[str, Any]:
        """All mounts, in short."""
        infos, damaged = registry.list_mounts(self.directory)
        shown = infos[:LISTED_MAX]
        with ThreadPoolExecutor(ASKED_AT_ONCE, "status") as pool:
            documents = list(pool.map(self.document, shown))
        return {
            "mounts": [
                self._short(info, document) for info, document in zip(shown, documents, strict=True)
            ],
            "more": len(infos) - len(shown),
            "damaged": [safe(path) for path in damaged],
        }

    def _short(self, info: MountInfo, document: dict[str, Any]) -> dict[str, Any]:
        key = registry.mount_key(info.mountpoint)
        with self._lock:
            spark = self._samples.spark(key)
        return {
            **named(info),
            **{name: document[name] for name in _SUMMARY if name in document},
            "spark": spark,
        }

    def one(self, info: MountInfo) -> dict[str, Any]:
        """All that is known of a mount, and its charts."""
        document = self.document(info)
        with self._lock:
            chart = self._samples.chart(registry.mount_key(info.mountpoint))
        return {**named(info), "status": document, "chart": chart}

    def sample(self) -> None:
        """Ask all mounts (invariant 2)."""
        alive = [i for i in registry.list_mounts(self.directory)[0] if i.is_alive()]
        with ThreadPoolExecutor(ASKED_AT_ONCE, "status") as pool:
            list(pool.map(self.document, alive[:MOUNTS_MAX]))

    @contextmanager
    def store(self, info: MountInfo) -> Iterator[tuple[Workspace, ScopedStore]]:
        """The workspace of a mount and its store, for reading. Raises UserError."""
        workspace = workspace_of(info)
        with self._stores.use(workspace) as store:
            yield workspace, store

    def close(self) -> None:
        """Nothing is asked any more."""
        self._stores.close()

    @contextmanager
    def cache(self, info: MountInfo) -> Iterator[inspect.Inspector]:
        """The cache of a mount, for a short look. Raises CacheError."""
        with self._caches, inspect.open_readonly(Path(info.cache_path)) as opened:
            yield opened


def workspace_of(info: MountInfo) -> Workspace:
    """The workspace of a mount. Raises UserError."""
    return Workspace(config_of(of_mount(info, {})), info)


def named(info: MountInfo) -> dict[str, Any]:
    """How a mount is called."""
    return {
        "key": registry.mount_key(info.mountpoint),
        "mountpoint": safe(info.mountpoint),
        "user": safe(info.user_id),
        "conversation": safe(info.conversation_id),
        "store": safe(info.store_location),
        "alive": info.is_alive(),
    }
