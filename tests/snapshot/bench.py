"""A service of backups without processes: the worker's requests and the child's job run at once.

Called by the tests of snapshot and crash.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import backups
from s3ws_fs.core.config import MountConfig, StoreConfig, WorkspaceId
from s3ws_fs.snapshot import backup, child, reading, service
from s3ws_fs.snapshot.service import Backups
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.requests.keeping import Keeping
from tests.support.inline import at_once
from tests.transfer.conftest import PREFIX

EPOCH_S = 1_800_000_000
KEEP_LAST_ONLY: dict[str, Any] = {
    f"backup_keep_{name}": 0 for name in ("hourly", "daily", "weekly")
}


class Session:
    """What requests know of a worker."""

    def __init__(self, cache: Cache, store: ScopedStore) -> None:
        self.cache_dir = cache.directory
        self.store = store
        self.transfers = at_once()


class Worker:
    """Answers at once; `fails` says with what."""

    def __init__(self, cache: Cache, store: ScopedStore) -> None:
        self._handlers = Keeping(Session(cache, store)).handlers()  # type: ignore[arg-type]
        self.asked: list[str] = []
        self.fails: Callable[[str], Exception | None] = lambda _: None

    async def ask(
        self, cmd: str, on_part: Any = None, *, deadline_s: float = 0.0, **args: Any
    ) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.asked.append(cmd)
        if (error := self.fails(args.get("key", cmd))) is not None:
            raise error
        parts: list[dict[str, Any]] = []
        result = self._handlers[cmd](args, parts.append)
        for part in parts:
            await on_part(part, memoryview(b""))
        return result or {}


class Bench:
    """A service over the parts above, with a clock that jumps."""

    def __init__(self, cache: Cache, store: ScopedStore, tmp_path: Path, **changes: Any) -> None:
        self.cache, self.store = cache, store
        self.worker = Worker(cache, store)
        self.health: dict[str, Any] = {"state": "ok", "since_s": None, "error": None}
        self.config = MountConfig(
            mountpoint=str(tmp_path / "mnt"),
            workspace=WorkspaceId("u", "c"),
            store=StoreConfig("local", path=str(tmp_path / "bucket")),
            cache_dir=str(tmp_path / "caches"),
            runtime_dir=str(tmp_path / "run"),
            **{"backup_interval_s": 300.0, **changes},
        )
        self.job_error: Exception | None = None
        self.jobs = 0
        self.backups = self.another()

    def another(self) -> Backups:
        """The service of a daemon that starts now."""
        return Backups(
            self.config,
            self.cache,
            self.worker,  # type: ignore[arg-type]
            lambda: self.health,
            host="here",
            run_job=self.run_job,
            wall_s=lambda: EPOCH_S + trio.current_time(),
        )

    async def run_job(self, job: dict[str, Any], on_event: child.OnEvent) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.jobs += 1
        if self.job_error is not None:
            raise self.job_error
        return backup.run(
            job,
            on_event,
            open_cache=lambda _: self.cache,
            open_bucket=lambda *_, **__: ScopedStore(self.store._inner, PREFIX, read_only=True),
        )

    @property
    def directory(self) -> Path:
        return self.cache.directory / service.DIRECTORY

    def names(self) -> list[str]:
        return [found.name for found in reading.list_backups(self.store) if found.good]

    def content(self, name: str) -> dict[str, bytes]:
        packed = self.store.get(backups.archive_key(name)).data
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
            return {
                info.name: tar.extractfile(info).read()  # type: ignore[union-attr]
                for info in tar
                if info.isreg()
            }
