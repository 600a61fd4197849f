"""Garbage: what neither the newest state, nor the window of history, nor a snapshot needs.

Runs after a checkpoint was put, within the flush cycle, so that nobody restores a point meanwhile.
Requests: four listings (one a thousand objects), history.json, and of the journal what happened
since the checkpoint before: that checkpoint and one or two for each segment since. All else is
remembered (spans). Then one PUT and one request for a thousand objects to delete.

Invariants
1. Deleted is only what is below journal/seg|ckpt|blob|snap, only after a checkpoint stands whole,
   and, snapshots aside, only what was older than GC_GRACE_S at the seal of that checkpoint, by the
   store's clock.
2. First history.json says from where on all points are kept, then the snapshots that go are
   deleted, then what only these needed. So whatever is said to be kept stands, at any moment.
3. What can't be read of history is an error, and nothing is deleted. When there is more to read
   than one time may (a cache made anew), nothing is deleted either, and the next time goes on.
4. The checkpoint before the newest is kept, and the segment that the newest folds.
5. Unfinished uploads are given up below the prefix only, after a day.

Called by requests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from s3ws_fs.core import failpoints, history, layout, retention
from s3ws_fs.core.errors import FormatError, StoreError
from s3ws_fs.core.history import NAMED
from s3ws_fs.core.retention import Limits, Mark
from s3ws_fs.core.types import BLOB_BIT
from s3ws_fs.store.base import DELETE_BATCH, ListEntry
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points
from s3ws_fs.transfer.freeze import Frozen
from s3ws_fs.transfer.spans import History, TooMuchError, names_of
from s3ws_fs.transfer.spool import open_records

GC_GRACE_S: Final = 3600
UPLOAD_GRACE_S: Final = 24 * 3600.0
"""An upload that takes longer than this is nobody's any more."""
CHECKPOINTS_KEPT: Final = 2
GARBAGE_BATCH: Final = DELETE_BATCH
"""Objects removed at once."""


class CheckpointLostError(FormatError):
    """The checkpoint that was just put does not stand as it was put."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What was done. `is_behind`: history has to be read further before anything may go."""

    removed: int = 0
    snapshots: int = 0
    kept_from: int = 0
    segments_read: int = 0
    is_behind: bool = False


class Needs:
    """Who needs which object, as of the listing: objects by number, as in core.retention."""

    def __init__(
        self,
        known: History,
        segments: Mapping[int, ListEntry],
        checkpoints: Mapping[int, ListEntry],
        newest: int,
        named: Collection[int],
    ) -> None:
        """`named`: what the newest point names."""
        self._known = known
        self._segments = segments
        self._checkpoints = checkpoints
        self._newest = newest
        self._named = named
        self._folds = sorted(checkpoints)

    def base(self, number: int) -> int:
        """The checkpoint of a point; 0 when it has none."""
        return max((fold for fold in self._folds if fold <= number), default=0)

    def of_newest(self) -> set[int]:
        """What the newest state needs, and what invariant 4 keeps with it."""
        kept = self._folds[-CHECKPOINTS_KEPT:]
        return {self._newest, *(-fold for fold in kept), *self._named}

    def of_point(self, mark: Mark) -> set[int]:
        """What a snapshot needs. Raises StoreError, FormatError, TooMuchError."""
        number = mark.number
        base = self.base(number)
        records = {*range(base + 1, number + 1), *([-base] if base else [])}
        if number == self._newest:
            return records | set(self._named)
        entry = self._segments.get(number) or self._checkpoints.get(number)
        if entry is None:
            raise FormatError(mark.key, f"segment {number}, which it names, is not there")
        return records | self._known.names_at(base, number, entry.etag)

    def of_window(self, lowest: int, end_hash: str, marks: Collection[Mark]) -> dict[int, int]:
        """By object the newest point that needs it, for points from `lowest` on."""
        base = self.base(lowest)
        folds = [base, *(fold for fold in self._folds if fold > base)]
        marked = {
            mark.number: self._segments[mark.number].etag
            for mark in marks
            if mark.number in self._segments
        }
        until: dict[int, int] = {}
        for span in self._known.spans(folds, end_hash, marked):
            until.update(span.lost)
        until.update(dict.fromkeys(self._named, self._newest))
        above = (number for number in self._segments if number > base)
        return retention.tops(above, self._checkpoints.keys(), until, self._newest)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is kept, and which snapshots go."""

    needed: set[int]
    kept_from: int
    gone: list[Mark]


def judge(
    needs: Needs,
    marks: Collection[Mark],
    sizes: Mapping[int, int],
    lowest: int,
    newest: tuple[int, str],
    limits: Limits,
    now_ns: int,
) -> Verdict:
    """Apply the limits. `lowest`: the window can't begin before it by now. `newest`: number and
    header hash. Raises StoreError, FormatError, TooMuchError.
    """
    number, end_hash = newest
    gone = retention.expired(marks, now_ns, limits.days)
    marks = [mark for mark in marks if mark not in gone]
    top_of = needs.of_window(lowest, end_hash, marks)
    free = needs.of_newest()
    for mark in marks:
        if mark.kind == NAMED:
            free |= needs.of_point(mark)
    begin, total = retention.fit_window(lowest, number, top_of, sizes, free, limits.max_bytes)
    needed = free | {item for item, top in top_of.items() if top >= begin}
    below = [
        (mark, needs.of_point(mark)) for mark in marks if mark.kind != NAMED and mark.number < begin
    ]
    too_large = retention.fit_snapshots(below, sizes, needed, limits.max_bytes - total)
    for mark, wanted in below:
        if mark not in too_large:
            needed |= wanted
    return Verdict(needed, begin, gone + too_large)


def collect_garbage(
    store: ScopedStore,
    frozen: Frozen,
    limits: Limits,
    directory: Path,
    pool: Executor,
) -> Collected:
    """Delete what nothing needs any more (see above).

    Raises CheckpointLostError; StoreError and FormatError when history can't be read.
    """
    assert frozen.checkpoint is not None and frozen.header is not None
    listed = {
        prefix: _numbered(store, prefix)
        for prefix in (layout.SEG_PREFIX, layout.CKPT_PREFIX, layout.BLOB_PREFIX)
    }
    segments, checkpoints, blobs = listed.values()
    # What later seals name was put after this one: however long we were stopped meanwhile, and
    # whoever goes on now, it is younger than the limit.
    sealed = segments.get(frozen.number)
    sealed_ns = 0 if sealed is None else sealed.modified_ns
    _require_checkpoint(store, frozen, checkpoints)
    segments = {n: entry for n, entry in segments.items() if n <= frozen.number}
    checkpoints = {n: entry for n, entry in checkpoints.items() if n <= frozen.number}
    sizes = {n: entry.size_bytes for n, entry in (*segments.items(), *blobs.items())}
    sizes.update((-n, entry.size_bytes) for n, entry in checkpoints.items())
    workspace = frozen.header.workspace
    kept_from = points.read_kept_from(store, workspace)
    marks = [Mark(s.key, s.number, s.kind, s.modified_ns) for s in points.list_snaps(store)]
    known = History(store, workspace, segments.keys(), directory, pool)
    named = names_of(open_records(frozen.checkpoint, "checkpoint", whole=True).frames(), 0)
    needs = Needs(known, segments, checkpoints, frozen.number, named)
    put_ns = {n: entry.modified_ns for n, entry in (*checkpoints.items(), *segments.items())}
    reachable = retention.reachable_from(segments.keys(), checkpoints.keys(), frozen.number)
    lowest = retention.window_from(
        max(kept_from, reachable), frozen.number, put_ns, sealed_ns, limits.hours
    )
    newest = (frozen.number, frozen.header_hash)
    try:
        verdict = judge(needs, marks, sizes, lowest, newest, limits, sealed_ns)
    except TooMuchError:
        return Collected(segments_read=known.segments_read, is_behind=True)
    limit_ns = sealed_ns - GC_GRACE_S * 1_000_000_000
    garbage = [
        entry.key
        for sign, found in ((-1, checkpoints), (1, segments), (1, blobs))
        for number, entry in found.items()
        if sign * number not in verdict.needed and entry.modified_ns < limit_ns
    ]
    if verdict.kept_from > kept_from and (garbage or verdict.gone):
        kept_from = verdict.kept_from
        _note_kept_from(store, workspace, kept_from)
    dropped = _delete(store, [mark.key for mark in verdict.gone], failpoints.SNAP_EXPIRED)
    removed = _delete(store, garbage, failpoints.GARBAGE_BATCH)
    failpoints.hit(failpoints.GARBAGE_AFTER)
    gone = set(verdict.gone)
    known.keep(mark.number for mark in marks if mark not in gone)
    known.forget_others()
    return Collected(removed, dropped, kept_from, known.segments_read)


def _numbered(store: ScopedStore, prefix: str) -> dict[int, ListEntry]:
    found = {}
    for entry in store.list(prefix):
        number = layout.key_number(entry.key, prefix)
        # A blob without the top bit is none of ours.
        if number and bool(number & BLOB_BIT) == (prefix == layout.BLOB_PREFIX):
            found[number] = entry
    return found


def _note_kept_from(store: ScopedStore, workspace: str, number: int) -> None:
    raw = history.encode_kept_from(workspace, number)
    failpoints.hit(failpoints.HISTORY_BEFORE)
    store.put(layout.HISTORY_KEY, raw, content_type="application/json")
    failpoints.hit(failpoints.HISTORY_AFTER)


def _delete(store: ScopedStore, keys: list[str], point: str) -> int:
    removed = 0
    for at in range(0, len(keys), GARBAGE_BATCH):
        batch = keys[at : at + GARBAGE_BATCH]
        failed = store.delete_many(batch)
        removed += len(batch) - len(failed)
        failpoints.hit(point)
        if failed and point == failpoints.SNAP_EXPIRED:
            # It stands, so what it needs must.
            raise failed[0].error
    return removed


def _require_checkpoint(
    store: ScopedStore, frozen: Frozen, checkpoints: Mapping[int, ListEntry]
) -> None:
    """Raise CheckpointLostError unless the checkpoint has its size; a wrong one is taken away.

    Without it all segments are needed, and with them its loss is none.
    """
    assert frozen.checkpoint is not None
    wanted = frozen.checkpoint.stat().st_size
    entry = checkpoints.get(frozen.number)
    found = None if entry is None else entry.size_bytes
    if found == wanted:
        return
    key = layout.ckpt_key(frozen.number)
    if found is not None:
        store.delete(key)
    message = f"has {found or 0} bytes in the bucket, not the {wanted} that were put"
    raise CheckpointLostError(key, message)


def give_up_uploads(store: ScopedStore) -> int:
    """Abort what killed workers left of multipart uploads; returns how many, as far as it got.

    Never raises: not every server knows the request, not every policy allows it, and nothing
    depends on it but a bill.
    """
    try:
        return store.abort_uploads(UPLOAD_GRACE_S)
    except StoreError:
        return 0
