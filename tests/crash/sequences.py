"""All short sequences of operations, after ACE (OSDI '18): bounded, all of them, none symmetric.

The bound: up to 3 operations of KINDS, on the names a, b, c in the directories A and B. What the
first operation on a path needs is there from the beginning, sealed: a file to be written, a
directory to be removed.

Invariants
1. Every sequence succeeds, operation by operation: one that fails changes nothing, and a crash
   after it is a crash before it.
2. Of sequences that differ only in the names of directories, or of names within a directory, there
   is one: the one whose paths appear in order.
3. Each prefix of a sequence is a sequence, so a crash after the last operation of each is a crash
   after each operation of all.

Pure. Called by ace.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from tests.support.files_model import Files, Op

DIRECTORIES: Final = ("A", "B")
NAMES: Final = ("a", "b", "c")
KINDS: Final = (
    "create", "write", "append", "truncate", "link", "rename", "unlink", "mkdir", "rmdir",
    "setxattr", "fsync", "fsync-directory",
)  # fmt: skip

FILE: Final = "file"
DIRECTORY: Final = "directory"
ABSENT: Final = "absent"

FILE_BYTES: Final = 5000
NEEDS: Final = {
    "create": ABSENT, "mkdir": ABSENT, "rmdir": DIRECTORY, "write": FILE, "append": FILE,
    "truncate": FILE, "unlink": FILE, "setxattr": FILE, "fsync": FILE,
}  # fmt: skip
"""What an operation on one path needs there."""
LEAVES: Final = {"create": FILE, "mkdir": DIRECTORY, "rmdir": ABSENT, "unlink": ABSENT}


def data_of(*what: object) -> bytes:
    """Bytes that are the same each time."""
    return random.Random(repr(what)).randbytes(FILE_BYTES)


@dataclass(frozen=True, slots=True)
class Sequence:
    """`begins`: what is there from the beginning, as (path, FILE or DIRECTORY)."""

    begins: tuple[tuple[str, str], ...]
    ops: tuple[Op, ...]

    def __str__(self) -> str:
        there = ", ".join(f"{path} ({kind})" for path, kind in self.begins)
        return f"[{there}] " + "; ".join(map(str, self.ops))

    def setup(self) -> list[Op]:
        """The operations that make the beginning."""
        made = [Op("mkdir", name) for name in DIRECTORIES]
        for path, kind in self.begins:
            if kind == DIRECTORY:
                made.append(Op("mkdir", path))
            else:
                made += [Op("create", path), Op("write", path, data=data_of(path))]
        return made

    def succeeds(self) -> bool:
        """Invariant 1; a rename onto another link of the file does nothing, so what follows may
        fail after all."""
        files = Files()
        return not any(files.apply(op) for op in (*self.setup(), *self.ops))


@dataclass(frozen=True, slots=True)
class _At:
    """Where an enumeration stands: paths in order of appearance, and what is where now."""

    seen: tuple[str, ...] = ()
    now: tuple[tuple[str, str], ...] = ()
    begins: tuple[tuple[str, str], ...] = ()
    ops: tuple[Op, ...] = ()

    def at(self, path: str) -> str | None:
        """What is there; None when nobody looked yet."""
        return dict(self.now).get(path)

    def look(self, path: str, kind: str) -> _At | None:
        """With `kind` at `path`: as it is, or so from the beginning; None when it is otherwise."""
        there = self.at(path)
        if there is not None:
            return self if there == kind else None
        begins = self.begins if kind == ABSENT else (*self.begins, (path, kind))
        return _At((*self.seen, path), (*self.now, (path, kind)), begins, self.ops)

    def put(self, path: str, kind: str) -> _At:
        """After a change."""
        now = {**dict(self.now), path: kind}
        return _At(self.seen, tuple(now.items()), self.begins, self.ops)

    def done(self, op: Op) -> _At:
        """After an operation."""
        return _At(self.seen, self.now, self.begins, (*self.ops, op))

    def paths(self) -> Iterator[str]:
        """Paths to choose from: those seen, and the next of each directory (invariant 2)."""
        used = [name for name in DIRECTORIES if any(p.startswith(name) for p in self.seen)]
        yield from self.seen
        for name in DIRECTORIES[: len(used) + 1]:
            count = sum(path.startswith(name + "/") for path in self.seen)
            if count < len(NAMES):
                yield f"{name}/{NAMES[count]}"


def sequences(length: int, every: int = 1) -> Iterator[Sequence]:
    """All of exactly that length; or about every so many of them, in the same order."""
    for at in islice(_after(_At(), length), 0, None, every):
        found = Sequence(tuple(sorted(at.begins)), at.ops)
        if found.succeeds():
            yield found


def _after(at: _At, length: int) -> Iterator[_At]:
    if length == 0:
        yield at
        return
    for kind in KINDS:
        for following in _one(at, kind):
            yield from _after(following, length - 1)


def _one(at: _At, kind: str) -> Iterator[_At]:
    number = len(at.ops)
    if kind == "fsync-directory":
        used = {path[0] for path in at.seen}
        for name in DIRECTORIES[: max(1, len(used))]:
            yield at.done(Op("fsync", name))
    elif kind in ("link", "rename"):
        yield from _two_paths(at, kind)
    else:
        for path in at.paths():
            found = at.look(path, NEEDS[kind])
            if found is not None:
                left = found.put(path, LEAVES[kind]) if kind in LEAVES else found
                yield left.done(_op(kind, path, number))


def _two_paths(at: _At, kind: str) -> Iterator[_At]:
    for path in at.paths():
        for what in (FILE, DIRECTORY) if kind == "rename" else (FILE,):
            if what == DIRECTORY and at.at(path) is None:
                continue
            source = at.look(path, what)
            if source is None:
                continue
            for other in source.paths():
                if other == path:
                    continue
                for there in (ABSENT, what) if kind == "rename" else (ABSENT,):
                    found = source.look(other, there)
                    if found is None:
                        continue
                    left = found.put(other, what)
                    if kind == "rename":
                        left = left.put(path, ABSENT)
                    yield left.done(Op(kind, path, other))


def _op(kind: str, path: str, number: int) -> Op:
    if kind == "write":
        return Op(kind, path, at=3000, data=data_of(path, number))
    if kind == "append":
        return Op(kind, path, data=data_of(path, number)[:100])
    if kind == "truncate":
        return Op(kind, path, at=1000 + number)
    if kind == "setxattr":
        return Op(kind, path, data=b"value %d" % number)
    return Op(kind, path)
