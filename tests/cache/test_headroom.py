"""Room on the disk and in the map: what is measured, refused, kept back, evicted and given back."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from s3ws_fs.cache import cache as opening
from s3ws_fs.cache import headroom
from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.headroom import LAST, OK, RESERVE_BYTES, RESERVE_FILE, SHORT, floor_bytes
from s3ws_fs.cache.ownership import LOCK_FILE
from s3ws_fs.cache.syncpoint import BOOT_FILE
from s3ws_fs.cache.tables import DATA_DIR, ENGINE_LOCK_BYTES, ENGINE_LOCK_FILE
from s3ws_fs.core import keys
from s3ws_fs.core.errors import CacheError, FsError
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import encode_location
from s3ws_fs.core.types import ROOT_INO, Cred, Location
from s3ws_fs.fs.filesystem import FileSystem
from tests.support.small_disk import free_bytes, hog, small_disk

Opener = Callable[..., Cache]
MIB = 1 << 20
CRED = Cred(uid=0, gid=0)


def filesystem(cache: Cache) -> FileSystem:
    made = FileSystem(cache, quota_bytes=1 << 40, quota_inodes=1000)
    made.make_root(uid=0, gid=0, mode=0o755)
    return made


def write(fs: FileSystem, name: bytes, data: bytes) -> int:
    ino = fs.create(ROOT_INO, name, 0o644, CRED).ino
    assert fs.write(ino, 0, data) == len(data)
    return ino


def fill(fs: FileSystem) -> dict[int, bytes]:
    """Files until there is no room; those that were written."""
    written = {}
    with pytest.raises(FsError) as caught:
        for number in range(1000):
            data = os.urandom(MIB // 2)
            written[write(fs, b"%d" % number, data)] = data
    assert caught.value.errno == errno.ENOSPC
    return written


def seal(cache: Cache, ino: int, data: bytes) -> None:
    """As after a flush: every extent of the file has its place in the bucket."""
    items = []
    for at in range(0, len(data), EXTENT_BYTES):
        piece = data[at : at + EXTENT_BYTES]
        place = Location(7, at, len(piece), xxhash.xxh3_128_digest(piece))
        items.append((keys.chunk_key(ino, at // EXTENT_BYTES), encode_location(place)))
    cache.record_locations(cache.generation, items)


@pytest.mark.parametrize(
    ("total_mib", "kept_mib"),
    [(4, 1), (16, 4), (32, 8), (128, 8), (512, 32), (1024, 64), (1e6, 64)],
)
def test_what_is_kept_back(total_mib: int, kept_mib: int) -> None:
    assert floor_bytes(total_mib * MIB) == kept_mib * MIB


def test_a_full_map(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "map_bytes", lambda _: 24 * MIB)
    with opener() as cache:
        fs = filesystem(cache)
        written = fill(fs)
        assert cache.headroom.level == SHORT
        assert cache.headroom.by_map
        assert "map full" in cache.headroom.reason()
        first, *_, last = written
        # What holds no more goes on, far longer than what is kept back would last if it grew.
        for round_ in range(400):
            assert fs.write(first, 0, written[first]) == len(written[first])
            fs.setattr(last, mode=0o600 + round_ % 8)
            if round_ % 8 == 0:
                cache.sync_point()
        seal(cache, last, written[last])
        cache.forget(cache.generation, freeze_ns=0)
        assert all(fs.read(ino, 0, MIB) == data for ino, data in written.items())
        # Deleting makes room, once a sync point no longer holds it.
        fs.unlink(ROOT_INO, b"1")
        fs.unlink(ROOT_INO, b"2")
        fs.drop_orphans_unmounted()
        cache.sync_point()
        cache.headroom.measure()
        assert cache.headroom.level == OK
        write(fs, b"again", os.urandom(MIB // 2))
    with opener() as cache:
        assert filesystem(cache).read(first, 0, MIB) == written[first]


def test_only_what_frees_goes_on_at_the_last(cache: Cache) -> None:
    fs = filesystem(cache)
    ino = write(fs, b"file", bytes(100_000))
    cache.headroom.level = LAST
    refused: list[Callable[[], object]] = [
        lambda: fs.create(ROOT_INO, b"new", 0o644, CRED),
        lambda: fs.write(ino, 0, b"in place"),
        lambda: fs.setattr(ino, mode=0o600),
    ]
    for call in refused:
        before = cache.head
        with pytest.raises(FsError) as caught:
            call()
        assert caught.value.errno == errno.ENOSPC
        assert cache.head == before
    fs.setattr(ino, size=10)
    fs.unlink(ROOT_INO, b"file")
    cache.put_json("bookkeeping", True)
    cache.headroom.measure()
    assert cache.headroom.level == OK


def test_measured_after_a_budget_not_each_time(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    room = cache.headroom
    original = room.measure

    def measure() -> None:
        measured.append(1)
        original()

    monkeypatch.setattr(room, "measure", measure)
    fs = filesystem(cache)
    ino = write(fs, b"file", b"")
    for _ in range(100):
        fs.write(ino, 0, b"x")
    assert not measured
    room.budget_bytes = MIB
    fs.write(ino, 0, bytes(2 * MIB))
    assert len(measured) == 1


def test_evicted_is_only_what_the_bucket_has(cache: Cache) -> None:
    fs = filesystem(cache)
    data = os.urandom(3 * EXTENT_BYTES)
    clean, dirty, changed, orphan = (write(fs, name, data) for name in (b"c", b"d", b"x", b"o"))
    for ino in (clean, changed, orphan):
        seal(cache, ino, data)
    fs.write(changed, EXTENT_BYTES, b"changed since")
    # An orphan's changes are not shipped: its marks go, and its old place stands.
    fs.open(orphan)
    fs.write(orphan, 0, b"changed since")
    fs.unlink(ROOT_INO, b"o")
    cache.forget(cache.generation - 1, freeze_ns=0)
    with cache.read() as view:
        assert not view.is_dirty(keys.T_CHUNKS, keys.chunk_key(orphan, 0))
    before = {ino: fs.read(ino, 0, len(data)) for ino in (dirty, changed, orphan)}
    generation = cache.generation
    freed_bytes = 0
    resume: bytes | None = b""
    while resume is not None:
        count, resume = cache.evict(resume, limit=2)
        freed_bytes += count
    assert freed_bytes == (3 + 2 + 2) * EXTENT_BYTES
    with cache.read() as view:
        assert list(view.extent_indexes(clean)) == []
        assert [index for index, _ in view.chunks(clean)] == [0, 1, 2]
        assert list(view.extent_indexes(dirty)) == [0, 1, 2]
        assert list(view.extent_indexes(changed)) == [1]
        assert list(view.extent_indexes(orphan)) == [0]
    assert cache.generation == generation
    # What was evicted comes back by its place, and then nothing is missing.
    with cache.read() as view:
        places = [(ino, i, loc) for ino in (changed, orphan) for i, loc in view.chunks(ino)]
    cache.store_fetched(
        (ino, i, loc, data[i * EXTENT_BYTES : (i + 1) * EXTENT_BYTES]) for ino, i, loc in places
    )
    assert before == {ino: fs.read(ino, 0, len(data)) for ino in (dirty, changed, orphan)}


def test_a_full_disk_and_the_reserve(tmp_path: Path, opener: Opener) -> None:
    with small_disk(tmp_path / "ws", 16) as disk:
        with opener() as cache:
            fs = filesystem(cache)
            assert (disk / RESERVE_FILE).stat().st_size == RESERVE_BYTES
            written = fill(fs)
            assert cache.headroom.level == SHORT
            assert free_bytes(disk) >= cache.headroom.last_bytes
            hog(disk / "hog")
            cache.headroom.measure()
            # With what is free inside the file, that may not be the last of it yet.
            assert cache.headroom.level in (SHORT, LAST)
            headroom.give_reserve(disk)
            fs.unlink(ROOT_INO, b"0")
            fs.drop_orphans_unmounted()
            cache.sync_point()
            del written[next(iter(written))]
            hog(disk / "hog")
        # Not one byte is free: it is opened all the same, and all is there.
        assert free_bytes(disk) == 0
        with opener(boot_id="boot-2") as cache:
            assert cache.recovery == "kept"
            fs = filesystem(cache)
            assert all(fs.read(ino, 0, MIB) == data for ino, data in written.items())
            with pytest.raises(FsError) as caught:
                for number in range(100):
                    write(fs, b"more %d" % number, os.urandom(MIB))
            assert caught.value.errno == errno.ENOSPC
            (disk / "hog").unlink()
            cache.headroom.measure()
            assert cache.headroom.level == OK
            headroom.keep_reserve(disk)
            assert (disk / RESERVE_FILE).exists()
            write(fs, b"again", os.urandom(MIB))


def test_no_room_for_a_new_cache_is_said_so(tmp_path: Path, opener: Opener) -> None:
    with small_disk(tmp_path / "ws", 1) as disk:
        hog(disk / "hog")
        with pytest.raises(CacheError, match="no room for the cache"):
            opener()
        (disk / "hog").unlink()
        opener().close()


def test_nothing_that_opening_needs_is_written_anew(opener: Opener, tmp_path: Path) -> None:
    """Else a full disk would keep a cache from being opened, or kill whoever has it open."""
    opener().close()
    directory = tmp_path / "ws"
    engine_lock = directory / DATA_DIR / ENGINE_LOCK_FILE
    assert engine_lock.stat().st_size == ENGINE_LOCK_BYTES
    assert engine_lock.stat().st_blocks * 512 >= ENGINE_LOCK_BYTES
    before = {name: (directory / name).stat().st_ino for name in (BOOT_FILE, LOCK_FILE)}
    with opener(boot_id="another-boot"):
        noted = json.loads((directory / BOOT_FILE).read_bytes())
        assert noted == {"boot_id": "another-boot", "clean": False}
    assert before == {name: (directory / name).stat().st_ino for name in before}
    assert json.loads((directory / BOOT_FILE).read_bytes())["clean"] is True
    assert (directory / LOCK_FILE).read_text().strip() == str(os.getpid())
