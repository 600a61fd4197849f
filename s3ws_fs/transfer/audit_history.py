"""History for the audit: what the points that are kept need, and whether all of that stands.

Invariants
1. Judged is what docs/format.md says is kept: every point from the number of history.json on, and
   those that snapshots name. Of the newest state the audit itself tells.
2. Records are read again, span by span, where the audit did not keep them: one point's tables are
   in memory at a time.
3. What nobody needs is named by nobody here: `needed` and `named` are exactly what the kept points
   need, so that the audit can tell damage from garbage.

Called by audit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import suppress

from s3ws_fs.cache.tableset import TableSet
from s3ws_fs.core import keys, layout
from s3ws_fs.core.errors import FormatError, NotFoundError
from s3ws_fs.core.findings import Finding, damage
from s3ws_fs.core.history import Snapshot, split_snap_key
from s3ws_fs.core.journal import KIND_CHECKPOINT, KIND_SEGMENT, Frame
from s3ws_fs.core.records import decode_location
from s3ws_fs.store.base import ListEntry
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import points, replaying
from s3ws_fs.transfer.audit_journal import Chain, JournalObject
from s3ws_fs.transfer.opened import open_records
from s3ws_fs.transfer.points import Points, SnapKey, Stored

Progress = Callable[[dict[str, object]], None]


class HistoryAudit:
    """After `run`: `needed` are keys of journal objects whose records kept points need, `named` ids
    of the objects that these name."""

    def __init__(
        self,
        store: ScopedStore,
        pool: Executor,
        workspace: str,
        listing: Mapping[str, ListEntry],
        chain: Chain,
    ) -> None:
        self._store = store
        self._pool = pool
        self._listing = listing
        self._chain = chain
        self._workspace = workspace
        self._ends: dict[int, tuple[int, str]] = {}
        """By object id: how far records of points reach into it, and a point that says so."""
        self.needed: set[str] = set()
        self.points = 0

    @property
    def named(self) -> set[int]:
        """Ids of the objects that kept points name."""
        return set(self._ends)

    def run(self, progress: Progress) -> Iterator[Finding]:
        """Everything that is wrong. Raises StoreError."""
        kept_from = self._chain.newest
        try:
            kept_from = points.read_kept_from(self._store, self._workspace)
        except FormatError as exc:
            message = f"{exc.why}: no garbage is removed, and only the newest point is shown"
            yield damage("history-file", layout.HISTORY_KEY, message)
        survey = self._survey(kept_from)
        wanted: dict[int, str] = {}
        for found in survey.snapshots(self._store, self._pool):
            if isinstance(found, FormatError):
                yield damage("snapshot", found.where, found.why)
                continue
            problem = self._of_another(found)
            if problem:
                yield damage("snapshot", found.key, problem)
            elif found.number < kept_from:
                wanted[found.number] = f"snapshot {found.ref}"
        yield from self._snapshots(survey, wanted, progress)
        yield from self._window(survey, min(kept_from, self._chain.newest), progress)
        self.points = len(survey.numbers())
        yield from self._exist()

    def _survey(self, kept_from: int) -> Points:
        snaps = []
        for key, entry in self._listing.items():
            split = split_snap_key(key)
            if split is not None:
                snaps.append(SnapKey(key, *split, entry.modified_ns))
        stored = {
            kind: {
                number: Stored(each.size_bytes, self._listing[each.key].modified_ns)
                for number, each in objects.items()
            }
            for kind, objects in (("seg", self._chain.segments), ("ckpt", self._chain.checkpoints))
        }
        snaps.sort(key=lambda snap: snap.number)
        return Points(self._workspace, stored["seg"], stored["ckpt"], snaps, kept_from)

    def _of_another(self, snap: Snapshot) -> str:
        """Why a snapshot names no point that stands; "" when it does."""
        segment = self._chain.segments.get(snap.number)
        if segment is not None:
            known = segment.header_hash
        else:
            folded = self._chain.checkpoints.get(snap.number)
            if folded is None:
                return f"segment {snap.number}, which it names, is not there"
            known = "" if folded.header is None else folded.header.prev_hash
        if known and known != snap.header_hash:
            return f"it is of another segment {snap.number} than the one that stands"
        return ""

    # --- replaying

    def _snapshots(
        self, survey: Points, wanted: Mapping[int, str], progress: Progress
    ) -> Iterator[Finding]:
        """Points before the window: those of one checkpoint by one replay."""
        by_base: dict[int, list[int]] = {}
        for number in sorted(wanted):
            base = max((n for n in survey.checkpoints if n <= number), default=0)
            by_base.setdefault(base, []).append(number)
        for base, numbers in by_base.items():
            progress({"phase": "reading history", "done": numbers[0], "total": numbers[-1]})
            missing = self._need(base, range(base + 1, numbers[-1] + 1))
            for number in missing:
                label = next(wanted[n] for n in numbers if n >= number)
                yield self._gap(number, label)
            if not missing:
                yield from self._replay(base, {n: wanted[n] for n in numbers}, numbers[-1])

    def _window(self, survey: Points, first: int, progress: Progress) -> Iterator[Finding]:
        """All points from `first` on, but for what the newest state alone needs."""
        newest = self._chain.newest
        if not newest:
            return
        base = max((n for n in survey.checkpoints if n <= first), default=0)
        while base < newest:
            following = min((n for n in survey.checkpoints if n > base), default=newest)
            progress({"phase": "reading history", "done": base, "total": newest})
            label = f"history from #{first}"
            # The segment that a checkpoint folds may be gone: its tables are read from that one.
            last = following if following in survey.segments else following - 1
            missing = self._need(base, range(base + 1, last + 1))
            if following < newest or following in survey.checkpoints:
                self.needed.add(layout.ckpt_key(following))
            for number in missing:
                yield self._gap(number, label)
            if not missing:
                every = dict.fromkeys(range(max(first, base), last + 1), label)
                yield from self._replay(base, every, last)
            base = following

    def _need(self, base: int, segments: range) -> list[int]:
        """Note what a replay needs; returns the numbers of segments that are missing."""
        if base:
            self.needed.add(layout.ckpt_key(base))
        self.needed.update(layout.seg_key(number) for number in segments)
        return [number for number in segments if number not in self._chain.segments]

    def _gap(self, number: int, label: str) -> Finding:
        message = f"segment {number} is missing, and {label} needs it"
        return damage("history-gap", layout.seg_key(number), message)

    def _replay(self, base: int, wanted: Mapping[int, str], last: int) -> Iterator[Finding]:
        """Note what the points of `wanted` (with what needs them) name."""
        tables = TableSet(is_local=False)
        has_begun = False
        try:
            if base:
                self._apply(tables, self._chain.checkpoints[base])
                if base in wanted:
                    self._note(tables.chunks.values(), wanted[base])
                    has_begun = base + 1 in wanted
            for number in range(base + 1, last + 1):
                placed = self._apply(tables, self._chain.segments[number])
                if number in wanted:
                    # Of neighbours the later one names besides only what it placed itself.
                    self._note(placed if has_begun else tables.chunks.values(), wanted[number])
                has_begun = number in wanted
        except NotFoundError as exc:
            yield damage("object-missing", exc.key, "it was listed, and is gone")
        except FormatError:
            # Told with the object itself: what its key is in `needed` for.
            return

    def _apply(self, tables: TableSet, each: JournalObject) -> list[bytes]:
        """Apply an object; returns the chunk records that it puts."""
        placed: list[bytes] = []
        for frame in self._frames(each):
            replaying.apply(tables, frame, each.number)
            if frame.table == keys.T_CHUNKS and not frame.tombs:
                placed += (replaying.absolute(raw, each.number) for raw in frame.values)
        return placed

    def _frames(self, each: JournalObject) -> Iterable[Frame]:
        if each.frames is not None:
            return each.frames
        kind = KIND_CHECKPOINT if each.kind == KIND_CHECKPOINT else KIND_SEGMENT
        opened = open_records(self._store, each.key, self._workspace, each.number, kind)
        return opened.frames()

    def _note(self, records: Iterable[bytes], label: str) -> None:
        for raw in records:
            with suppress(FormatError):
                place = decode_location(raw)
                end = place.offset + place.length
                known = self._ends.get(place.object_id)
                if known is None or known[0] < end:
                    self._ends[place.object_id] = (end, label)

    def _exist(self) -> Iterator[Finding]:
        """Whether each object that a point names stands, and is long enough."""
        for object_id, (end, label) in self._ends.items():
            try:
                key = layout.object_key(object_id)
            except FormatError:
                continue
            entry = self._listing.get(key)
            if entry is None:
                yield damage("object-missing", key, f"records of {label} name it")
            elif entry.size_bytes < end:
                message = f"it has {entry.size_bytes} bytes; {label} places others in it"
                yield damage("object-size", key, message)
