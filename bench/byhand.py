"""A million files in a workspace without a million creates: copies of one, put into its cache.

Making them through a mount takes ten minutes of a quiet machine, and as long again to put each
into the mirror; what is measured beside them is the same. Of a file that is saved and mirrored its
records are copied with other numbers and names: inode, name, content, the place in the journal,
and the row that says what stands in the mirror (where in truth nothing stands). No flush sends
them; the next checkpoint has them, as it has everything in the cache.

1. Only for a workspace that is thrown away, and only while it is not mounted.
2. Tables are filled by rising keys, as a restore does it.

Called by bench.targets.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Final

from s3ws_fs.cache.cache import Cache, open_cache
from s3ws_fs.core import keys
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.records import Head, decode_inode
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.daemon.parts import identity

BATCH: Final = 50_000


def fill(config: MountConfig, directory: str, first: int, end: int) -> None:
    """Copies of `directory`/f0 as f{first} to f{end - 1}, in the cache of this workspace."""
    with open_cache(
        Path(config.workspace_cache_dir),
        identity(config),
        quota_bytes=config.max_size_bytes,
        now_ns=time.time_ns,
    ) as cache:
        for begin in range(first, end, BATCH):
            _batch(cache, directory, range(begin, min(end, begin + BATCH)))


def _batch(cache: Cache, directory: str, numbers: range) -> None:
    with cache.read() as view:
        parent = ROOT_INO
        # A path of the workspace, from its root.
        for name in directory.encode().split(b"/"):
            raw = view.txn.get(keys.dentry_key(parent, name), db=view.db.dentries)
            parent = keys.unpack_u64(_need(raw))
        entry = _need(view.txn.get(keys.dentry_key(parent, b"f0"), db=view.db.dentries))
        ino = keys.unpack_u64(entry)
        rec = decode_inode(ino, _need(view.txn.get(keys.pack_u64(ino), db=view.db.inodes)))
        data = _need(view.txn.get(keys.chunk_key(ino, 0), db=view.db.extents))
        place = _need(view.txn.get(keys.chunk_key(ino, 0), db=view.db.chunks))
        (row,) = view.mirror_of(ino)
        head = view.head()
    new = head.next_ino
    names = [b"f%d" % number for number in numbers]
    inos = range(new, new + len(names))
    suffix = entry[8:]
    cache.load_records(
        keys.T_INODES,
        (
            (keys.pack_u64(i), dataclasses.replace(rec, ino=i, name=name).encode())
            for i, name in zip(inos, names, strict=True)
        ),
    )
    cache.load_records(
        keys.T_DENTRIES,
        sorted(
            (keys.dentry_key(parent, name), keys.pack_u64(i) + suffix)
            for i, name in zip(inos, names, strict=True)
        ),
    )
    cache.load_records(keys.T_CHUNKS, ((keys.chunk_key(i, 0), place) for i in inos))
    with cache.env.begin(write=True) as txn, txn.cursor(db=cache.tables.extents) as cursor:
        cursor.putmulti((keys.chunk_key(i, 0), data) for i in inos)
    top = row.path.rpartition(b"/")[0]
    cache.record_mirrored(
        [
            dataclasses.replace(row, path=top + b"/" + name, ino=i)
            for i, name in zip(inos, names, strict=True)
        ],
        (),
        (),
    )
    used = head.used_bytes + len(names) * len(data)
    cache.set_head(Head(head.generation, new + len(names), used, head.inodes + len(names)))


def _need(raw: bytes | None) -> bytes:
    if raw is None:
        raise LookupError("the file to copy is not there, or not saved")
    return raw
