"""How much room the cache has left, on its disk and in its map, and who may still take of it.

The file never shrinks: pages that were freed serve again once no sync point pins them. So room is
what the disk and the map still give (*growth*), and what is free inside the file (*inside*). Of
the growth a part is kept back, for deletions, sync points, bookkeeping, and the transfer spool:

    OK      both together are at least `floor_bytes`
    SHORT   less: what would hold more bytes than before is refused; the rest goes on
    LAST    next to nothing (another program took it): only what frees is let through

A small file, the *reserve*, is given up when that is gone too, and taken again when there is room.

Invariants
1. Refusing is ENOSPC before the commit: what was there stays as it was.
2. Bookkeeping is never refused here: flushing goes on, and makes extents clean (evictable).
3. Measuring (some 40 us) is not done for every call: after `budget_bytes` more were committed,
   after each sync point, after a commit that failed, and now and then by a timer, since other
   programs fill disks as well.

Called by cache and durability; status shows it.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import lmdb

from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE, Tables
from s3ws_fs.cache.tx import Tx
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.records import Head

log = logging.getLogger(__name__)

FLOOR_SHARE: Final = 16
FLOOR_BYTES_MIN: Final = 8 << 20
FLOOR_BYTES_MAX: Final = 64 << 20
"""Kept back: this share of the disk (and of the map), within these bounds. Free disk, not reserved
disk: thousands of mounts on one disk keep it back once."""
SMALL_DISK_SHARE: Final = 4
"""Of a disk too small for FLOOR_BYTES_MIN, this share is kept back."""
LAST_SHARE: Final = 4
"""The last of the floor, by this share, is for what frees alone."""
BUDGET_BYTES_MIN: Final = 256 << 10
BUDGET_BYTES_MAX: Final = 64 << 20
"""At most so many bytes are committed between two measurements, and half of the growth above the
floor; at least so many."""
BETWEEN_SHARE: Final = 8
BETWEEN_BYTES_MIN: Final = 1 << 20
HOLD_SHARE: Final = 2
HOLD_BYTES_MIN: Final = 2 << 20
"""Pages freed since the newest sync point serve again only after the next. With little growth left,
it is made after this share of it, and writers are held at that one."""
ROOMY_FLOORS: Final = 2
RESERVE_FILE: Final = "reserve"
RESERVE_BYTES: Final = 2 << 20
SAY_INTERVAL_S: Final = 60.0
DISK_FULL_BYTES: Final = 1 << 20
"""With less than this free, a write that failed is taken to have failed for want of space."""

OK: Final = 0
SHORT: Final = 1
LAST: Final = 2
_NAMES: Final = ("ok", "short", "full")


def engine_error(exc: lmdb.Error, directory: Path) -> FsError:
    """The errno error of an engine error: a full map or disk is ENOSPC, the rest EIO.

    On a full disk the engine's write is cut short, which it reports as EIO: the disk has to tell.
    """
    full = isinstance(exc, lmdb.MapFullError) or "space left" in str(exc)
    if not full:
        free = os.statvfs(directory)
        full = free.f_bavail * free.f_frsize < DISK_FULL_BYTES
    return FsError(errno.ENOSPC if full else errno.EIO, str(exc))


def floor_bytes(total_bytes: int) -> int:
    """What is kept back of a disk, or a map, of this size."""
    wanted = min(FLOOR_BYTES_MAX, max(FLOOR_BYTES_MIN, total_bytes // FLOOR_SHARE))
    return min(wanted, total_bytes // SMALL_DISK_SHARE)


def keep_reserve(directory: Path) -> None:
    """Have the reserve stand in a cache's directory, if there is room for it."""
    path = directory / RESERVE_FILE
    disk = os.statvfs(directory)
    if path.exists() or disk.f_bavail * disk.f_frsize < RESERVE_BYTES:
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        os.posix_fallocate(fd, 0, RESERVE_BYTES)
    except OSError:
        # Somebody was faster. It is tried again.
        path.unlink()
    finally:
        os.close(fd)


def give_reserve(directory: Path) -> bool:
    """Let the reserve go, for deletions or a spool that need the room; whether it stood."""
    try:
        (directory / RESERVE_FILE).unlink()
    except FileNotFoundError:
        return False
    return True


class Headroom:
    """Measures one open environment. `level` is OK, SHORT or LAST."""

    def __init__(
        self,
        env: lmdb.Environment,
        tables: Tables,
        directory: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._env = env
        self._dbs = [getattr(tables, name) for name in tables.__dataclass_fields__]
        self._directory = directory
        self._data_file = directory / DATA_DIR / DATA_FILE
        self._page_bytes = env.stat()["psize"]
        self._map_bytes = env.info()["map_size"]
        self._monotonic = monotonic
        self._said_s: float | None = None
        self.level = OK
        self.on_short: Callable[[], None] = lambda: None
        """Called by each measurement that finds less than is roomy."""
        self.disk_free_bytes = 0
        self.growth_bytes = 0
        self.inside_bytes = 0
        self.floor_bytes = 0
        self.by_map = False
        """Whether it is the map, not the disk, that leaves less."""
        self.budget_bytes = 0
        self.between_bytes = 0
        self.hold_bytes = 0
        self.measure()

    @property
    def last_bytes(self) -> int:
        """The last of the floor."""
        return self.floor_bytes // LAST_SHARE

    @property
    def is_roomy(self) -> bool:
        """Whether there is more than needed: for what can wait."""
        return self.level == OK and self.growth_bytes >= ROOMY_FLOORS * self.floor_bytes

    def allows(self, tx: Tx, head: Head) -> bool:
        """Whether a finished transaction may be committed at this level."""
        if self.level == OK or tx.is_freeing:
            return True
        return self.level == SHORT and tx.head_rec.used_bytes <= head.used_bytes

    def measure(self) -> None:
        """Look at disk, map and file, and set the level. Raises OSError when they are gone."""
        disk = os.statvfs(self._data_file)
        used_bytes = (self._env.info()["last_pgno"] + 1) * self._page_bytes
        # A commit that failed leaves blocks behind the last page: the next one takes them.
        tail_bytes = max(0, self._data_file.stat().st_size - used_bytes)
        self.disk_free_bytes = disk.f_bavail * disk.f_frsize
        left_bytes = self._map_bytes - used_bytes
        disk_floor = floor_bytes(disk.f_blocks * disk.f_frsize)
        map_floor = floor_bytes(self._map_bytes)
        self.by_map = left_bytes - map_floor < self.disk_free_bytes - disk_floor
        self.floor_bytes = map_floor if self.by_map else disk_floor
        self.growth_bytes = min(left_bytes, self.disk_free_bytes + tail_bytes)
        self.inside_bytes = 0
        if self.growth_bytes < self.floor_bytes:
            self.inside_bytes = self._free_inside(used_bytes)
        self._judge()
        above = self.growth_bytes + self.inside_bytes - self.floor_bytes
        self.budget_bytes = min(BUDGET_BYTES_MAX, max(BUDGET_BYTES_MIN, above // 2))
        self.between_bytes = max(BETWEEN_BYTES_MIN, self.growth_bytes // BETWEEN_SHARE)
        self.hold_bytes = max(HOLD_BYTES_MIN, self.growth_bytes // HOLD_SHARE)

    def _free_inside(self, used_bytes: int) -> int:
        """Bytes of pages that no table holds (some may still be pinned)."""
        held = 2 + self._env.stat()["leaf_pages"]
        with self._env.begin() as txn:
            for db in self._dbs:
                stat = txn.stat(db)
                held += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return max(0, used_bytes - held * self._page_bytes)

    def _judge(self) -> None:
        room_bytes = self.growth_bytes + self.inside_bytes
        if room_bytes >= self.floor_bytes:
            level = OK
        else:
            level = SHORT if room_bytes >= self.last_bytes else LAST
            if level == LAST:
                give_reserve(self._directory)
        was, self.level = self.level, level
        if not self.is_roomy:
            self.on_short()
        if level != was:
            self._say()

    def _say(self) -> None:
        now_s = self._monotonic()
        if self._said_s is not None and now_s - self._said_s < SAY_INTERVAL_S:
            return
        self._said_s = now_s
        if self.level == OK:
            log.info("the cache has room again")
        else:
            log.warning("the cache is out of room: %s", self.reason())

    def reason(self) -> str:
        """What is short, for a person; empty when nothing is."""
        if self.level == OK:
            return ""
        what = "map" if self.by_map else "disk"
        free = self.growth_bytes if self.by_map else self.disk_free_bytes
        return (
            f"{what} full: {free / (1 << 20):.1f} MiB free at {self._directory}, writing more is"
            f" refused until {self.floor_bytes / (1 << 20):.0f} MiB are"
        )

    def status(self) -> dict[str, Any]:
        """For the status document."""
        return {
            "state": _NAMES[self.level],
            "disk_free_bytes": self.disk_free_bytes,
            "kept_free_bytes": self.floor_bytes,
            "reason": self.reason() or None,
        }
