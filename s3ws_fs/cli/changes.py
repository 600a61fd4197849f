"""Changes between two points as text, as totals, and as JSON.

Invariants
1. Pure: changes in, lines and dictionaries out; every name goes through `report`, which leaves
   nothing that a terminal interprets.

Called by cli.look.
"""

from __future__ import annotations

import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from s3ws_fs.cli import report
from s3ws_fs.core.journal import Header
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.treediff import (
    ADDED,
    CONTENT,
    DELETED,
    MODE,
    MODIFIED,
    OWNER,
    RENAMED,
    TIMES,
    Change,
)
from s3ws_fs.launch.end import counted

LETTERS: Final = {ADDED: "A", DELETED: "D", MODIFIED: "M", RENAMED: "R"}
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


def name_of(path: bytes) -> str:
    """A path for a terminal; the root is "."."""
    return report.safe_name(path) or "."


# --- for a person


def line(change: Change) -> str:
    """One change."""
    rec = change.rec
    name = name_of(change.path) + ("/" if rec.is_dir and change.path else "")
    if change.old_path is not None:
        name = f"{name_of(change.old_path)} -> {name}"
    said = list(_details(change))
    return f"{LETTERS[change.kind]}  {name}" + (f"  ({'; '.join(said)})" if said else "")


def _details(change: Change) -> Iterator[str]:
    old, new, rec = change.before, change.after, change.rec
    if change.kind in (ADDED, DELETED):
        if change.is_link:
            yield "a link"
        elif stat.S_ISREG(rec.mode):
            yield report.human_bytes(rec.size)
        elif stat.S_ISLNK(rec.mode):
            yield f"symlink to {report.safe_name(rec.target)}"
        elif not rec.is_dir:
            yield kind_of(rec)
        return
    if old is None or new is None:
        return
    if change.is_copy:
        yield "by its bytes"
    for aspect in change.aspects:
        if aspect == CONTENT:
            yield _content(old, new)
        elif aspect == MODE:
            yield f"mode {stat.S_IMODE(old.mode):04o} -> {stat.S_IMODE(new.mode):04o}"
        elif aspect == OWNER:
            yield f"owner {old.uid}:{old.gid} -> {new.uid}:{new.gid}"
        elif aspect != TIMES or change.aspects == (TIMES,):
            yield aspect


def _content(old: InodeRec, new: InodeRec) -> str:
    if stat.S_ISLNK(new.mode):
        return f"symlink to {report.safe_name(new.target)}"
    if old.size == new.size:
        return report.human_bytes(new.size)
    return f"{report.human_bytes(old.size)} -> {report.human_bytes(new.size)}"


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


def summary(found: dict[str, int]) -> str:
    """Totals in one line."""
    said = [f"{found[kind]} {kind}" for kind in KINDS if found[kind]]
    if not said:
        return "no changes"
    grown = (
        f"+{report.human_bytes(found['bytes_added'])} -{report.human_bytes(found['bytes_removed'])}"
    )
    return f"{', '.join(said)}; {grown}"


def stat_lines(changes: list[Change], depth: int) -> Iterator[str]:
    """Totals for each directory of the first `depth` levels, and of all."""
    groups: dict[bytes, list[Change]] = {}
    for change in changes:
        names = change.path.split(b"/")
        is_below = len(names) > depth
        top = b"/".join(names[:depth]) + b"/" if is_below else b"/".join(names[:-1])
        groups.setdefault(top.rstrip(b"/"), []).append(change)
    for top, group in sorted(groups.items()):
        yield f"{name_of(top)}{'/' if top else ''}  {summary(counts(group))}"
    yield f"{counted(len(changes), 'change')}: {summary(counts(changes))}"


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


def told_lines(told: Told) -> Iterator[str]:
    """One seal."""
    header = told.header
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told.modified_ns // 1_000_000_000))
    head = f"#{header.number}  generation {header.generation}  {when}"
    yield f"{head}  by {report.safe(header.host) or '-'}  {summary(told.counts)}"
    for change in told.changes:
        yield f"    {line(change)}"
    if told.omitted:
        yield f"    and {told.omitted} more"


# --- for a program


def to_json(change: Change) -> dict[str, Any]:
    """One change."""
    rec = change.rec
    document: dict[str, Any] = {
        **report.json_name(change.path),
        "kind": change.kind,
        "type": kind_of(rec),
        "aspects": list(change.aspects),
        "before": _side(change.before),
        "after": _side(change.after),
    }
    if change.old_path is not None:
        document["from"] = report.json_name(change.old_path)
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
        document["target"] = report.json_name(rec.target)
    return document


def told_json(told: Told) -> dict[str, Any]:
    """One seal."""
    header = told.header
    return {
        "number": header.number,
        "generation": header.generation,
        "sealed_at_s": round(told.modified_ns / 1e9, 3),
        "created_at_s": round(header.created_ns / 1e9, 3),
        "host": report.safe(header.host),
        "counts": told.counts,
        "changes": [to_json(change) for change in told.changes],
        "omitted": told.omitted,
    }
