"""The mirror for the audit: does `files/` show the sealed state, and nothing else?

An object is held against the journal itself: its bytes against the digests of the file's extents,
its metadata against the inode. So it needs no second look at the journal's bytes.

Invariants
1. What may legitimately be behind (changed since the mirror was last complete, below a directory
   that was, or put by a flush later than the one looked at) is pending, never damage; save for
   bytes that are not what the object itself says.
2. An object without our mark for its path, or with other bytes where no file is, is somebody
   else's: told, never judged.
3. Memory is bounded by a piece for each object under way, and the listing.

Called by audit.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

import xxhash

from s3ws_fs.cache.verify import TreeCheck
from s3ws_fs.cache.verify_mirror import Behind, targets_of
from s3ws_fs.core import content, keys
from s3ws_fs.core.errors import ConflictError, NotFoundError
from s3ws_fs.core.findings import Finding, Severity, damage, make
from s3ws_fs.core.layout import FILES_PREFIX
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.mirrorplan import NO_HASH
from s3ws_fs.core.records import CHUNK_RECORD_BYTES, InodeRec, MirrorRow, decode_location
from s3ws_fs.core.types import Location
from s3ws_fs.store.base import ListEntry, ObjectInfo
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import whose
from s3ws_fs.transfer.audit_bytes import pieces
from s3ws_fs.transfer.windowed import windowed

_EMPTY: Final = bytes(EXTENT_BYTES)

SAME: Final = ""
"""Verdict on an object that shows its file; others are finding codes."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A mirror path as it has to be."""

    text: str
    rec: InodeRec
    path: bytes
    is_behind: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was seen at a path: a finding's code (or SAME), and why."""

    wanted: Wanted
    code: str
    why: str = ""
    generation: int = 0


@dataclass(slots=True)
class MirrorAudit:
    """`listing` is what stands below files/; `is_complete`: the mirror is said to be up to date;
    `rows` what a cache knows to have put (empty without one)."""

    store: ScopedStore
    pool: Executor
    workspace: str
    listing: Mapping[str, ListEntry]
    tree: TreeCheck
    behind: Behind
    is_complete: bool
    rows: Mapping[bytes, MirrorRow]
    quick: bool
    remirror: set[tuple[int, bytes]] = field(default_factory=set)
    relist: bool = False
    objects: int = 0
    _chunk_keys: list[bytes] = field(default_factory=list)

    def run(self, moved: bool) -> Iterator[Finding]:
        """All findings; `moved`: something was sealed since the listing. Raises StoreError."""
        self._chunk_keys = sorted(self.tree.tables.chunks)
        wanted = {each.text: each for each in self._wanted()}
        present = [each for each in wanted.values() if FILES_PREFIX + each.text in self.listing]
        for verdict in windowed(self.pool, self._look, present):
            self.objects += 1
            if verdict.code:
                yield self._finding(verdict, moved)
        for each in wanted.values():
            if FILES_PREFIX + each.text not in self.listing:
                yield self._finding(Verdict(each, "mirror-missing", "it has no object"), moved)
        others = [
            entry for key, entry in self.listing.items() if key[len(FILES_PREFIX) :] not in wanted
        ]
        for finding in windowed(self.pool, lambda entry: self._other(entry, moved), others):
            self.objects += 1
            if finding is not None:
                self.relist = self.relist or finding.code == "mirror-leftover"
                yield finding

    def _wanted(self) -> Iterator[Wanted]:
        by_ino = self.tree.tables.links_by_ino()
        prefix_bytes = len(self.store.prefix)
        for ino, node in self.tree.nodes.items():
            rec = node.rec
            if rec.is_dir or rec.nlink == 0:
                continue
            links = [(rec.parent, rec.name)] if rec.nlink == 1 else by_ino.get(ino, [])
            for text, parent, path in targets_of(self.tree, rec, links, prefix_bytes):
                yield Wanted(text, rec, path, self.behind.covers(rec, (parent,)))

    def _finding(self, verdict: Verdict, moved: bool) -> Finding:
        wanted = verdict.wanted
        severity, repairable = Severity.DAMAGE, True
        header = self.tree.head
        is_later = header is not None and verdict.generation > header.generation
        if verdict.code in ("mirror-foreign", "mirror-changed"):
            severity, repairable = Severity.FOREIGN, False
        elif verdict.code != "mirror-damaged" and (wanted.is_behind or moved or is_later):
            severity, repairable = Severity.PENDING, False
        if repairable:
            self.remirror.add((wanted.rec.ino, wanted.text.encode()))
        return make(
            severity, verdict.code, FILES_PREFIX + wanted.text, verdict.why, (wanted.path,),
            ino=wanted.rec.ino, repairable=repairable,
        )  # fmt: skip

    def _look(self, wanted: Wanted) -> Verdict:
        key = FILES_PREFIX + wanted.text
        entry = self.listing[key]
        if self.quick:
            if entry.size_bytes != _body_bytes(wanted.rec):
                why = f"it has {entry.size_bytes} bytes, the file {_body_bytes(wanted.rec)}"
                return Verdict(wanted, "mirror-differs", why)
            return Verdict(wanted, SAME)
        try:
            return self._compare(wanted, self.store.head(key))
        except NotFoundError:
            return Verdict(wanted, "mirror-missing", "it was listed, and is gone")
        except ConflictError:
            return Verdict(wanted, "mirror-differs", "it was replaced while it was read")

    def _compare(self, wanted: Wanted, info: ObjectInfo) -> Verdict:
        rec = wanted.rec
        mark = content.our_mark(info.metadata, self.workspace, wanted.text)
        row = self.rows.get(wanted.text.encode())
        if mark is None:
            return self._not_ours(wanted, info, row)
        generation, digest = mark
        actual, shows_file = self._body(info, rec)
        is_other = row is not None and row.hash != NO_HASH and row.etag != info.etag
        # Newer than the row: put by a pass of ours that the row does not know yet.
        if row is not None and is_other and generation <= row.generation:
            why = f"its ETag is {info.etag}, this cache put {row.etag}"
            return Verdict(wanted, "mirror-changed", why, generation)
        if actual != digest:
            return Verdict(wanted, "mirror-damaged", "its bytes are not those of its own hash")
        said = content.object_metadata(
            rec, digest=digest, generation=generation, workspace=self.workspace, path=wanted.text
        )
        if not shows_file:
            return Verdict(wanted, "mirror-differs", "it has other bytes", generation)
        if dict(info.metadata) != said:
            names = sorted(name for name in said if info.metadata.get(name) != said[name])
            why = f"it has another {', '.join(names) or 'set of metadata'}"
            return Verdict(wanted, "mirror-differs", why, generation)
        return Verdict(wanted, SAME)

    def _not_ours(self, wanted: Wanted, info: ObjectInfo, row: MirrorRow | None) -> Verdict:
        if wanted.is_behind and row is not None and row.etag == info.etag:
            why = "somebody else's, which is in the workspace by now: ours is to be put over it"
            return Verdict(wanted, "mirror-differs", why)
        if wanted.is_behind and self._body(info, wanted.rec)[1]:
            why = "it has the file's bytes, and not our mark yet"
            return Verdict(wanted, "mirror-differs", why)
        return Verdict(wanted, "mirror-foreign", "an object that is not ours stands there")

    def _body(self, info: ObjectInfo, rec: InodeRec) -> tuple[bytes, bool]:
        """Digest of the object's bytes, and whether they are the file's."""
        state = xxhash.xxh3_128()
        places = {} if content.is_inline_kind(rec) else dict(self._places(rec.ino))
        body = content.inline_body(rec) if content.is_inline_kind(rec) else None
        shows_file = info.size_bytes == _body_bytes(rec)
        held, index = b"", 0
        for data in pieces(self.store, info.key, info.size_bytes, info.etag):
            state.update(data)
            held += data
            if body is not None:
                continue
            whole = len(held) - len(held) % EXTENT_BYTES
            for at in range(0, whole, EXTENT_BYTES):
                block = held[at : at + EXTENT_BYTES]
                shows_file = shows_file and _is_extent(block, places.get(index))
                index += 1
            held = held[whole:]
        if body is not None:
            return state.digest(), held == body
        if held:
            shows_file = shows_file and _is_extent(held, places.get(index))
        return state.digest(), shows_file

    def _places(self, ino: int) -> Iterator[tuple[int, Location]]:
        prefix = keys.pack_u64(ino)
        at = bisect.bisect_left(self._chunk_keys, prefix)
        while at < len(self._chunk_keys) and self._chunk_keys[at].startswith(prefix):
            key = self._chunk_keys[at]
            raw = self.tree.tables.chunks[key]
            at += 1
            if len(raw) == CHUNK_RECORD_BYTES and len(key) == 12:
                yield keys.split_chunk_key(key)[1], decode_location(raw)

    def _other(self, entry: ListEntry, moved: bool) -> Finding | None:
        """An object at a path that is no file's."""
        try:
            info = self.store.head(entry.key)
        except NotFoundError:
            return None
        text = entry.key[len(FILES_PREFIX) :]
        if self.quick:
            mark = content.our_mark(info.metadata, self.workspace, text)
        else:
            mark = whose.our_mark(self.store, info, self.workspace, text)
        if mark is None:
            why = "this workspace did not put it; nothing here touches it"
            return make(Severity.FOREIGN, "mirror-foreign", entry.key, why)
        head = self.tree.head
        is_later = head is not None and mark[0] > head.generation
        is_pending = moved or is_later or not self.is_complete
        severity = Severity.PENDING if is_pending else Severity.DAMAGE
        why = "no file stands there any more"
        return make(severity, "mirror-leftover", entry.key, why, repairable=not is_pending)


def own_hashes(
    store: ScopedStore, pool: Executor, workspace: str, entries: Iterable[ListEntry]
) -> Iterator[Finding]:
    """Objects of ours whose bytes are not what they say themselves, where no state is known."""

    def look(entry: ListEntry) -> Finding | None:
        try:
            info = store.head(entry.key)
            text = entry.key[len(FILES_PREFIX) :]
            mark = content.our_mark(info.metadata, workspace, text)
            state = xxhash.xxh3_128()
            for data in pieces(store, entry.key, info.size_bytes, info.etag):
                state.update(data)
        except (NotFoundError, ConflictError):
            # Replaced while it was read: a mount is at work.
            return None
        if mark is None or state.digest() == mark[1]:
            return None
        return damage("mirror-damaged", entry.key, "its bytes are not those of its own hash")

    for finding in windowed(pool, look, entries):
        if finding is not None:
            yield finding


def _body_bytes(rec: InodeRec) -> int:
    return len(content.inline_body(rec)) if content.is_inline_kind(rec) else rec.size


def _is_extent(block: bytes, location: Location | None) -> bool:
    """Whether these bytes of a file are what its records say: an extent and zeros, or a hole."""
    length = 0
    if location is not None:
        length = location.length
        if len(block) < length or xxhash.xxh3_128_digest(block[:length]) != location.digest:
            return False
    return block[length:] == _EMPTY[: len(block) - length]
