"""Backups of one mount: when, by whom, what becomes of a failure, and what status says.

A backup: the child makes archive and index in a directory of its own (backup.py), the transfer
worker puts the archive, then the index, then what is kept no more is dropped. When the store can't
be reached for EMERGENCY_AFTER_S with changes unsaved, or the final flush fails, the same two files
are kept in the cache's directory instead, and go up when the store is back: an *emergency backup*.

Invariants
1. One at a time. The index is put last: until it stands there is no backup.
2. Whatever happens to child, worker, store or daemon: the working directory is removed at the next
   start, and nothing half-done counts as a backup.
3. At most one emergency backup is kept here, the newest that is whole.
4. A failed backup never hinders a flush, and the mount never waits for one.
5. Nothing heavy is imported: this runs in the daemon.

Called by the daemon.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import backups, failpoints, jsontext
from s3ws_fs.core.backups import Backup, Keep, Schedule
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import (
    ExitCode,
    FormatError,
    FsError,
    S3wsError,
    UserError,
)
from s3ws_fs.snapshot.child import OnEvent, RunJob, ignore
from s3ws_fs.snapshot.maker import Health, Maker
from s3ws_fs.transfer.client import WorkerClient

log = logging.getLogger(__name__)

DIRECTORY: Final = "backup"
"""Of the cache's directory; in it a working directory, and at most one that is kept."""
EMERGENCY: Final = "emergency-"
EMERGENCY_NOTE: Final = "note.json"
TICK_S_MIN: Final = 0.05
TICK_S: Final = 15.0
"""How often it is looked whether something is due."""
FINAL_S: Final = 60.0
"""So long at most the end of a mount waits for an emergency backup."""
NOTE: Final = "backup"
"""Name of the cache's note of the last backup."""

ARCHIVE_TYPE: Final = "application/gzip"


class Backups(Maker):
    """Of one mount. `host`: what a person calls this machine."""

    def __init__(
        self,
        config: MountConfig,
        cache: Cache,
        worker: WorkerClient,
        health: Health,
        *,
        host: str,
        run_job: RunJob | None = None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(DIRECTORY, config, cache, worker, health, run_job=run_job, wall_s=wall_s)
        self._host = host
        self._schedule = Schedule(config.backup_interval_s, trio.current_time())
        self._emergency_generation: int | None = None
        self._next_send_s = 0.0
        self._error_at: float | None = None
        self._counts = {"made": 0, "failed": 0}
        self._stopped = False
        self._scopes: set[trio.CancelScope] = set()
        noted = cache.get_json(NOTE)
        self._last: dict[str, Any] | None = noted if isinstance(noted, dict) else None
        if self._last is not None:
            self._schedule.generation = self._last.get("generation")
        self._clean()

    # --- the service -----------------------------------------------------------------------

    async def run(self) -> None:
        """Make backups when they are due, until cancelled or stopped."""
        while not self._stopped:
            await self._step()
            await trio.sleep(min(TICK_S, max(TICK_S_MIN, self._config.backup_interval_s / 4)))

    async def stop(self) -> None:
        """No backup is under way when this returns, and none begins any more: the mount ends."""
        self._stopped = True
        for scope in list(self._scopes):
            scope.cancel()
        async with self._lock:
            return

    async def _step(self) -> None:
        """What is due, if anything. Never raises but when cancelled."""
        health = self._health()
        if health["state"] == "fenced":
            return
        is_ok = health["state"] == "ok"
        if self._kept_here() is not None and (is_ok or self._may_try_to_send()):
            try:
                await self._send_kept()
            except (S3wsError, OSError) as exc:
                self._note_error(exc)
        try:
            if self._is_due():
                await self._scheduled(health)
        except (S3wsError, OSError) as exc:
            self._note_error(exc)
            self._schedule.failed(trio.current_time())

    def _may_try_to_send(self) -> bool:
        """Now and then also while something fails: it may be something else than the store."""
        now_s = trio.current_time()
        if now_s < self._next_send_s:
            return False
        self._next_send_s = now_s + self._config.backup_interval_s
        return True

    def _is_due(self) -> bool:
        due_s = self._schedule.due_s(self._cache.generation)
        return due_s is not None and due_s <= trio.current_time()

    async def _scheduled(self, health: dict[str, Any]) -> None:
        if health["state"] != "ok":
            if (health["since_s"] or 0.0) < backups.EMERGENCY_AFTER_S:
                return
            if self._is_unsaved():
                await self.emergency(f"the store can't be reached: {health['error']}")
                return
            # All is sealed, so the store takes what it is given.
        if self._last is None and await self._is_backed_up():
            return
        await self.backup(ignore)

    async def _is_backed_up(self) -> bool:
        """Asked once by a cache that knows of no backup: of another host there may be one."""
        workspace = self._cache.get_json("workspace") or ""
        generation = self._cache.generation
        whole = next((one for one in await self._listed() if one.whole), None)
        said = {} if whole is None else whole.said
        if (
            said.get(backups.META_WORKSPACE) != workspace
            or backups.number(said, backups.META_GENERATION) != generation
        ):
            return False
        self._schedule.done(trio.current_time(), generation)
        return True

    def _is_unsaved(self) -> bool:
        if self._cache.generation == self._emergency_generation:
            return False
        with self._cache.read() as view:
            return view.dirty_count() > 0

    def _note_error(self, exc: Exception) -> None:
        if self._error is None:
            log.warning("the backup failed, it will be tried again: %s", exc)
        self._error, self._error_at = str(exc) or type(exc).__name__, self._wall_s()
        self._counts["failed"] += 1

    # --- one backup ------------------------------------------------------------------------

    async def backup(self, on_event: OnEvent) -> dict[str, Any]:
        """Make one now, and put it into the bucket. Raises S3wsError, OSError; nothing is left."""
        async with self._one() as directory:
            begun_s = trio.current_time()
            name, done = await self._make(directory, on_event)
            self._running = "uploading"
            on_event({"phase": "uploading"})
            await self._upload(directory, name, done)
            note = self._note(name, done, trio.current_time() - begun_s)
            await self._prune()
            return note

    @asynccontextmanager
    async def _one(self) -> AsyncIterator[Path]:
        """Alone, in a working directory that is gone afterwards; ended early by `stop`."""
        async with self._lock:
            ending = UserError(
                "the mount is ending", remedy="mount again", exit_code=ExitCode.NOT_MOUNTED
            )
            if self._stopped:
                raise ending
            with trio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    with self._working() as directory:
                        yield directory
                finally:
                    self._scopes.discard(scope)
            if scope.cancelled_caught:
                raise ending

    async def _make(
        self, directory: Path, on_event: OnEvent, *, offline: bool = False
    ) -> tuple[str, dict[str, Any]]:
        """Archive and index in the directory. `offline`: without what is only in the bucket."""
        config = self._config
        name = self._new_name()

        def heard(event: dict[str, Any]) -> None:
            self._running = str(event.get("phase"))
            on_event(event)

        job = self._job(
            "backup",
            directory,
            name=name,
            workspace=self._cache.get_json("workspace") or "",
            host=self._host,
            local=config.local_patterns,
            exclude=config.backup_exclude,
            offline=offline,
        )
        return name, await self._run_job(job, heard)

    def _new_name(self) -> str:
        """Of this second, or the next one that is free."""
        time_s = int(self._wall_s())
        last = self._last.get("name") if self._last is not None else None
        if isinstance(last, str):
            time_s = max(time_s, backups.time_of(last) + 1)
        return backups.name_of(time_s)

    async def _upload(self, directory: Path, name: str, done: dict[str, Any]) -> None:
        said = {
            backups.META_BYTES: str(done["archive_bytes"]),
            backups.META_ENTRIES: str(done["entries"]),
            backups.META_RAW: str(done["raw_bytes"]),
            backups.META_GENERATION: str(done["generation"]),
            backups.META_MISSING: str(done["missing"]),
            backups.META_WORKSPACE: str(self._cache.get_json("workspace") or ""),
        }
        for key, suffix, size_bytes in (
            (backups.archive_key(name), backups.ARCHIVE_SUFFIX, done["archive_bytes"]),
            (backups.index_key(name), backups.INDEX_SUFFIX, done["index_bytes"]),
        ):
            file = directory / (name + suffix)
            await self._put(key, file, size_bytes, content_type=ARCHIVE_TYPE, metadata=said)

    def _note(self, name: str, done: dict[str, Any], took_s: float) -> dict[str, Any]:
        self._last = {
            "name": name,
            "time": backups.iso(backups.time_of(name)),
            "bytes": done["archive_bytes"],
            "entries": done["entries"],
            "raw_bytes": done["raw_bytes"],
            "generation": done["generation"],
            "skipped": done["skipped"],
            "left_out": done["left_out"],
            "missing": done["missing"],
            "copied_s": done["copied_s"],
            "took_s": round(took_s, 3),
            "memory_bytes": done["memory_bytes"],
        }
        self._schedule.done(trio.current_time(), done["generation"])
        self._counts["made"] += 1
        if self._error is not None:
            log.info("backups work again")
        self._error = self._error_at = None
        try:
            self._cache.put_json(NOTE, self._last)
        except FsError as exc:
            log.warning("the backup %s can't be noted in the cache: %s", name, exc)
        failpoints.hit(failpoints.BACKUP_NOTED)
        return self._last

    async def _prune(self) -> None:
        """Drop what is kept no more; a failure waits for the next backup."""
        config = self._config
        keep = Keep(
            config.backup_keep_last,
            config.backup_keep_hourly,
            config.backup_keep_daily,
            config.backup_keep_weekly,
        )
        try:
            found = await self._listed()
            gone = backups.plan_prune(found, keep, self._wall_s())
            keys = [key for backup in gone for key in backup.keys]
            if keys:
                await self._worker.ask("drop-below", keys=keys)
                log.info("%d backups that are kept no more were removed", len(gone))
        except S3wsError as exc:
            log.warning("old backups stay for now: %s", exc)

    async def _listed(self) -> list[Backup]:
        """What stands in the bucket, the newest first."""
        listed: list[list[Any]] = []

        async def part(body: dict[str, Any], _: memoryview) -> None:
            listed.extend(body["objects"])

        await self._worker.ask(
            "list-below",
            part,
            prefix=backups.COMPRESSED_PREFIX,
            metadata_of=backups.INDEX_SUFFIX,
        )
        return backups.gather((key, size, said or {}) for key, size, said in listed)

    # --- when the store is away ------------------------------------------------------------

    async def emergency(self, why: str) -> Path:
        """Keep a backup here, in place of an earlier one. Raises S3wsError, OSError."""
        async with self._one() as directory:
            name, done = await self._make(directory, ignore, offline=True)
            done |= {"name": name, "why": why}
            (directory / EMERGENCY_NOTE).write_text(json.dumps(done))
            place = directory.with_name(EMERGENCY + name)
            directory.rename(place)
            self._drop_kept(but=place)
        self._emergency_generation = done["generation"]
        self._schedule.done(trio.current_time(), done["generation"])
        log.warning("%s; a backup is kept in %s until it can be uploaded", why, place)
        return place

    async def final(self, why: str) -> Path | None:
        """At the end of a mount that could not be saved. Never raises."""
        if self._config.backup_interval_s <= 0:
            return None
        self._stopped = False
        place = None
        try:
            with trio.move_on_after(FINAL_S):
                place = await self.emergency(f"the final flush failed{why}")
        except (S3wsError, OSError) as exc:
            log.warning("no emergency backup could be made: %s", exc)
        finally:
            self._stopped = True
        return place

    async def _send_kept(self) -> None:
        """Upload what was kept here, now that the store is back."""
        kept = self._kept_here()
        if kept is None:
            return
        place, done = kept
        async with self._lock:
            self._running = "uploading"
            try:
                await self._upload(place, done["name"], done)
            finally:
                self._running = None
            log.info("the emergency backup %s is in the bucket", done["name"])
            self._error = self._error_at = None
            self._drop_kept()
        await self._prune()

    def _kept_here(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest emergency backup that is whole, and its note."""
        for place in sorted(self._top.glob(EMERGENCY + "*"), reverse=True):
            try:
                note = place / EMERGENCY_NOTE
                done = jsontext.object_of(note.read_bytes(), str(note))
                name = place.name.removeprefix(EMERGENCY)
                sizes = [
                    (place / (name + suffix)).stat().st_size
                    for suffix in (backups.ARCHIVE_SUFFIX, backups.INDEX_SUFFIX)
                ]
                if done.get("name") == name and sizes == [
                    done.get("archive_bytes"),
                    done.get("index_bytes"),
                ]:
                    return place, done
            except (OSError, FormatError):
                continue
        return None

    def _drop_kept(self, but: Path | None = None) -> None:
        for place in self._top.glob(EMERGENCY + "*"):
            if place != but:
                shutil.rmtree(place, ignore_errors=True)

    def _clean(self) -> None:
        self._clean_work()
        kept = self._kept_here()
        self._drop_kept(but=None if kept is None else kept[0])

    # --- status ----------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Backups made, and tries that failed, since the daemon began."""
        return dict(self._counts)

    def status(self) -> dict[str, Any]:
        """Backups' part of the status document. Never waits."""
        now_s = trio.current_time()
        due_s = self._schedule.due_s(self._cache.generation)
        kept = self._kept_here()
        last = self._last
        age_s = None
        if last is not None:
            age_s = round(max(0.0, self._wall_s() - backups.time_of(last["name"])), 3)
        return {
            "interval_s": self._config.backup_interval_s,
            "last": last,
            "age_s": age_s,
            "next_due_s": None if due_s is None else round(max(0.0, due_s - now_s), 3),
            "running": self._running,
            "error": self._error,
            "error_at": None if self._error_at is None else backups.iso(self._error_at),
            "emergency": None
            if kept is None
            else {
                "path": str(kept[0]),
                "name": kept[1]["name"],
                "bytes": kept[1]["archive_bytes"],
                "why": kept[1].get("why", ""),
            },
        }
