"""Makes room in a cache that ran short: deleted files first, then what the bucket has as well.

Invariants
1. Only clean extents are evicted (cache.bookkeeping, invariant 5); what is dirty stays, however
   short the room: the flush makes it clean, and then it is looked at again.
2. A writer waits for a sync point and a scan, never for the bucket: what can't be had at once is
   ENOSPC.
3. Before the first eviction the cache is noted as not hydrated: the next mount fetches again.

Called by daemon.daemon (service) and fuse (a write that was refused).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

import trio

from s3ws_fs.cache import headroom
from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.durability import Durability
from s3ws_fs.core.errors import FsError

LOOK_INTERVAL_S: Final = 0.5
"""How often it is looked, while short, whether there is something to evict by now."""
INSIDE_FLOORS: Final = 2
"""Evicted is until so many times the floor is free inside the file."""


class RoomKeeper:
    """Room for one cache. `reap` drops deleted files; `sealed` is the newest sealed generation."""

    def __init__(
        self,
        cache: Cache,
        durability: Durability,
        *,
        reap: Callable[[], object],
        sealed: Callable[[], int],
    ) -> None:
        self._cache = cache
        self._durability = durability
        self._reap = reap
        self._sealed = sealed
        self._lock = trio.Lock()
        self._short = trio.Event()
        self._next = b""
        """Where the next eviction goes on: round and round."""
        self._nothing_at = -1
        """Generation sealed when a look at everything found nothing to evict."""
        self.evicted_bytes = 0
        cache.headroom.on_short = self._short.set

    async def run(self) -> None:
        """Until cancelled. Raises OSError when the disk fails."""
        cache, room = self._cache, self._cache.headroom
        room.measure()
        while True:
            await self._short.wait()
            self._short = trio.Event()
            while not room.is_roomy:
                if room.level != headroom.LAST:
                    headroom.keep_reserve(cache.directory)
                if room.level != headroom.OK:
                    await self.make_room()
                await trio.sleep(LOOK_INTERVAL_S)
                room.measure()
            headroom.keep_reserve(cache.directory)

    async def make_room(self) -> bool:
        """Something was refused: free what can be freed at once. Never raises.

        Returns whether trying again makes sense.
        """
        room = self._cache.headroom
        freed_bytes = 0
        was = room.level
        async with self._lock:
            with contextlib.suppress(FsError):
                if self._cache.headroom.level != was:
                    # Somebody else made it, meanwhile.
                    return room.level == headroom.OK
                self._reap()
                if self._cache.freed:
                    await self._durability.ensure()
                room.measure()
                # Not only when short: room inside the file may be in pieces too small.
                if room.level != headroom.OK or was == headroom.OK:
                    freed_bytes = await self._evict()
        return room.level == headroom.OK and (was != headroom.OK or freed_bytes > 0)

    async def _evict(self) -> int:
        sealed = self._sealed()
        if sealed == self._nothing_at:
            return 0
        cache, room = self._cache, self._cache.headroom
        wanted_bytes = max(room.floor_bytes, INSIDE_FLOORS * room.floor_bytes - room.inside_bytes)
        if cache.get_json("hydrated"):
            cache.put_json("hydrated", False)
        freed_bytes = wraps = 0
        while freed_bytes < wanted_bytes and wraps < 2:
            count, resume = cache.evict(self._next)
            self._next = resume or b""
            wraps += resume is None
            freed_bytes += count
            await trio.lowlevel.checkpoint()
        if freed_bytes == 0:
            self._nothing_at = sealed
            return 0
        self.evicted_bytes += freed_bytes
        await self._durability.renew()
        return freed_bytes
