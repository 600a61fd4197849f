"""After a restore: learn from a listing what stands in the mirror, and take away our leftovers.

The mirror's rows live in the cache; a cache made anew from the journal has none. One listing (a
request a thousand objects) gives paths and ETags. Such rows are unverified (NO_HASH): an object is
looked at before it is touched for the first time (mirror.py).

Invariants
1. Nothing is deleted but objects that carry this workspace's mark at paths where no file is.
2. Each read transaction covers one page and no request.

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
from s3ws_fs.core.records import MirrorRow, decode_inode
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
    while page := list(islice(listing, PAGE)):
        rows = []
        with reader.read() as view:
            for entry in page:
                row = _row(view, entry)
                if row is None:
                    leftovers.append(entry)
                else:
                    rows.append(row)
                    seen.add(keys.mirror_key(row.path))
        part({"rows": wire.rows_json(rows), "removed": []})
    removed = _remove_ours(store, workspace, leftovers)
    missing = 0
    with reader.read() as view:
        lacking = list(_lacking(view, seen, prefix_bytes))
    for at in range(0, len(lacking), PAGE):
        part({"look_at": lacking[at : at + PAGE]})
        missing += len(lacking[at : at + PAGE])
    return {"standing": len(seen), "removed": removed, "missing": missing}


def _row(view: View, entry: ListEntry) -> MirrorRow | None:
    text = entry.key[len(FILES_PREFIX) :]
    path = unescape_path(text)
    ino = None if path is None else view.resolve(path)
    rec = None if ino is None else view.inode(ino)
    if rec is None or not content.is_mirrored_kind(rec):
        return None
    key = keys.pack_u64(rec.ino)
    if view.is_dirty(keys.T_INODES, key) or view.txn.get(key, db=view.db.mtodo) is not None:
        # Changed since, or perhaps never mirrored: the object may show something older.
        return MirrorRow(text.encode(), rec.ino, 0, UNKNOWN_DATA, entry.etag, NO_HASH)
    generation = view.head().generation
    return MirrorRow(text.encode(), rec.ino, generation, rec.data_gen, entry.etag, NO_HASH)


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
    """Inodes with a path that should stand in the mirror and does not."""
    with view.txn.cursor(db=view.db.inodes) as cursor:
        for key, raw in cursor:
            rec = decode_inode(keys.unpack_u64(key), raw)
            if not content.is_mirrored_kind(rec):
                continue
            for path in view.paths_of(rec):
                text, _ = mirror_path(path, prefix_bytes)
                if text and keys.mirror_key(text.encode()) not in seen:
                    yield rec.ino
                    break
