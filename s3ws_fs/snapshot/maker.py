"""What backups and git state have in common: a job for the child, its directory, the upload.

Invariants
1. A job works in a directory of its own below the cache's. It is gone when the job is over, and
   what a killed daemon left is gone at the next start.
2. A file is sent UPLOAD_TRIES times at most, each within the time of the slowest line.
3. Nothing heavy is imported: this runs in the daemon.

Base of service.Backups and git.service.GitState.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import TransientError
from s3ws_fs.snapshot import child
from s3ws_fs.snapshot.child import RunJob
from s3ws_fs.transfer.client import WorkerClient

WORK: Final = "work-"
UPLOAD_BYTES_PER_S: Final = 100_000
"""The slowest line on which an upload is waited for."""
UPLOAD_BASE_S: Final = 600.0
UPLOAD_TRIES: Final = 3
"""How often a file is sent: the worker starts again by itself, the store has its own retries."""
SPOOL_SLACK_BYTES: Final = 64 << 20
"""What the spool may hold beyond the workspace's quota: data of deleted files that are open."""

Health = Callable[[], dict[str, Any]]
"""The replica's part of status of that name."""


class Maker:
    """Of one mount. `directory`: of the cache's directory, where its files are."""

    def __init__(
        self,
        directory: str,
        config: MountConfig,
        cache: Cache,
        worker: WorkerClient,
        health: Health,
        *,
        run_job: RunJob | None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._top = cache.directory / directory
        self._config = config
        self._cache = cache
        self._worker = worker
        self._health = health
        self._run_job = run_job or partial(child.run, reader_check=cache.reader_check)
        self._wall_s = wall_s
        self._lock = trio.Lock()
        self._running: str | None = None
        self._error: str | None = None

    @contextmanager
    def _working(self) -> Iterator[Path]:
        """A new directory (invariant 1). Raises OSError."""
        self._top.mkdir(mode=0o700, exist_ok=True)
        directory = self._top / f"{WORK}{secrets.token_hex(4)}"
        directory.mkdir(mode=0o700)
        try:
            yield directory
        finally:
            self._running = None
            shutil.rmtree(directory, ignore_errors=True)

    def _clean_work(self) -> None:
        """Remove what a killed daemon left."""
        for place in self._top.glob(WORK + "*"):
            shutil.rmtree(place, ignore_errors=True)

    def _job(self, kind: str, directory: Path, **more: Any) -> dict[str, Any]:
        """What the child is told."""
        config = self._config
        self._running = "starting"
        return {
            "kind": kind,
            "log_format": config.log_format,
            "cache_dir": str(self._cache.directory),
            "directory": str(directory),
            "store": config.store.to_json(),
            "prefix": config.workspace.prefix,
            "limit_bytes": config.max_size_bytes + SPOOL_SLACK_BYTES,
            **more,
        }

    async def _put(self, key: str, file: Path, size_bytes: int, **more: Any) -> None:
        """Send one file of the cache's directory. A worker that died on the way is no reason to
        make it all anew. Raises S3wsError.
        """
        for left in reversed(range(UPLOAD_TRIES)):
            try:
                await self._worker.ask(
                    "put-file",
                    key=key,
                    file=str(file.relative_to(self._cache.directory)),
                    size_bytes=size_bytes,
                    deadline_s=UPLOAD_BASE_S + size_bytes / UPLOAD_BYTES_PER_S,
                    **more,
                )
                return
            except TransientError:
                if not left:
                    raise
