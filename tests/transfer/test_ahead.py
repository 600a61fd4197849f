"""Shipping ahead of a freeze when the spool has no room: portions, changes meanwhile, bodies."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import keys, layout
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import decode_location
from s3ws_fs.core.types import SELF_OBJECT
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer import ahead as shipping
from s3ws_fs.transfer import objects
from s3ws_fs.transfer.ahead import Ahead
from s3ws_fs.transfer.fetch import ExtentSource
from s3ws_fs.transfer.freeze import freeze
from s3ws_fs.transfer.layouts import Layouts
from s3ws_fs.transfer.mirror import MirrorPass
from tests.transfer.conftest import write
from tests.transfer.seals import WORKSPACE, ask, records

PORTION_BYTES = 4 * EXTENT_BYTES


@pytest.fixture
def ahead(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ahead:
    """On a disk with room for one extent of the spool."""
    monkeypatch.setattr(shipping, "PORTION_BYTES", PORTION_BYTES)
    for module in (shipping, objects):
        monkeypatch.setattr(module, "spool_room_bytes", lambda _: 2 * EXTENT_BYTES)
    return Ahead(cache, cache.directory, tmp_path)


def test_nothing_is_shipped_ahead_when_it_fits(
    ahead: Ahead, fs: FileSystem, store: ScopedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(fs, b"small", bytes(EXTENT_BYTES))
    assert not ahead.make_fit(store, lambda _: None)
    write(fs, b"large", bytes(20 * EXTENT_BYTES))
    monkeypatch.setattr(shipping, "spool_room_bytes", lambda _: 1 << 40)
    assert not ahead.make_fit(store, lambda _: None)
    assert ahead.known == {}


def test_in_portions_and_what_changed_since_is_frozen(
    ahead: Ahead, fs: FileSystem, cache: Cache, store: ScopedStore, tmp_path: Path
) -> None:
    data = os.urandom(10 * EXTENT_BYTES + 100)
    ino = write(fs, b"large", data)
    told: list[int] = []
    assert ahead.make_fit(store, told.append)
    assert told == [1, 2, 3]
    blobs = [entry.key for entry in store.list(layout.BLOB_PREFIX)]
    assert len(blobs) == 3
    fs.write(ino, 2 * EXTENT_BYTES, b"changed")
    fs.setattr(ino, size=9 * EXTENT_BYTES)
    frozen = freeze(cache, tmp_path, ask(1), ahead.known)
    try:
        assert frozen.segment_file is not None
        assert frozen.header is not None
        assert frozen.header.data_bytes == EXTENT_BYTES
        found = records(frozen)
        now = fs.read(ino, 0, len(data))
        assert isinstance(now, bytes)
        for index in range(9):
            raw = found.pop((keys.T_CHUNKS, keys.chunk_key(ino, index)))
            assert raw is not None
            loc = decode_location(raw)
            assert (loc.object_id == SELF_OBJECT) == (index == 2)
            if index == 2:
                piece = os.pread(frozen.segment_file.fileno(), loc.length, loc.offset)
            else:
                piece = store.get(layout.object_key(loc.object_id), loc.offset, loc.length).data
            assert piece == now[index * EXTENT_BYTES : (index + 1) * EXTENT_BYTES]
        assert [index for table, key in found if table == keys.T_CHUNKS for index in key[8:]] == [
            *keys.chunk_key(ino, 9)[8:],
            *keys.chunk_key(ino, 10)[8:],
        ]
        assert all(found[keys.T_CHUNKS, keys.chunk_key(ino, index)] is None for index in (9, 10))
    finally:
        frozen.close()


def test_a_large_mirror_object_needs_no_spool_file(
    ahead: Ahead,
    fs: FileSystem,
    cache: Cache,
    store: ScopedStore,
    tmp_path: Path,
    pool: ThreadPoolExecutor,
) -> None:
    data = bytearray(os.urandom(objects.MEMORY_BODY_BYTES_MAX + 5 * EXTENT_BYTES + 77))
    ino = write(fs, b"large", bytes(data))
    fs.setattr(ino, size=len(data) + 3 * EXTENT_BYTES)
    fs.write(ino, len(data) + 2 * EXTENT_BYTES, b"after a hole")
    whole = fs.read(ino, 0, 1 << 30)
    assert ahead.make_fit(store, lambda _: None)
    frozen = freeze(cache, tmp_path, ask(1), ahead.known)
    spooled = {path.name for path in tmp_path.iterdir()}
    mirroring = MirrorPass(
        store,
        ExtentSource(store, cache, frozen),
        frozen,
        workspace=WORKSPACE,
        directory=tmp_path / "absent",
        layouts=Layouts(tmp_path / "layouts", WORKSPACE),
        pool=pool,
        report=lambda _: None,
        stopped=threading.Event().is_set,
    )
    try:
        outcome = mirroring.run()
        assert outcome.error is None
        assert store.get(layout.FILES_PREFIX + "large").data == whole
        assert {path.name for path in tmp_path.iterdir()} == spooled
    finally:
        frozen.close()
