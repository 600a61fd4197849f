"""Metadata of mirrored objects: as s3fs-fuse reads it, and recognisable as ours."""

from __future__ import annotations

import stat

import pytest

from s3ws_fs.core import content
from s3ws_fs.core.records import InodeRec


def rec(mode: int, target: bytes = b"") -> InodeRec:
    return InodeRec(
        5, mode, 1000, 100, 1, 0, 3, 0, 0, 1_700_000_000_000_000_005, 0, 1, 1, b"f", target
    )


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a/b.py", "text/x-python"),
        ("X.JSON", "application/json"),
        ("a.tar.gz", "application/gzip"),
        ("noext", content.DEFAULT_TYPE),
        (".bashrc", content.DEFAULT_TYPE),
        ("d.py/x", content.DEFAULT_TYPE),
        ("p.png", "image/png"),
        ("t.ts", "text/x-typescript"),
    ],
)
def test_content_type(path: str, kind: str) -> None:
    assert content.content_type(path) == kind


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "0"),
        (1_000_000_000, "1"),
        (1_500_000_000, "1.500000000"),
        (1_000_000_001, "1.000000001"),
        (-1, "-1.999999999"),
    ],
)
def test_times_as_s3fs_writes_them(time_ns: int, text: str) -> None:
    assert content.time_text(time_ns) == text


def test_metadata() -> None:
    meta = content.object_metadata(
        rec(0o100644), digest=b"\x01" * 16, generation=7, workspace="w", path="a/b"
    )
    assert meta == {
        "mode": "33188",
        "uid": "1000",
        "gid": "100",
        "mtime": "1700000000.000000005",
        "s3ws-xxh3": "01" * 16,
        "s3ws-gen": "7",
        "s3ws-ws": "w",
        "s3ws-path": "48f71e9475860604",
    }
    assert content.our_mark(meta, "w", "a/b") == (7, b"\x01" * 16)
    assert content.our_mark(meta, "other", "a/b") is None


def test_a_mark_counts_only_where_it_was_put() -> None:
    meta = content.object_metadata(
        rec(0o100644), digest=b"\x01" * 16, generation=7, workspace="w", path="a/b"
    )
    assert content.our_mark(meta, "w", "a/copy of b") is None
    del meta[content.META_PATH]
    assert content.our_mark(meta, "w", "a/copy of b") == (7, b"\x01" * 16)


@pytest.mark.parametrize(
    ("metadata", "wishes"),
    [
        ({}, content.Wishes()),
        (
            {"mode": "33261", "uid": "1000", "gid": "100", "mtime": "1700000000"},
            content.Wishes(0o100755, 1000, 100, 1_700_000_000_000_000_000),
        ),
        ({"mode": str(0o106755)}, content.Wishes(0o100755)),
        ({"mode": "0o644", "uid": "-1", "gid": str(1 << 32), "mtime": "now"}, content.Wishes()),
        ({"mode": "9" * 30, "uid": "٣", "mtime": "9" * 12}, content.Wishes()),
        ({"mtime": "1.5"}, content.Wishes(mtime_ns=1_500_000_000)),
        ({"mtime": "-1.999999999"}, content.Wishes(mtime_ns=-1)),
        ({"mtime": "1." + "1" * 20}, content.Wishes(mtime_ns=1_111_111_111)),
    ],
)
def test_what_strangers_say(metadata: dict[str, str], wishes: content.Wishes) -> None:
    assert content.wishes(metadata) == wishes


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"s3ws-xxh3": "zz", "s3ws-gen": "1", "s3ws-ws": "w"},
        {"s3ws-xxh3": "00", "s3ws-gen": "1", "s3ws-ws": "w"},
        {"s3ws-xxh3": "00" * 16, "s3ws-gen": "x", "s3ws-ws": "w"},
    ],
)
def test_foreign_objects_have_no_mark(meta: dict[str, str]) -> None:
    assert content.our_mark(meta, "w", "a/b") is None


def test_bodies_without_extents() -> None:
    link = rec(stat.S_IFLNK | 0o777, b"../x")
    assert content.is_inline_kind(link)
    assert content.inline_body(link) == b"../x"
    assert content.inline_body(rec(stat.S_IFIFO | 0o600)) == b""
    assert not content.is_inline_kind(rec(stat.S_IFREG | 0o600))
    assert not content.is_mirrored_kind(rec(stat.S_IFDIR | 0o755))
