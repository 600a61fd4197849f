"""Text for terminals, pages and JSON: complete, and never a control character."""

from __future__ import annotations

import base64
import json

from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core.plaintext import json_name, safe, safe_name


@given(st.text(st.characters(max_codepoint=0x10FFFF), max_size=40))
def test_safe_text_is_printable(text: str) -> None:
    assert safe(text).isprintable()


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_safe_names_are_printable_and_distinct(one: bytes, other: bytes) -> None:
    assert safe_name(one).isprintable()
    assert (safe_name(one) == safe_name(other)) == (one == other)


@given(st.binary(max_size=40))
def test_json_names_give_the_true_bytes(name: bytes) -> None:
    document = json.loads(json.dumps(json_name(name)))
    if "name_b64" in document:
        assert base64.b64decode(document["name_b64"]) == name
    else:
        assert document["name"].encode() == name


def test_escapes() -> None:
    assert safe_name(b"a\x1b[2Jb\n\xff\\") == "a\\x1b[2Jb\\n\\xff\\\\"


def test_what_turns_text_around_is_escaped() -> None:
    assert safe("a\u202egnp.exe\u2066\u200f") == "a\\u202egnp.exe\\u2066\\u200f"
