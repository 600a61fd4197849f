"""A restore's records in one transaction: marks, orphans, warm bytes, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.rewinding import PUT_RECORDS, BulkChanges
from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.journal import T_MTODO, Frame
from s3ws_fs.core.records import decode_inode
from s3ws_fs.core.types import ROOT_INO
from tests.support import caches


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with open_cache(
        tmp_path,
        Identity(prefix=caches.PREFIX, store="local:/somewhere"),
        quota_bytes=64 << 20,
        now_ns=itertools.count(1).__next__,
        boot_id="boot",
    ) as opened:
        yield opened


def marks(cache: Cache) -> dict[tuple[int, bytes], tuple[int, int]]:
    with cache.read() as view:
        return {(table, key): (gen, first) for table, key, gen, first in view.dirty()}


def test_marks_keep_the_time_of_their_first_dirt(cache: Cache) -> None:
    fs = caches.filesystem(cache)
    old = fs.create(ROOT_INO, b"dirty", 0o644, caches.CRED).ino
    clean = fs.create(ROOT_INO, b"clean", 0o644, caches.CRED).ino
    caches.seal(cache)
    fs.setattr(old, mode=0o600)
    before = marks(cache)
    key, other = keys.pack_u64(old), keys.pack_u64(clean)
    with cache.read() as view:
        raws = [view.txn.get(each, db=view.db.inodes) for each in (key, other)]
    frame = Frame(keys.T_INODES, False, [key, other], [raw for raw in raws if raw is not None])
    gone = Frame(keys.T_DENTRIES, True, [keys.dentry_key(ROOT_INO, b"clean")], [])
    with cache.write() as tx:
        bulk = BulkChanges(tx)
        bulk.add(gone)
        bulk.add(frame)
    after = marks(cache)
    assert after[keys.T_INODES, key] == (cache.generation, before[keys.T_INODES, key][1])
    assert after[keys.T_INODES, other][0] == cache.generation
    assert after[keys.T_DENTRIES, gone.keys[0]][0] == cache.generation
    assert not bulk.orphans


def test_what_has_no_links_is_an_orphan(cache: Cache) -> None:
    fs = caches.filesystem(cache)
    inos = [fs.create(ROOT_INO, b"%d" % n, 0o644, caches.CRED).ino for n in range(3)]
    found = []
    with cache.read() as view:
        for ino in inos:
            rec = view.inode(ino)
            assert rec is not None
            rec.nlink, rec.parent, rec.name = 0, 0, b""
            found.append((keys.pack_u64(ino), rec.encode()))
    names = [keys.dentry_key(ROOT_INO, b"%d" % n) for n in range(3)]
    with cache.write() as tx:
        bulk = BulkChanges(tx)
        bulk.add(Frame(keys.T_DENTRIES, True, names, []))
        bulk.add(Frame(keys.T_INODES, False, [k for k, _ in found], [raw for _, raw in found]))
    assert bulk.orphans == inos
    with cache.read() as view:
        assert [keys.unpack_u64(key) for key, _ in view.txn.cursor(db=view.db.orphans)] == inos


def test_more_than_one_batch(cache: Cache) -> None:
    caches.filesystem(cache)
    count = 2 * PUT_RECORDS + 1
    named = [keys.xattr_key(ROOT_INO, b"user.%d" % n) for n in range(count)]
    with cache.write() as tx:
        BulkChanges(tx).add(Frame(keys.T_XATTRS, False, named, [b"v"] * count))
    with cache.read() as view:
        assert len(list(view.xattrs(ROOT_INO))) == count
        assert sum(table == keys.T_XATTRS for table, _, _, _ in view.dirty()) == count


@pytest.mark.parametrize(
    ("table", "tombs"), [(keys.T_INODES, True), (keys.T_CHUNKS, True), (T_MTODO, False)]
)
def test_what_no_restore_does(cache: Cache, table: int, tombs: bool) -> None:
    caches.filesystem(cache)
    before = cache.generation
    frame = Frame(table, tombs, [keys.pack_u64(ROOT_INO)], [] if tombs else [bytes(8)])
    with pytest.raises(FormatError), cache.write() as tx:
        BulkChanges(tx).add(frame)
    assert cache.generation == before


def test_warm_bytes_go_over(cache: Cache) -> None:
    fs = caches.filesystem(cache)
    ino = fs.create(ROOT_INO, b"file", 0o644, caches.CRED).ino
    fs.write(ino, 0, b"warm")
    pairs = [
        (keys.chunk_key(ino, 0), keys.chunk_key(99, 0)),
        # Cold by now: evicted since it was planned.
        (keys.chunk_key(ino, 1), keys.chunk_key(99, 1)),
    ]
    with cache.write() as tx:
        BulkChanges(tx).keep_warm(pairs)
        tx.changed = True
    with cache.read() as view:
        assert view.extent(99, 0) == b"warm" and view.extent(99, 1) is None
        raw = view.txn.get(keys.pack_u64(ino), db=view.db.inodes)
        assert raw is not None and decode_inode(ino, raw).size == 4
