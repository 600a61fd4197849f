"""Putting a tree back as it was: what changes in the tables, and nothing is done. Pure.

Given are the records of now and of then (raw rows, by table), which paths are to go back, and
which names stay whatever was there then ("kept": caches and the like). The answer is what to put
and what to delete so that the tree is again as it was then.

Rules
1. A directory that lives keeps its number, and is moved back; where then's is gone, the one that
   stands at its place is taken for it. Otherwise it comes under a new number.
2. A file that lives and has the same bytes keeps its number. One that is gone, or has other bytes,
   comes under a new number, unless a file with exactly its bytes stands at its place. So whoever
   has the old one open keeps the old bytes, as when a file is replaced by a rename.
3. What has a name that stays (outside of the paths, or kept) is not changed for the sake of another
   name: it is shared if it is the same as then, else the name gets a file of its own.
4. What loses its last name becomes an orphan: it is dropped when nobody has it open.
5. A kept name stays with its directory, and a directory that would go stays for its kept names,
   with these alone. Only where then had a file in the directory's place they go too. A kept name
   that is missing now comes back as anything else.
6. Times of modification and access go back, those of change (ctime) are now, where something
   changed. Parents of restored paths, and directories that stay for kept names, changed now.
7. Chunk records go in as they are: nothing is copied, and all of it is cold, but for extents that
   are warm in what stood there.

Invariants
1. Nothing outside of the paths changes, but for the times and link counts of directories above.
2. Restoring what is there already changes nothing.
3. Every table stays consistent with the others (cache/verify finds nothing).

Called by transfer (in the worker), the commands and the status page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from s3ws_fs.core import keys
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.plaintext import json_name

PATHS_MAX: Final = 10_000
"""Paths of one restore."""
PATHS_LISTED_MAX: Final = 1000
LISTED_BYTES_MAX: Final = 64 << 10
"""Paths of each kind that a summary names, and bytes of them; the counts are of all."""
WARM_BYTES_MAX: Final = 16 << 20
"""Warm bytes that go over to files under new numbers: they are copied while the mount waits."""

Rows = Mapping[bytes, bytes]
IsKept = Callable[[bytes, bool], bool]
"""Whether the name at this path (relative to the root; a directory?) stays as it is."""


class Tables(Protocol):
    """The rows of the journal's tables at one point in time."""

    @property
    def inodes(self) -> Rows: ...
    @property
    def dentries(self) -> Rows: ...
    @property
    def chunks(self) -> Rows: ...
    @property
    def xattrs(self) -> Rows: ...
    @property
    def links(self) -> Rows: ...


class Selection:
    """Which paths go back: a tree of names. With `is_whole`, all that stands at and below it."""

    __slots__ = ("is_lenient", "is_whole", "names", "spares")

    def __init__(self, *, is_whole: bool = False, spares: bool = True) -> None:
        self.is_whole = is_whole
        self.is_lenient = False
        """Of the root: whether a path that is neither there now nor was then is no mistake."""
        self.spares = spares
        """Whether kept names stay: not below a path that is kept itself, and was named."""
        self.names: dict[bytes, Selection] = {}


def nothing_kept(_: bytes, __: bool) -> bool:
    """Every name goes back."""
    return False


def select(paths: Iterable[bytes], is_kept: IsKept, *, lenient: bool = False) -> Selection:
    """The selection of these paths, relative to the root; of everything without any.

    `lenient`: nobody named them now. Raises UserError.
    """
    root = Selection()
    root.is_lenient = lenient
    count = 0
    for path in paths:
        count += 1
        if count > PATHS_MAX:
            raise _usage(f"more than {PATHS_MAX} paths", "name directories above them")
        at = root
        names = [name for name in path.split(b"/") if name not in (b"", b".")]
        if b".." in names:
            raise _usage(f"the path {_shown(path)} holds '..'", "name it without")
        for name in names:
            at = at.names.setdefault(name, Selection())
        at.is_whole = True
        # Named as a whole, it may be either: a directory, or not.
        here = b"/".join(names)
        at.spares = not (names and (is_kept(here, True) or is_kept(here, False)))
    if not count:
        root.is_whole = True
    return root


def _usage(message: str, remedy: str) -> UserError:
    return UserError(message, remedy=remedy, exit_code=ExitCode.USAGE)


def _shown(path: bytes) -> str:
    return repr(path.decode("utf-8", "backslashreplace"))


def missing_error(path: bytes) -> UserError:
    """A path that is neither there now nor was then."""
    return _usage(
        f"there is nothing at {_shown(path)}, now or then",
        "paths are relative to the workspace's root; nothing was changed",
    )


def in_the_way_error(path: bytes, above: bytes) -> UserError:
    """A path below something that is no directory now."""
    return _usage(
        f"{_shown(path)} can't be put back alone: {_shown(above)} is no directory now",
        f"restore {_shown(above)} instead; nothing was changed",
    )


@dataclass(slots=True)
class Listed:
    """Paths of one kind: how many, and the first of them."""

    count: int = 0
    paths: list[bytes] = field(default_factory=list)
    left_bytes: int = LISTED_BYTES_MAX

    def add(self, path: bytes) -> None:
        """One more."""
        self.count += 1
        self.left_bytes -= len(path)
        if len(self.paths) < PATHS_LISTED_MAX and self.left_bytes >= 0:
            self.paths.append(path)


@dataclass(slots=True)
class Summary:
    """What a person is told: names that come, change, or go, and bytes of the files among them.

    A directory that goes or comes counts with each name in it; one that moves counts once.
    """

    added: Listed = field(default_factory=Listed)
    changed: Listed = field(default_factory=Listed)
    deleted: Listed = field(default_factory=Listed)
    kept: Listed = field(default_factory=Listed)
    """Names that stay although then was otherwise."""
    bytes_back: int = 0
    """Bytes of files that come back with their content."""
    bytes_gone: int = 0
    """Bytes of files that go, or are replaced."""

    @property
    def is_nothing(self) -> bool:
        """Whether the tree is as it was then."""
        return not (self.added.count or self.changed.count or self.deleted.count)


@dataclass(slots=True)
class Changes:
    """What to do to the journal's tables, and to the counters."""

    puts: dict[int, dict[bytes, bytes]] = field(
        default_factory=lambda: {table: {} for table in keys.JOURNAL_TABLES}
    )
    gone: dict[int, list[bytes]] = field(
        default_factory=lambda: {table: [] for table in keys.JOURNAL_TABLES}
    )
    """Keys to delete; never of inodes or chunks: what goes is an orphan first. Names of a directory
    that goes come behind its own."""
    orphans: list[bytes] = field(default_factory=list)
    """Keys of inodes that lost their last name; `puts` has their records."""
    warm: list[tuple[bytes, bytes]] = field(default_factory=list)
    """(key of a warm extent, key under which the same bytes are wanted)."""
    next_ino: int = 0
    new_inodes: int = 0
    new_bytes: int = 0
    """Bytes held by the new inodes."""
    orphan_bytes: int = 0
    """Bytes held by those that go: free when they are dropped."""
    summary: Summary = field(default_factory=Summary)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (any(self.puts.values()) or any(self.gone.values()))


@dataclass(frozen=True, slots=True)
class Counters:
    """Of the moment at which the changes are to be made. `generation`: that of the changes."""

    next_ino: int
    generation: int
    now_ns: int


# --- the answer, as it crosses the control socket

KINDS: Final = ("added", "changed", "deleted", "kept")


def path_bytes(path: str) -> bytes:
    """A path as the daemon sends it: a character is a byte."""
    return path.encode("latin-1")


def answer_json(found: dict[str, Any]) -> dict[str, Any]:
    """The daemon's answer for a program: paths by their names."""
    made = dict(found)
    for kind in KINDS:
        names = [json_name(path_bytes(path)) for path in found[kind]["paths"]]
        made[kind] = {"count": found[kind]["count"], "paths": names}
    return made
