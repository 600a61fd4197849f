"""The journal codec: round trips, and every damage is a FormatError."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import journal, keys
from s3ws_fs.core.errors import FormatError

U64_MAX = (1 << 64) - 1
records = st.lists(
    st.tuples(st.binary(min_size=12, max_size=12), st.binary(min_size=36, max_size=36)), max_size=30
)
gone = st.lists(st.binary(min_size=8, max_size=8), max_size=30)


def make_header(data: bytes, frames: bytes) -> journal.Header:
    return journal.Header(
        kind=journal.KIND_SEGMENT,
        workspace="w" * 32,
        writer="a" * 32,
        host="box",
        flush_id="f" * 32,
        number=7,
        prev_number=6,
        prev_hash="0" * 32,
        generation=99,
        next_ino=12,
        used_bytes=4096,
        inodes=3,
        mirrored=90,
        created_ns=1,
        extent_bytes=32768,
        data_bytes=len(data),
        records_bytes=len(frames),
        records_hash=xxhash.xxh3_128_hexdigest(frames),
        puts=1,
        tombs=1,
    )


def make_object(data: bytes, frames: bytes) -> bytes:
    head = journal.encode_header(make_header(data, frames))
    body = head + data + frames
    return body + xxhash.xxh3_128_digest(body)


@given(records, gone, st.binary(max_size=300))
def test_round_trip(puts: list[tuple[bytes, bytes]], tombs: list[bytes], data: bytes) -> None:
    frames = b"".join(
        raw
        for _, raw in (
            *journal.encode_tombs(keys.T_INODES, tombs),
            *journal.encode_puts(keys.T_CHUNKS, puts),
        )
    )
    header, block = journal.open_object(make_object(data, frames), "seg")
    assert header == make_header(data, frames)
    got_puts: list[tuple[bytes, bytes]] = []
    got_tombs: list[bytes] = []
    for frame in journal.decode_frames(block, "seg"):
        if frame.tombs:
            assert frame.table == keys.T_INODES
            got_tombs += frame.keys
        else:
            assert frame.table == keys.T_CHUNKS
            got_puts += zip(frame.keys, frame.values, strict=True)
    assert got_puts == puts
    assert got_tombs == tombs


SAMPLE = make_object(
    b"data" * 40,
    b"".join(
        raw
        for _, raw in (
            *journal.encode_tombs(keys.T_DENTRIES, [b"gone", b"too"]),
            *journal.encode_puts(keys.T_INODES, [(b"k%d" % n, b"v" * n) for n in range(50)]),
        )
    ),
)


@given(st.integers(min_value=0, max_value=len(SAMPLE) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_found(at: int, mask: int) -> None:
    raw = bytearray(SAMPLE)
    raw[at] ^= mask
    with pytest.raises(FormatError) as caught:
        journal.open_object(bytes(raw), "journal/seg/1")
    assert caught.value.where == "journal/seg/1"


@given(st.integers(min_value=0, max_value=len(SAMPLE) - 1))
def test_a_cut_is_found(length: int) -> None:
    with pytest.raises(FormatError):
        journal.open_object(SAMPLE[:length], "seg")


@given(st.binary(min_size=1, max_size=40))
def test_an_appended_tail_is_found(tail: bytes) -> None:
    with pytest.raises(FormatError):
        journal.open_object(SAMPLE + tail, "seg")


@given(st.binary(max_size=200), st.integers(0, 7), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_frames_of_garbage_never_crash(tail: bytes, table: int, kind: int, count: int) -> None:
    """Even behind right digests (a hostile bucket) only records or a FormatError come out."""
    raw = struct.pack(">BBHI", table, kind, 0, count) + tail
    packed = zlib.compress(raw)
    frame = struct.pack(">II", len(packed), len(raw)) + packed
    try:
        for found in journal.decode_frames(frame + tail, "seg"):
            assert found.table in journal.TABLES
    except FormatError:
        pass


def test_a_zip_bomb_is_refused() -> None:
    packed = zlib.compress(bytes(100 << 20))
    head = struct.pack(">II", len(packed), journal.FRAME_RAW_BYTES)
    with pytest.raises(FormatError, match="another length"):
        journal.decode_frame(head + packed, "seg")
    head = struct.pack(">II", len(packed), journal.FRAME_RAW_BYTES_MAX + 1)
    with pytest.raises(FormatError, match="larger than any"):
        journal.decode_frame(head + packed, "seg")


def test_frames_are_bounded() -> None:
    """Many records become several frames; the largest value allowed still fits one."""
    items = [(keys.xattr_key(n, b"n"), b"x" * 65536) for n in range(40)]
    frames = list(journal.encode_puts(keys.T_XATTRS, items))
    assert len(frames) > 1
    assert sum(count for count, _ in frames) == 40
    decoded = [journal.decode_frame(raw, "seg") for _, raw in frames]
    assert [value for frame in decoded for value in frame.values] == [v for _, v in items]


def test_header_limits() -> None:
    header = make_header(b"", b"")
    largest = replace(
        header,
        host="h" * journal.HOST_CHARS_MAX,
        number=U64_MAX,
        prev_number=U64_MAX,
        generation=U64_MAX,
        next_ino=U64_MAX,
        used_bytes=U64_MAX,
        inodes=U64_MAX,
        mirrored=U64_MAX,
        created_ns=U64_MAX,
        data_bytes=U64_MAX,
        records_bytes=U64_MAX,
        puts=U64_MAX,
        tombs=U64_MAX,
    )
    raw = journal.encode_header(largest)
    assert len(raw) == journal.HEADER_BYTES
    assert journal.decode_header(raw, "seg") == largest
    with pytest.raises(ValueError, match="fit"):
        journal.encode_header(replace(header, host="h" * journal.HEADER_BYTES))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"codec": "zstd"},
        {"kind": "other"},
        {"number": -1},
        {"number": "7"},
        {"puts": True},
        {"writer": None},
    ],
)
def test_a_strange_header_is_refused(change: dict[str, object]) -> None:
    raw = journal.encode_header(replace(make_header(b"", b""), **change))  # type: ignore[arg-type]
    with pytest.raises(FormatError):
        journal.decode_header(raw, "seg")


def test_later_fields_are_left_alone() -> None:
    raw = journal.encode_header(make_header(b"", b""))
    body = raw[12 : raw.index(b"\0", 12)].replace(b'{"', b'{"later":1,"', 1)
    head = (raw[:8] + struct.pack(">I", len(body)) + body).ljust(len(raw) - 16, b"\0")
    assert journal.decode_header(head + xxhash.xxh3_128_digest(head), "seg").number == 7
