"""Changes between two points as totals and as JSON, and what is kept of many seals. Pure.

Called by the commands and the status page.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from s3ws_fs.core.journal import Header
from s3ws_fs.core.plaintext import json_name, safe
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.treediff import ADDED, DELETED, MODIFIED, RENAMED, Change

KINDS: Final = (ADDED, DELETED, MODIFIED, RENAMED)
KEPT_MAX: Final = 200_000
"""Changes of all seals together that a `log` keeps until it prints them."""
TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def kind_of(rec: InodeRec) -> str:
    """What an inode is, in words."""
    return TYPES.get(stat.S_IFMT(rec.mode), "unknown")


def counts(changes: Iterable[Change]) -> dict[str, int]:
    """How many of each kind, and how many bytes of files came and went."""
    found = dict.fromkeys(KINDS, 0) | {"bytes_added": 0, "bytes_removed": 0}
    for change in changes:
        found[change.kind] += 1
        grown = _bytes(change.after, change) - _bytes(change.before, change)
        found["bytes_added" if grown > 0 else "bytes_removed"] += abs(grown)
    return found


def _bytes(rec: InodeRec | None, change: Change) -> int:
    is_counted = rec is not None and stat.S_ISREG(rec.mode) and not change.is_link
    return rec.size if is_counted and rec is not None else 0


@dataclass(slots=True)
class Told:
    """What is kept of one seal until it is printed: totals of all, and some of its changes."""

    header: Header
    modified_ns: int
    counts: dict[str, int]
    changes: list[Change]

    @property
    def omitted(self) -> int:
        """Changes that are counted and not told."""
        return sum(self.counts[kind] for kind in KINDS) - len(self.changes)


class Kept:
    """The newest seals, with a bound on what is kept of them: the oldest lose their changes first,
    never their totals.
    """

    def __init__(self, seals: int, each: int, total: int = KEPT_MAX) -> None:
        self._each = each
        self._total = total
        self._held = 0
        self.told: deque[Told] = deque(maxlen=seals)

    def add(self, header: Header, modified_ns: int, found: list[Change]) -> None:
        """The next seal, newer than all before."""
        if len(self.told) == self.told.maxlen:
            self._held -= len(self.told[0].changes)
        self.told.append(Told(header, modified_ns, counts(found), found[: self._each]))
        self._held += len(self.told[-1].changes)
        for old in self.told:
            if self._held <= self._total:
                return
            self._held -= len(old.changes)
            old.changes = []


def to_json(change: Change) -> dict[str, Any]:
    """One change."""
    rec = change.rec
    document: dict[str, Any] = {
        **json_name(change.path),
        "kind": change.kind,
        "type": kind_of(rec),
        "aspects": list(change.aspects),
        "before": _side(change.before),
        "after": _side(change.after),
    }
    if change.old_path is not None:
        document["from"] = json_name(change.old_path)
        document["by_content"] = change.is_copy
    if change.is_link:
        document["link"] = True
    return document


def _side(rec: InodeRec | None) -> dict[str, Any] | None:
    if rec is None:
        return None
    document: dict[str, Any] = {
        "ino": rec.ino,
        "size": rec.size,
        "mode": f"{stat.S_IMODE(rec.mode):04o}",
        "uid": rec.uid,
        "gid": rec.gid,
        "mtime_ns": rec.mtime_ns,
    }
    if stat.S_ISLNK(rec.mode):
        document["target"] = json_name(rec.target)
    return document


def told_json(told: Told) -> dict[str, Any]:
    """One seal."""
    header = told.header
    return {
        "number": header.number,
        "generation": header.generation,
        "sealed_at_s": round(told.modified_ns / 1e9, 3),
        "created_at_s": round(header.created_ns / 1e9, 3),
        "host": safe(header.host),
        "counts": told.counts,
        "changes": [to_json(change) for change in told.changes],
        "omitted": told.omitted,
    }
