"""Changes between two points as text.

Invariants
1. Pure: changes in, lines out; every name goes through `report`, which leaves
   nothing that a terminal interprets.

Called by cli.look.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from typing import Final

from s3ws_fs.cli import report
from s3ws_fs.core.changes import KINDS, Told, counts, kind_of
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


GIT_DIR: Final = b".git"


def git_dir_of(path: bytes) -> bytes | None:
    """The git directory that a path is within; None for all others, and for the directory."""
    names = path.split(b"/")
    if GIT_DIR not in names[:-1]:
        return None
    return b"/".join(names[: names.index(GIT_DIR) + 1])


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


def folded(changes: list[Change]) -> tuple[list[Change], list[str]]:
    """The changes outside of git's own directories, and a line for each of these directories."""
    outside: list[Change] = []
    inside: dict[bytes, list[Change]] = {}
    for change in changes:
        top = git_dir_of(change.path)
        came_in = change.old_path is not None and git_dir_of(change.old_path) is None
        if top is None or came_in:
            outside.append(change)
        else:
            inside.setdefault(top, []).append(change)
    lines = []
    for top, group in sorted(inside.items()):
        found = counts(group)
        said = ", ".join(f"{found[kind]} {kind}" for kind in KINDS if found[kind])
        lines.append(f"M  {name_of(top)}/  ({said}; --all names them)")
    return outside, lines


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
