"""What a daemon is put together from, and the status document over all of it.

Invariants
1. The parts know each other only by the callables given to them here.
2. The status document is made from memory and one short read transaction: it never waits.

Called by `daemon.daemon`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import trio

from s3ws_fs import __version__
from s3ws_fs.cache.cache import Cache, Identity
from s3ws_fs.cache.durability import Durability
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import FormatError, FsError
from s3ws_fs.daemon import logs
from s3ws_fs.daemon.quota import Quota
from s3ws_fs.daemon.room import RoomKeeper
from s3ws_fs.daemon.watching import Watchers
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.fs.names import REAP_BATCH
from s3ws_fs.fuse.invalidate import KernelCache
from s3ws_fs.fuse.tally import Tally
from s3ws_fs.replica import report
from s3ws_fs.replica.fixed import FixedPoint
from s3ws_fs.replica.follower import Follower
from s3ws_fs.replica.position import host_name
from s3ws_fs.replica.replicator import Replicator
from s3ws_fs.snapshot.git.service import GitState
from s3ws_fs.snapshot.service import Backups

log = logging.getLogger(__name__)

ASK_BATCH: Final = 1024
"""Deleted files that the kernel is asked about at once."""

REAP_DELAY_S: Final = 0.2
"""How long deleted files wait for others, to go in one transaction with them."""


class Reaper:
    """Drops deleted files soon after the kernel has let go of them."""

    def __init__(self) -> None:
        self._due = trio.Event()

    def notify(self) -> None:
        """A file waits to be dropped."""
        self._due.set()

    async def run(self, fs: FileSystem, kernel: KernelCache | None = None) -> None:
        """Until cancelled. Raises FsError when the cache can't be written.

        `kernel` knows of files that were opened under another daemon.
        """
        while True:
            await self._due.wait()
            await trio.sleep(REAP_DELAY_S)
            due, self._due = self._due, trio.Event()
            try:
                doubtful = fs.doubtful() if kernel is not None else []
                for at in range(0, len(doubtful), ASK_BATCH):
                    asked = doubtful[at : at + ASK_BATCH]
                    unknown = await kernel.unknown_of(asked) if kernel is not None else None
                    if unknown is not None:
                        fs.settle(asked, unknown)
                while fs.reap(REAP_BATCH):
                    await trio.lowlevel.checkpoint()
            except BaseException:
                self._due = due
                raise


def identity(config: MountConfig) -> Identity:
    """What the cache of this mount belongs to: not the endpoint, which may move."""
    store = config.store
    place = store.path if store.type == "local" else store.bucket
    return Identity(prefix=config.workspace.prefix, store=f"{store.type}:{place}")


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one mount over one open cache."""

    cache: Cache
    durability: Durability
    fs: FileSystem
    replica: Replicator | Follower
    room: RoomKeeper
    quota: Quota
    watchers: Watchers
    reaper: Reaper = field(default_factory=Reaper)
    kernel: KernelCache = field(default_factory=KernelCache)
    backups: Backups | None = None
    """None of a mount that only follows."""
    git: GitState | None = None
    """None of a mount that only follows."""

    @classmethod
    def make(cls, config: MountConfig, cache: Cache) -> Parts:
        durability = Durability(cache)
        replica: Replicator | Follower
        if config.at_number:
            replica = FixedPoint(config, cache)
        elif config.read_only:
            replica = Follower(config, cache)
        else:
            replica = Replicator(config, cache, durability)
        reaper = Reaper()
        fs = FileSystem(
            cache,
            quota_bytes=config.max_size_bytes,
            quota_inodes=config.max_inodes,
            on_change=replica.notify,
            on_forgotten=reaper.notify,
            is_following=config.read_only,
        )
        if isinstance(replica, Follower):
            replica.is_open, replica.note_orphans = fs.is_open, fs.note_orphans
        else:
            replica.attach(fs)
        room = RoomKeeper(cache, durability, reap=fs.reap, sealed=lambda: replica.sealed_generation)
        replica.set_make_room(room.make_room)
        kernel = KernelCache()
        replica.kernel_forget, replica.kernel_renew = kernel.forget, kernel.renew
        backups, git = None, None
        if isinstance(replica, Replicator):
            backups = Backups(config, cache, replica.worker, replica.health, host=host_name())
            git = GitState(config, cache, replica.worker, replica.health)
            replica.before_release = git.final
        quota = Quota(cache, config.max_size_bytes, config.max_inodes, is_ours=not config.read_only)
        durability.on_point = quota.look
        watchers = Watchers(cache)
        return cls(
            cache, durability, fs, replica, room, quota, watchers, reaper, kernel, backups, git
        )

    def take_over(self) -> None:
        """The mount stands already, and the cache is its workspace."""
        self.replica.take_over()
        self.fs.take_over_orphans()

    async def finish_rewind(self) -> None:
        """The mount is served: what a daemon before could not have forgotten any more."""
        if isinstance(self.replica, Replicator) and self.replica.rewinder is not None:
            await self.replica.rewinder.finish()

    def drop_orphans(self) -> None:
        """After the mount: nobody can reach a deleted file any more. Never raises."""
        try:
            self.fs.drop_orphans_unmounted()
        except (FsError, FormatError) as exc:
            log.warning("deleted files stay until the next mount: %s", exc)

    def unsaved(self) -> list[str]:
        """Paths of what is not sealed or not mirrored, sorted."""
        return report.unsaved(self.cache)

    def services(self, config: MountConfig) -> dict[str, Callable[[], Awaitable[None]]]:
        """What runs until the end, by name (the hydrator ends with the mount)."""
        found: dict[str, Callable[[], Awaitable[None]]] = {
            "flusher": self.replica.run,
            "store watch": self.replica.watch,
            "reaper": partial(self.reaper.run, self.fs, self.kernel),
            "room": self.room.run,
            "watchers": self.watchers.run,
            "sync points": partial(self.durability.run, config.sync_point_interval_s),
        }
        if isinstance(self.replica, Replicator):
            found["lease"] = self.replica.keep_lease
        if self.backups is not None and config.backup_interval_s > 0:
            found["backups"] = self.backups.run
        if self.git is not None:
            found["git state"] = self.git.run
        return found


def counts(parts: Parts, tally: Tally) -> dict[str, Any]:
    """What only grows, since the daemon began: for metrics."""
    return {
        "fuse": tally.to_json(),
        "log": logs.levels(),
        **parts.replica.counts(),
        "backup": {} if parts.backups is None else parts.backups.counts(),
    }


def status_document(
    config: MountConfig,
    parts: Parts,
    *,
    state: str,
    uptime_s: float,
    faults: int,
    holder: dict[str, Any] | None = None,
    tally: Tally | None = None,
) -> dict[str, Any]:
    """What `status` shows. The replica's fragments overlay what is said here. With `tally` also
    what was counted.
    """
    cache = parts.cache
    document = {
        "version": __version__,
        "pid": os.getpid(),
        "holder": holder,
        "mountpoint": config.mountpoint,
        "state": state,
        "read_only": config.read_only,
        "workspace": {
            "user_id": config.workspace.user_id,
            "conversation_id": config.workspace.conversation_id,
            "prefix": config.workspace.prefix,
        },
        "store": {"type": config.store.type, "location": config.store.location},
        "quota": parts.quota.status(),
        "cache": {
            "path": config.workspace_cache_dir,
            "file_bytes": cache.file_bytes(),
            "opened": cache.recovery,
            "recovered": cache.recovered.told(),
            "quarantines": cache.quarantines(),
            "sync_point_error": parts.durability.last_error,
            "room": cache.headroom.status() | {"evicted_bytes": parts.room.evicted_bytes},
        },
        "backup": None if parts.backups is None else parts.backups.status(),
        "git": None if parts.git is None else parts.git.status(),
        "faults": faults,
        "uptime_s": round(uptime_s, 3),
        **parts.replica.status(),
    }
    if tally is not None:
        document["counts"] = counts(parts, tally)
    if cache.points.spoilt and document["health"]["state"] == "ok":
        document["health"] = parts.durability.health()
    return document
