"""What a freeze makes of the cache: a segment, blobs, a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import journal, keys
from s3ws_fs.core.records import decode_location
from s3ws_fs.core.types import BLOB_BIT, ROOT_INO, SELF_OBJECT
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import freeze as freezing
from s3ws_fs.transfer import spool
from tests.transfer.conftest import write
from tests.transfer.seals import ask, freeze, records, seal_one


def test_a_frozen_segment_is_a_whole_journal_object(
    fs: FileSystem, cache: Cache, tmp_path: Path
) -> None:
    ino = write(fs, b"small", b"hello")
    frozen = freeze(cache, tmp_path, ask(1))
    assert frozen.segment is not None
    raw = frozen.segment.read_bytes()
    header, _ = journal.open_object(raw, "seg")
    assert header == frozen.header
    place = records(frozen)[keys.T_CHUNKS, keys.chunk_key(ino, 0)]
    assert place is not None
    loc = decode_location(place)
    assert loc.object_id == SELF_OBJECT
    assert raw[loc.offset : loc.offset + loc.length] == b"hello"
    assert frozen.segment.stat().st_mode & 0o777 == 0o600
    frozen.close()
    assert not list(tmp_path.glob("*.seg"))


def test_nothing_dirty_is_no_segment(cache: Cache, fs: FileSystem, tmp_path: Path) -> None:
    write(fs, b"f", b"x")
    cache.forget(cache.generation, 0)
    with cache.read() as view:
        left = [(table, key) for table, key, _, _ in view.dirty()]
    # Data that was not located stays dirty.
    assert [table for table, _ in left] == [keys.T_CHUNKS]
    cache.record_locations(cache.generation, [(left[0][1], bytes(36))])
    frozen = freeze(cache, tmp_path, ask(1))
    assert frozen.segment is None
    assert set(frozen.todo.files) == {ROOT_INO, 2}
    assert not list(tmp_path.glob("*.seg"))


def test_where_data_goes(
    fs: FileSystem, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "SEGMENT_INLINE_BYTES_MAX", 100_000)
    monkeypatch.setattr(freezing, "BLOB_FILE_BYTES_MIN", 70_000)
    monkeypatch.setattr(freezing, "BLOB_BYTES_MAX", 90_000)
    at_limit = write(fs, b"1-inline", bytes(70_000))
    above = write(fs, b"2-own", bytes(70_001))
    shared = write(fs, b"3-shared", bytes(60_000))
    frozen = freeze(cache, tmp_path, ask(1))
    found = records(frozen)

    def objects(ino: int) -> set[int]:
        return {
            decode_location(raw).object_id
            for (table, key), raw in found.items()
            if table == keys.T_CHUNKS and keys.unpack_u64(key) == ino and raw is not None
        }

    assert objects(at_limit) == {SELF_OBJECT}
    (own,) = objects(above)
    assert own & BLOB_BIT
    assert frozen.blobs[own].whole_ino == above
    assert frozen.blobs[own].length == 70_001
    assert len(objects(shared)) == 2
    assert SELF_OBJECT not in objects(shared) or own not in objects(shared)
    frozen.close()


def test_tombstones(cache: Cache, fs: FileSystem, tmp_path: Path) -> None:
    ino = write(fs, b"f", b"x")
    fs.unlink(ROOT_INO, b"f")
    fs.forget(ino)
    fs.reap()
    found = records(freeze(cache, tmp_path, ask(1)))
    assert found[keys.T_INODES, keys.pack_u64(ino)] is None
    assert found[keys.T_DENTRIES, keys.dentry_key(ROOT_INO, b"f")] is None


def test_a_checkpoint_equals_the_cache(
    fs: FileSystem, cache: Cache, tmp_path: Path, store: ScopedStore
) -> None:
    first = seal_one(fs, cache, tmp_path, store, 1, "")
    keep, cut = write(fs, b"keep", bytes(100_000)), write(fs, b"cut", bytes(100_000))
    second = seal_one(fs, cache, tmp_path, store, 2, first.header_hash)
    fs.setattr(cut, size=10)
    fs.write(keep, 40_000, b"middle")
    frozen = seal_one(fs, cache, tmp_path, store, 3, second.header_hash, checkpoint=True)
    assert frozen.checkpoint is not None
    folded: dict[int, list[tuple[bytes, bytes]]] = {}
    for frame in spool.open_records(frozen.checkpoint, "ckpt", whole=True).frames():
        items = zip(frame.keys, frame.values, strict=True)
        folded.setdefault(frame.table, []).extend(items)
    with cache.read() as view:
        for table, name in keys.TABLE_NAMES.items():
            with view.txn.cursor(db=getattr(view.db, name)) as cursor:
                assert folded.get(table, []) == list(cursor)


def test_bytes_that_stand_already_are_not_sent_again(
    cache: Cache, fs: FileSystem, store: ScopedStore, tmp_path: Path
) -> None:
    """Rewritten with the same bytes, or dirty and cold: the standing location is its content."""
    ino = write(fs, b"file", b"the same")
    seal_one(fs, cache, tmp_path, store, 1, "").close()
    with cache.read() as view:
        standing = view.chunk(ino, 0)
    fs.write(ino, 0, b"the same")
    frozen = freeze(cache, tmp_path, ask(2))
    assert frozen.header is not None and frozen.header.data_bytes == 0
    place = records(frozen)[keys.T_CHUNKS, keys.chunk_key(ino, 0)]
    assert place is not None and decode_location(place) == standing
    frozen.close()
    fs.write(ino, 0, b"not same")
    frozen = freeze(cache, tmp_path, ask(2))
    assert frozen.header is not None and frozen.header.data_bytes == 8
    frozen.close()
