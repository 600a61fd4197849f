"""The workspace at one instant: what is copied out, what is fetched later, and what is left out."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import keys, layout
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.policies import Policies
from s3ws_fs.core.records import encode_location
from s3ws_fs.core.types import BLOB_BIT, ROOT_INO, Location
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.snapshot.tree import SPOOL_FILE, LeftOut, SpoolFullError, Tree, take
from s3ws_fs.store.scoped import ScopedStore
from tests.support.caches import CRED, evict, populate, seal
from tests.transfer.conftest import write

LIMIT_BYTES = 64 << 20


def no_store() -> ScopedStore:
    raise AssertionError("nothing is cold: the store is not wanted")


def taken(cache: Cache, left_out: LeftOut | None = None, **more: object) -> Tree:
    wanted: dict[str, object] = {"limit_bytes": LIMIT_BYTES, "open_store": no_store} | more
    return take(cache, cache.spool_dir, left_out=left_out, **wanted)  # type: ignore[arg-type]


def make_cold(cache: Cache, store: ScopedStore, inos: list[int]) -> None:
    """Put the files' bytes into blobs, and forget them here."""
    for ino in inos:
        with cache.read() as view:
            extents = list(view.extents(ino))
        object_id = BLOB_BIT | ino
        store.put(layout.blob_key(object_id), b"".join(data for _, data in extents))
        offset = 0
        with cache.env.begin(write=True) as txn:
            for index, data in extents:
                loc = Location(object_id, offset, len(data), xxhash.xxh3_128_digest(data))
                key = keys.chunk_key(ino, index)
                txn.put(key, encode_location(loc), db=cache.tables.chunks)
                txn.delete(key, db=cache.tables.extents)
                offset += len(data)


def test_one_instant_with_everything_in_it(cache: Cache, store: ScopedStore) -> None:
    found = populate(cache)
    with cache.read() as view:
        plain = b"".join(data for _, data in view.extents(found["plain"]))
    make_cold(cache, store, [found["deep"]])
    with cache.env.begin(write=True) as txn:
        # The cold extent of "big" stands nowhere: it is not wanted here.
        txn.delete(keys.chunk_key(found["big"], 0), db=cache.tables.chunks)
    tree = taken(cache, open_store=lambda: store)
    walked = dict(tree.walk())
    assert list(walked) == sorted(walked, key=lambda path: path.split(b"/"))
    assert b"orphan" not in walked
    assert walked[b"dir/sub/moved"] == found["plain"]
    assert walked[b"linked"] == walked[b"dir/sub/other name"] == walked[b"dir/a third"]
    assert sorted(tree.paths_of(found["linked"])) == [
        b"dir/a third",
        b"dir/sub/other name",
        b"linked",
    ]
    assert b"\xff odd \\" in walked
    assert tree.read(found["plain"]) == plain
    assert tree.xattrs(found["plain"]) == [(b"user.note", b"value")]
    assert tree.node(found["symlink"]).target == b"dir/sub"
    assert tree.spans(found["sparse"]) == [(1 << 20, 3)]
    assert tree.generation == cache.generation
    assert len(tree.read(found["deep"])) == 10
    assert tree.lookup(b"dir/sub") == found["sub"]
    assert tree.lookup(b"dir/none") is None
    assert [name for name, _ in tree.children(found["sub"])] == [b"deep", b"moved", b"other name"]
    tree.close()


def test_what_changes_afterwards_is_not_seen(cache: Cache, fs: FileSystem) -> None:
    ino = write(fs, b"file", b"before" * 20_000)
    tree = taken(cache)
    fs.write(ino, 0, b"after")
    fs.rename(ROOT_INO, b"file", ROOT_INO, b"renamed")
    fs.setattr(ino, size=3)
    assert [path for path, _ in tree.walk()] == [b"", b"file"]
    assert tree.read(ino) == b"before" * 20_000
    tree.close()


def test_cold_bytes_are_fetched_once_and_together(
    cache: Cache, fs: FileSystem, store: ScopedStore, pool: ThreadPoolExecutor
) -> None:
    whole = {}
    for number in range(20):
        data = os.urandom(50_000 + number)
        whole[write(fs, b"f%d" % number, data)] = data
    make_cold(cache, store, list(whole))
    tree = taken(cache, open_store=lambda: store)
    assert tree.cold_bytes == sum(map(len, whole.values()))
    said: list[tuple[int, int]] = []
    tree.bring(pool=pool, progress=lambda done, of: said.append((done, of)))
    assert said[-1] == (said[-1][1], sum(map(len, whole.values())))
    assert store.counters.by_op()["get"] == 20
    assert {ino: tree.read(ino) for ino in whole} == whole
    assert tree.cold_bytes == 0
    assert store.counters.by_op()["get"] == 20
    tree.close()


def test_a_file_is_fetched_when_it_is_read(
    cache: Cache, fs: FileSystem, store: ScopedStore
) -> None:
    data = os.urandom(100_000)
    ino = write(fs, b"file", data)
    make_cold(cache, store, [ino])
    tree = taken(cache, open_store=lambda: store)
    assert tree.read(ino) == data
    tree.close()


def test_damaged_cold_bytes_come_from_the_mirror_or_are_an_error(
    cache: Cache, fs: FileSystem, store: ScopedStore
) -> None:
    data = os.urandom(2 * EXTENT_BYTES)
    ino = write(fs, b"file", data)
    make_cold(cache, store, [ino])
    rotten = bytearray(data)
    rotten[EXTENT_BYTES + 5] ^= 1
    store.put(layout.blob_key(BLOB_BIT | ino), rotten)
    tree = taken(cache, open_store=lambda: store)
    with pytest.raises(FormatError, match="file"):
        tree.read(ino)
    store.put("files/file", data)
    assert tree.read(ino) == data
    tree.close()


def test_what_is_left_out_takes_no_room(cache: Cache, fs: FileSystem) -> None:
    modules = fs.mkdir(ROOT_INO, b"node_modules", 0o755, CRED).ino
    inside = fs.create(modules, b"big.js", 0o644, CRED).ino
    fs.write(inside, 0, bytes(100_000))
    both = fs.create(modules, b"kept.js", 0o644, CRED).ino
    fs.write(both, 0, b"kept")
    fs.link(both, ROOT_INO, b"kept.js")
    write(fs, b"a.tmp", b"gone")
    tree = taken(cache, Policies().is_left_out, limit_bytes=4)
    assert [path for path, _ in tree.walk()] == [b"", b"kept.js"]
    assert tree.paths_of(both) == [b"kept.js"]
    assert tree.read(both) == b"kept"
    assert tree.left_out == [b"a.tmp", b"node_modules"]
    with pytest.raises(FormatError):
        tree.node(inside)
    tree.close()


def test_the_limit_of_the_spool(cache: Cache, fs: FileSystem, store: ScopedStore) -> None:
    ino = write(fs, b"file", os.urandom(100_000))
    taken(cache, limit_bytes=100_000).close()
    with pytest.raises(SpoolFullError):
        taken(cache, limit_bytes=99_999)
    make_cold(cache, store, [ino])
    tree = taken(cache, open_store=lambda: store, limit_bytes=99_999)
    with pytest.raises(SpoolFullError):
        tree.bring()
    assert not (cache.spool_dir / SPOOL_FILE).exists()
    tree.close()


def test_holes_stay_holes(cache: Cache, fs: FileSystem, tmp_path: Path) -> None:
    ino = write(fs, b"file", b"")
    fs.write(ino, 10 * EXTENT_BYTES, b"x" * (EXTENT_BYTES + 1))
    fs.setattr(ino, size=1 << 30)
    tree = taken(cache)
    assert tree.spans(ino) == [(10 * EXTENT_BYTES, EXTENT_BYTES + 1)]
    with (tmp_path / "copy").open("w+b") as copy:
        tree.copy_to(ino, copy.fileno())
        assert os.fstat(copy.fileno()).st_size == 1 << 30
        assert os.fstat(copy.fileno()).st_blocks * 512 < 1 << 20
        assert os.pread(copy.fileno(), 4, 11 * EXTENT_BYTES - 1) == b"xx\0\0"
    tree.close()


def test_pieces_are_bounded(cache: Cache, fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(5 * EXTENT_BYTES + 7)
    ino = write(fs, b"file", data)
    monkeypatch.setattr("s3ws_fs.snapshot.tree.READ_BYTES_MAX", 2 * EXTENT_BYTES)
    tree = taken(cache)
    blocks = list(tree.blocks(ino))
    assert [len(block) for _, block in blocks] == [
        2 * EXTENT_BYTES,
        2 * EXTENT_BYTES,
        EXTENT_BYTES + 7,
    ]
    assert b"".join(block for _, block in blocks) == data
    tree.close()


@pytest.mark.parametrize("how", ["loop", "missing", "short"])
def test_damaged_records_are_an_error_not_a_loop(cache: Cache, fs: FileSystem, how: str) -> None:
    one = fs.mkdir(ROOT_INO, b"one", 0o755, CRED).ino
    with cache.env.begin(write=True) as txn:
        if how == "loop":
            value = keys.pack_u64(ROOT_INO)
            txn.put(keys.dentry_key(one, b"up"), value, db=cache.tables.dentries)
        elif how == "missing":
            txn.delete(keys.pack_u64(one), db=cache.tables.inodes)
        else:
            txn.put(keys.pack_u64(one), b"x", db=cache.tables.inodes)
    with pytest.raises(FormatError):
        taken(cache)
    assert not any(cache.spool_dir.iterdir())


def test_sealed_and_warm_needs_no_store(cache: Cache, fs: FileSystem) -> None:
    ino = write(fs, b"file", b"data" * 30_000)
    seal(cache)
    tree = taken(cache)
    assert tree.read(ino) == b"data" * 30_000
    tree.close()
    evict(cache, ino, 1)
    tree = taken(cache)
    with pytest.raises(AssertionError, match="not wanted"):
        tree.read(ino)
    tree.close()
