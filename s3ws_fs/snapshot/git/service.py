"""Git state of one mount: when bundles are made, how they reach the bucket, what status says.

The snapshot child makes bundles of what changed (job.py), the transfer worker puts them, and what
was put is noted for the child's next look.

Invariants
1. One at a time. A bundle replaces the one before in one PUT, so the bucket always has a whole one.
2. It costs a change nothing: whether anything is to be done is seen by the generation, later. Where
   there was no repository, nobody looks for one before a name of git's was made.
3. Nobody waits without a limit: sync for SYNC_S, after which the work goes on; the end of a mount
   for FINAL_S, after which it ends.
4. What fails is told, is tried again, and hinders neither a flush nor the other repositories. The
   files themselves are saved as always: a missing bundle is no data loss.
5. Whatever happens, working directories are removed at the next start. Nothing heavy is imported:
   this runs in the daemon.

Called by the daemon.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import failpoints
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import FsError, S3wsError
from s3ws_fs.core.gitkeys import SIGNS
from s3ws_fs.snapshot.child import OnEvent, RunJob, ignore
from s3ws_fs.snapshot.git.memory import note_uploaded
from s3ws_fs.snapshot.maker import Health, Maker
from s3ws_fs.transfer.client import WorkerClient

log = logging.getLogger(__name__)

DIRECTORY: Final = "git"
"""Of the cache's directory."""
REPOSITORIES: Final = "repositories"
SYNC_S: Final = 120.0
FINAL_S: Final = 60.0
RETRY_S: Final = 60.0
"""After a failure, a bundle is tried again so much later, or when somebody asks."""
LOOK_MAX: Final = 50_000
"""Directories that are looked into, in the daemon, for a first repository."""
TOLD_MAX: Final = 100
"""Repositories that status names."""
NOTE: Final = "git"
"""Name of the cache's note of the last look."""
BUNDLE_TYPE: Final = "application/x-git-bundle"


class GitState(Maker):
    """Of one mount."""

    def __init__(
        self,
        config: MountConfig,
        cache: Cache,
        worker: WorkerClient,
        health: Health,
        *,
        run_job: RunJob | None = None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(DIRECTORY, config, cache, worker, health, run_job=run_job, wall_s=wall_s)
        self._wanted = trio.Event()
        self._looked = trio.Event()
        self._on_event: OnEvent = ignore
        self._none_at = -1
        """Generation at which there was no repository."""
        noted = cache.get_json(NOTE)
        self._last: dict[str, Any] = noted if isinstance(noted, dict) else {}

    # --- the service -----------------------------------------------------------------------

    async def run(self) -> None:
        """Make bundles when they are due or asked for, until cancelled."""
        self._clean_work()
        while True:
            wait_s = RETRY_S if self._error is not None else self._config.backup_interval_s
            with trio.move_on_after(wait_s or float("inf")):
                await self._wanted.wait()
            self._wanted = trio.Event()
            if self.is_due() and self._health()["state"] == "ok":
                await self._safely()
            self._looked.set()
            self._looked = trio.Event()

    def is_due(self) -> bool:
        """Whether a repository may have changed since its bundle was made. Never waits."""
        generation = self._cache.generation
        if self._error is None and self._last.get("generation") == generation:
            return False
        if self._last.get("repositories"):
            return True
        if self._cache.traced_generation <= self._none_at:
            return False
        with self._cache.read() as view:
            found = view.has_name(SIGNS, LOOK_MAX)
        if not found:
            self._none_at = generation
        return found

    async def sync(self, on_event: OnEvent) -> dict[str, Any]:
        """Bundles of what changed before the call; what came of it. Never raises."""
        if not self.is_due():
            return self.status()
        self._on_event = on_event
        try:
            with trio.move_on_after(SYNC_S):
                async with self._lock:
                    # One that is under way may have begun before the call.
                    looked = self._looked
                    self._wanted.set()
                await looked.wait()
        finally:
            self._on_event = ignore
        return self.status()

    async def final(self, on_event: OnEvent) -> dict[str, Any]:
        """At the end of a mount, when all else is saved. Never raises."""
        if not self.is_due():
            return self.status()
        self._on_event = on_event
        with trio.move_on_after(FINAL_S) as patience:
            await self._safely()
        if patience.cancelled_caught:
            self._error = f"not done within {FINAL_S:g} s, when the mount ended"
        if self._error is not None:
            log.warning("the bundles of git repositories are older: %s", self._error)
        return self.status()

    async def _safely(self) -> None:
        try:
            async with self._lock:
                await self._save()
        except (S3wsError, OSError) as exc:
            if self._error is None:
                log.warning("git state was not saved, it will be tried again: %s", exc)
            self._error = str(exc) or type(exc).__name__

    # --- one look --------------------------------------------------------------------------

    async def _save(self) -> None:
        begun_s = trio.current_time()
        with self._working() as directory:
            made: list[dict[str, Any]] = []
            job = self._job(
                "git",
                directory,
                state_dir=str(self._top / REPOSITORIES),
                mountpoint=self._config.mountpoint,
            )
            done = await self._run_job(job, partial(self._heard, made))
            for item in made:
                if item["outcome"] == "made":
                    await self._upload(item)
            self._note(done, made, trio.current_time() - begun_s)

    def _heard(self, made: list[dict[str, Any]], event: dict[str, Any]) -> None:
        if "made" in event:
            made.append(event["made"])
        else:
            self._running = str(event.get("phase"))
            self._on_event({"phase": f"git: {self._running}"})

    async def _upload(self, item: dict[str, Any]) -> None:
        self._running = "uploading"
        size_bytes = item["bundle_bytes"]
        self._on_event({"phase": "git: uploading", "total": size_bytes})
        file = Path(item["file"])
        await self._put(item["key"], file, size_bytes, content_type=BUNDLE_TYPE)
        path = item["path"].encode("utf-8", "surrogateescape")
        note_uploaded(self._top / REPOSITORIES, path, item["state"])
        failpoints.hit(failpoints.BUNDLE_NOTED)
        file.unlink()

    def _note(self, done: dict[str, Any], made: list[dict[str, Any]], took_s: float) -> None:
        if self._error is not None:
            log.info("git state is saved again")
        self._error = None
        if not done["repositories"]:
            self._none_at = done["generation"]
        fresh = [item for item in made if item["outcome"] == "made"]
        broken = [item for item in made if item["outcome"] == "broken"]
        told = {item["name"]: item["why"] for item in self._last.get("broken", [])}
        for item in broken[:TOLD_MAX]:
            if told.get(item["path"]) != item["why"]:
                log.warning("no bundle of the repository %a: %s", item["path"], item["why"])
        self._last = {
            "generation": done["generation"],
            "time": round(self._wall_s(), 3),
            "repositories": done["repositories"],
            "took_s": round(took_s, 3),
            "bundles": [
                {"name": item["path"], "bytes": item["bundle_bytes"], "key": item["key"]}
                for item in fresh[:TOLD_MAX]
            ],
            "broken_count": len(broken),
            "broken": [{"name": item["path"], "why": item["why"]} for item in broken[:TOLD_MAX]],
            "notes": [{"name": item["path"], "why": why} for item in fresh for why in _notes(item)][
                :TOLD_MAX
            ],
        }
        try:
            self._cache.put_json(NOTE, self._last)
        except FsError as exc:
            log.warning("it can't be noted in the cache that git state is saved: %s", exc)

    def told(self) -> dict[str, Any] | None:
        """`status`, if there is anything to say."""
        return self.status() if self._last.get("repositories") or self._error else None

    def status(self) -> dict[str, Any]:
        """For status and for answers. Never waits."""
        return {"running": self._running, "error": self._error, "last": self._last or None}


def _notes(item: dict[str, Any]) -> list[str]:
    left_out = item["left_out"]
    more = [f"{left_out} files are left out of its bundle"] if left_out else []
    return [*item["notes"], *more]
