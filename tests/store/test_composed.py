"""Objects of which the server copies what stands there already: the same bytes on every store."""

from __future__ import annotations

import random
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import ConflictError, PermanentError
from s3ws_fs.store.body import Composed, Pieces, Standing
from s3ws_fs.store.s3 import S3Store
from s3ws_fs.store.s3_multipart import PARTS_MAX, MultipartLimits, composed_pieces
from s3ws_fs.store.scoped import ScopedStore
from tests.store.conftest import LIMITS, MIB, PREFIX, RETRY, Subject

SOURCE = "journal/blob/8000000000000001"
KEY = "files/large"


class Bytes(Pieces):
    """Bytes that remember how many of them were asked for."""

    def __init__(self, data: bytes) -> None:
        self.size_bytes = len(data)
        self.asked_bytes = 0
        self._data = data

    def read_at(self, offset: int, length: int) -> bytes:
        self.asked_bytes += length
        return self._data[offset : offset + length]


def changed(source: bytes) -> tuple[bytes, list[Standing]]:
    """18 MiB with two ranges of `source`, and where these stand."""
    new = random.Random(7).randbytes(6 * MIB)
    data = source[MIB : 7 * MIB] + new[: 5 * MIB] + source[2 * MIB : 8 * MIB] + new[5 * MIB :]
    return data, [
        Standing(0, 6 * MIB, SOURCE, MIB),
        Standing(11 * MIB, 6 * MIB, SOURCE, 2 * MIB),
    ]


@pytest.fixture
def source() -> bytes:
    return random.Random(3).randbytes(9 * MIB)


def test_the_object_is_the_body(subject: Subject, source: bytes) -> None:
    store = subject.store
    store.put(SOURCE, source)
    data, standing = changed(source)
    etag = store.put(
        KEY,
        Composed(Bytes(data), standing),
        content_type="text/x-big",
        metadata={"who": "we"},
        if_none_match=True,
    )
    info = store.head(KEY)
    assert (info.etag, info.content_type, info.metadata) == (etag, "text/x-big", {"who": "we"})
    assert store.get(KEY).data == data
    with pytest.raises(ConflictError):
        store.put(KEY, Composed(Bytes(data), standing), if_none_match=True)
    with pytest.raises(ConflictError):
        store.put(KEY, Composed(Bytes(data), standing), if_match="0" * 32)
    assert store.head(KEY).etag == etag
    again = data[:-1] + b"!"
    store.put(KEY, Composed(Bytes(again), standing), if_match=etag)
    assert store.get(KEY).data == again


def test_what_stands_is_not_sent(seaweed_config: StoreConfig, source: bytes) -> None:
    raw = S3Store(seaweed_config, retry=RETRY, limits=LIMITS)
    store = ScopedStore(raw, f"t{uuid4().hex}/{PREFIX}")
    try:
        store.put(SOURCE, source)
        sent_before = store.counters.sent_bytes
        data, standing = changed(source)
        body = Bytes(data)
        store.put(KEY, Composed(body, standing), if_none_match=True)
        assert store.counters.sent_bytes - sent_before == body.asked_bytes == 6 * MIB
        assert store.get(KEY).data == data
    finally:
        raw.close()


def test_an_object_is_made_of_the_one_that_it_replaces(subject: Subject, source: bytes) -> None:
    store = subject.store
    etag = store.put(KEY, source)
    store.put(SOURCE, b"..tail")
    standing = [
        Standing(0, len(source), KEY, 0, etag),
        Standing(len(source), 4, SOURCE, 2),
    ]
    longer = Composed(Bytes(source + b"tail"), standing)
    with pytest.raises(ConflictError):
        store.put(KEY, longer, if_match="0" * 32)
    again = store.put(KEY, longer, if_match=etag)
    assert store.get(KEY).data == source + b"tail"
    # Made of another object than stands there: all of it is sent.
    data = source[::-1]
    store.put(KEY, Composed(Bytes(data), [Standing(0, len(data), KEY, 0, etag)]), if_match=again)
    assert store.get(KEY).data == data


def test_an_append_sends_nothing_that_stands(seaweed_config: StoreConfig, source: bytes) -> None:
    raw = S3Store(seaweed_config, retry=RETRY, limits=LIMITS)
    store = ScopedStore(raw, f"t{uuid4().hex}/{PREFIX}")
    try:
        etag = store.put(KEY, source)
        store.put(SOURCE, b"..tail")
        sent_before = store.counters.sent_bytes
        standing = [Standing(0, len(source), KEY, 0, etag), Standing(len(source), 4, SOURCE, 2)]
        body = Bytes(source + b"tail")
        store.put(KEY, Composed(body, standing), if_match=etag)
        assert store.counters.sent_bytes - sent_before == body.asked_bytes == 0
        assert store.get(KEY).data == source + b"tail"
    finally:
        raw.close()


def test_a_source_that_is_gone_is_no_error(subject: Subject, source: bytes) -> None:
    data, standing = changed(source)
    subject.store.put(KEY, Composed(Bytes(data), standing), if_none_match=True)
    assert subject.store.get(KEY).data == data


def test_a_source_outside_of_the_prefix_is_refused(subject: Subject, source: bytes) -> None:
    data, _ = changed(source)
    with pytest.raises(PermanentError, match="not a usable key"):
        subject.store.put(KEY, Composed(Bytes(data), [Standing(0, 6 * MIB, "../../x", 0)]))


class _NoRanges:
    """A client of a server that copies whole objects whatever range is asked for."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.copies = 0

    def upload_part_copy(self, **arguments: Any) -> Any:
        self.copies += 1
        del arguments["CopySourceRange"]
        return self._client.upload_part_copy(**arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def test_a_server_that_ignores_the_range_gets_all_of_it(
    seaweed_config: StoreConfig, source: bytes
) -> None:
    raw = S3Store(seaweed_config, retry=RETRY, limits=LIMITS)
    client: Any = _NoRanges(raw._wire.client)
    raw._wire.client = client
    store = ScopedStore(raw, f"t{uuid4().hex}/{PREFIX}")
    try:
        store.put(SOURCE, source)
        data, standing = changed(source)
        etag = store.put(KEY, Composed(Bytes(data), standing), if_none_match=True)
        assert (store.get(KEY).data, store.head(KEY).etag) == (data, etag)
        assert client.copies == 2
        store.put(KEY, Composed(Bytes(data), standing), if_match=etag)
        assert (store.get(KEY).data, client.copies) == (data, 2)
    finally:
        raw.close()


@st.composite
def bodies(draw: st.DrawFn) -> tuple[int, list[Standing]]:
    """A size, and rising ranges that stand."""
    cuts = sorted(draw(st.sets(st.integers(0, 4000), max_size=12)))
    size = draw(st.integers(cuts[-1] if cuts else 1, 4200)) or 1
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    return size, [
        Standing(start, end - start, f"k{start}", draw(st.integers(0, 50))) for start, end in pairs
    ]


@given(bodies())
def test_the_parts_are_all_of_it_and_none_is_too_small(body: tuple[int, list[Standing]]) -> None:
    size, standing = body
    limits = MultipartLimits(part_bytes=80, part_bytes_min=50, standing_part_bytes=300)
    pieces = composed_pieces(size, standing, limits)
    assert [piece.number for piece in pieces] == list(range(1, len(pieces) + 1))
    assert len(pieces) <= PARTS_MAX
    at = 0
    for piece in pieces:
        assert piece.offset == at
        assert piece.length > 0
        at += piece.length
        assert piece.length >= 50 or at == size
        if piece.standing is None:
            assert piece.length < 2 * 80
        else:
            first = piece.standing.offset_bytes
            assert first <= piece.offset
            assert at <= first + piece.standing.length_bytes
            assert piece.length < 2 * 300
    assert at == size
    sent = sum(piece.length for piece in pieces if piece.standing is None)
    missing = size - sum(item.length_bytes for item in standing)
    # What is too short for a part of its own, on either side of what stands.
    assert sent <= missing + 2 * 50 * (len(standing) + 1)


def test_one_small_change_in_a_large_file_sends_one_part() -> None:
    half = 250 * MIB
    changed_bytes = 32 << 10
    standing = [
        Standing(0, half, "a", 0),
        Standing(half + changed_bytes, half - changed_bytes, "a", half + changed_bytes),
    ]
    pieces = composed_pieces(2 * half, standing, MultipartLimits())
    assert [piece.length for piece in pieces if piece.standing is None] == [5 * MIB]


def test_a_huge_body_has_no_more_parts_than_there_may_be() -> None:
    size = 4 << 40
    standing = [Standing(at, 6 * MIB, "a", 0) for at in range(0, size, size // 20_000)]
    assert len(composed_pieces(size, standing, MultipartLimits())) <= PARTS_MAX
