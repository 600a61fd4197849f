"""Warns when the workspace comes near its quota: once in the log, and in status while it lasts.

Invariants
1. Looking costs two comparisons, and is done with each sync point and each status: no timer, and
   nothing on the way of a write.

Called by `daemon.parts`; `look` by cache.durability as well.
"""

from __future__ import annotations

import logging
from typing import Any

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core.quota import QuotaWarning

log = logging.getLogger(__name__)

MIB = 1 << 20


class Quota:
    """Of one mount that writes, or of one that only shows (`is_ours` false: nothing is said)."""

    def __init__(self, cache: Cache, max_bytes: int, max_inodes: int, *, is_ours: bool) -> None:
        self._cache = cache
        self._warning = QuotaWarning(max_bytes, max_inodes)
        self._is_ours = is_ours

    def look(self) -> None:
        """Note what is used by now; say so when the warning begins or ends."""
        head = self._cache.head
        if not self._is_ours or not self._warning.look(head.used_bytes, head.inodes):
            return
        if self._warning.is_on:
            log.warning("the workspace is nearly full: %s", self._used())
        else:
            log.info("the workspace has room again: %s", self._used())

    def _used(self) -> str:
        head, limits = self._cache.head, self._warning
        return (
            f"{head.used_bytes / MIB:.1f} of {limits.max_bytes / MIB:g} MiB and {head.inodes} of "
            f"{limits.max_inodes} files are used"
        )

    def status(self) -> dict[str, Any]:
        """Its part of the status document."""
        self.look()
        head = self._cache.head
        return {
            "used_bytes": head.used_bytes,
            "max_bytes": self._warning.max_bytes,
            "used_inodes": head.inodes,
            "max_inodes": self._warning.max_inodes,
            "warning": self._used() if self._warning.is_on else None,
        }
