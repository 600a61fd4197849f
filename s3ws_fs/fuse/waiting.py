"""What a kernel request waits for: bytes that are in the bucket only, and room.

Invariants
1. No wait is without end: a request that was read can't be abandoned by its caller. A fetch is
   tried FETCH_ROUNDS_MAX times, each for FETCH_DEADLINE_S at most, then it is EIO.
2. Before anything is waited for, what was acknowledged is in the database (`Cache.settle`).
3. What the store or the cache's disk says becomes an errno here, once.

Called by operations.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from s3ws_fs.core.errors import FormatError, FsError, StoreError
from s3ws_fs.core.types import NeedExtents
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.fuse.tally import FETCH, Tally

log = logging.getLogger(__name__)

FETCH_ROUNDS_MAX: Final = 8
"""How often one request fetches before it gives up: changing files need more than once."""

FETCH_DEADLINE_S: Final = 60.0
"""How long one fetch may take. Longer, and the reader gets EIO instead of hanging."""

FORGET_POLLS_MAX: Final = 50
FORGET_POLL_S: Final = 0.001
"""How long a refused change waits for the kernel to let go of what was deleted before. In turns of
the loop, not by the clock: on a busy machine the FORGET is there, and not yet read."""

Fetch = Callable[[NeedExtents], Awaitable[None]]


class Waiting:
    """Fetches and makes room by what the daemon passed in (see Operations)."""

    def __init__(
        self,
        fs: FileSystem,
        fetch: Fetch,
        make_room: Callable[[], Awaitable[bool]] | None,
        fetch_deadline_s: float,
        tally: Tally,
    ) -> None:
        self._fs = fs
        self._fetch = fetch
        self._make_room = make_room
        self._fetch_deadline_s = fetch_deadline_s
        self._tally = tally

    async def warm(self, need: NeedExtents, rounds: int) -> None:
        """Fetch what a call asked for. Raises FsError(EIO) when it can't be had in time."""
        self._fs.finish_batch()
        if rounds >= FETCH_ROUNDS_MAX:
            raise FsError(errno.EIO, f"inode {need.ino} kept changing during {rounds} fetches")
        kind = self._tally.kinds[FETCH]
        begun_ns = kind.begin()
        try:
            with trio.fail_after(self._fetch_deadline_s):
                await self._fetch(need)
        except trio.TooSlowError:
            log.warning("fetch for inode %d took over %.0f s", need.ino, self._fetch_deadline_s)
            raise FsError(errno.EIO, "the object store did not answer in time") from None
        except FsError as exc:
            if not await self.has_room_now(exc):
                raise FsError(errno.EIO, str(exc)) from exc
        except (StoreError, FormatError) as exc:
            log.warning("fetch for inode %d failed: %s", need.ino, exc)
            raise FsError(errno.EIO, str(exc)) from exc
        finally:
            kind.end(begun_ns)

    async def has_room_now(self, exc: FsError) -> bool:
        """After this error: whether room was made, so that trying again makes sense.

        What was deleted just now may be waiting for the kernel's FORGET, which comes after the
        reply, and is then read like any request: it is given a moment.
        """
        if exc.errno not in (errno.EDQUOT, errno.ENOSPC):
            return False
        self._fs.finish_batch()
        for _ in range(FORGET_POLLS_MAX):
            if not self._fs.awaits_forget():
                break
            await trio.sleep(FORGET_POLL_S)
        dropped = self._fs.reap()
        if exc.errno == errno.EDQUOT:
            return dropped
        return self._make_room is not None and await self._make_room()
