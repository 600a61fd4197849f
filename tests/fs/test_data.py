"""File data: quota, limits, accounting and cold extents."""

from __future__ import annotations

import errno

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.core import keys
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.limits import EXTENT_BYTES, FILE_BYTES_MAX
from s3ws_fs.core.records import encode_location
from s3ws_fs.core.types import ROOT_INO, Cred, Location, NeedExtents
from s3ws_fs.fs.filesystem import FileSystem

CRED = Cred(uid=5, gid=6)


@pytest.fixture
def ino(fs: FileSystem) -> int:
    return fs.create(ROOT_INO, b"f", 0o644, CRED).ino


def make_cold(cache: Cache, ino: int, index: int) -> Location:
    """Seal an extent and take its bytes out of the cache."""
    key = keys.chunk_key(ino, index)
    with cache.read() as view:
        data = view.extent(ino, index)
    assert data is not None
    where = Location(1, index * EXTENT_BYTES, len(data), b"d" * 16)
    cache.record_locations(cache.generation, [(key, encode_location(where))])
    with cache.env.begin(write=True) as txn:
        txn.delete(key, db=cache.tables.extents)
    return where


def test_quota_at_and_beyond_the_limit(fs: FileSystem, ino: int) -> None:
    quota = fs.quota_bytes
    assert fs.write(ino, 0, bytes(quota)) == quota
    assert fs.statfs().blocks_free == 0
    with pytest.raises(FsError) as caught:
        fs.write(ino, quota, b"x")
    assert caught.value.errno == errno.EDQUOT
    assert fs.getattr(ino).size == quota
    assert fs.write(ino, 0, b"overwriting is no growth") == 24
    fs.setattr(ino, size=quota - EXTENT_BYTES)
    assert fs.write(ino, 0, b"x") == 1
    assert fs.write(ino, quota - EXTENT_BYTES, b"x" * 10) == 10


def test_quota_counts_what_was_deleted_but_not_yet_reaped(fs: FileSystem, ino: int) -> None:
    fs.write(ino, 0, bytes(fs.quota_bytes))
    fs.unlink(ROOT_INO, b"f")
    fs.forget(ino)
    other = fs.create(ROOT_INO, b"g", 0o644, CRED).ino
    assert fs.write(other, 0, b"there is room again") == 19


def test_file_size_at_and_beyond_the_limit(fs: FileSystem, ino: int) -> None:
    assert fs.write(ino, FILE_BYTES_MAX - 1, b"x") == 1
    for call in (
        lambda: fs.write(ino, FILE_BYTES_MAX, b"x"),
        lambda: fs.setattr(ino, size=FILE_BYTES_MAX + 1),
    ):
        with pytest.raises(FsError) as caught:
            call()
        assert caught.value.errno == errno.EFBIG
    attr = fs.setattr(ino, size=FILE_BYTES_MAX)
    assert not isinstance(attr, NeedExtents)
    assert attr.size == FILE_BYTES_MAX


def test_sparse_files_hold_what_was_written(fs: FileSystem, ino: int) -> None:
    fs.write(ino, 1 << 40, b"x")
    attr = fs.getattr(ino)
    assert attr.size == (1 << 40) + 1
    assert attr.blocks512 == 8
    assert fs.read(ino, 5 << 20, 10) == bytes(10)
    assert fs.read(ino, (1 << 40) - 2, 10) == b"\0\0x"


def test_growing_after_a_cut_shows_zeros(fs: FileSystem, ino: int) -> None:
    fs.write(ino, 0, b"x" * 100)
    fs.setattr(ino, size=10)
    fs.setattr(ino, size=100)
    assert fs.read(ino, 0, 200) == b"x" * 10 + bytes(90)


def test_reading_cold_bytes_names_what_is_needed(fs: FileSystem, cache: Cache, ino: int) -> None:
    fs.write(ino, 0, bytes(range(256)) * (3 * EXTENT_BYTES // 256))
    where = [make_cold(cache, ino, index) for index in (0, 2)]
    got = fs.read(ino, 10, 3 * EXTENT_BYTES)
    assert got == NeedExtents(ino, ((0, where[0]), (2, where[1])))
    assert isinstance(fs.read(ino, EXTENT_BYTES, EXTENT_BYTES), bytes)


def test_writing_into_a_cold_extent_needs_it_and_changes_nothing(
    fs: FileSystem, cache: Cache, ino: int
) -> None:
    fs.write(ino, 0, b"x" * 1000)
    where = make_cold(cache, ino, 0)
    before = cache.generation
    assert fs.write(ino, 5, b"y") == NeedExtents(ino, ((0, where),))
    assert cache.generation == before
    cache.store_fetched([(ino, 0, where, b"x" * 1000)])
    assert fs.write(ino, 5, b"y") == 1


@pytest.mark.parametrize("length", [1000, 1001, EXTENT_BYTES])
def test_overwriting_a_cold_extent_whole_needs_nothing(
    fs: FileSystem, cache: Cache, ino: int, length: int
) -> None:
    fs.write(ino, 0, b"x" * 1000)
    make_cold(cache, ino, 0)
    assert fs.write(ino, 0, b"y" * length) == length
    assert fs.read(ino, 0, EXTENT_BYTES) == b"y" * length


def test_cutting_a_cold_extent(fs: FileSystem, cache: Cache, ino: int) -> None:
    fs.write(ino, 0, b"x" * (EXTENT_BYTES + 1000))
    where = make_cold(cache, ino, 1)
    assert fs.setattr(ino, size=EXTENT_BYTES + 10) == NeedExtents(ino, ((1, where),))
    assert fs.getattr(ino).size == EXTENT_BYTES + 1000
    # At the extent's border, or beyond what it holds, its bytes do not matter.
    assert not isinstance(fs.setattr(ino, size=EXTENT_BYTES), NeedExtents)
    assert fs.getattr(ino).size == EXTENT_BYTES


def test_directories_and_symlinks_are_no_files(fs: FileSystem) -> None:
    link = fs.symlink(ROOT_INO, b"l", b"t", CRED).ino
    for call, number in (
        (lambda: fs.read(ROOT_INO, 0, 1), errno.EISDIR),
        (lambda: fs.write(ROOT_INO, 0, b"x"), errno.EISDIR),
        (lambda: fs.setattr(ROOT_INO, size=0), errno.EISDIR),
        (lambda: fs.read(link, 0, 1), errno.EINVAL),
    ):
        with pytest.raises(FsError) as caught:
            call()
        assert caught.value.errno == number
