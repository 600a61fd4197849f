"""Keys, records and extent arithmetic: round trips, ordering, and refusal of foreign bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import keys, records
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.extents import alloc_bytes, extent_count, overlay, spans
from s3ws_fs.core.limits import EXTENT_BYTES, NAME_BYTES_MAX
from s3ws_fs.core.types import Location

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
names = st.binary(min_size=1, max_size=NAME_BYTES_MAX).filter(
    lambda n: b"/" not in n and b"\0" not in n
)

inodes = st.builds(
    records.InodeRec,
    ino=u64,
    mode=u32,
    uid=u32,
    gid=u32,
    nlink=u32,
    rdev=u64,
    size=u64,
    alloc=u64,
    atime_ns=i64,
    mtime_ns=i64,
    ctime_ns=i64,
    data_gen=u64,
    parent=u64,
    name=names,
    target=st.binary(max_size=300),
)


@given(inodes)
def test_inode_round_trip(rec: records.InodeRec) -> None:
    assert records.decode_inode(rec.ino, rec.encode()) == rec
    assert records.decode_attr(rec.ino, rec.encode()) == rec.attr()


@given(st.builds(Location, u64, u64, u32, st.binary(min_size=16, max_size=16)))
def test_location_round_trip(loc: Location) -> None:
    raw = records.encode_location(loc)
    assert len(raw) == records.CHUNK_RECORD_BYTES
    assert records.decode_location(raw) == loc


@given(
    st.builds(
        records.MirrorRow,
        path=st.binary(max_size=400),
        ino=u64,
        generation=u64,
        data_gen=u64,
        etag=st.text("0123456789abcdef-", max_size=64),
        hash=st.binary(min_size=16, max_size=16),
    )
)
def test_mirror_round_trip(row: records.MirrorRow) -> None:
    assert records.decode_mirror(row.encode()) == row


@given(u64, i64)
def test_dirty_round_trip(generation: int, first_ns: int) -> None:
    assert records.decode_dirty(records.encode_dirty(generation, first_ns)) == (
        generation,
        first_ns,
    )


@given(u64, u64, u64, u64)
def test_head_round_trip(generation: int, next_ino: int, used: int, count: int) -> None:
    head = records.Head(generation, next_ino, used, count)
    assert records.decode_head(head.encode()) == head


@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_format_error_or_a_record(raw: bytes) -> None:
    for decode in (
        lambda data: records.decode_inode(1, data),
        lambda data: records.decode_attr(1, data),
        records.decode_location,
        records.decode_dirty,
        records.decode_head,
        records.decode_mirror,
    ):
        try:
            decode(raw)
        except FormatError as exc:
            assert exc.why


@given(u64, names)
def test_dentry_key(parent: int, name: bytes) -> None:
    key = keys.dentry_key(parent, name)
    assert len(key) <= 511
    assert keys.split_dentry_key(key) == (parent, keys.name_cookie(name), name)
    cookie = keys.name_cookie(name)
    assert keys.COOKIE_FIRST <= cookie < 2**63
    assert key < keys.dentry_seek(parent, cookie)
    assert keys.dentry_seek(parent, 0) <= key


@given(u64, u32)
def test_chunk_key(ino: int, index: int) -> None:
    assert keys.split_chunk_key(keys.chunk_key(ino, index)) == (ino, index)


@given(u64, u64, names)
def test_link_key(ino: int, parent: int, name: bytes) -> None:
    key = keys.link_key(ino, parent, name)
    assert len(key) <= 511
    assert keys.split_link_key(key) == (ino, parent, name)


@given(st.integers(0, 3 * EXTENT_BYTES), st.integers(0, 3 * EXTENT_BYTES))
def test_spans_cover_the_range_once(offset: int, length: int) -> None:
    pieces = list(spans(offset, length))
    assert sum(count for *_, count in pieces) == length
    at = offset
    for index, start, done, count in pieces:
        assert index * EXTENT_BYTES + start == at == offset + done
        assert 0 < count <= EXTENT_BYTES - start
        at += count


@given(st.binary(max_size=50), st.integers(0, 60), st.binary(min_size=1, max_size=50))
def test_overlay_is_pwrite(old: bytes, start: int, data: bytes) -> None:
    expected = bytearray(old.ljust(start, b"\0"))
    expected[start : start + len(data)] = data
    assert overlay(old, start, data) == bytes(expected)


@pytest.mark.parametrize(
    ("length", "held"), [(0, 0), (1, 4096), (4096, 4096), (4097, 8192), (EXTENT_BYTES, 32768)]
)
def test_alloc_is_whole_units(length: int, held: int) -> None:
    assert alloc_bytes(length) == held


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 1), (EXTENT_BYTES, 1), (32769, 2)])
def test_extent_count(size: int, count: int) -> None:
    assert extent_count(size) == count
