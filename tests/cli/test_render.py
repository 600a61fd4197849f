"""Text for terminals and JSON: complete, and never a control character."""

from __future__ import annotations

import base64
import stat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.cache.inspect import Entry
from s3ws_fs.cli import render
from s3ws_fs.cli.report import human_bytes, human_seconds
from s3ws_fs.core.types import Attr


def entry(name: bytes = b"name", mode: int = stat.S_IFREG | 0o644, **more: Any) -> Entry:
    attr = Attr(7, mode, 1, 2, 1, 0, 5, 8, 0, 1_700_000_000_123_456_789, 0)
    fields: dict[str, Any] = {"target": b"", "dirty": False, "mirrored": True, "warmth": "warm"}
    return Entry(name=name, attr=attr, **{**fields, **more})


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"dirty": True, "mirrored": False}, "dirty"),
        ({"dirty": False, "mirrored": False}, "sealed"),
        ({"dirty": False, "mirrored": True}, "mirrored"),
    ],
)
def test_saved_state(flags: dict[str, Any], wanted: str) -> None:
    shown = entry(**flags)
    assert shown.to_json()["state"] == wanted
    assert f" {wanted} " in render.entry_line(b"", shown, long=True)


def test_entries() -> None:
    link = entry(b"l\n", stat.S_IFLNK | 0o777, target=b"to\xff")
    assert render.entry_line(b"dir", link, long=True).endswith("dir/l\\n -> to\\xff")
    document = link.to_json(b"dir")
    assert (document["name"], document["type"]) == ("dir/l\n", "symlink")
    assert document["target"]["name_b64"] == base64.b64encode(b"to\xff").decode()
    assert document["mtime_ns"] == 1_700_000_000_123_456_789 and document["mode"] == "0777"
    assert render.entry_line(b"", entry(b"d", stat.S_IFDIR | 0o755), long=False) == "d/"


_PARTS = (
    "state workspace store generation dirty flush mirror health quota hydration cache error unsaved"
)
_MEMBERS = (
    "head sealed files bytes oldest_age_s state next_due_s last_sealed_age_s since_s error "
    "used_bytes max_bytes cold_files cold_bytes unmirrored conflicts path reason records prefix"
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 50) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_MEMBERS.split()), inner, max_size=6)
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(_PARTS.split()), json_values, max_size=8),
    st.sampled_from(["ready", "dead", "silent"]),
    st.booleans(),
)
def test_status_of_any_shape_is_shown(document: dict[str, Any], state: str, full: bool) -> None:
    document |= {"state": state} | ({"generation": {}} if full else {})
    for line in render.status_lines(document):
        assert line.isprintable()


def test_human_numbers() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1024, 1 << 20, 1 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.0 MiB",
        "1024.0 TiB",
    ]
    assert [human_seconds(n) for n in (None, 1.25, 119.9, 120, 7199, 7200)] == [
        "-",
        "1.2 s",
        "119.9 s",
        "2 min",
        "119 min",
        "2 h 0 min",
    ]


@pytest.mark.parametrize(
    ("head", "sealed", "mirrored", "everything"),
    [
        (5, 5, 5, True),
        (0, 0, 0, True),
        (6, 5, 5, False),
        (5, 5, 4, False),
        (None, None, None, False),
    ],
)
def test_whether_everything_is_saved_comes_first(
    head: int | None, sealed: int | None, mirrored: int | None, everything: bool
) -> None:
    generation = {"head": head, "sealed": sealed, "mirrored": mirrored}
    lines = render.status_lines({"state": "ready", "generation": generation})
    [line] = [line for line in lines if line.startswith("  saved ")]
    assert ("everything: " in line) == everything and f"head {head}, " in line


@pytest.mark.parametrize(
    ("dirty", "wanted"),
    [
        ({"records": 0, "files": 0, "bytes": 0, "oldest_age_s": None}, "nothing"),
        ({"records": 1, "files": 0, "bytes": 0, "oldest_age_s": 2}, "0 files, 0 B, oldest 2.0 s"),
        ({"records": 1, "files": 1, "bytes": 9, "oldest_age_s": 2}, "1 file, 9 B, oldest 2.0 s"),
    ],
)
def test_what_is_dirty(dirty: dict[str, Any], wanted: str) -> None:
    lines = render.status_lines({"state": "ready", "generation": {}, "dirty": dirty})
    assert f"  dirty      {wanted}" in lines


def test_status_says_which_point_a_mount_shows() -> None:
    point = {
        "ref": "bef\x1bore",
        "number": 12,
        "generation": 34,
        "sealed_by": "host",
        "sealed_at_s": 1_700_000_000.5,
        "error": None,
    }
    document = {"state": "ready", "mountpoint": "/m", "generation": {}, "point": point}
    text = "\n".join(render.status_lines(document))
    assert "point #12 (bef\\x1bore), generation 34, sealed 20" in text
    assert " by host; it stays as it is" in text and "saved" not in text
    lost = document | {"point": point | {"error": "it is not kept any more"}}
    assert "  point      it is not kept any more" in "\n".join(render.status_lines(lost))
    bare = document | {"point": {"sealed_at_s": float("inf")}}
    assert "point #- (-), generation -; it stays" in "\n".join(render.status_lines(bare))


def test_backups_of_a_mount() -> None:
    def shown(**backup: Any) -> str:
        shown = {"state": "ready", "generation": {}, "backup": backup}
        return "\n".join(render.status_lines(shown))

    last = {"name": "backup-20260131T120000Z", "bytes": 2048}
    text = shown(last=last, age_s=65.0, running="packing", error=None)
    assert "backup-20260131T120000Z, 65.0 s ago, 2.0 KiB; packing now" in text
    text = shown(error="away\x1b[2J", error_at="2026-01-31T12:00:00Z")
    assert "FAILED at 2026-01-31T12:00:00Z: away" in text and "\x1b" not in text
    text = shown(emergency={"path": "/cache/backup/emergency-x", "why": "no answer"})
    assert "kept in /cache/backup/emergency-x: no answer" in text
