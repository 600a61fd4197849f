"""Unified diffs of files' contents, as git writes them: `git apply` and `patch -p1` take them.

Invariants
1. Names are quoted as git quotes them whenever a character of theirs could be misread; nothing of
   a name is ever written raw that a terminal or patch(1) would interpret.
2. What is no text (a NUL byte), is longer than FILE_BYTES_MAX, or differs in more than LINES_MAX
   lines is named, not shown; with more than TOTAL_BYTES_MAX read, so is the rest. They stand as
   binary files do, so that no program takes the patch for whole.

Called by the commands and the status page.
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.treediff import ADDED, CONTENT, DELETED, RENAMED, Change

FILE_BYTES_MAX: Final = 1 << 20
LINES_MAX: Final = 20_000
"""Lines that differ, before and after together, when equal beginnings and ends are left out."""
TOTAL_BYTES_MAX: Final = 64 << 20
CONTEXT_LINES: Final = 3
NO_NAME: Final = b"/dev/null"

_QUOTED: Final = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r"}

Opcode = tuple[Literal["replace", "delete", "insert", "equal"], int, int, int, int]
Read = Callable[[Change, bool], bytes]
"""The bytes of a change's file; True: as it is after. Raises StoreError, FormatError."""


def quoted(prefix: bytes, path: bytes) -> bytes:
    """A name as git writes it."""
    name = prefix + path
    if all(0x20 <= byte < 0x7F and byte not in b'"\\' for byte in name):
        return name
    parts = []
    for byte in name:
        if byte in b'"\\':
            parts.append(f"\\{chr(byte)}")
        elif 0x20 <= byte < 0x7F:
            parts.append(chr(byte))
        else:
            parts.append(_QUOTED.get(byte) or f"\\{byte:03o}")
    return f'"{"".join(parts)}"'.encode()


@dataclass
class Patch:
    """Patches of many changes; counts what is read."""

    read: Read
    read_bytes: int = 0

    def of(self, change: Change) -> Iterator[bytes]:
        """The patch of one change, line by line; nothing where git would have nothing to say."""
        rec = change.rec
        if rec.is_dir or not (stat.S_ISREG(rec.mode) or stat.S_ISLNK(rec.mode)):
            return
        head = list(_head(change))
        shows = change.kind in (ADDED, DELETED) or CONTENT in change.aspects
        if not head and not shows:
            return
        old, new = change.old_path or change.path, change.path
        yield b"diff --git %s %s\n" % (quoted(b"a/", old), quoted(b"b/", new))
        yield from head
        if shows:
            yield from self._body(change, old, new)

    def _body(self, change: Change, old: bytes, new: bytes) -> Iterator[bytes]:
        from_name = NO_NAME if change.kind == ADDED else quoted(b"a/", old)
        to_name = NO_NAME if change.kind == DELETED else quoted(b"b/", new)
        differ = b"Binary files %s and %s differ\n" % (from_name, to_name)
        sizes = [rec.size for rec in (change.before, change.after) if rec is not None]
        if max(sizes) > FILE_BYTES_MAX:
            yield b"# not compared: longer than %d bytes\n" % FILE_BYTES_MAX + differ
            return
        if self.read_bytes + sum(sizes) > TOTAL_BYTES_MAX:
            yield b"# not compared: %d bytes were before\n" % self.read_bytes + differ
            return
        self.read_bytes += sum(sizes)
        before = b"" if change.before is None else self._bytes(change, False)
        after = b"" if change.after is None else self._bytes(change, True)
        if b"\0" in before or b"\0" in after:
            yield differ
            return
        hunks = _hunks(before, after)
        if hunks is None:
            yield b"# not shown: more than %d lines differ\n" % LINES_MAX + differ
            return
        for number, text in enumerate(hunks):
            if number == 0:
                # A name with a blank in it ends with a tab, as git has it.
                yield b"--- %s\n" % _ended(from_name)
                yield b"+++ %s\n" % _ended(to_name)
            yield text

    def _bytes(self, change: Change, is_after: bool) -> bytes:
        rec = change.after if is_after else change.before
        if rec is not None and stat.S_ISLNK(rec.mode):
            return rec.target
        return self.read(change, is_after)


def _ended(name: bytes) -> bytes:
    return name + b"\t" if b" " in name and not name.startswith(b'"') else name


def _git_mode(rec: InodeRec) -> bytes:
    if stat.S_ISLNK(rec.mode):
        return b"120000"
    return b"100755" if rec.mode & stat.S_IXUSR else b"100644"


def _head(change: Change) -> Iterator[bytes]:
    old, new = change.before, change.after
    if change.kind == ADDED and new is not None:
        yield b"new file mode %s\n" % _git_mode(new)
    elif change.kind == DELETED and old is not None:
        yield b"deleted file mode %s\n" % _git_mode(old)
    elif old is not None and new is not None:
        if _git_mode(old) != _git_mode(new):
            yield b"old mode %s\nnew mode %s\n" % (_git_mode(old), _git_mode(new))
        if change.kind == RENAMED:
            yield b"rename from %s\n" % quoted(b"", change.old_path or b"")
            yield b"rename to %s\n" % quoted(b"", change.path)


class _Known(difflib.SequenceMatcher[bytes]):
    """Groups what is known to differ."""

    def __init__(self, opcodes: list[Opcode]) -> None:
        super().__init__(None, (), ())
        self._known = opcodes

    def get_opcodes(self) -> list[Opcode]:
        return self._known


def _hunks(before: bytes, after: bytes) -> list[bytes] | None:
    """The hunks of a unified diff; None when too much differs."""
    old, new = _lines(before), _lines(after)
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    if len(old) + len(new) - 2 * (start + end) > LINES_MAX:
        return None
    matcher = difflib.SequenceMatcher(
        None, old[start : len(old) - end], new[start : len(new) - end], autojunk=True
    )
    # The equal lines around are no part of what is compared, and all of the context: one that was
    # compared could be matched with another than its own, and the hunk end without context, which
    # says that the file ends there.
    opcodes: list[Opcode] = [
        (tag, i1 + start, i2 + start, j1 + start, j2 + start)
        for tag, i1, i2, j1, j2 in matcher.get_opcodes()
    ]
    if start:
        opcodes.insert(0, ("equal", 0, start, 0, start))
    if end and opcodes:
        opcodes.append(("equal", len(old) - end, len(old), len(new) - end, len(new)))
    found: list[bytes] = []
    for group in _Known(opcodes).get_grouped_opcodes(CONTEXT_LINES):
        first, last = group[0], group[-1]
        spans = _span(first[1], last[2]), _span(first[3], last[4])
        found.append(b"@@ -%s +%s @@\n" % spans)
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                found += [_line(b" ", each) for each in old[i1:i2]]
                continue
            found += [_line(b"-", each) for each in old[i1:i2]]
            found += [_line(b"+", each) for each in new[j1:j2]]
    return found


def _lines(data: bytes) -> list[bytes]:
    """Lines with their ends: a line feed alone ends one."""
    parts = data.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


def _span(start: int, end: int) -> bytes:
    count = end - start
    begin = start + 1 if count else start
    return b"%d" % begin if count == 1 else b"%d,%d" % (begin, count)


def _line(mark: bytes, text: bytes) -> bytes:
    if text.endswith(b"\n"):
        return mark + text
    return mark + text + b"\n\\ No newline at end of file\n"
