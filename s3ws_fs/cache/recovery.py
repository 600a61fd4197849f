"""What becomes of a cache that was not closed cleanly: kept, put back, or put aside.

    fresh        there is no database yet
    kept         closed cleanly, or its process died under this kernel, which has all its pages
    sync-point   another boot: the meta pages of the newest sync point were put back, and over it
                 comes what the redo log has since
    quarantined  another boot, and no sync point can vouch for it: moved aside, never deleted
    renewed      its disk failed in a flush, and all it holds is sealed: moved aside as well

Invariants
1. Meta pages go back only into the database they were taken from: where there is no database, what
   is left of an older one's side file is removed first.
2. What was put back is walked as bytes before the engine, which trusts what it reads, may have it:
   a disk that lied about its flushes costs what was not sealed, never wrong bytes or a crash.
3. A quarantine keeps the data as it was found.
4. A spoilt cache (see cache.syncpoint) stays one until it is made anew, which costs nothing when
   all of it is sealed; with unsealed changes it is kept, for they are nowhere else.

Called by cache.cache, cache.engine and cache.inspect.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb
from lmdb import verify as offline

from s3ws_fs.cache import redo, syncpoint
from s3ws_fs.cache.ownership import lock
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE, map_bytes, open_env, open_tables
from s3ws_fs.cache.view import META_HEAD
from s3ws_fs.core import failpoints
from s3ws_fs.core.errors import CacheError
from s3ws_fs.core.records import decode_head

QUARANTINES: Final = "quarantine-*"
META_MIRROR_KNOWN: Final = b"mirror_known"

FRESH: Final = "fresh"
KEPT: Final = "kept"
SYNC_POINT: Final = "sync-point"
QUARANTINED: Final = "quarantined"
RENEWED: Final = "renewed"

REMEDY: Final = (
    "fsync fails, saving to the bucket goes on: look at that disk, unmount, and when all is saved "
    "mount again, which makes a new cache"
)
"""What to do about a spoilt cache."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a cache was opened; for one put aside, where it is and why."""

    how: str
    aside: Path | None = None
    why: str = ""
    base: int | None = None
    """Sequence of the sync point that was put back."""

    def told(self) -> str:
        """What a person has to know; empty when nothing happened."""
        if self.how == SYNC_POINT:
            return (
                "this machine went down while the workspace was mounted: the cache is back at its "
                "newest sync point, with everything that was fsynced; later changes are lost"
            )
        if self.how == QUARANTINED:
            return (
                f"this machine went down while the workspace was mounted, and {self.why}: the "
                "workspace is rebuilt from the bucket. What was not sealed is only in "
                f"{self.aside}: keep it until you have looked"
            )
        if self.how == RENEWED:
            return (
                "a flush to the disk of this cache had failed, and all it held was saved: the "
                f"workspace is rebuilt from the bucket. The old one is {self.aside}; look at that "
                "disk, then remove it"
            )
        return self.why


def recover(directory: Path, boot_id: str, now_ns: int, *, may_renew: bool = False) -> Recovery:
    """Make the database of a cache fit to be opened. Under its lock. Raises OSError.

    `may_renew`: no mount stands on it, so that a spoilt one with nothing unsealed can be done
    without.
    """
    data_file = directory / DATA_DIR / DATA_FILE
    if not data_file.exists():
        _forget(directory)
        return Recovery(FRESH)
    if not is_due(directory, boot_id):
        if not syncpoint.read_spoilt(directory, boot_id):
            return Recovery(KEPT)
        if may_renew and _is_sealed(data_file):
            return Recovery(RENEWED, quarantine(directory, now_ns))
        return Recovery(KEPT, why=f"{syncpoint.SPOILT}; {REMEDY}")
    slot = syncpoint.put_back(directory, data_file)
    if slot is None:
        why = "no sync point of the cache is readable"
    else:
        found = walk(data_file)
        if not found:
            return Recovery(SYNC_POINT, base=slot.sequence)
        why = f"the cache is damaged in spite of its sync point ({found[0]})"
    return Recovery(QUARANTINED, quarantine(directory, now_ns), why)


def replay(directory: Path, map_size: int, base: int | None) -> int:
    """Put what only the redo log has into the database: how many changes.

    `base`: sequence of the sync point that was put back, after a power cut; then what was told of
    the mirror after it is forgotten too. All of it is one commit, which uses none of the sync
    point's pages, and is made before this boot is noted: whoever dies in between starts over.
    Raises lmdb.Error, OSError.
    """
    logs = redo.read_log(directory)
    if base is None and not any(log.frames for log in logs):
        return 0
    data_dir = directory / DATA_DIR
    with contextlib.closing(open_env(data_dir, map_size=map_size, readonly=False)) as env:
        tables = open_tables(env, create=True)
        with env.begin(write=True) as txn:
            raw = txn.get(META_HEAD, db=tables.meta)
            head = 0 if raw is None else decode_head(raw).generation
            bodies = redo.beyond(logs, head, base)
            for body in bodies:
                redo.apply(txn, tables, redo.decode_records(body))
            if base is not None and txn.get(META_MIRROR_KNOWN, db=tables.meta) == b"true":
                txn.put(META_MIRROR_KNOWN, b"false", db=tables.meta)
            failpoints.hit(failpoints.REPLAY_BEFORE)
    failpoints.hit(failpoints.REPLAY_AFTER)
    return len(bodies)


def settle_dead(directory: Path, boot_id: str) -> None:
    """Put what a killed daemon left in its log into the database, as the next mount would: for who
    looks into a cache that nobody has open. After a power cut it is left as it is.

    Raises CacheError.
    """
    if not redo.has_frames(directory) or is_due(directory, boot_id):
        return
    try:
        held = lock(directory)
    except (CacheError, OSError):
        # A daemon has it, and sees to it itself.
        return
    try:
        size_bytes = (directory / DATA_DIR / DATA_FILE).stat().st_size
        replay(directory, size_bytes + map_bytes(size_bytes), None)
    except (lmdb.Error, OSError) as exc:
        raise CacheError(
            f"the newest changes of the cache in {directory} can't be put into its database: {exc}",
            remedy="They are in its log, nothing is lost. Make room there, or run this as the "
            "cache's owner.",
        ) from exc
    finally:
        os.close(held)


def is_due(directory: Path, boot_id: str) -> bool:
    """Whether the cache may be torn: another boot, and it was not closed cleanly."""
    noted = syncpoint.read_boot(directory)
    return noted is None or not (noted[1] or noted[0] == boot_id)


def _is_sealed(data_file: Path) -> bool:
    """Whether nothing in the database waits for a flush to the bucket."""
    map_size = data_file.stat().st_size
    try:
        with contextlib.closing(
            open_env(data_file.parent, map_size=map_size, readonly=True)
        ) as env:
            tables = open_tables(env, create=False)
            with env.begin() as txn:
                return bool(txn.stat(tables.dirty)["entries"] == 0)
    except lmdb.Error:
        return False


def walk(data_file: Path) -> list[str]:
    """What is structurally wrong with the database, looked at as bytes (some 2 s a GiB)."""
    try:
        found: list[str] = offline.verify(  # type: ignore[no-untyped-call]
            str(data_file.parent), subdir=True
        )
    except offline.VerifyError as exc:
        found = [str(exc)]
    return found


def quarantine(directory: Path, now_ns: int) -> Path:
    """Move a closed cache's data aside, to be kept for a person; returns where it went."""
    aside = directory / f"quarantine-{now_ns // 1_000_000_000}-{now_ns % 1_000_000_000:09d}"
    aside.mkdir(mode=0o700)
    for name in (DATA_DIR, syncpoint.SIDE_FILE, syncpoint.BOOT_FILE, *redo.LOG_FILES):
        if (directory / name).exists():
            (directory / name).rename(aside / name)
    syncpoint.sync_directory(aside)
    syncpoint.sync_directory(directory)
    return aside


def _forget(directory: Path) -> None:
    """Remove what is left of an older cache whose database is gone (invariant 1)."""
    names = (syncpoint.SIDE_FILE, syncpoint.BOOT_FILE, *redo.LOG_FILES)
    for path in (directory / name for name in names):
        path.unlink(missing_ok=True)
    syncpoint.sync_directory(directory)


def make_durable(directory: Path) -> None:
    """Make the names of a new cache durable: fsync of a file does not promise its name's."""
    for place in (directory / DATA_DIR, directory, directory.parent):
        syncpoint.sync_directory(place)
