"""Ids: one spelling for one id, and nothing that could leave the workspace prefix."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.ids import (
    ID_CHARS_MAX,
    ROOT_PREFIX_CHARS_MAX,
    canonical_id,
    canonical_root_prefix,
)


def ident(value: str) -> str:
    return canonical_id(value, what="conversation id")


@given(st.uuids())
def test_a_uuid_is_the_same_in_every_spelling(value: uuid.UUID) -> None:
    spellings = {str(value), value.hex, str(value).upper(), value.hex.upper()}
    assert {ident(spelling) for spelling in spellings} == {value.hex}


@pytest.mark.parametrize("value", ["test-123", "user@example.org", "A", "_x", "a..b", "a=b+c"])
def test_other_ids_stand_as_given(value: str) -> None:
    assert ident(value) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-x",
        "a/b",
        "../x",
        "a\\b",
        "a b",
        "a\n",
        "\0",
        "é",
        "a\x7f",
        "a%2f",
    ],
)
def test_unsafe_ids_are_refused_with_their_name(value: str) -> None:
    with pytest.raises(UserError, match="conversation id") as caught:
        ident(value)
    assert caught.value.exit_code is ExitCode.BAD_SETTINGS
    assert caught.value.remedy


def test_length_at_the_limit() -> None:
    assert ident("x" * ID_CHARS_MAX)
    with pytest.raises(UserError, match="129 characters"):
        ident("x" * (ID_CHARS_MAX + 1))


def test_dashes_elsewhere_make_no_uuid() -> None:
    odd = "1" * 31 + "-1"
    assert ident(odd) == odd


@given(st.text(max_size=200))
def test_whatever_is_accepted_is_one_safe_path_segment_and_canonical(value: str) -> None:
    try:
        result = ident(value)
    except UserError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._@+=-]*", result, re.ASCII)
    assert ident(result) == result


@pytest.mark.parametrize(
    ("given_prefix", "wanted"), [("", ""), ("a", "a/"), ("a/", "a/"), ("team/x-1", "team/x-1/")]
)
def test_root_prefix_ends_in_one_slash(given_prefix: str, wanted: str) -> None:
    assert canonical_root_prefix(given_prefix) == wanted
    assert canonical_root_prefix(wanted) == wanted


@pytest.mark.parametrize("value", ["/", "/a", "a//b", "a//", "../a", "a/../b", "a/.", "a b", "é/"])
def test_bad_root_prefixes_are_refused(value: str) -> None:
    with pytest.raises(UserError):
        canonical_root_prefix(value)


def test_root_prefix_length_at_the_limit() -> None:
    longest = "x" * (ROOT_PREFIX_CHARS_MAX - 1)
    assert canonical_root_prefix(longest) == longest + "/"
    with pytest.raises(UserError):
        canonical_root_prefix(longest + "x")
