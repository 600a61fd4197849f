"""Learn from a listing what stands in the mirror, and take away our leftovers.

The mirror's rows live in the cache; a cache made anew from the journal has none, and what a pass
did that was cut off (a killed worker or daemon, a lost answer, a power cut) is in no row either: an
object without a row would stay for ever when its file is renamed or removed next. One listing (a
request a thousand objects) gives paths and ETags. Rows learnt so are unverified (NO_HASH): an
object is looked at before it is touched for the first time (objects.py).

Invariants
1. Nothing is deleted but objects that carry this workspace's mark at paths where no file is.
2. Each read transaction covers one page and no request.
3. An object at a path to which another file may have come, by a change of the inode or of a
   directory above it, is of unknown content.
4. A row whose object is gone goes too, and its inode is looked at. A row whose object changed
   stays, unless the object says that we put it later: what was edited from outside is told as ever.

Called by worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from s3ws_fs.cache.view import View
from s3ws_fs.core import content, keys
from s3ws_fs.core.errors import NotFoundError
from s3ws_fs.core.layout import FILES_PREFIX, mirror_path, unescape_path
from s3ws_fs.core.mirrorplan import NO_HASH
from s3ws_fs.core.records import MirrorRow, decode_inode, decode_mirror
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.store.base import ListEntry
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import wire
from s3ws_fs.transfer.freeze import Readable

PAGE: Final = 1000
UNKNOWN_DATA: Final = (1 << 64) - 1
"""Data generation of a row whose bytes may be of any age: never equal to an inode's."""


def reconcile(
    store: ScopedStore,
    reader: Readable,
    workspace: str,
    prefix_bytes: int,
    part: Any,
) -> dict[str, Any]:
    """List the mirror; parts are rows, then inodes to look at. Returns counts."""
    listing = iter(store.list(FILES_PREFIX))
    seen: set[bytes] = set()
    leftovers: list[ListEntry] = []
    changed: list[MirrorRow] = []
    while page := list(islice(listing, PAGE)):
        rows = []
        moved: dict[int, bool] = {}
        with reader.read() as view:
            for entry in page:
                path = entry.key[len(FILES_PREFIX) :].encode()
                known = view.mirror_at(path)
                row = _row(view, entry, moved) if known is None else None
                if known is not None:
                    if known.etag != entry.etag:
                        changed.append(known)
                elif row is not None:
                    rows.append(row)
                else:
                    leftovers.append(entry)
                    continue
                seen.add(keys.mirror_key(path))
        part({"rows": wire.rows_json(rows), "removed": []})
    removed = _remove_ours(store, workspace, leftovers)
    stale = _put_since(store, workspace, changed)
    part({"rows": wire.rows_json(stale), "removed": []})
    with reader.read() as view:
        gone = list(_gone(view, seen))
        lacking = list(_lacking(view, seen, prefix_bytes))
    for at in range(0, len(gone), PAGE):
        paths = [row.path for row in gone[at : at + PAGE]]
        part({"rows": [], "removed": wire.paths_json(paths)})
    lacking += [row.ino for row in (*stale, *gone)]
    for at in range(0, len(lacking), PAGE):
        part({"look_at": lacking[at : at + PAGE]})
    return {"standing": len(seen), "removed": removed, "missing": len(lacking)}


def _put_since(store: ScopedStore, workspace: str, rows: list[MirrorRow]) -> list[MirrorRow]:
    """Of rows whose objects differ: those we put since, as rows of unknown content."""
    found = []
    for row in rows:
        try:
            info = store.head(FILES_PREFIX + row.path.decode())
        except NotFoundError:
            continue
        mark = content.our_mark(info.metadata, workspace)
        if mark is not None and mark[0] > row.generation:
            found.append(MirrorRow(row.path, row.ino, 0, UNKNOWN_DATA, info.etag, NO_HASH))
    return found


def _gone(view: View, seen: set[bytes]) -> Iterator[MirrorRow]:
    """Rows without an object (a directory's row never has one)."""
    with view.txn.cursor(db=view.db.mirror) as cursor:
        for key, raw in cursor:
            if key not in seen:
                row = decode_mirror(raw)
                if not row.path.endswith(b"/"):
                    yield row


def _row(view: View, entry: ListEntry, moved: dict[int, bool]) -> MirrorRow | None:
    text = entry.key[len(FILES_PREFIX) :]
    path = unescape_path(text)
    ino = None if path is None else view.resolve(path)
    rec = None if ino is None else view.inode(ino)
    if rec is None or not content.is_mirrored_kind(rec):
        return None
    key = keys.pack_u64(rec.ino)
    is_behind = view.is_dirty(keys.T_INODES, key) or view.txn.get(key, db=view.db.mtodo) is not None
    if is_behind or (path is not None and _is_below_moved(view, path, moved)):
        # Changed since, or perhaps never mirrored: the object may show something older, or the
        # file that stood there before.
        return MirrorRow(text.encode(), rec.ino, 0, UNKNOWN_DATA, entry.etag, NO_HASH)
    generation = view.head().generation
    return MirrorRow(text.encode(), rec.ino, generation, rec.data_gen, entry.etag, NO_HASH)


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


def _remove_ours(store: ScopedStore, workspace: str, entries: list[ListEntry]) -> int:
    gone: list[str | tuple[str, str]] = []
    for entry in entries:
        try:
            info = store.head(entry.key)
        except NotFoundError:
            continue
        if content.our_mark(info.metadata, workspace) is not None:
            gone.append((entry.key, info.etag))
    return len(gone) - len(store.delete_many(gone)) if gone else 0


def _lacking(view: View, seen: set[bytes], prefix_bytes: int) -> Iterator[int]:
    """Inodes with a path that is not in the mirror, also those that can't be: status names them."""
    with view.txn.cursor(db=view.db.inodes) as cursor:
        for key, raw in cursor:
            rec = decode_inode(keys.unpack_u64(key), raw)
            if not content.is_mirrored_kind(rec):
                continue
            for path in view.paths_of(rec):
                text, _ = mirror_path(path, prefix_bytes)
                if not text or keys.mirror_key(text.encode()) not in seen:
                    yield rec.ino
                    break
