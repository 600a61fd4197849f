"""What is garbage, and what must never be."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import layout
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.retention import Limits
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import garbage
from s3ws_fs.transfer.freeze import Frozen
from s3ws_fs.transfer.garbage import Collected
from tests.support.inline import at_once
from tests.transfer.conftest import write
from tests.transfer.seals import seal_one

NO_HISTORY = Limits(hours=0, max_bytes=0, days=0)


def collect(
    store: ScopedStore, frozen: Frozen, directory: Path, limits: Limits = NO_HISTORY
) -> Collected:
    return garbage.collect_garbage(store, frozen, limits, directory / "history", at_once())


def test_garbage_is_what_nothing_names(
    fs: FileSystem,
    cache: Cache,
    tmp_path: Path,
    store: ScopedStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(garbage, "GC_GRACE_S", 0)
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
    assert collect(store, frozen, tmp_path).removed > 0
    left = [entry.key for entry in store.list()]
    assert left == [
        "files/gone",
        layout.ckpt_key(4),
        layout.HISTORY_KEY,
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
    monkeypatch.setattr(garbage, "GC_GRACE_S", 0)
    digest = seal_one(fs, cache, tmp_path, store, 1, "").header_hash
    write(fs, b"f", b"x")
    frozen = seal_one(fs, cache, tmp_path, store, 2, digest, checkpoint=True)
    time.sleep(0.01)
    store.put(layout.ckpt_key(2), b"")
    with pytest.raises(FormatError, match="has 0 bytes in the bucket"):
        collect(store, frozen, tmp_path)
    left = [entry.key for entry in store.list()]
    assert left == [layout.seg_key(1), layout.seg_key(2)]
    with pytest.raises(FormatError, match="has 0 bytes"):
        collect(store, frozen, tmp_path)
    assert [entry.key for entry in store.list()] == left


def test_a_late_collector_leaves_what_later_seals_need(
    fs: FileSystem,
    cache: Cache,
    tmp_path: Path,
    store: ScopedStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A writer that slept between its checkpoint and the collection, while another one went on."""
    monkeypatch.setattr(garbage, "GC_GRACE_S", 0)
    digest = seal_one(fs, cache, tmp_path, store, 1, "").header_hash
    write(fs, b"old", b"o")
    late = seal_one(fs, cache, tmp_path, store, 2, digest, checkpoint=True)
    time.sleep(0.01)
    write(fs, b"new", bytes(3_000_000))
    frozen = seal_one(fs, cache, tmp_path, store, 3, late.header_hash, checkpoint=True)
    assert frozen.blobs
    collect(store, late, tmp_path)
    for object_id in frozen.blobs:
        store.head(layout.blob_key(object_id))


def test_the_grace_keeps_young_garbage(
    fs: FileSystem, cache: Cache, tmp_path: Path, store: ScopedStore
) -> None:
    first = seal_one(fs, cache, tmp_path, store, 1, "")
    write(fs, b"f", b"x")
    frozen = seal_one(fs, cache, tmp_path, store, 2, first.header_hash, checkpoint=True)
    assert collect(store, frozen, tmp_path).removed == 0
    assert len(list(store.list())) == 3
