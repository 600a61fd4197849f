"""The mark of a fork that is under way."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.forks import Mark, Origin, decode_mark
from s3ws_fs.core.journal import json_digest

texts, numbers = st.text(max_size=50), st.integers(0, 1 << 63)
marks = st.builds(Mark, st.builds(Origin, texts, texts, numbers, numbers), texts, numbers)


@given(marks)
def test_it_comes_back(mark: Mark) -> None:
    assert decode_mark(mark.encode()) == mark


@given(marks, st.data())
def test_what_was_changed_is_refused(mark: Mark, data: st.DataObject) -> None:
    raw = bytearray(mark.encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = decode_mark(bytes(raw))
    except FormatError:
        return
    # Spaces between the members say nothing.
    assert found == mark


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_mark(raw)


@pytest.mark.parametrize("member", ["origin", "workspace", "created_ns", "number", "prefix"])
@pytest.mark.parametrize("value", [None, True, [], 1.5])
def test_members_of_another_kind_are_refused(member: str, value: object) -> None:
    found = json.loads(Mark(Origin("p/", "w", 1, 2), "x", 3).encode())
    place = found["origin"] if member in ("number", "prefix") else found
    place[member] = value
    found["digest"] = json_digest(found)
    with pytest.raises(FormatError):
        decode_mark(json.dumps(found).encode())
