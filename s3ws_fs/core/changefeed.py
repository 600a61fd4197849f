"""What changed, as the cache notes it while somebody looks on, and as a person reads it. Pure.

A mark is one thing that one generation did. Marks of a record that say the same are kept once, with
the newest generation, so that a file that is written a thousand times is one mark.

Invariants
1. `Marks` holds at most MARKS_MAX; what does not fit is counted, never silently left out.
2. A change names paths as they are when it is told: of a file that was renamed since, the new one;
   of what is gone, the one it had.

Called by cache (collecting), daemon and the command.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, NamedTuple

from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.types import ROOT_INO

MARKS_MAX: Final = 20_000
"""Marks that wait for one who looks on."""
DIRS_MAX: Final = 10_000
"""Directories whose paths are remembered after they went."""

NEW: Final = "n"
NAME: Final = "+"
GONE: Final = "-"
CONTENT: Final = "c"
ATTRIBUTES: Final = "a"
BULK: Final = "b"
"""A new inode; a name that stands for it, or no more; its bytes, its attributes; many at once."""
_SHAPE: Final = [int, str, int, int, str]
_KINDS: Final = frozenset((NEW, NAME, GONE, CONTENT, ATTRIBUTES, BULK))

CREATED: Final = "created"
CHANGED: Final = "changed"
TOUCHED: Final = "attributes"
RENAMED: Final = "renamed"
LINKED: Final = "linked"
REMOVED: Final = "removed"
RESTORED: Final = "restored"


class Mark(NamedTuple):
    """`parent` and `name` are those of NAME and GONE only."""

    kind: str
    ino: int
    parent: int = 0
    name: bytes = b""


Noted = tuple[str, int, int, bytes]
"""A mark as it is noted: a plain tuple is made in a tenth of the time, and one is made for each
record that is written while somebody looks on."""


def mark_json(mark: Noted, generation: int) -> list[Any]:
    """A mark as it travels; a character of the name is a byte."""
    kind, ino, parent, name = mark
    return [generation, kind, ino, parent, name.decode("latin-1")]


def mark_from(value: object) -> tuple[int, Mark]:
    """The inverse of `mark_json`. Raises FormatError."""
    if isinstance(value, list) and [type(each) for each in value] == _SHAPE and value[1] in _KINDS:
        with contextlib.suppress(UnicodeEncodeError):
            return value[0], Mark(value[1], value[2], value[3], value[4].encode("latin-1"))
    raise FormatError("a change", f"is none: {value!r:.200}")


def tidy(marks: Sequence[Noted]) -> Sequence[Noted]:
    """What one generation did, without attributes that go with a name: the times of its directory,
    and the links of its file. A change of many at once says it all.
    """
    if len(marks) == 1:
        return marks
    named = set()
    for kind, ino, parent, name in marks:
        if name:
            named.add(ino)
            named.add(parent)
        elif kind == BULK:
            return [Mark(BULK, 0)]
    if not named:
        return marks
    return [mark for mark in marks if mark[0] != ATTRIBUTES or mark[1] not in named]


class Marks:
    """Those of one who looks on, since they were taken last. `lost`: how many did not fit."""

    def __init__(self) -> None:
        self._found: dict[Noted, int] = {}
        self.lost = 0

    def add(self, generation: int, marks: Iterable[Noted]) -> None:
        """Note what a generation did."""
        found = self._found
        for mark in marks:
            if mark in found or len(found) < MARKS_MAX:
                found[mark] = generation
            else:
                self.lost += 1

    def __bool__(self) -> bool:
        return bool(self._found or self.lost)

    def take(self) -> tuple[list[tuple[int, Noted]], int]:
        """All of them by generation, and how many were lost; they are gone here then."""
        taken = sorted(
            ((generation, mark) for mark, generation in self._found.items()), key=lambda x: x[0]
        )
        lost, self._found, self.lost = self.lost, {}, 0
        return taken, lost


# --- for people


@dataclass(frozen=True, slots=True)
class Change:
    """One line: what became of a path. `was`: the path before, of what was renamed."""

    generation: int
    what: str
    path: bytes
    was: bytes | None = None


@dataclass(slots=True)
class Teller:
    """Makes changes of marks. `dir_path` and `paths_of` ask the tree as it is now.

    `dir_path(ino)`: path of a directory (b"" is the root), None when it is gone. `paths_of(ino)`:
    the paths of an inode, none when it is gone.
    """

    dir_path: Callable[[int], bytes | None]
    paths_of: Callable[[int], list[bytes]]
    _dirs: OrderedDict[int, bytes] = field(default_factory=OrderedDict)

    def changes(self, marks: list[tuple[int, Mark]]) -> Iterator[Change]:
        """The changes of one batch, by generation."""
        gone = {m.ino: (m.parent, m.name) for _, m in marks if m.kind == GONE}
        fresh = {mark.ino for _, mark in marks if mark.kind == NEW}
        told: set[int] = set()
        for generation, group in groupby(marks, key=lambda pair: pair[0]):
            step = [mark for _, mark in group]
            yield from self._names(generation, step, gone, fresh, told)
            for mark in step:
                if mark.kind == BULK:
                    yield Change(generation, RESTORED, b"")
                elif mark.kind in (CONTENT, ATTRIBUTES) and mark.ino not in told:
                    what = CHANGED if mark.kind == CONTENT else TOUCHED
                    for path in self._paths(mark.ino, gone):
                        yield Change(generation, what, path)

    def _names(
        self,
        generation: int,
        step: list[Mark],
        gone: dict[int, tuple[int, bytes]],
        fresh: set[int],
        told: set[int],
    ) -> Iterator[Change]:
        names = [mark for mark in step if mark.kind == NAME]
        lost = {mark.ino: mark for mark in step if mark.kind == GONE}
        taken = {(mark.parent, mark.name) for mark in names}
        for mark in names:
            path = self._path(mark.parent, mark.name, gone)
            before = lost.pop(mark.ino, None)
            if before is not None:
                was = self._path(before.parent, before.name, gone)
                yield Change(generation, RENAMED, path, was)
            else:
                is_first = mark.ino in fresh and mark.ino not in told
                yield Change(generation, CREATED if is_first else LINKED, path)
                told.add(mark.ino)
        for mark in lost.values():
            # What another name took the place of is no loss of its own.
            if (mark.parent, mark.name) not in taken:
                yield Change(generation, REMOVED, self._path(mark.parent, mark.name, gone))

    def _paths(self, ino: int, gone: dict[int, tuple[int, bytes]]) -> list[bytes]:
        found = self.paths_of(ino)
        if not found and ino in gone:
            found = [self._path(*gone[ino], gone)]
        return found

    def _path(self, parent: int, name: bytes, gone: dict[int, tuple[int, bytes]]) -> bytes:
        above = self._dir(parent, gone, set())
        return above + b"/" + name if above else name

    def _dir(self, ino: int, gone: dict[int, tuple[int, bytes]], seen: set[int]) -> bytes:
        found = b"" if ino == ROOT_INO else self.dir_path(ino)
        if found is None and ino in gone and ino not in seen:
            parent, name = gone[ino]
            above = self._dir(parent, gone, seen | {ino})
            found = above + b"/" + name if above else name
        if found is None:
            # Gone since before this batch.
            return self._dirs.get(ino, b"?")
        self._dirs[ino] = found
        self._dirs.move_to_end(ino)
        if len(self._dirs) > DIRS_MAX:
            self._dirs.popitem(last=False)
        return found
