"""The life of one workspace on a store, seal by seal, with what each point must hold beside it.

Without worker and daemon: a cache with a filesystem, frozen and sealed as the flusher does.

Called by the tests of transfer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.tableset import PathFinder, TableSet
from s3ws_fs.core import keys
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import decode_location
from s3ws_fs.core.types import ROOT_INO, SELF_OBJECT, Cred
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import freeze as freezing
from s3ws_fs.transfer import journaling, sealing, spool
from s3ws_fs.transfer.fetch import coalesce, fetch_group
from s3ws_fs.transfer.freeze import FreezeRequest, Frozen

WORKSPACE = "w" * 32
CRED = Cred(uid=1, gid=2)
Tree = dict[bytes, bytes]


def tree_of(tables: TableSet, store: ScopedStore) -> Tree:
    """Paths and bytes of all files; directories end in a slash. Reads every byte, verified."""
    paths = PathFinder(tables)
    chunks: dict[int, list[tuple[int, bytes]]] = {}
    for key, raw in tables.chunks.items():
        ino, index = keys.split_chunk_key(key)
        chunks.setdefault(ino, []).append((index, raw))
    wanted = {decode_location(raw) for raw in tables.chunks.values()}
    found = {}
    for group in coalesce(wanted):
        found.update(fetch_group(store, group))
    tree: Tree = {}
    for key in tables.inodes:
        rec = tables.inode(keys.unpack_u64(key))
        assert rec is not None and rec.nlink
        data = bytearray(rec.size)
        for index, raw in chunks.pop(rec.ino, ()):
            piece = found[decode_location(raw)]
            data[index * EXTENT_BYTES : index * EXTENT_BYTES + len(piece)] = piece
        for path in paths.of(rec.ino):
            tree[path + b"/" if rec.is_dir else path] = bytes(data)
    assert not chunks, "places of files that are not there"
    return tree


@dataclass
class Life:
    """A workspace that lives on `store`. `points` is what each sealed number must show."""

    cache: Cache
    fs: FileSystem
    store: ScopedStore
    directory: Path
    number: int = 0
    digest: str = ""
    tree: Tree = field(default_factory=lambda: {b"/": b""})
    points: dict[int, Tree] = field(default_factory=dict)
    hashes: dict[int, str] = field(default_factory=dict)
    generations: dict[int, int] = field(default_factory=dict)
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Bits for flush ids and blobs."""

    def begin(self) -> None:
        """Make the workspace in the bucket."""
        journaling.make_workspace(self.store, WORKSPACE, 1)

    def write(self, name: bytes, data: bytes) -> int:
        """A file in the root with these bytes, new or over what it held."""
        if name in self.tree:
            ino = self.fs.lookup(ROOT_INO, name).ino
            self.fs.setattr(ino, size=0)
        else:
            ino = self.fs.create(ROOT_INO, name, 0o666, CRED).ino
        for at in range(0, len(data), 1 << 20):
            self.fs.write(ino, at, data[at : at + (1 << 20)])
        self.tree[name] = data
        return ino

    def remove(self, name: bytes) -> None:
        """Remove a file of the root, which nobody has open."""
        ino = self.fs.lookup(ROOT_INO, name).ino
        self.fs.unlink(ROOT_INO, name)
        self.fs.forget(ino)
        self.fs.reap()
        del self.tree[name]

    def rename(self, old: bytes, new: bytes) -> None:
        """Rename a file of the root, over another perhaps."""
        self.fs.rename(ROOT_INO, old, ROOT_INO, new)
        self.tree[new] = self.tree.pop(old)

    def ask(self, *, checkpoint: bool, alone: bool = False) -> FreezeRequest:
        """The next freeze."""
        return FreezeRequest(
            workspace=WORKSPACE,
            writer="me",
            host="here",
            flush_id=f"{next(self.ids):032x}",
            number=self.number + 1,
            prev_hash=self.digest,
            mirrored=0,
            created_ns=next(self.ids),
            checkpoint=checkpoint,
            prefix_bytes=30,
            alone=alone,
        )

    def seal(
        self, pool: Executor, *, checkpoint: bool = False, alone: bool = False
    ) -> Frozen | None:
        """Freeze, seal and forget, as the flusher does; the caller closes what comes out. `alone`:
        also when nothing is dirty."""
        frozen = freezing.freeze(
            self.cache,
            self.directory,
            self.ask(checkpoint=checkpoint, alone=alone),
            randbits=lambda bits: next(self.ids),
        )
        if frozen.segment is None:
            frozen.close()
            return None
        sealing.ship_blobs(self.store, frozen, pool, lambda _: None)
        sealing.seal(self.store, frozen)
        self.number, self.digest = frozen.number, frozen.header_hash
        self._forget(frozen)
        if checkpoint:
            sealing.put_checkpoint(self.store, frozen)
        self.points[self.number] = dict(self.tree)
        self.hashes[self.number] = self.digest
        self.generations[self.number] = frozen.generation
        return frozen

    def _forget(self, frozen: Frozen) -> None:
        assert frozen.segment is not None
        own, this = keys.pack_u64(frozen.number), keys.pack_u64(SELF_OBJECT)
        for frame in spool.open_records(frozen.segment, "seg", whole=True).frames():
            if frame.table == keys.T_CHUNKS and not frame.tombs:
                located = zip(frame.keys, frame.values, strict=True)
                self.cache.record_locations(
                    frozen.generation,
                    [(k, own + raw[8:] if raw[:8] == this else raw) for k, raw in located],
                )
        assert self.cache.forget(frozen.generation, 0) is None
