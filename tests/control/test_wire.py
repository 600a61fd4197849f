"""The control protocol's lines: whatever comes in, a message or a ProtocolError comes out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.control import wire
from s3ws_fs.control.wire import ProtocolError, ReplyError
from s3ws_fs.core.errors import ExitCode, UserError

# Lone low surrogates are how Python shows bytes that are not UTF-8; a high one never comes from a
# name, and JSON would join it with a low one that follows.
texts = st.text(
    st.characters(max_codepoint=0xD7FF) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF),
    max_size=30,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(texts.filter(lambda text: len(text) > 0), st.dictionaries(texts, values, max_size=4))
def test_request_round_trip(cmd: str, args: dict[str, Any]) -> None:
    line = wire.encode_request(cmd, args)
    assert line.isascii() and line.endswith(b"\n") and line.count(b"\n") == 1
    assert wire.decode_request(line) == wire.Request(cmd, args)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_cleanly(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        wire.decode_request(data)


@given(st.dictionaries(st.sampled_from(["v", "cmd", "args", "x"]), values))
def test_any_object_is_a_request_or_refused(message: dict[str, Any]) -> None:
    try:
        request = wire.decode_request(wire.encode(message))
    except ProtocolError:
        return
    assert message["v"] == wire.VERSION
    assert request.cmd == message["cmd"]


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        wire.decode(b"[" * 100_000 + b"]" * 100_000)


def test_limits() -> None:
    longest = "x" * wire.COMMAND_CHARS_MAX
    assert wire.decode_request(wire.encode_request(longest, {})).cmd == longest
    with pytest.raises(ProtocolError):
        wire.decode_request(wire.encode_request("x" * (wire.COMMAND_CHARS_MAX + 1), {}))
    frame = len(wire.encode_request("c", {"a": ""}))
    assert wire.encode_request("c", {"a": "x" * (wire.REQUEST_BYTES_MAX - frame)})
    with pytest.raises(ProtocolError):
        wire.encode_request("c", {"a": "x" * (wire.REQUEST_BYTES_MAX - frame + 1)})


def test_error_round_trip_keeps_the_list_of_what_is_not_saved() -> None:
    error = ReplyError(
        "not saved",
        remedy="again",
        exit_code=ExitCode.NOT_SAVED,
        details={"unsaved": ["a", "caf\udce9"]},
    )
    back = wire.error_from(wire.decode(wire.encode(wire.error_object(error))))
    assert (back.message, back.remedy, back.exit_code) == ("not saved", "again", 7)
    assert back.details == {"unsaved": ["a", "caf\udce9"]}


@given(values)
def test_any_error_member_makes_an_error_that_is_not_success(value: Any) -> None:
    error = wire.error_from(value)
    assert isinstance(error, UserError)
    assert error.message
    assert error.exit_code is not ExitCode.OK
