"""What a mount that writes and one that only follows have in common: worker, reads, health.

Invariants
1. `error` is set exactly while the last try failed; `degraded_since_s` is when the first of the
   failures in a row was.

Called by replicator and follower; the daemon knows them by it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core.backoff import Retry
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.types import NeedExtents, Outdated
from s3ws_fs.replica.hydrate import Hydrator
from s3ws_fs.transfer.client import Start, WorkerClient

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]

_READ_ONLY: Final = {"read_only": True}


async def nothing_more(_: Progress) -> None:
    """Nothing is to be done at the end of a mount but to save it."""


async def nothing_cached(_: Outdated) -> None:
    """Without a kernel there is nothing to forget."""


class Health:
    """Whether what is tried again and again works, for the log, for status, and for the wait."""

    def __init__(self, what: str, again: str) -> None:
        """`what` fails, in the log's words; `again`: what is said when it works again."""
        self._what = what
        self._again = again
        self.retry = Retry()
        self.error: str | None = None
        self.degraded_since_s: float | None = None
        self.tries = {"ok": 0, "failed": 0}
        """How the tries ended since the daemon began."""

    @property
    def trouble(self) -> tuple[str | None, float | None]:
        """As report.health wants it."""
        return self.error, self.degraded_since_s

    def worked(self) -> None:
        """A try went well."""
        if self.error is not None:
            log.info("%s", self._again)
        self.retry.worked()
        self.tries["ok"] += 1
        self.error = self.degraded_since_s = None

    def failed(self, error: Exception) -> None:
        """A try failed."""
        if self.error is None:
            log.warning("%s: %s", self._what, error)
            self.degraded_since_s = trio.current_time()
        self.error = str(error) or type(error).__name__
        self.tries["failed"] += 1


class Replica:
    """The worker, and what reads bring into the cache."""

    def __init__(
        self,
        config: MountConfig,
        cache: Cache,
        *,
        random01: Callable[[], float],
        start_worker: Start,
        read_only: bool = False,
    ) -> None:
        self._config = config
        self._cache = cache
        self._random01 = random01
        self.worker = WorkerClient(
            {
                "store": config.store.to_json(),
                "prefix": config.workspace.prefix,
                "cache_dir": str(cache.directory),
                "spool_dir": str(cache.spool_dir),
                "local": config.local_patterns,
                "log_format": config.log_format,
                **(_READ_ONLY if read_only else {}),
            },
            reader_check=cache.reader_check,
            start=start_worker,
        )
        self._hydrator = Hydrator(cache, self.worker, config.read_timeout_s, random01)
        self.final_error: str | None = None
        """Why the final flush could not save everything."""
        self.kernel_forget: Callable[[Outdated], Awaitable[None]] = nothing_cached
        """To be awaited after a change that did not come through the kernel was committed: when it
        returns, programs see it. Set by the daemon. Never within a read's `fetch`."""
        self.kernel_renew: Callable[[], bool] = lambda: True
        """To be called right after the commit of a change of many names: programs see all of them
        at once, unless it says False. Set by the daemon."""

    async def fetch(self, need: NeedExtents) -> None:
        """Bring cold extents into the cache. Raises FsError EIO."""
        await self._hydrator.fetch(need)

    def set_make_room(self, make_room: Callable[[], Awaitable[bool]]) -> None:
        """What to call when there is no room for fetched bytes (see Hydrator.make_room)."""
        self._hydrator.make_room = make_room

    def counts(self) -> dict[str, Any]:
        """What only grows, for metrics."""
        return {
            "store": self.worker.traffic.to_json(),
            "workers": {"started": self.worker.spawned, "stuck": self.worker.stuck},
        }

    async def watch(self) -> None:
        """After a failed read: see by itself when the store is back."""
        await self._hydrator.watch()

    async def hydrate(self) -> None:
        """Fetch everything cold in the background, then return."""
        await self._hydrator.run()

    async def keep_hydrated(self) -> None:
        """The service that does so as long as the mount is served."""
        await self.hydrate()
