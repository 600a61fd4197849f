"""Learn from a listing what stands in the mirror: ours without a row, and what somebody else did.

The mirror's rows live in the cache; a cache made anew from the journal has none, and what a pass
did that was cut off (a killed worker or daemon, a lost answer, a power cut) is in no row either: an
object without a row would stay for ever when its file is renamed or removed next. One listing (a
request a thousand objects) gives paths and ETags. Rows learnt so are unverified (NO_HASH): an
object is looked at before it is touched for the first time (objects.py).

While the rows are known to be complete (`is_known`), what differs from them was done by somebody
else. While they are not, an object that is no younger than the note of the last complete mirror,
and has its file's size, is believed to be ours until it is touched; the others are read.

Invariants
1. Nothing is deleted here: the cache may be ahead of the seal, whose files these may be. An object
   of ours (whose.py) at a path where no file is gets a row that belongs to no inode (NOBODY), and
   the next pass, which comes after a seal, deletes it if it is left over then. Only objects of
   flushes that this cache knows: a writer that took over has later ones.
2. Each read transaction covers one page and no request.
3. An object at a path to which another file may have come, by a change of the inode or of a
   directory above it, is of unknown content.
4. A row whose object is gone goes too, and its inode is looked at, unless the row was known to be
   complete: then it is told as deleted by somebody else, and the row is left to whom it is told.
5. Somebody else's object is told and left alone; at most FOUND_MAX in one scan.

Called by worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from s3ws_fs.cache.view import View
from s3ws_fs.core import content, keys
from s3ws_fs.core.errors import NotFoundError
from s3ws_fs.core.layout import FILES_PREFIX, MIRRORED_KEY, mirror_path
from s3ws_fs.core.mirrorplan import NO_HASH, UNKNOWN_DATA
from s3ws_fs.core.outside import Found, workspace_path
from s3ws_fs.core.records import InodeRec, MirrorRow, decode_inode, decode_mirror
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.store.base import ListEntry
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import whose, wire
from s3ws_fs.transfer.freeze import Readable
from s3ws_fs.transfer.outside import found_of
from s3ws_fs.transfer.windowed import windowed

PAGE: Final = 1000
FOUND_MAX: Final = 10_000
"""Changes by somebody else told in one scan; the next one finds the others."""
FOUND_PART: Final = 200
NOBODY: Final = 0
"""Inode of a row whose object is at a path of no file: no inode has this number."""


@dataclass(slots=True)
class _Suspect:
    """An object that is perhaps not ours. `row` is what we last put there, `rec` the file's."""

    entry: ListEntry
    row: MirrorRow | None
    rec: InodeRec | None


class Scan:
    """One listing of the mirror held against the cache."""

    def __init__(
        self,
        store: ScopedStore,
        reader: Readable,
        pool: Executor,
        *,
        workspace: str,
        prefix_bytes: int,
        sealed: int,
        is_known: bool,
    ) -> None:
        """`sealed` is the generation that this cache knows to be sealed."""
        self._store = store
        self._reader = reader
        self._pool = pool
        self._workspace = workspace
        self._prefix_bytes = prefix_bytes
        self._sealed = sealed
        self._is_known = is_known
        self._noted_ns = 0
        self._seen: set[bytes] = set()
        self._suspects: list[_Suspect] = []
        self._found: list[Found] = []
        self._late: list[MirrorRow] = []

    def run(self, part: Callable[..., None]) -> dict[str, Any]:
        """Parts are rows, inodes to look at, and what was found. Returns counts."""
        if not self._is_known:
            self._noted_ns = self._last_complete_ns()
        listing = iter(self._store.list(FILES_PREFIX))
        while page := list(islice(listing, PAGE)):
            part({"rows": wire.rows_json(self._page(page)), "removed": []})
        self._judge_all()
        with self._reader.read() as view:
            gone = self._gone(view)
            lacking = [] if self._is_known else list(self._lacking(view))
        unknown = [row for row in self._late if row.data_gen == UNKNOWN_DATA]
        lacking += [row.ino for row in (*unknown, *gone)]
        # Before the rows: if only these were noted, the next scan would see nothing to look at.
        for at in range(0, len(lacking), PAGE):
            part({"look_at": lacking[at : at + PAGE]})
        part({"rows": wire.rows_json(self._late), "removed": []})
        for at in range(0, len(gone), PAGE):
            paths = [row.path for row in gone[at : at + PAGE]]
            part({"rows": [], "removed": wire.paths_json(paths)})
        for at in range(0, len(self._found), FOUND_PART):
            some = self._found[at : at + FOUND_PART]
            part({"found": [found.to_json() for found in some]})
        return {
            "standing": len(self._seen),
            "missing": len(lacking),
            "found": len(self._found),
        }

    def _last_complete_ns(self) -> int:
        try:
            return self._store.head(MIRRORED_KEY).modified_ns
        except NotFoundError:
            return 0

    def _page(self, page: Iterable[ListEntry]) -> list[MirrorRow]:
        """The rows of what is believed to be ours; the rest becomes suspect."""
        rows = []
        moved: dict[int, bool] = {}
        with self._reader.read() as view:
            for entry in page:
                text = entry.key[len(FILES_PREFIX) :]
                path = workspace_path(text)
                if path is None:
                    # Invariant 5, and a key that no store of ours would take: it is not looked at.
                    size, when = entry.size_bytes, entry.modified_ns
                    self._tell(Found(text, entry.etag, size, when))
                    continue
                known = view.mirror_at(text.encode())
                if known is not None:
                    self._seen.add(keys.mirror_key(known.path))
                    if known.etag != entry.etag:
                        self._suspects.append(_Suspect(entry, known, view.inode(known.ino)))
                    continue
                rec = _file_at(view, path)
                if rec is None:
                    self._suspects.append(_Suspect(entry, None, None))
                    continue
                self._seen.add(keys.mirror_key(text.encode()))
                row = _row(view, entry, rec, path, moved)
                if self._is_believed(entry, rec, row):
                    rows.append(row)
                elif row.data_gen != UNKNOWN_DATA or not self._is_known:
                    self._suspects.append(_Suspect(entry, row, rec))
                # Else the file is to be put there, and its condition tells.
        return rows

    def _is_believed(self, entry: ListEntry, rec: InodeRec, row: MirrorRow) -> bool:
        if self._is_known:
            return False
        if row.data_gen == UNKNOWN_DATA:
            # The next pass is to touch it.
            return True
        body_bytes = len(content.inline_body(rec)) if content.is_inline_kind(rec) else rec.size
        return entry.modified_ns <= self._noted_ns and entry.size_bytes == body_bytes

    def _judge_all(self) -> None:
        for suspect, verdict in windowed(self._pool, self._judge, self._suspects):
            if verdict is None:
                continue
            if isinstance(verdict, Found):
                self._tell(verdict)
            elif suspect.row is not None or verdict.generation <= self._sealed:
                self._seen.add(keys.mirror_key(verdict.path))
                self._late.append(verdict)

    def _judge(self, suspect: _Suspect) -> tuple[_Suspect, MirrorRow | Found | None]:
        """Somebody else's: Found. Ours: a row for it (of the mark's generation when no file has
        that path). None: gone, or what the row says after all."""
        text = suspect.entry.key[len(FILES_PREFIX) :]
        info = whose.head(self._store, text)
        row = suspect.row
        if info is None or (row is not None and row.hash != NO_HASH and row.etag == info.etag):
            return suspect, None
        mark = whose.our_mark(self._store, info, self._workspace, text)
        if mark is None:
            return suspect, found_of(info, self._workspace)
        if row is None:
            path = text.encode()
            return suspect, MirrorRow(path, NOBODY, mark[0], UNKNOWN_DATA, info.etag, NO_HASH)
        data_gen = UNKNOWN_DATA
        if row.hash == NO_HASH and suspect.rec is not None and row.generation:
            said = content.object_metadata(
                suspect.rec, digest=mark[1], generation=mark[0], workspace=self._workspace,
                path=text,
            )  # fmt: skip
            if dict(info.metadata) == said:
                data_gen = row.data_gen
        generation = row.generation if data_gen != UNKNOWN_DATA else 0
        return suspect, MirrorRow(row.path, row.ino, generation, data_gen, info.etag, NO_HASH)

    def _tell(self, found: Found) -> None:
        if len(self._found) < FOUND_MAX:
            self._found.append(found)

    def _gone(self, view: View) -> list[MirrorRow]:
        """Rows without an object (a directory's row never has one); some are told instead."""
        found = []
        with view.txn.cursor(db=view.db.mirror) as cursor:
            for key, raw in cursor:
                if key in self._seen:
                    continue
                row = decode_mirror(raw)
                if row.path.endswith(b"/"):
                    continue
                if self._is_known and self._stands_at(view, row):
                    self._tell(Found(row.path.decode()))
                else:
                    found.append(row)
        return found

    @staticmethod
    def _stands_at(view: View, row: MirrorRow) -> bool:
        path = workspace_path(row.path.decode())
        return path is not None and view.resolve(path) == row.ino

    def _lacking(self, view: View) -> Iterator[int]:
        """Inodes with a path that is not in the mirror, also those that can't be: status names
        them."""
        with view.txn.cursor(db=view.db.inodes) as cursor:
            for key, raw in cursor:
                rec = decode_inode(keys.unpack_u64(key), raw)
                if not content.is_mirrored_kind(rec):
                    continue
                for path in view.paths_of(rec):
                    text, _ = mirror_path(path, self._prefix_bytes)
                    if not text or keys.mirror_key(text.encode()) not in self._seen:
                        yield rec.ino
                        break


def _file_at(view: View, path: bytes) -> InodeRec | None:
    ino = view.resolve(path)
    rec = None if ino is None else view.inode(ino)
    return rec if rec is not None and content.is_mirrored_kind(rec) else None


def _row(
    view: View, entry: ListEntry, rec: InodeRec, path: bytes, moved: dict[int, bool]
) -> MirrorRow:
    text = entry.key[len(FILES_PREFIX) :].encode()
    key = keys.pack_u64(rec.ino)
    is_behind = view.is_dirty(keys.T_INODES, key) or view.txn.get(key, db=view.db.mtodo) is not None
    if is_behind or _is_below_moved(view, path, moved):
        # Changed since, or perhaps never mirrored: the object may show something older, or the
        # file that stood there before.
        return MirrorRow(text, rec.ino, 0, UNKNOWN_DATA, entry.etag, NO_HASH)
    generation = view.head().generation
    return MirrorRow(text, rec.ino, generation, rec.data_gen, entry.etag, NO_HASH)


def _is_below_moved(view: View, path: bytes, moved: dict[int, bool]) -> bool:
    """Whether a directory above may have come there since the object was put.

    `moved` is what is known of directories already. A rename makes no inode below it dirty.
    """
    ino, above = ROOT_INO, b""
    for name in path.split(b"/")[:-1]:
        parent, above = ino, above + name + b"/"
        found = view.dentry(parent, name)
        if found is None:
            return False
        ino = found
        if ino not in moved:
            moved[ino] = _has_moved(view, parent, name, ino, above)
        if moved[ino]:
            return True
    return False


def _has_moved(view: View, parent: int, name: bytes, ino: int, path: bytes) -> bool:
    if view.is_dirty(keys.T_DENTRIES, keys.dentry_key(parent, name)):
        return True
    if view.txn.get(keys.pack_u64(ino), db=view.db.mtodo) is None:
        return False
    # Its own row is written when all below it stands: with it, the directory was but touched.
    return [row.path for row in view.mirror_of(ino)] != [path]
