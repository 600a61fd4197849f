"""What status and the end of a mount say about the replica: from memory and one read transaction.

Invariants
1. Nothing here waits, and every scan and every list is bounded by a named limit.

Called by replicator.
"""

from __future__ import annotations

import os
from typing import Any, Final

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import keys
from s3ws_fs.replica.flusher import Flusher
from s3ws_fs.replica.hydrate import Hydrator
from s3ws_fs.replica.outside import OutsideChanges

DIRTY_COUNTED_MAX: Final = 20_000
"""Dirty records that status looks at to count files and bytes; beyond it the counts are floors."""
SUMMARY_COUNTED_MAX: Final = 1000
"""The same for the line that a service manager shows every other second."""
CONFLICTS_LISTED_MAX: Final = 100
UNSAVED_LISTED_MAX: Final = 100_000
"""Inodes looked at to name what is not saved."""

_OF_FILES: Final = (keys.T_INODES, keys.T_CHUNKS, keys.T_XATTRS)


def dirty(cache: Cache, counted_max: int = DIRTY_COUNTED_MAX) -> dict[str, Any]:
    """What is not sealed: records, files, bytes, and the age of the oldest change."""
    files: set[int] = set()
    chunks: list[bytes] = []
    oldest_ns: int | None = None
    with cache.read() as view:
        records = view.dirty_count()
        for seen, (table, key, _, first_ns) in enumerate(view.dirty()):
            if seen >= counted_max:
                break
            oldest_ns = first_ns if oldest_ns is None else min(oldest_ns, first_ns)
            if table in _OF_FILES:
                files.add(keys.unpack_u64(key))
            if table == keys.T_CHUNKS:
                chunks.append(key)
    held_bytes = cache.extent_bytes(chunks)
    age_s = None
    if oldest_ns is not None:
        age_s = round(max(0.0, (cache.now_ns() - oldest_ns) / 1e9), 3)
    return {"records": records, "files": len(files), "bytes": held_bytes, "oldest_age_s": age_s}


def mirror(cache: Cache, flusher: Flusher) -> dict[str, Any]:
    """How far the mirror is behind, and what it can't show."""
    with cache.read() as view:
        pending_files = view.mtodo_count()
    return {
        "pending_files": pending_files,
        "unmirrored": unmirrored(flusher),
        "conflicts": conflicts(flusher),
    }


def summary(cache: Cache) -> dict[str, Any]:
    """How much is not saved, in little time: counts beyond SUMMARY_COUNTED_MAX are floors."""
    dirt = dirty(cache, SUMMARY_COUNTED_MAX)
    with cache.read() as view:
        unmirrored_files = view.mtodo_count()
    return {
        "changes": dirt["records"],
        "files": dirt["files"],
        "is_floor": dirt["records"] > SUMMARY_COUNTED_MAX,
        "oldest_age_s": dirt["oldest_age_s"],
        "to_mirror": unmirrored_files,
    }


def conflicts(flusher: Flusher) -> list[dict[str, str]]:
    """Mirror paths at which somebody else's object stands."""
    listed = list(flusher.conflicts.items())[:CONFLICTS_LISTED_MAX]
    return [{"path": path, "reason": why} for path, why in listed]


def outside(changes: OutsideChanges | None) -> dict[str, Any]:
    """What somebody else did to the mirror, and what came of it; the newest last."""
    if changes is None:
        return {"policy": "", "count": 0, "events": [], "left": []}
    listed = list(changes.left.items())[:CONFLICTS_LISTED_MAX]
    return {
        "policy": changes.policy,
        "count": changes.count,
        "events": changes.events,
        "left": [{"path": path, "reason": why} for path, why in listed],
    }


def conflict_lines(flusher: Flusher) -> list[str]:
    """The same, as lines of what is not saved."""
    return sorted(f"files/{path}: {why}" for path, why in flusher.conflicts.items())


def unmirrored(flusher: Flusher) -> list[dict[str, str]]:
    """Paths that are in the journal only."""
    return [
        {"path": os.fsdecode(path.encode("latin-1")), "reason": why}
        for path, why in flusher.unmirrored.values()
    ]


def hydration(hydrator: Hydrator) -> dict[str, Any]:
    """What is still only in the bucket."""
    return {
        "state": hydrator.state,
        "cold_bytes": hydrator.cold_bytes,
        "cold_files": hydrator.cold_files,
        "damaged": _listed(hydrator.damaged),
        "second_copies": _listed(hydrator.second_copies.used),
    }


def health(now_s: float, *troubles: tuple[str | None, float | None] | None) -> dict[str, Any]:
    """Well, or what is wrong and since when: the first trouble that is one, the oldest time."""
    known = [trouble for trouble in troubles if trouble is not None and trouble[0] is not None]
    since_s = min((since for _, since in known if since is not None), default=None)
    return {
        "state": "degraded" if known else "ok",
        "since_s": None if since_s is None else round(now_s - since_s, 3),
        "error": known[0][0] if known else None,
    }


def _listed(reasons: dict[str, str]) -> list[dict[str, str]]:
    return [{"path": path, "reason": why} for path, why in reasons.items()]


def unsaved(cache: Cache) -> list[str]:
    """Paths of what is not sealed or not mirrored, sorted."""
    found: set[str] = set()
    with cache.read() as view:
        inos = {ino for ino, _ in view.mtodo()}
        inos.update(keys.unpack_u64(key) for _, key, _, _ in view.dirty())
        for ino in sorted(inos)[:UNSAVED_LISTED_MAX]:
            rec = view.inode(ino)
            if rec is None:
                found.add(f"(removed inode {ino})")
            else:
                found.update(os.fsdecode(path) or "." for path in view.paths_of(rec))
    return sorted(found)
