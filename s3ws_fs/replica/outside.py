"""What somebody else did to the mirror: brought into the workspace, overwritten, or left and told.

Invariants
1. Nothing is lost: an object that is not ours is put over only on condition of the ETag of bytes
   that are in the workspace by then (keep-both, bucket-wins) or that the policy gives up
   (workspace-wins). The row that allows it is committed in the transaction that places those bytes,
   and a freeze reads both in one: they are sealed before the mirror touches the object.
2. A file of ours that gives way to the outside version (bucket-wins) is kept under another name
   unless the bucket showed exactly it.
3. What can't be done is left alone and told, with the reason; nothing is retried by itself here. An
   object that says it is ours, and brought other bytes, is never taken for somebody else's when it
   comes with ours after all.
4. Limits: COPIES_OF_ONE_PATH_MAX copies of one path in a mount, EVENTS_MAX and LEFT_MAX lines.
5. Names and metadata come from strangers: only what core.outside.workspace_path lets through
   becomes a path, and every operation goes through fs with its quotas.

Called by replicator, never by two tasks at once.
"""

from __future__ import annotations

import errno
import json
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.tx import Tx
from s3ws_fs.core import failpoints
from s3ws_fs.core.bounds import BUCKET_WINS, WORKSPACE_WINS
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.mirrorplan import NO_HASH, TAKEN_OVER, UNKNOWN_DATA
from s3ws_fs.core.outside import WORKSPACE, Found, copy_names, workspace_path
from s3ws_fs.core.records import InodeRec, MirrorRow
from s3ws_fs.core.types import Outdated
from s3ws_fs.fs.arrivals import Arriving, Placed
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.replica.bringing import fetch
from s3ws_fs.replica.places import (
    Place,
    is_extent,
    is_mirrored,
    mirror_rows,
    place_of,
    shown,
)
from s3ws_fs.transfer.client import WorkerClient
from s3ws_fs.transfer.words import NO_PATH

COPIES_OF_ONE_PATH_MAX: Final = 20
EVENTS_MAX: Final = 100
LEFT_MAX: Final = 1000
ALL_GONE_MIN: Final = 2
"""With bucket-wins: that many mirrored files, all gone at once, are an accident, not a wish."""
META_EVENTS: Final = b"outside"

_AGAIN: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR})
_FULL: Final = frozenset({errno.EDQUOT, errno.ENOSPC, errno.EMLINK, errno.ENAMETOOLONG})


class OutsideChanges:
    """Carries out the policy."""

    def __init__(
        self,
        cache: Cache,
        worker: WorkerClient,
        fs: FileSystem,
        policy: str,
        forget: Callable[[Outdated], Awaitable[None]],
    ) -> None:
        self._cache = cache
        self._worker = worker
        self._fs = fs
        self._forget = forget
        self._copies: Counter[str] = Counter()
        self.policy = policy
        self.events: list[dict[str, Any]] = []
        self.count = 0
        self.left: dict[str, str] = {}
        """Mirror path of each object that is not ours and is left alone, and why."""

    def load(self) -> None:
        """Take over what the cache remembers."""
        noted = self._cache.get_json(META_EVENTS.decode()) or {}
        self.events, self.count = noted.get("events", []), noted.get("count", 0)

    async def handle(self, found: Iterable[Found]) -> set[str]:
        """Do what the policy says; returns the mirror paths that are settled. Raises StoreError."""
        items = list(found)
        is_accident = self.policy == BUCKET_WINS and self._all_gone(items)
        settled = set()
        for item in items:
            if await self._one(item, is_accident):
                settled.add(item.path)
                self.left.pop(item.path, None)
        return settled

    def leave(self, text: str, why: str) -> bool:
        """Tell of an object that is left alone. Always False: it is not settled."""
        if text in self.left or len(self.left) < LEFT_MAX:
            self.left[text] = why
        return False

    def missed(self, texts: Iterable[str]) -> None:
        """Objects of ours that were gone when they were to be replaced: they were put anew."""
        for text in texts:
            self._remember(self._event(text, "deleted outside; put again"))

    async def _one(self, found: Found, is_accident: bool) -> bool:
        path = workspace_path(found.path)
        if path is None:
            return self.leave(found.path, NO_PATH)
        with self._cache.read() as view:
            place = place_of(view, found.path, path)
        if not found.etag:
            return await self._deleted(found, place, is_accident)
        row = place.row
        if row is not None and row.hash != NO_HASH and row.etag == found.etag:
            return True
        if place.blocked:
            return self.leave(found.path, place.blocked)
        if place.rec is None and self.policy == WORKSPACE_WINS:
            return self.leave(found.path, "added outside, which workspace-wins does not take over")
        if place.rec is not None and self.policy == WORKSPACE_WINS:
            row = MirrorRow(
                found.path.encode(), place.rec.ino, 0, UNKNOWN_DATA, found.etag, TAKEN_OVER
            )
            self._take_over(row)
            self._remember(self._event(found.path, "changed outside; put over by workspace-wins"))
            return True
        try:
            return await self._take_in(found, place)
        except FsError as exc:
            if place.rec is not None:
                # What is ours is not in the mirror: it stays to be looked at.
                self._cache.add_mirror_todo([place.rec.ino], self._cache.generation)
            if exc.errno in _FULL:
                return self.leave(found.path, f"it can't be taken over: {exc}")
            if exc.errno in _AGAIN:
                return self.leave(found.path, "the workspace changed meanwhile; seen to next time")
            raise

    # --- objects that stand there ----------------------------------------------------------

    async def _take_in(self, found: Found, place: Place) -> bool:
        why = self._fs.room_for(found.size_bytes)
        if not why and self._copies[found.path] >= COPIES_OF_ONE_PATH_MAX:
            why = f"changed outside again and again: {COPIES_OF_ONE_PATH_MAX} versions were kept"
        if why:
            if place.rec is not None:
                self._cache.add_mirror_todo([place.rec.ino], self._cache.generation)
            return self.leave(found.path, why)
        fetched = await fetch(self._worker, self._fs, found, place)
        if fetched is None:
            return self.leave(found.path, "it changed while it was read; seen to next time")
        ino, wanted, digest = fetched
        if found.ours == digest.hex():
            self._fs.drop_arrival(ino)
            return self.leave(found.path, "it is ours, and came spoilt before; seen to next time")
        placed: Placed | None = None
        try:
            if place.rec is None:
                placed = await self._add(found, place, ino, wanted, digest)
            elif (row := self._same(found, place, place.rec, ino, digest)) is not None:
                self._take_over(row)
            elif self.policy == BUCKET_WINS:
                placed = self._replace(found, place, place.rec, ino, wanted, digest)
            else:
                placed = self._copy(found, place, place.rec, ino, wanted)
        finally:
            if placed is None:
                self._fs.drop_arrival(ino)
        if placed is not None:
            self._copies[found.path] += 1
            failpoints.hit(failpoints.OUTSIDE_PLACED)
            await self._forget(placed.outdated)
        return True

    async def _add(
        self, found: Found, place: Place, ino: int, wanted: Arriving, digest: bytes
    ) -> Placed:
        parent, made = self._fs.directory_for(place.names[:-1])
        if made.names:
            await self._forget(made)

        def notes(tx: Tx, rec: InodeRec) -> None:
            there = tx.dentry(parent, place.name)
            event = self._event(found.path, "added outside; taken over")
            if there == rec.ino:
                row = MirrorRow(found.path.encode(), rec.ino, 0, rec.data_gen, found.etag, digest)
            else:
                # Meanwhile a program made a file of that name.
                event["copy"] = shown(place, rec.name)
                row = MirrorRow(
                    found.path.encode(), there or rec.ino, 0, UNKNOWN_DATA, found.etag, TAKEN_OVER
                )
            tx.note_mirror(row)
            self._remember(event, tx)

        names = chain((place.name,), copy_names(place.name, found.modified_ns))
        return self._fs.place_beside(ino, wanted, parent, names, notes)

    def _copy(
        self, found: Found, place: Place, ours: InodeRec, ino: int, wanted: Arriving
    ) -> Placed:
        def notes(tx: Tx, rec: InodeRec) -> None:
            # Deleted meanwhile: then it is deleted there too, for the copy is made.
            there = tx.dentry(place.parent.ino, place.name) or ours.ino
            tx.note_mirror(
                MirrorRow(found.path.encode(), there, 0, UNKNOWN_DATA, found.etag, TAKEN_OVER)
            )
            event = self._event(found.path, "changed outside; kept as a copy")
            event["copy"] = shown(place, rec.name)
            self._remember(event, tx)

        names = copy_names(place.name, found.modified_ns)
        return self._fs.place_beside(ino, wanted, place.parent.ino, names, notes)

    def _replace(
        self,
        found: Found,
        place: Place,
        ours: InodeRec,
        ino: int,
        wanted: Arriving,
        digest: bytes,
    ) -> Placed:
        with self._cache.read() as view:
            is_shown = is_mirrored(view, place.row, ours.ino)
        kept: list[bytes] = []

        def names() -> Iterable[bytes]:
            for name in copy_names(place.name, self._cache.now_ns(), WORKSPACE):
                kept.append(name)
                yield name

        def notes(tx: Tx, rec: InodeRec) -> None:
            tx.note_mirror(
                MirrorRow(found.path.encode(), rec.ino, 0, rec.data_gen, found.etag, digest)
            )
            event = self._event(found.path, "changed outside; taken over by bucket-wins")
            if kept:
                event["copy"] = shown(place, kept[-1])
            self._remember(event, tx)

        keep_as = None if is_shown else names()
        return self._fs.place_at(ino, wanted, place.parent.ino, place.name, notes, keep_as=keep_as)

    def _same(
        self, found: Found, place: Place, ours: InodeRec, ino: int, digest: bytes
    ) -> MirrorRow | None:
        """A row for the object when its bytes are ours: those of the file, or those we last put."""
        text = found.path.encode()
        if self._is_now(ours, ino):
            return MirrorRow(text, ours.ino, 0, ours.data_gen, found.etag, digest)
        if place.row is not None and place.row.hash == digest:
            return MirrorRow(text, ours.ino, 0, UNKNOWN_DATA, found.etag, TAKEN_OVER)
        return None

    def _is_now(self, before: InodeRec, ino: int) -> bool:
        """Whether the file that arrived has the bytes of ours, which did not change meanwhile."""
        with self._cache.read() as view:
            ours, theirs = view.inode(before.ino), view.inode(ino)
            if ours is None or theirs is None or ours.data_gen != before.data_gen:
                return False
            if (ours.size, ours.target) != (theirs.size, theirs.target):
                return False
            if stat.S_IFMT(ours.mode) != stat.S_IFMT(theirs.mode):
                return False
            held = set(view.extent_indexes(ours.ino))
            held.update(index for index, _ in view.chunks(ours.ino))
            return held == set(view.extent_indexes(ino)) and all(
                is_extent(view, ours.ino, index, data) for index, data in view.extents(ino)
            )

    # --- objects that are gone -------------------------------------------------------------

    def _all_gone(self, items: list[Found]) -> bool:
        gone = sum(1 for item in items if not item.etag)
        with self._cache.read() as view:
            rows = view.txn.stat(view.db.mirror)["entries"]
            if gone < ALL_GONE_MIN or gone * 2 < rows:
                return False
            # Rows of directories have no object.
            dirs = sum(1 for row in mirror_rows(view) if row.path.endswith(b"/"))
        return gone >= rows - dirs

    async def _deleted(self, found: Found, place: Place, is_accident: bool) -> bool:
        row, rec = place.row, place.rec
        if row is None:
            return True
        with self._cache.read() as view:
            obeys = (
                self.policy == BUCKET_WINS
                and rec is not None
                and not is_accident
                and is_mirrored(view, row, rec.ino)
            )
        if obeys and rec is not None:
            outdated = Outdated(((place.parent.ino, place.name),), (place.parent.ino, rec.ino))
            self._fs.will_outdate(outdated)
            self._fs.unlink(place.parent.ino, place.name)
            self._cache.record_mirrored((), (row.path,), ())
            self._remember(self._event(found.path, "deleted outside; deleted here by bucket-wins"))
            await self._forget(outdated)
            return True
        self._cache.add_mirror_todo([row.ino], self._cache.generation)
        self._cache.record_mirrored((), (row.path,), ())
        what = "deleted outside; put again"
        if is_accident:
            what += ", for all objects are gone, which looks like an accident"
        self._remember(self._event(found.path, what))
        return True

    # --- notes -----------------------------------------------------------------------------

    def _take_over(self, row: MirrorRow) -> None:
        """Let the mirror put ours over that object."""
        self._cache.add_mirror_todo([row.ino], self._cache.generation)
        self._cache.record_mirrored((row,), (), ())

    def _event(self, text: str, what: str) -> dict[str, Any]:
        when = datetime.fromtimestamp(self._cache.now_ns() // 1_000_000_000, UTC)
        return {"path": text, "what": what, "when": when.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def _remember(self, event: dict[str, Any], tx: Tx | None = None) -> None:
        """Keep a line for status; within a transaction when there is one."""
        events = [*self.events, event][-EVENTS_MAX:]
        noted = {"events": events, "count": self.count + 1}
        if tx is None:
            self._cache.put_json(META_EVENTS.decode(), noted)
        else:
            tx.put_meta(META_EVENTS, json.dumps(noted).encode())
        self.events, self.count = events, self.count + 1
