"""A cache with something of everything in it, made by the filesystem, sealed and mirrored in part.

Called by the tests of cache, transfer and cli that look into caches.
"""

from __future__ import annotations

import os

import xxhash

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import keys
from s3ws_fs.core.layout import mirror_path
from s3ws_fs.core.records import MirrorRow, encode_location
from s3ws_fs.core.types import ROOT_INO, Cred, Location
from s3ws_fs.fs.filesystem import FileSystem

CRED = Cred(uid=7, gid=8)
PREFIX = "conversations/u/c/workspace/"
SEALED = 3
"""The segment that `seal` names."""


def filesystem(cache: Cache) -> FileSystem:
    """A filesystem with a root over the cache."""
    fs = FileSystem(cache, quota_bytes=1 << 30, quota_inodes=100_000)
    fs.make_root(uid=0, gid=0, mode=0o755)
    return fs


def seal(cache: Cache) -> None:
    """Forget all dirt, as after the seal of segment SEALED that holds all of it."""
    items = []
    with cache.read() as view:
        for table, key, _, _ in view.dirty():
            if table == keys.T_CHUNKS:
                ino, index = keys.split_chunk_key(key)
                data = view.extent(ino, index)
                if data is not None:
                    digest = xxhash.xxh3_128_digest(data)
                    loc = Location(SEALED, 1024 + 40_000 * index, len(data), digest)
                    items.append((key, encode_location(loc)))
    generation = cache.generation
    cache.record_locations(generation, items)
    resume: bytes | None = b""
    while resume is not None:
        resume = cache.forget(generation, 0, resume)
    cache.put_json("sealed", {"number": SEALED, "hash": "0" * 32, "generation": generation})


def mirror(cache: Cache) -> None:
    """Note that everything on the to-do stands in the mirror."""
    rows: list[MirrorRow] = []
    gone: list[bytes] = []
    done = []
    with cache.read() as view:
        for ino, noted in view.mtodo():
            done.append((ino, cache.generation))
            gone += [row.path for row in view.mirror_of(ino)]
            rec = view.inode(ino)
            if rec is None or ino == ROOT_INO:
                continue
            for path in view.paths_of(rec):
                if rec.is_dir:
                    rows.append(MirrorRow(path + b"/", ino, noted, 0, "", bytes(16)))
                    continue
                text, _ = mirror_path(path, len(PREFIX))
                digest = xxhash.xxh3_128_digest(text.encode())
                rows.append(MirrorRow(text.encode(), ino, noted, rec.data_gen, "e", digest))
    cache.record_mirrored(rows, gone, done)
    cache.put_json("mirror_known", True)
    cache.put_json("mirrored", cache.generation)


def evict(cache: Cache, ino: int, index: int) -> None:
    """Make a sealed extent cold."""
    with cache.env.begin(write=True) as txn:
        assert txn.delete(keys.chunk_key(ino, index), db=cache.tables.extents)


def populate(cache: Cache) -> dict[str, int]:
    """Something of every kind, sealed, cold, dirty and removed; inodes by name."""
    fs = filesystem(cache)
    found: dict[str, int] = {}

    def file(parent: int, name: bytes, size: int = 0) -> int:
        ino = fs.create(parent, name, 0o644, CRED).ino
        for at in range(0, size, 1 << 17):
            fs.write(ino, at, os.urandom(min(1 << 17, size - at)))
        return ino

    found["dir"] = fs.mkdir(ROOT_INO, b"dir", 0o755, CRED).ino
    found["sub"] = fs.mkdir(found["dir"], b"sub", 0o755, CRED).ino
    found["deep"] = file(found["sub"], b"deep", 10)
    found["plain"] = file(ROOT_INO, b"plain", 5000)
    found["big"] = file(ROOT_INO, b"big", 100_000)
    found["sparse"] = file(ROOT_INO, b"sparse")
    fs.write(found["sparse"], 1 << 20, b"end")
    found["linked"] = file(ROOT_INO, b"linked", 100)
    fs.link(found["linked"], found["sub"], b"other name")
    fs.link(found["linked"], found["dir"], b"a third")
    found["symlink"] = fs.symlink(ROOT_INO, b"symlink", b"dir/sub", CRED).ino
    found["fifo"] = fs.mknod(ROOT_INO, b"fifo", 0o010644, 0, CRED).ino
    fs.setxattr(found["plain"], b"user.note", b"value")
    fs.setxattr(found["dir"], b"user.note", b"value")
    file(ROOT_INO, b"\xff odd \\", 3)
    seal(cache)
    mirror(cache)
    evict(cache, found["big"], 0)
    # And what is not sealed.
    found["dirty"] = file(found["dir"], b"dirty", 40_000)
    fs.write(found["big"], 50_000, b"changed")
    orphan = file(ROOT_INO, b"orphan", 50_000)
    fs.unlink(ROOT_INO, b"orphan")
    found["orphan"] = orphan
    fs.rename(ROOT_INO, b"plain", found["sub"], b"moved")
    return found
