"""Bytes that rotted in the journal, from the mirror: used, and said.

Invariants
1. Only bytes with the location's digest are taken: the mirror may be older, newer, or edited.
2. What was read so is told by status with its path; the journal's copy stays damaged until it is
   written anew, or `s3ws check --bucket --repair` has it shipped again.
3. A failure to find them here is no error of its own: the damage is.

Called by hydrate.
"""

from __future__ import annotations

import logging
import os
from typing import Any, Final

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core.errors import FormatError, PermanentError
from s3ws_fs.core.layout import escape_path
from s3ws_fs.core.types import Location
from s3ws_fs.transfer.client import WorkerClient

log = logging.getLogger(__name__)

SILENCE_S: Final = 60.0
LISTED_MAX: Final = 1000
"""Paths kept for status."""


class SecondCopies:
    """Fetches single extents from mirror objects. `used`: path → what is wrong with the first."""

    def __init__(self, cache: Cache, worker: WorkerClient) -> None:
        self._cache = cache
        self._worker = worker
        self.used: dict[str, str] = {}

    async def bring(self, ino: int, index: int, location: Location, why: FormatError) -> bool:
        """Whether the mirror had the bytes; then they are in the cache. Raises TransientError."""
        paths, name = self._places(ino)
        found: list[bytes] = []

        async def on_part(_: dict[str, Any], payload: memoryview) -> None:
            found.append(bytes(payload))

        try:
            await self._worker.ask(
                "fetch-mirror",
                on_part,
                deadline_s=SILENCE_S,
                paths=paths,
                index=index,
                location=[
                    location.object_id, location.offset, location.length, location.digest.hex(),
                ],
            )  # fmt: skip
        except (FormatError, PermanentError):
            return False
        self._cache.store_fetched([(ino, index, location, found[0])])
        if name not in self.used and len(self.used) < LISTED_MAX:
            log.warning("%s is damaged in the journal, its mirror object is not: %s", name, why)
            self.used[name] = str(why)
        return True

    def _places(self, ino: int) -> tuple[list[str], str]:
        """Mirror paths at which the file's object may stand, and what a person calls the file."""
        with self._cache.read() as view:
            rec = view.inode(ino)
            standing = [row.path for row in view.mirror_of(ino)]
            paths = [] if rec is None else view.paths_of(rec)
        found = dict.fromkeys(path.decode() for path in standing)
        found.update(dict.fromkeys(escape_path(path) for path in paths))
        return list(found), os.fsdecode(paths[0]) if paths else f"inode {ino}"
