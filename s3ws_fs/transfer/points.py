"""Points in history: which there are, which one a reference means, and the tables of one.

Requests: `survey_points` makes one for workspace.json, one for history.json, and a listing of
segments, checkpoints and snapshots (one a thousand objects); `resolve` one or two more (a dozen for
`gen:N`); `load` one or two for the checkpoint and for each segment above it, in parallel.

Invariants
1. Reads only, and only what a listing showed. What was collected as garbage meanwhile, or is not
   kept, is an error that says so (exit 17), never a tree with pieces missing.
2. A point is *kept* when its number is at least that of history.json, or a snapshot names it. Only
   of these do all bytes stand; others may still be listed.
3. Objects are verified as in a restore (header, records digest, chain); a newest checkpoint that is
   damaged is done without in the same way.
4. Times are the store's: when a segment was put.

Called by the worker, the commands, replica and tests. Over any ScopedStore, read-only will do.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from s3ws_fs.cache.tableset import TableSet
from s3ws_fs.core import history, layout
from s3ws_fs.core.errors import ExitCode, FormatError, NotFoundError, UserError
from s3ws_fs.core.history import Ref, Snapshot
from s3ws_fs.core.journal import KIND_CHECKPOINT, KIND_SEGMENT, Header
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.journaling import (
    JSON_BYTES_MAX,
    check_place,
    read_header,
    read_workspace,
)
from s3ws_fs.transfer.opened import Opened, open_records
from s3ws_fs.transfer.replaying import drop_orphans, replay
from s3ws_fs.transfer.windowed import windowed

UNDO_LOOKS_MAX: Final = 64
"""Snapshots that are looked at for what there is to undo."""
THREADS: Final = 8
"""Requests at once, where the caller brings no pool."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a listing says of a journal object."""

    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class SnapKey:
    """What a listing says of a snapshot."""

    key: str
    number: int
    id: str
    modified_ns: int

    @property
    def kind(self) -> str:
        """Its kind, as its key says."""
        return history.kind_of(self.id)


@dataclass(frozen=True, slots=True)
class Point:
    """A point that a reference means. `created_ns` is the clock of who sealed it."""

    number: int
    generation: int
    header_hash: str
    created_ns: int
    snapshot: Snapshot | None = None


@dataclass(slots=True)
class Points:
    """What stands in the journal."""

    workspace: str
    segments: dict[int, Stored]
    checkpoints: dict[int, Stored]
    snaps: list[SnapKey]
    kept_from: int
    _headers: dict[int, tuple[Header, str]] = field(default_factory=dict)

    @property
    def newest(self) -> int:
        """The newest sealed number; 0 when there is none."""
        return max(max(self.segments, default=0), max(self.checkpoints, default=0))

    def numbers(self) -> list[int]:
        """All kept points, rising."""
        named = {snap.number for snap in self.snaps}
        known = self.segments.keys() | self.checkpoints.keys()
        return sorted(n for n in known if n >= self.kept_from or n in named)

    def is_kept(self, number: int) -> bool:
        """Whether all bytes of that point stand."""
        if number not in self.segments and number not in self.checkpoints:
            return False
        return number >= self.kept_from or any(snap.number == number for snap in self.snaps)

    def bases(self, number: int) -> Iterator[int]:
        """Checkpoints (0: none) from which that point can be rebuilt, the best first."""
        for base in (*sorted((n for n in self.checkpoints if n <= number), reverse=True), 0):
            if all(n in self.segments for n in range(base + 1, number + 1)):
                yield base

    def modified_ns(self, number: int) -> int:
        """When it was put, by the store's clock."""
        found = self.segments.get(number) or self.checkpoints.get(number)
        return found.modified_ns if found is not None else 0

    def header(self, store: ScopedStore, number: int) -> tuple[Header, str]:
        """The header that stands for a number, and the hash of that segment's header.

        Raises StoreError, FormatError.
        """
        known = self._headers.get(number)
        if known is None:
            known = self._headers[number] = self._read_header(store, number)
        return known

    def _read_header(self, store: ScopedStore, number: int) -> tuple[Header, str]:
        if number in self.segments:
            key = layout.seg_key(number)
            header, digest = read_header(store, key)
        else:
            # The segment that a checkpoint folded is gone: it names its hash.
            key = layout.ckpt_key(number)
            header, _ = read_header(store, key)
            digest = header.prev_hash
        check_place(header, key, self.workspace, number)
        return header, digest

    def headers(
        self, store: ScopedStore, numbers: Iterable[int], pool: Executor | None = None
    ) -> Iterator[tuple[int, Header]]:
        """Headers of many points, in the order asked for, read in parallel."""
        with _pool(pool) as threads:
            wanted = list(numbers)
            found = windowed(threads, lambda n: self.header(store, n)[0], wanted)
            yield from zip(wanted, found, strict=True)

    def snapshots(
        self, store: ScopedStore, pool: Executor | None = None
    ) -> Iterator[Snapshot | FormatError]:
        """What all snapshots say, by number; of a damaged one why. Raises StoreError."""

        def read(snap: SnapKey) -> Snapshot | FormatError | None:
            try:
                return read_snapshot(store, snap.key, self.workspace)
            except NotFoundError:
                # Dropped since it was listed.
                return None
            except FormatError as exc:
                return exc

        with _pool(pool) as threads:
            for found in windowed(threads, read, self.snaps):
                if found is not None:
                    yield found


@contextmanager
def _pool(given: Executor | None) -> Iterator[Executor]:
    if given is not None:
        yield given
        return
    with ThreadPoolExecutor(THREADS, "points") as made:
        yield made


def survey_points(store: ScopedStore) -> Points:
    """What stands in the journal. Raises StoreError, FormatError, UserError (no workspace)."""
    workspace = read_workspace(store)
    if workspace is None:
        raise UserError(
            "There is no workspace in the bucket under this prefix.",
            remedy="Check bucket and ids; a workspace is made by its first mount.",
            exit_code=ExitCode.NO_SUCH_POINT,
        )
    # Before the objects: what is removed is said here first.
    kept_from = read_kept_from(store, workspace)
    snaps = list_snaps(store)
    found = []
    for prefix in (layout.CKPT_PREFIX, layout.SEG_PREFIX):
        stored = {}
        for entry in store.list(prefix):
            number = layout.key_number(entry.key, prefix)
            if number is not None:
                stored[number] = Stored(entry.size_bytes, entry.modified_ns)
        found.append(stored)
    checkpoints, segments = found
    return Points(workspace, segments, checkpoints, snaps, kept_from)


def list_snaps(store: ScopedStore) -> list[SnapKey]:
    """All snapshots, by number. Raises StoreError."""
    found = []
    for entry in store.list(layout.SNAP_PREFIX):
        split = history.split_snap_key(entry.key)
        if split is not None:
            found.append(SnapKey(entry.key, *split, entry.modified_ns))
    return sorted(found, key=lambda snap: (snap.number, snap.modified_ns, snap.id))


def read_kept_from(store: ScopedStore, workspace: str | None) -> int:
    """The number from which on all points are kept. Raises StoreError, FormatError."""
    try:
        raw = store.get(layout.HISTORY_KEY, 0, JSON_BYTES_MAX).data
    except NotFoundError:
        # Nothing of history was collected yet.
        return 1
    return history.decode_kept_from(raw, workspace)


def read_snapshot(store: ScopedStore, key: str, workspace: str | None) -> Snapshot:
    """A snapshot's object, verified. Raises StoreError, FormatError."""
    raw = store.get(key, 0, history.SNAP_BYTES_MAX + 1).data
    snap = history.decode_snapshot(raw, key)
    if snap.workspace != workspace:
        raise FormatError(key, f"belongs to workspace {snap.workspace}")
    return snap


# --- which point a reference means


def no_such_point(message: str, remedy: str) -> UserError:
    """The error for a point that is not there (any more)."""
    return UserError(message, remedy=remedy, exit_code=ExitCode.NO_SUCH_POINT)


def resolve(
    store: ScopedStore,
    ref: str,
    now_ns: int,
    points: Points | None = None,
    *,
    head: int | None = None,
) -> Point:
    """The point that a reference means (core/history). Raises UserError, StoreError, FormatError.

    `points`: a survey made just before. `head`: generation of what is undone, in a living cache.
    """
    wanted = history.parse_ref(ref, now_ns)
    points = survey_points(store) if points is None else points
    snap: Snapshot | None = None
    if wanted.form in (history.NAME, history.TURN):
        snap = _by_name(store, points, wanted)
    elif wanted.form == history.UNDO:
        snap = _undo(store, points, head)
    number = _number(store, points, wanted) if snap is None else snap.number
    if not points.is_kept(number):
        raise _not_kept(points, number)
    header, digest = points.header(store, number)
    if snap is not None and snap.header_hash != digest:
        raise FormatError(snap.key, f"is of another segment {number} than the one that stands")
    return Point(number, header.generation, digest, header.created_ns, snap)


def _number(store: ScopedStore, points: Points, wanted: Ref) -> int:
    numbers = points.numbers()
    if not numbers:
        raise no_such_point(
            "Nothing of this workspace was sealed yet.", "Run `s3ws sync` on its mount first."
        )
    if wanted.form == history.HEAD:
        return points.newest
    if wanted.form == history.NUMBER:
        return wanted.number
    if wanted.form == history.TIME:
        at = bisect_right(numbers, wanted.number, key=points.modified_ns)
        what = "was sealed then or before"
    else:
        at = bisect_right(
            numbers, wanted.number, key=lambda n: points.header(store, n)[0].generation
        )
        what = "has that generation or one before"
    if not at:
        raise no_such_point(f"No point {what}: {wanted.text!a}.", _reaches_back(points))
    return numbers[at - 1]


def _reaches_back(points: Points) -> str:
    numbers = points.numbers()
    if not numbers:
        return "Nothing is kept."
    when = datetime.fromtimestamp(points.modified_ns(numbers[0]) // 1_000_000_000, UTC)
    return f"History goes back to #{numbers[0]}, of {when:%Y-%m-%d %H:%M:%S} UTC."


def _not_kept(points: Points, number: int) -> UserError:
    if number > points.newest:
        return no_such_point(
            f"There is no point #{number}: the newest is #{points.newest}.",
            _reaches_back(points),
        )
    return no_such_point(f"Point #{number} is not kept any more.", _reaches_back(points))


def _by_name(store: ScopedStore, points: Points, wanted: Ref) -> Snapshot:
    ident = history.snap_id(wanted.kind, wanted.name, 0)
    found = []
    for snap in points.snaps:
        if snap.id == ident:
            read = read_snapshot(store, snap.key, points.workspace)
            if read.name == wanted.name:
                found.append(read)
    if len(found) == 1:
        return found[0]
    if found:
        numbers = ", ".join(f"#{snap.number}" for snap in found)
        raise no_such_point(f"{wanted.text!a} names several points.", f"Say which one: {numbers}.")
    what = "snapshot" if wanted.form == history.NAME else f"mark {wanted.kind} of a turn"
    alike = [
        snap.name
        for snap in points.snapshots(store)
        if isinstance(snap, Snapshot) and snap.kind == wanted.kind
    ]
    remedy = history.near_names(wanted.name, alike)
    raise no_such_point(f"There is no {what} called {wanted.name!a}.", remedy)


def _undo(store: ScopedStore, points: Points, head: int | None) -> Snapshot:
    before = [snap for snap in points.snaps if snap.kind in history.UNDOABLE]
    for each in reversed(before[-UNDO_LOOKS_MAX:]):
        snap = read_snapshot(store, each.key, points.workspace)
        # One of the newest generation is of a restore that was never made: of its snapshot only the
        # answer was lost. To go back to it would be nothing, and hide what is to be undone.
        if snap.generation != head:
            return snap
    raise no_such_point(
        "There is nothing to undo.",
        "`s3ws undo` brings back what stood before the last restore.",
    )


# --- the tables of a point


def load(
    store: ScopedStore, number: int, points: Points | None = None, pool: Executor | None = None
) -> TableSet:
    """All tables as of segment `number`: places absolute, without files that had no name then.

    Raises UserError (exit 17: not kept), StoreError, FormatError. `points`: a survey made just
    before.
    """
    points = survey_points(store) if points is None else points
    if not points.is_kept(number):
        raise _not_kept(points, number)
    damaged: FormatError | None = None
    with _pool(pool) as threads:
        for base in points.bases(number):
            try:
                objects = _in_order(store, points, base, number, threads)
                tables = replay((each.header, each.frames()) for each in objects)
            except NotFoundError as exc:
                raise went_meanwhile(number, exc.key) from exc
            except FormatError as exc:
                if exc.where != layout.ckpt_key(base):
                    raise
                damaged = exc
                continue
            drop_orphans(tables)
            return tables
    raise damaged or pieces_missing(number)


def went_meanwhile(number: int, key: str) -> UserError:
    """The error for a point of which an object was collected since it was listed."""
    return no_such_point(
        f"Point #{number} went while it was read: {key} is gone.",
        "It is not kept any more, or the journal went on: try again.",
    )


def pieces_missing(number: int) -> FormatError:
    """The error for a point that is kept, and can't be rebuilt."""
    return FormatError(
        layout.seg_key(number), f"segments that point #{number} is rebuilt from are missing"
    )


def _in_order(
    store: ScopedStore, points: Points, base: int, number: int, pool: Executor
) -> Iterator[Opened]:
    """The checkpoint `base` (0: none) and the segments above it, each continuing the one before."""
    jobs = [(layout.seg_key(n), n, KIND_SEGMENT) for n in range(base + 1, number + 1)]
    if base:
        jobs.insert(0, (layout.ckpt_key(base), base, KIND_CHECKPOINT))
    before = ""
    fetched = windowed(
        pool, lambda job: open_records(store, job[0], points.workspace, job[1], job[2]), jobs
    )
    for opened in fetched:
        prev = opened.header.prev_hash
        if opened.header.kind == KIND_CHECKPOINT:
            before = prev
        else:
            if (before or opened.header.number == 1) and prev != before:
                raise FormatError(opened.key, "does not continue the segment before it")
            before = opened.header_hash
        yield opened
