"""Sealing, lost answers, fences, garbage and restore, on a store that fails on demand."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import journal, keys, layout
from s3ws_fs.core.errors import FormatError, TransientError, UserError
from s3ws_fs.core.records import decode_location
from s3ws_fs.core.types import BLOB_BIT, ROOT_INO, SELF_OBJECT
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.memory import Fault, MemoryStore
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import freeze as freezing
from s3ws_fs.transfer import journaling, spool
from s3ws_fs.transfer.fetch import read_twice
from s3ws_fs.transfer.freeze import FreezeRequest, Frozen
from s3ws_fs.transfer.wire import FencedError, OwnSealError
from tests.transfer.conftest import write

WORKSPACE = "w" * 32

_frozen: list[Frozen] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Every freeze of a test is closed behind it."""
    yield
    while _frozen:
        _frozen.pop().close()


def freeze(cache: Cache, directory: Path, request: FreezeRequest) -> Frozen:
    frozen = freezing.freeze(cache, directory, request)
    _frozen.append(frozen)
    return frozen


def ask(number: int, prev_hash: str = "", writer: str = "me", **more: object) -> FreezeRequest:
    return FreezeRequest.from_json(
        {
            "workspace": WORKSPACE,
            "writer": writer,
            "host": f"host-of-{writer}",
            "flush_id": uuid.uuid4().hex,
            "number": number,
            "prev_hash": prev_hash,
            "mirrored": 0,
            "created_ns": time.time_ns(),
            "checkpoint": False,
            "prefix_bytes": 30,
            **more,
        }
    )


def records(frozen: Frozen) -> dict[tuple[int, bytes], bytes | None]:
    """All records of a frozen segment: value, or None for a tombstone."""
    assert frozen.segment is not None
    found: dict[tuple[int, bytes], bytes | None] = {}
    for frame in spool.open_records(frozen.segment, "seg", whole=True).frames():
        values = [None] * len(frame.keys) if frame.tombs else frame.values
        found.update({(frame.table, k): v for k, v in zip(frame.keys, values, strict=True)})
    return found


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


def test_a_lost_answer_is_our_own_seal(
    fs: FileSystem, cache: Cache, tmp_path: Path, memory: MemoryStore, store: ScopedStore
) -> None:
    write(fs, b"f", b"x")
    frozen = freeze(cache, tmp_path, ask(1))
    memory.fault = lambda op, key: Fault.LOST if op == "put" else Fault.NONE
    with pytest.raises(TransientError):
        journaling.seal(store, frozen)
    memory.fault = None
    journaling.seal(store, frozen)
    assert journaling.read_header(store, layout.seg_key(1))[0].flush_id == frozen.flush_id


def test_a_seal_needs_what_it_continues(
    fs: FileSystem, cache: Cache, tmp_path: Path, store: ScopedStore
) -> None:
    """The must-create PUT can't tell a bucket that was emptied."""
    with pytest.raises(FormatError, match=r"workspace\.json: is gone"):
        journaling.require_journal(store, 1)
    journaling.make_workspace(store, WORKSPACE, 1)
    journaling.require_journal(store, 1)
    with pytest.raises(FormatError, match="is gone"):
        journaling.require_journal(store, 2)
    write(fs, b"f", b"x")
    journaling.seal(store, freeze(cache, tmp_path, ask(1)))
    journaling.require_journal(store, 2)
    # A segment that a checkpoint folded may be gone.
    store.delete(layout.seg_key(1))
    store.put(layout.ckpt_key(1), b"checkpoint")
    journaling.require_journal(store, 2)


def test_bytes_spoilt_on_the_way_are_read_again() -> None:
    tries = 0

    def read() -> int:
        nonlocal tries
        tries += 1
        if tries != 2:
            raise FormatError("k", f"spoilt {tries}")
        return tries

    assert read_twice(read) == 2
    with pytest.raises(FormatError, match="spoilt 4"):
        read_twice(read)


def test_a_late_seal_of_our_own_and_a_fence(
    fs: FileSystem, cache: Cache, tmp_path: Path, store: ScopedStore
) -> None:
    write(fs, b"f", b"x")
    journaling.seal(store, freeze(cache, tmp_path, ask(1)))
    with pytest.raises(OwnSealError):
        journaling.seal(store, freeze(cache, tmp_path, ask(1)))
    with pytest.raises(FencedError, match="host-of-me"):
        journaling.seal(store, freeze(cache, tmp_path, ask(1, writer="other")))


def seal_one(
    fs: FileSystem,
    cache: Cache,
    tmp_path: Path,
    store: ScopedStore,
    number: int,
    prev_hash: str,
    *,
    checkpoint: bool = False,
) -> Frozen:
    """Freeze, seal and forget, as the flusher does."""
    frozen = freeze(cache, tmp_path, ask(number, prev_hash, checkpoint=checkpoint))
    with ThreadPoolExecutor(2) as pool:
        journaling.ship_blobs(store, frozen, pool, lambda _: None)
    journaling.seal(store, frozen)
    own = keys.pack_u64(number)
    located = [
        (key, own + raw[8:] if raw[:8] == bytes(8) else raw)
        for (table, key), raw in records(frozen).items()
        if table == keys.T_CHUNKS and raw is not None
    ]
    cache.record_locations(frozen.generation, located)
    assert cache.forget(frozen.generation, 0) is None
    if checkpoint:
        journaling.put_checkpoint(store, frozen)
    return frozen


def test_restore_is_a_chain(
    fs: FileSystem,
    cache: Cache,
    tmp_path: Path,
    store: ScopedStore,
    pool: ThreadPoolExecutor,
) -> None:
    journaling.make_workspace(store, WORKSPACE, 1)
    digest = ""
    for number in range(1, 6):
        write(fs, b"f%d" % number, bytes(2_000_000))
        frozen = seal_one(fs, cache, tmp_path, store, number, digest, checkpoint=number == 3)
        digest = frozen.header_hash
    seen: list[tuple[int, int]] = []
    restored = journaling.restore(store, tmp_path, pool, lambda a, b: seen.append((a, b)))
    state, files = restored.state, restored.files
    assert (state.checkpoint, state.newest, state.segments) == (3, 5, (4, 5))
    assert [file.header.kind for file in files] == ["checkpoint", "segment", "segment"]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    # A segment of another history, in itself sound.
    write(fs, b"other", b"x")
    stray = freeze(cache, tmp_path, ask(5, prev_hash="0" * 32))
    assert stray.segment is not None
    store.put(layout.seg_key(5), stray.segment.read_bytes())
    with pytest.raises(FormatError, match="continue"):
        journaling.restore(store, tmp_path, pool, lambda a, b: None)
    store.delete(layout.seg_key(4))
    with pytest.raises(FormatError, match="missing"):
        journaling.survey(store)


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


def test_garbage_is_what_nothing_names(
    fs: FileSystem,
    cache: Cache,
    tmp_path: Path,
    store: ScopedStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journaling, "GC_GRACE_S", 0)
    digest = seal_one(fs, cache, tmp_path, store, 1, "").header_hash
    kept = write(fs, b"kept", b"k")
    digest = seal_one(fs, cache, tmp_path, store, 2, digest).header_hash
    gone = write(fs, b"gone", bytes(3_000_000))
    digest = seal_one(fs, cache, tmp_path, store, 3, digest).header_hash
    store.put("files/gone", b"the mirror is not the journal's business")
    store.put("journal/strange", b"not ours to remove")
    fs.setattr(gone, size=0)
    frozen = seal_one(fs, cache, tmp_path, store, 4, digest, checkpoint=True)
    time.sleep(0.01)
    assert journaling.collect_garbage(store, frozen) > 0
    left = [entry.key for entry in store.list()]
    assert left == [
        "files/gone",
        layout.ckpt_key(4),
        layout.seg_key(2),
        layout.seg_key(4),
        "journal/strange",
    ]
    assert kept


def test_nothing_is_removed_behind_a_checkpoint_that_is_not_whole(
    fs: FileSystem,
    cache: Cache,
    tmp_path: Path,
    store: ScopedStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journaling, "GC_GRACE_S", 0)
    digest = seal_one(fs, cache, tmp_path, store, 1, "").header_hash
    write(fs, b"f", b"x")
    frozen = seal_one(fs, cache, tmp_path, store, 2, digest, checkpoint=True)
    time.sleep(0.01)
    store.put(layout.ckpt_key(2), b"")
    with pytest.raises(FormatError, match="has 0 bytes in the bucket"):
        journaling.collect_garbage(store, frozen)
    left = [entry.key for entry in store.list()]
    assert left == [layout.seg_key(1), layout.seg_key(2)]
    with pytest.raises(FormatError, match="has 0 bytes"):
        journaling.collect_garbage(store, frozen)
    assert [entry.key for entry in store.list()] == left


def test_a_late_collector_leaves_what_later_seals_need(
    fs: FileSystem,
    cache: Cache,
    tmp_path: Path,
    store: ScopedStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A writer that slept between its checkpoint and the collection, while another one went on."""
    monkeypatch.setattr(journaling, "GC_GRACE_S", 0)
    digest = seal_one(fs, cache, tmp_path, store, 1, "").header_hash
    write(fs, b"old", b"o")
    late = seal_one(fs, cache, tmp_path, store, 2, digest, checkpoint=True)
    time.sleep(0.01)
    write(fs, b"new", bytes(3_000_000))
    frozen = seal_one(fs, cache, tmp_path, store, 3, late.header_hash, checkpoint=True)
    assert frozen.blobs
    journaling.collect_garbage(store, late)
    for object_id in frozen.blobs:
        store.head(layout.blob_key(object_id))


def test_the_grace_keeps_young_garbage(
    fs: FileSystem, cache: Cache, tmp_path: Path, store: ScopedStore
) -> None:
    first = seal_one(fs, cache, tmp_path, store, 1, "")
    write(fs, b"f", b"x")
    frozen = seal_one(fs, cache, tmp_path, store, 2, first.header_hash, checkpoint=True)
    assert journaling.collect_garbage(store, frozen) == 0
    assert len(list(store.list())) == 3


def test_the_workspace_object_is_made_once(store: ScopedStore) -> None:
    assert journaling.read_workspace(store) is None
    assert journaling.make_workspace(store, "1" * 32, 1) == "1" * 32
    assert journaling.make_workspace(store, "2" * 32, 1) == "1" * 32
    store.put(layout.WORKSPACE_KEY, b'{"format": 99}')
    with pytest.raises(UserError):
        journaling.read_workspace(store)
    store.put(layout.WORKSPACE_KEY, b'{"format": 1, "workspace": "x", "extent_bytes": 65536}')
    with pytest.raises(UserError, match="65536"):
        journaling.read_workspace(store)


def test_small_files_with_a_wrong_digest_count_for_nothing(store: ScopedStore) -> None:
    journaling.make_workspace(store, WORKSPACE, 1234)
    raw = store.get(layout.WORKSPACE_KEY).data
    assert journaling.read_workspace(store) == WORKSPACE
    for wrong in (raw.replace(b"1234", b"1235"), raw.replace(b'"digest"', b'"digesx"')):
        store.put(layout.WORKSPACE_KEY, wrong)
        with pytest.raises(UserError, match="digest"):
            journaling.read_workspace(store)
    journaling.note_mirrored(store, WORKSPACE, 17)
    assert journaling.read_mirrored(store, WORKSPACE) == 17
    raw = store.get(layout.MIRRORED_KEY).data
    store.put(layout.MIRRORED_KEY, raw.replace(b"17", b"99"))
    assert journaling.read_mirrored(store, WORKSPACE) == 0
