"""A mirror path as the workspace has it now: its directory, its file, its row.

Invariants
1. Everything here is one look by one read transaction: what it says may change with the next await.

Called by outside.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

from s3ws_fs.cache.view import View
from s3ws_fs.core import keys
from s3ws_fs.core.mirrorplan import NO_HASH, TAKEN_OVER
from s3ws_fs.core.records import InodeRec, MirrorRow, decode_mirror
from s3ws_fs.core.types import ROOT_INO


@dataclass(frozen=True, slots=True)
class Place:
    """A path as it is now. `parent` None: a directory above is missing."""

    names: list[bytes]
    parent: InodeRec
    rec: InodeRec | None
    row: MirrorRow | None
    is_whole: bool
    blocked: str = ""

    @property
    def name(self) -> bytes:
        """The last name."""
        return self.names[-1]


def place_of(view: View, text: str, path: bytes) -> Place:
    """What stands at a mirror path of that path in the workspace."""
    names = path.split(b"/")
    row = view.mirror_at(text.encode())
    above = view.inode(ROOT_INO)
    assert above is not None
    for name in names[:-1]:
        found = view.dentry(above.ino, name)
        if found is None:
            return Place(names, above, None, row, False)
        rec = view.inode(found)
        assert rec is not None
        if not rec.is_dir:
            why = f"{name!a} is a file in the workspace, and a directory in its key"
            return Place(names, above, None, row, False, why)
        above = rec
    found = view.dentry(above.ino, names[-1])
    rec = None if found is None else view.inode(found)
    why = "a directory stands there in the workspace" if rec is not None and rec.is_dir else ""
    return Place(names, above, rec, row, True, why)


def is_mirrored(view: View, row: MirrorRow | None, ino: int) -> bool:
    """Whether the bucket showed exactly this file, as it is now, at the row's path."""
    rec, key = view.inode(ino), keys.pack_u64(ino)
    if row is None or rec is None or row.ino != ino or row.hash in (NO_HASH, TAKEN_OVER):
        return False
    if view.is_dirty(keys.T_INODES, key) or view.txn.get(key, db=view.db.mtodo) is not None:
        return False
    return row.data_gen == rec.data_gen


def is_extent(view: View, ino: int, index: int, data: bytes) -> bool:
    """Whether the extent holds these bytes, wherever they are."""
    held = view.extent(ino, index)
    if held is not None:
        return held == data
    where = view.chunk(ino, index)
    return where is not None and where.digest == xxhash.xxh3_128_digest(data)


def mirror_rows(view: View) -> Iterable[MirrorRow]:
    """Every row of the mirror."""
    with view.txn.cursor(db=view.db.mirror) as cursor:
        for _, raw in cursor:
            yield decode_mirror(raw)


def shown(place: Place, name: bytes) -> str:
    """The path of another name in the same directory, for people."""
    return b"/".join((*place.names[:-1], name)).decode("utf-8", "surrogateescape")
