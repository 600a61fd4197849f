"""Frames between daemon and worker: round trips, limits, and errors that cross as themselves."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core.errors import (
    CacheError,
    ConflictError,
    ExitCode,
    FormatError,
    NotFoundError,
    PermanentError,
    TransientError,
    UserError,
)
from s3ws_fs.core.records import MirrorRow
from s3ws_fs.transfer import wire

ERRORS = [
    TransientError("put", "k", "slow"),
    PermanentError("put", "k", "denied"),
    NotFoundError("get", "k", "gone"),
    ConflictError("put", "k", "exists"),
    FormatError("journal/seg/1", "damaged"),
    wire.FencedError("host-b"),
    wire.OwnSealError("late"),
    UserError("what", remedy="do", exit_code=ExitCode.STORE),
    CacheError("cache"),
]


@given(st.dictionaries(st.text(), st.integers()), st.binary(max_size=1000))
def test_frames(extra: dict[str, int], payload: bytes) -> None:
    message = {**{f"x{name}": value for name, value in extra.items()}, "id": 3}
    frame = wire.encode(message, payload)
    head, rest = frame[: wire.HEAD_BYTES], frame[wire.HEAD_BYTES :]
    assert wire.rest_bytes(head) == len(rest)
    found, got = wire.decode(head, rest)
    assert found == message
    assert got == payload


def test_frame_limit() -> None:
    room = wire.FRAME_BYTES_MAX - 4 - len(b"{}")
    assert len(wire.encode({}, bytes(room))) == wire.FRAME_BYTES_MAX + 4
    with pytest.raises(ValueError, match="fit"):
        wire.encode({}, bytes(room + 1))
    with pytest.raises(FormatError):
        wire.rest_bytes(struct.pack(">II", wire.FRAME_BYTES_MAX + 1, 2))


@pytest.mark.parametrize("raw", [(8, 5), (4, 1), (0, 0)])
def test_lengths_that_contradict_each_other(raw: tuple[int, int]) -> None:
    with pytest.raises(FormatError):
        wire.rest_bytes(struct.pack(">II", *raw))


@pytest.mark.parametrize("rest", [b"nojson", b"[1]   "])
def test_what_is_no_message(rest: bytes) -> None:
    with pytest.raises(FormatError):
        wire.decode(struct.pack(">II", len(rest) + 4, len(rest)), rest)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_cross_as_themselves(error: Exception) -> None:
    found = wire.error_from(wire.error_json(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    if isinstance(error, UserError):
        assert isinstance(found, UserError)
        assert found.exit_code == error.exit_code


def test_an_unexpected_error_is_permanent() -> None:
    assert isinstance(wire.error_from(wire.error_json(KeyError("x"))), PermanentError)


def test_rows() -> None:
    rows = [MirrorRow(b"dir\xff/", 7, (1 << 64) - 1, 3, "etag", b"\x01" * 16)]
    assert wire.rows_from(wire.rows_json(rows)) == rows
