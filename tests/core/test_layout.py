"""Bucket keys and the mirror's escape: reversible, injective, and never out of its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.core import layout
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.types import BLOB_BIT

names = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.lists(
        st.sampled_from(
            [
                b"%",
                b"\\",
                b"4",
                b"1",
                b"a",
                b"F",
                b"\xff",
                b"\x01",
                b"\x7f",
                b".",
                "é".encode(),
                "\ufffe".encode(),
                "\uffff".encode(),
                b"\xed\xb0\x80",
                b" ",
            ]
        ),
        min_size=1,
        max_size=12,
    ).map(b"".join),
).filter(lambda name: b"/" not in name and name not in (b".", b".."))
paths = st.lists(names, min_size=1, max_size=5).map(b"/".join)


@given(paths)
def test_escape_is_reversible(path: bytes) -> None:
    assert layout.unescape_path(layout.escape_path(path)) == path


@given(paths, paths)
def test_escape_is_injective(a: bytes, b: bytes) -> None:
    assert (layout.escape_path(a) == layout.escape_path(b)) == (a == b)


@given(paths)
def test_escaped_path_is_a_decent_key(path: bytes) -> None:
    text = layout.escape_path(path)
    text.encode("utf-8")
    assert text.count("/") == path.count(b"/")
    assert not any(ord(c) < 0x20 or c in "\\\x7f\ufffe\uffff" for c in text)
    assert not {"", ".", ".."} & set(text.split("/"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"main.py", "main.py"),
        ("naïve 文.txt".encode(), "naïve 文.txt"),
        (b"100%", "100%"),
        (b"100%25", "100%2525"),
        (b"%zz", "%zz"),
        (b"a\nb", "a%0Ab"),
        (b"a\\b", "a%5Cb"),
        (b"\xff", "%FF"),
        (b"a%\xff", "a%%FF"),
    ],
)
def test_examples(name: bytes, text: str) -> None:
    assert layout.escape_name(name) == text
    assert layout.unescape_name(text) == name


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b"])
def test_what_is_no_name_is_refused(name: bytes) -> None:
    with pytest.raises(ValueError, match="not a file name"):
        layout.escape_name(name)


@pytest.mark.parametrize("text", ["%ff", "%41", "a//b", "../x", ".", "a/"])
def test_foreign_keys_are_no_path_of_ours(text: str) -> None:
    assert layout.unescape_path(text) is None


def test_name_limit() -> None:
    fits = b"\xff" * 85
    assert layout.mirror_path(fits, 0) == ("%FF" * 85, "")
    text, reason = layout.mirror_path(fits + b"\xff", 0)
    assert not text
    assert "255" in reason


def test_key_limit() -> None:
    path = b"/".join([b"x" * 200] * 5)
    room = layout.KEY_BYTES_MAX - len(layout.FILES_PREFIX) - len(path)
    assert layout.mirror_path(path, room)[0]
    text, reason = layout.mirror_path(path, room + 1)
    assert not text
    assert "1025" in reason


@given(st.integers(min_value=1, max_value=(1 << 64) - 1))
def test_object_keys(object_id: int) -> None:
    key = layout.object_key(object_id)
    prefix = layout.BLOB_PREFIX if object_id & BLOB_BIT else layout.SEG_PREFIX
    assert layout.key_number(key, prefix) == object_id


def test_no_object_zero() -> None:
    with pytest.raises(FormatError):
        layout.object_key(0)


@pytest.mark.parametrize(
    "key",
    [
        "journal/seg/1",
        "journal/seg/000000000000000G",
        "journal/seg/0000000000000001/x",
        "journal/ckpt/0000000000000001",
    ],
)
def test_strange_keys_have_no_number(key: str) -> None:
    assert layout.key_number(key, layout.SEG_PREFIX) is None
