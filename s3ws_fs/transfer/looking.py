"""Looking at history: what changed between two points, and seal by seal; bytes as of a point.

Memory is that of one point's records, and of what changed in the step that is looked at.

Invariants
1. Reads only. What can't be read any more is an error that names it, never a difference.
2. Between two points that one chain of segments joins, the records are replayed once: the older
   point is what the touched keys held before.
3. Bytes come out in order, verified by their digests; where the journal's are damaged, an object of
   the mirror with the same digest serves, and is told.

Called by the commands, the status page and transfer.forking.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

from s3ws_fs.cache.tableset import Rows, TableSet
from s3ws_fs.core import keys, layout
from s3ws_fs.core.errors import FormatError, NotFoundError, PermanentError
from s3ws_fs.core.journal import KIND_SEGMENT, Frame, Header
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import InodeRec, decode_location
from s3ws_fs.core.treediff import Change, compare
from s3ws_fs.core.treeview import Records, TreeView
from s3ws_fs.core.types import Location
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points as history
from s3ws_fs.transfer.fetch import coalesce, fetch_from_mirror, fetch_group, pieces
from s3ws_fs.transfer.opened import Opened, open_records
from s3ws_fs.transfer.points import Points
from s3ws_fs.transfer.replaying import HANGING, apply
from s3ws_fs.transfer.windowed import windowed

LOG_SEGMENTS_MAX: Final = 10_000
"""Seals that one `log` looks at, counted back from the newest that was asked for."""
JOINT_SEGMENTS: Final = 64
"""So many segments are replayed rather than one more checkpoint with all its records."""
PIECES_AHEAD: Final = 3
"""Pieces of a file (fetch.FETCH_BYTES_MAX each) that are fetched before they are wanted."""
ZEROS: Final = bytes(1 << 20)


class Before(Mapping[bytes, bytes]):
    """A table as it was: what it is now, but for the keys whose old values were noted."""

    def __init__(self, now: Rows, noted: Mapping[bytes, bytes | None]) -> None:
        self._now = now
        self._noted = noted

    def __getitem__(self, key: bytes) -> bytes:
        if key not in self._noted:
            return self._now[key]
        old = self._noted[key]
        if old is None:
            raise KeyError(key)
        return old

    def __contains__(self, key: object) -> bool:
        if key in self._noted:
            return self._noted[key] is not None  # type: ignore[index]
        return key in self._now

    def __iter__(self) -> Iterator[bytes]:
        yield from (key for key in self._now if key not in self._noted)
        yield from (key for key, old in self._noted.items() if old is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True, slots=True)
class _Then:
    """Records as they were."""

    inodes: Before
    dentries: Before
    chunks: Before
    xattrs: Before
    links: Before


@dataclass
class Noting:
    """Tables that go on, and note what they held before."""

    tables: TableSet
    noted: dict[int, dict[bytes, bytes | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """What is there now becomes what was before."""
        self.noted = {table: {} for table in keys.JOURNAL_TABLES}

    def apply(self, opened: Opened) -> None:
        """Apply a segment."""
        for frame in opened.frames():
            self._note(frame)
            apply(self.tables, frame, opened.header.number)

    def _note(self, frame: Frame) -> None:
        if frame.table not in self.noted:
            return
        self._note_keys(frame.table, frame.keys)
        if frame.tombs and frame.table == keys.T_INODES:
            gone = set(frame.keys)
            for table in HANGING:
                rows = self.tables.journal_table(table)
                self._note_keys(table, [key for key in rows if key[:8] in gone])

    def _note_keys(self, table: int, touched: Iterable[bytes]) -> None:
        rows, noted = self.tables.journal_table(table), self.noted[table]
        for key in touched:
            if key not in noted:
                noted[key] = rows.get(key)

    def before(self) -> Records:
        """The records before `begin`."""
        named = keys.TABLE_NAMES.items()
        return _Then(
            **{name: Before(getattr(self.tables, name), self.noted[t]) for t, name in named}
        )

    def changes(self) -> list[Change]:
        """What changed since `begin`. Raises FormatError."""
        return compare(self.before(), self.tables, self.noted)


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed, and the two points, for who wants to read the files."""

    changes: list[Change]
    before: TreeView
    after: TreeView


def difference(
    store: ScopedStore, survey: Points, old: int, new: int, pool: Executor
) -> Difference:
    """What changed from point `old` to point `new` (which may be the earlier one).

    Raises UserError (exit 17), StoreError, FormatError.
    """
    first, last = min(old, new), max(old, new)
    joint = _replayed_once(store, survey, first, last, pool)
    if joint is None:
        earlier: Records = history.load(store, first, survey, pool)
        later: Records = history.load(store, last, survey, pool)
        touched = None
    else:
        earlier, later, touched = joint.before(), joint.tables, joint.noted
    sides = (earlier, later) if old <= new else (later, earlier)
    return Difference(compare(*sides, touched), TreeView(sides[0]), TreeView(sides[1]))


def _replayed_once(
    store: ScopedStore, survey: Points, first: int, last: int, pool: Executor
) -> Noting | None:
    """Invariant 2; None when two replays read less, or no chain joins them."""
    if any(n not in survey.segments for n in range(first + 1, last + 1)):
        return None
    if not (survey.is_kept(first) and survey.is_kept(last)):
        return None
    base = next(survey.bases(last), None)
    if base is None or last - first > max(JOINT_SEGMENTS, last - base + 1):
        return None
    made = Noting(history.load(store, first, survey, pool))
    for opened in _segments(store, survey, first, last, pool):
        made.apply(opened)
    return made


def _segments(
    store: ScopedStore, survey: Points, first: int, last: int, pool: Executor
) -> Iterator[Opened]:
    """The segments after `first` up to `last`, which continue each other."""
    before = survey.header(store, first)[1] if first else ""

    def read(number: int) -> Opened:
        return open_records(store, layout.seg_key(number), survey.workspace, number, KIND_SEGMENT)

    try:
        for opened in windowed(pool, read, range(first + 1, last + 1)):
            if opened.header.prev_hash != before:
                raise FormatError(opened.key, "does not continue the segment before it")
            before = opened.header_hash
            yield opened
    except NotFoundError as exc:
        raise history.no_such_point(
            f"History went while it was read: {exc.key} is gone.",
            "It is not kept any more: try again.",
        ) from exc


# --- seal by seal


@dataclass(frozen=True, slots=True)
class Step:
    """One seal: the segment's header, when the store says it was put, and what it changed."""

    header: Header
    modified_ns: int
    changes: list[Change]


def oldest_step(survey: Points, newest: int) -> int:
    """The first number whose changes can be told, of those that lead up to `newest` without a gap;
    `newest` + 1 when there is none.
    """
    at = newest
    while at in survey.segments and at > 0:
        at -= 1
    # `at` itself has to be rebuilt: a checkpoint, or nothing at all before the first segment.
    while 0 < at <= newest and not (survey.is_kept(at) and _has_base(survey, at)):
        at += 1
    return min(at, newest) + 1


def _has_base(survey: Points, number: int) -> bool:
    return next(survey.bases(number), None) is not None


def steps(
    store: ScopedStore, survey: Points, first: int, last: int, pool: Executor
) -> Iterator[Step]:
    """What the segments `first` to `last` changed, one after the other.

    Raises UserError (exit 17), StoreError, FormatError.
    """
    tables = TableSet(is_local=False)
    if first > 1:
        tables = history.load(store, first - 1, survey, pool)
    made = Noting(tables)
    for opened in _segments(store, survey, first - 1, last, pool):
        made.begin()
        made.apply(opened)
        number = opened.header.number
        yield Step(opened.header, survey.modified_ns(number), made.changes())


# --- bytes


def read_file(
    store: ScopedStore, view: TreeView, rec: InodeRec, path: bytes, pool: Executor
) -> Iterator[bytes]:
    """A file's bytes in order; holes as zeros. Raises StoreError, FormatError.

    `path`: where it stands at that point, to find its object in the mirror should the journal's
    bytes be damaged.
    """
    text = layout.escape_path(path) if path else ""
    items = ((index, decode_location(raw)) for index, raw in view.places(rec))

    def fetch(part: list[tuple[int, Location]]) -> list[tuple[int, bytes]]:
        return fetch_part(store, text, part)

    at = 0
    for part in windowed(pool, fetch, pieces(items), PIECES_AHEAD):
        for index, data in part:
            yield from _zeros(index * EXTENT_BYTES - at)
            yield data[: max(0, rec.size - index * EXTENT_BYTES)]
            at = index * EXTENT_BYTES + len(data)
    yield from _zeros(rec.size - at)


def fetch_part(
    store: ScopedStore, text: str, part: list[tuple[int, Location]]
) -> list[tuple[int, bytes]]:
    """(extent index, bytes) of some extents of a file, verified (invariant 3); `text` is its path
    in the mirror. Raises StoreError, FormatError.
    """
    found: dict[Location, bytes] = {}
    by_location = {loc: index for index, loc in part}
    for group in coalesce(by_location):
        try:
            found.update(fetch_group(store, group))
        except FormatError as exc:
            found.update(_second_copies(store, text, group, by_location, exc))
    return [(index, found[loc]) for index, loc in part]


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield ZEROS[:count]
        count -= len(ZEROS)


def _second_copies(
    store: ScopedStore,
    text: str,
    group: list[Location],
    indexes: Mapping[Location, int],
    error: FormatError,
) -> dict[Location, bytes]:
    """The same bytes from the mirror: the digest decides. Raises `error` where it has others."""
    found = {}
    for loc in group:
        try:
            found.update(fetch_group(store, [loc]))
            continue
        except FormatError:
            pass
        try:
            found[loc] = fetch_from_mirror(store, text, indexes[loc], loc)
        except (NotFoundError, PermanentError, FormatError):
            raise error from None
    return found


def read_whole(
    store: ScopedStore, view: TreeView, rec: InodeRec, path: bytes, pool: Executor
) -> bytes:
    """A small file's bytes at once. Raises StoreError, FormatError."""
    return b"".join(read_file(store, view, rec, path, pool))
