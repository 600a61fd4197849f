"""Places of file bytes for the audit: which object they are in, whose they are, who has them still.

And what a cache of the workspace has to say to that (LocalSide, differences).

Invariants
1. What the sealed state names must stand, whole. What only older records name is judged where its
   object stands: it may have gone with the garbage.
2. A finding names the paths of the files it touches; repairable is only what a cache holds with
   exactly the digest.

Called by audit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import xxhash

from s3ws_fs.cache.tableset import PathFinder, TableSet
from s3ws_fs.cache.verify_data import Readable
from s3ws_fs.core import keys, layout
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.findings import Finding, damage
from s3ws_fs.core.journal import HEADER_BYTES
from s3ws_fs.core.records import MirrorRow, decode_location, decode_mirror
from s3ws_fs.core.types import BLOB_BIT, Location
from s3ws_fs.store.base import ListEntry
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import audit_bytes
from s3ws_fs.transfer.audit_bytes import Stream, Streamed
from s3ws_fs.transfer.windowed import windowed

JOURNAL_PREFIXES = (layout.SEG_PREFIX, layout.CKPT_PREFIX, layout.BLOB_PREFIX)


@dataclass(frozen=True, slots=True)
class LocalSide:
    """What a cache of the same workspace says, as checked just before."""

    reader: Readable
    tables: TableSet
    values: Mapping[str, Any]

    @property
    def sealed_number(self) -> int:
        """The newest segment that it knows sealed."""
        known = self.values.get("sealed")
        number = known.get("number") if isinstance(known, dict) else 0
        return number if isinstance(number, int) else 0

    @property
    def writer(self) -> str:
        """Its name in headers."""
        known = self.values.get("writer")
        return str(known.get("name")) if isinstance(known, dict) else ""

    def mirror_rows(self) -> dict[bytes, MirrorRow]:
        """What it knows to have put, by mirror path."""
        found = {}
        for raw in self.tables.mirror.values():
            # What does not decode is told by the cache's own check.
            with contextlib.suppress(FormatError):
                row = decode_mirror(raw)
                found[row.path] = row
        return found


class Places:
    """Locations of the state in `tables`, and the objects of `listing` that hold them.

    `reader` is the cache's, when there is one. Afterwards `lost` are locations whose bytes are not
    in the bucket, and `reship` those chunk keys of them whose bytes the cache has.
    """

    def __init__(
        self, tables: TableSet, listing: Mapping[str, ListEntry], reader: Readable | None
    ) -> None:
        self._paths = PathFinder(tables)
        self._listing = listing
        self._reader = reader
        self.owners: dict[Location, list[bytes]] = {}
        self.lost: set[Location] = set()
        self.reship: set[bytes] = set()
        for key, raw in tables.chunks.items():
            try:
                self.owners.setdefault(decode_location(raw), []).append(key)
            except FormatError:
                # Told as "record" by the records' check.
                continue

    @property
    def named(self) -> set[int]:
        """Ids of the objects that the state names."""
        return {location.object_id for location in self.owners}

    def give_up(self, object_id: int) -> None:
        """A damaged object: all that is in it is shipped anew, if the cache has it."""
        owned = [
            chunk for loc, chunks in self.owners.items() if loc.object_id == object_id
            for chunk in chunks
        ]  # fmt: skip
        if owned and self._are_held(owned):
            self.reship.update(owned)

    def exist(self) -> Iterator[Finding]:
        """Whether each object that the state names stands, and is long enough."""
        for object_id, located in _by_object(self.owners).items():
            try:
                key = layout.object_key(object_id)
            except FormatError:
                # Told as "location" by the records' check.
                continue
            entry = self._listing.get(key)
            if entry is None:
                self.lost.update(located)
                yield self._finding("object-missing", key, "records name it", located)
                continue
            least = 0 if object_id & BLOB_BIT else HEADER_BYTES
            wrong = [
                loc
                for loc in located
                if loc.offset < least or loc.offset + loc.length > entry.size_bytes
            ]
            if wrong:
                self.lost.update(wrong)
                why = f"it has {entry.size_bytes} bytes; records place others in it"
                yield self._finding("object-size", key, why, wrong)

    def streams(self, further: Iterable[Location]) -> list[Stream]:
        """Every journal object, with the places in it; `further` are those of older records."""
        located = _by_object((*self.owners, *further))
        found = []
        for key, entry in self._listing.items():
            for prefix in JOURNAL_PREFIXES:
                number = layout.key_number(key, prefix)
                if number is None:
                    continue
                places = () if prefix == layout.CKPT_PREFIX else located.get(number, ())
                kept = [loc for loc in places if loc not in self.lost]
                found.append(Stream(key, entry.size_bytes, kept, prefix != layout.BLOB_PREFIX))
        return found

    def read(
        self, store: ScopedStore, pool: Executor, streams: Iterable[Stream]
    ) -> Iterator[tuple[Streamed, list[Finding]]]:
        """Read every object; yields each with what is wrong with it. Raises StoreError."""
        for done in windowed(pool, lambda stream: audit_bytes.run(store, stream), streams):
            self.lost.update(done.bad)
            yield done, list(self._judge(done))

    def _judge(self, done: Streamed) -> Iterator[Finding]:
        key = done.stream.key
        if done.why:
            yield damage("object-damaged", key, done.why)
        number = layout.key_number(key, layout.SEG_PREFIX)
        object_id = number or layout.key_number(key, layout.BLOB_PREFIX)
        if object_id and (done.bad or done.why):
            self.give_up(object_id)
        if done.bad:
            plural = "s" if len(done.bad) > 1 else ""
            why = f"{len(done.bad)} extent{plural} in it not as digested"
            yield self._finding("extent-damaged", key, why, done.bad)

    def _finding(self, code: str, key: str, message: str, places: Iterable[Location]) -> Finding:
        owned = [chunk for loc in places for chunk in self.owners.get(loc, ())]
        repairable = bool(owned) and self._are_held(owned)
        if repairable:
            self.reship.update(owned)
            message += "; the cache holds the same bytes"
        paths = self._paths.of_all({keys.unpack_u64(chunk) for chunk in owned})
        return damage(code, key, message, paths, repairable=repairable)

    def _are_held(self, owned: Iterable[bytes]) -> bool:
        """Whether the cache holds exactly the bytes of all these extents, or newer ones."""
        if self._reader is None:
            return False
        with self._reader.read() as view:
            for key in owned:
                data = view.txn.get(key, db=view.db.extents)
                raw = view.txn.get(key, db=view.db.chunks)
                if view.is_dirty(keys.T_CHUNKS, key):
                    # Other bytes by now, which are shipped anyway.
                    continue
                if data is None or raw is None:
                    return False
                if decode_location(raw).digest != xxhash.xxh3_128_digest(data):
                    return False
        return True


def _by_object(locations: Iterable[Location]) -> dict[int, set[Location]]:
    found: dict[int, set[Location]] = {}
    for location in locations:
        found.setdefault(location.object_id, set()).add(location)
    return found


def differences(local: TableSet, states: list[TableSet], paths: PathFinder) -> Iterator[Finding]:
    """Records of a cache that are not dirty and yet in none of these sealed states.

    Several states: a cache that is just told of a seal has records of before and after it.
    """
    for table, name in keys.TABLE_NAMES.items():
        ours = local.journal_table(table)
        theirs = [state.journal_table(table) for state in states]
        for key in ours.keys() | theirs[0].keys():
            value = ours.get(key)
            if any(value == rows.get(key) for rows in theirs) or local.is_dirty(table, key):
                continue
            if table != keys.T_DENTRIES and _is_nameless(local, states[0], key):
                continue
            ino = keys.unpack_u64(key) if table != keys.T_DENTRIES else 0
            message = "it is not marked dirty, and not what the bucket has"
            yield damage("cache-differs", f"{name} {key.hex()}", message, paths.of(ino))


def _is_nameless(local: TableSet, sealed: TableSet, key: bytes) -> bool:
    """What belongs to an inode that was dropped, or has no name any more here and there."""
    ino_key = key[:8]
    if ino_key not in local.inodes and local.is_dirty(keys.T_INODES, ino_key):
        return True
    ino = keys.unpack_u64(key)
    records: tuple[Any, ...] = (local.inode(ino), sealed.inode(ino))
    return all(rec is None or rec.nlink == 0 for rec in records)
