"""The journal for the audit: every object's header and records, the chain, and what replay gives.

Invariants
1. As a restore reads it, but to the end: what is wrong with one object is a finding, and the others
   are read all the same. Only what a restore needs (newest checkpoint, segments above it) decides
   whether there is a state to go on with.
2. Reads nothing but what the listing showed; what was sealed meanwhile is left to the next audit.

Called by audit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

from s3ws_fs.cache.tableset import TableSet
from s3ws_fs.core import journal, keys, layout
from s3ws_fs.core.errors import FormatError, NotFoundError
from s3ws_fs.core.findings import Finding, damage
from s3ws_fs.core.journal import HEADER_BYTES, KIND_CHECKPOINT, KIND_SEGMENT, Frame, Header
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import decode_location
from s3ws_fs.core.types import Location
from s3ws_fs.store.base import ListEntry
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import replaying
from s3ws_fs.transfer.windowed import windowed


@dataclass(slots=True)
class JournalObject:
    """A segment or checkpoint: `frames` is None when its records can't be used."""

    key: str
    kind: str
    number: int
    size_bytes: int
    header: Header | None = None
    header_hash: str = ""
    frames: list[Frame] | None = None
    problems: list[Finding] = field(default_factory=list)

    def let_go(self) -> None:
        """Its records are not needed any more: memory is for those of the newest state."""
        self.frames = None

    def wrong(self, code: str, message: str) -> None:
        """Note a problem."""
        self.problems.append(damage(code, self.key, message))

    def locations(self) -> Iterator[Location]:
        """All places that its records name, whether they still count or not."""
        for frame in self.frames or ():
            if frame.table == keys.T_CHUNKS and not frame.tombs:
                for raw in frame.values:
                    try:
                        yield decode_location(replaying.absolute(raw, self.number))
                    except FormatError:
                        # Told by whoever judges the replayed records.
                        continue


def journal_objects(listing: Mapping[str, ListEntry]) -> list[JournalObject]:
    """Segments and checkpoints of a listing, by kind and number."""
    found = []
    for key, entry in listing.items():
        for prefix, kind in (
            (layout.SEG_PREFIX, KIND_SEGMENT),
            (layout.CKPT_PREFIX, KIND_CHECKPOINT),
        ):
            number = layout.key_number(key, prefix)
            if number is not None:
                found.append(JournalObject(key, kind, number, entry.size_bytes))
    return sorted(found, key=lambda each: (each.kind, each.number))


def read_all(
    store: ScopedStore, pool: Executor, objects: Iterable[JournalObject], workspace: str | None
) -> Iterator[JournalObject]:
    """Fill in header and records of each, in order, with what is wrong about it alone.

    Raises StoreError when the store does not answer.
    """

    def read(each: JournalObject) -> JournalObject:
        try:
            _read(store, each)
        except NotFoundError:
            each.wrong("object-missing", "it was listed, and is gone")
        except FormatError as exc:
            each.wrong("object-damaged", exc.why)
        if each.header is not None:
            _check_alone(each, each.header, workspace)
        return each

    yield from windowed(pool, read, objects)


def _read(store: ScopedStore, each: JournalObject) -> None:
    raw = store.get(each.key, 0, HEADER_BYTES).data
    header = journal.decode_header(raw, each.key)
    each.header, each.header_hash = header, journal.header_hash(raw)
    if each.size_bytes != header.total_bytes:
        each.wrong("object-size", f"{each.size_bytes} bytes, its header says {header.total_bytes}")
    records = store.get(each.key, header.records_offset, header.records_bytes).data
    journal.check_records(header, records, each.key)
    each.frames = list(journal.decode_frames(records, each.key))


def _check_alone(each: JournalObject, header: Header, workspace: str | None) -> None:
    said = (header.kind, header.number, header.extent_bytes)
    if said != (each.kind, each.number, EXTENT_BYTES):
        each.wrong("journal-chain", f"it says of itself: {said[0]} {said[1]}, extents of {said[2]}")
        each.frames = None
    if workspace is not None and header.workspace != workspace:
        each.wrong("journal-chain", f"it belongs to workspace {header.workspace}")
        each.frames = None
    before = each.number - (each.kind == KIND_SEGMENT)
    if header.prev_number != before:
        each.wrong("journal-chain", f"it continues {header.prev_number}, not {before}")
    if each.frames is None:
        return
    puts = sum(len(frame.keys) for frame in each.frames if not frame.tombs)
    tombs = sum(len(frame.keys) for frame in each.frames if frame.tombs)
    if (puts, tombs) != (header.puts, header.tombs):
        each.wrong(
            "journal-counts",
            f"{puts} records and {tombs} tombstones, its header says {header.puts}, {header.tombs}",
        )
    if each.kind == KIND_CHECKPOINT and (tombs or header.data_bytes or not _rises(each.frames)):
        each.wrong("journal-counts", "no checkpoint is like that: tombstones, data, or order")


def _rises(frames: list[Frame]) -> bool:
    last: dict[int, bytes] = {}
    for frame in frames:
        for key in frame.keys:
            if key <= last.get(frame.table, b""):
                return False
            last[frame.table] = key
    return True


class Chain:
    """What the objects say together: which a restore needs, and does each continue another?"""

    def __init__(self, objects: list[JournalObject]) -> None:
        self.segments = {each.number: each for each in objects if each.kind == KIND_SEGMENT}
        self.checkpoints = {each.number: each for each in objects if each.kind == KIND_CHECKPOINT}
        self.base = max(self.checkpoints, default=0)
        self.newest = max((*self.segments, self.base))
        above = range(self.base + 1, self.newest + 1)
        self.missing = [number for number in above if number not in self.segments]
        self.needed = [self.segments[number] for number in above if number in self.segments]
        if self.base:
            self.needed.insert(0, self.checkpoints[self.base])

    @property
    def is_whole(self) -> bool:
        """Whether everything a restore needs can be used."""
        return not self.missing and all(each.frames is not None for each in self.needed)

    @property
    def broken(self) -> list[JournalObject]:
        """Needed objects that can't be used."""
        return [each for each in self.needed if each.frames is None]

    @property
    def newest_header(self) -> Header | None:
        """Header of the newest needed object."""
        return self.needed[-1].header if self.needed else None

    def run(self) -> Iterator[Finding]:
        """Gaps, and links between neighbours."""
        for number in self.missing:
            message = f"segment {number} is missing above checkpoint {self.base}"
            yield damage("journal-gap", layout.seg_key(number), message)
        for number, each in sorted(self.segments.items()):
            before = self.segments.get(number - 1)
            if before is None:
                before_hash = "" if number == 1 else None
                folded = self.checkpoints.get(number - 1)
                if folded is not None and folded.header is not None:
                    before_hash = folded.header.prev_hash
            else:
                before_hash = before.header_hash or None
            yield from _continues(each, before_hash, before)
        for number, each in sorted(self.checkpoints.items()):
            folded = self.segments.get(number)
            if folded is not None and folded.header_hash:
                yield from _continues(each, folded.header_hash, folded)


def _continues(
    each: JournalObject, before_hash: str | None, before: JournalObject | None
) -> Iterator[Finding]:
    header = each.header
    if header is None or before_hash is None:
        return
    if header.prev_hash != before_hash:
        yield damage("journal-chain", each.key, "it does not continue what is before it")
    if before is None or before.header is None:
        return
    for name in ("generation", "next_ino"):
        if getattr(header, name) < getattr(before.header, name):
            message = f"its {name} is less than that of {before.key}"
            yield damage("journal-chain", each.key, message)


@dataclass(slots=True)
class Replayed:
    """The sealed state, and inodes whose mirror objects may be behind `mirrored`."""

    tables: TableSet
    changed: set[int]


def replay(objects: Iterable[JournalObject], mirrored: int) -> Replayed:
    """The tables after these objects, in order; all of them have records."""
    tables = TableSet(is_local=False)
    changed: set[int] = set()
    for each in objects:
        header = each.header
        assert header is not None and each.frames is not None
        is_behind = header.generation > mirrored
        for frame in each.frames:
            is_of_changes = frame.table == keys.T_INODES and each.kind == KIND_SEGMENT
            if is_behind and (is_of_changes or frame.table == journal.T_MTODO):
                changed.update(keys.unpack_u64(key) for key in frame.keys if len(key) == 8)
            replaying.apply(tables, frame, each.number)
        replaying.finish(tables, header)
    return Replayed(tables, changed)
