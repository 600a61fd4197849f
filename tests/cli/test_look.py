"""What `diff`, `log` and `cat` make of their arguments, and of changes: text, totals, JSON."""

from __future__ import annotations

import io
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.cli import changes, look, workspace
from s3ws_fs.control.registry import MountInfo
from s3ws_fs.core.changes import Kept, counts, to_json, told_json
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.journal import KIND_SEGMENT, NO_RECORDS_HASH, Header
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.treediff import (
    ADDED,
    CONTENT,
    DELETED,
    MODE,
    MODIFIED,
    RENAMED,
    TIMES,
    Change,
)


def rec(ino: int = 2, mode: int = stat.S_IFREG | 0o644, size: int = 5, **more: Any) -> InodeRec:
    made = InodeRec(ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, 0, 1, b"n", b"")
    return replace(made, **more)


def header(number: int = 3) -> Header:
    return Header(
        KIND_SEGMENT, "w" * 32, "me", "host\x1b[31m", "f" * 32, number, number - 1, "", number * 10,
        9, 0, 0, 0, 0, EXTENT_BYTES, 0, 0, NO_RECORDS_HASH, 0, 0,
    )  # fmt: skip


# --- arguments


@pytest.mark.parametrize(
    ("text", "ref", "path"),
    [
        ("head:a", "head", "a"),
        ("head:a:b", "head", "a:b"),
        ("#12:a/b", "#12", "a/b"),
        ("gen:5:a", "gen:5", "a"),
        ("turn:x:a", "turn:x", "a"),
        ("turn:x:end:a", "turn:x:end", "a"),
        ("turn:x:begin:end", "turn:x:begin", "end"),
        ("15m:a", "15m", "a"),
        ("2026-11-29T21:40Z:a", "2026-11-29T21:40Z", "a"),
        ("2026-11-29T21:40:a", "2026-11-29T21:40", "a"),
        ("v1:2:3", "v1", "2:3"),
        ("head::a", "head", ":a"),
    ],
)
def test_the_longest_beginning_that_is_a_reference(text: str, ref: str, path: str) -> None:
    assert look.split_ref(text) == (ref, path)


@pytest.mark.parametrize("text", ["", "a", ":a", "head:", "a b:c", "?:x", ":"])
def test_what_names_no_file_is_refused(text: str) -> None:
    with pytest.raises(UserError) as error:
        look.split_ref(text)
    assert error.value.exit_code is ExitCode.USAGE and error.value.remedy


@given(st.text(max_size=30))
def test_any_text_is_two_parts_or_an_error(text: str) -> None:
    try:
        ref, path = look.split_ref(text)
    except UserError:
        return
    assert f"{ref}:{path}" == text


def test_two_points_and_paths() -> None:
    assert look._two_refs(("a",), None) == (("a", "head"), ())
    assert look._two_refs(("a", "b", "c", "d"), None) == (("a", "b"), ("c", "d"))
    assert look._two_refs(("c",), "t") == (("turn:t:begin", "turn:t:end"), ("c",))
    for given_, turn in (((), None), (("a",), "not a name")):
        with pytest.raises(UserError):
            look._two_refs(given_, turn)


def test_paths_are_below_the_root_of_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = MountInfo(
        str(tmp_path), 1, 1, "", "u", "c", "p/", "local", "file:///x", "/cache", None, 0.0, "0"
    )
    monkeypatch.chdir("/")
    monkeypatch.setattr(workspace, "mount_here", lambda: None)
    assert workspace.inside("a/../b", info) == b"b"
    assert workspace.inside(f"{tmp_path}/a/b", info) == b"a/b"
    assert workspace.inside(str(tmp_path), info) == workspace.inside(".", info) == b""
    assert workspace.inside("a/\udcff", None) == b"a/\xff"
    assert workspace.inside("../../a", None) == b"a"
    for outside in ("/etc", "..", f"{tmp_path}x"):
        with pytest.raises(UserError) as error:
            workspace.inside(outside, info)
        assert error.value.exit_code is ExitCode.USAGE
    # In the mount, relative means to where one stands.
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path / "d")
    monkeypatch.setattr(workspace, "mount_here", lambda: info)
    assert workspace.inside("a", info) == b"d/a"
    assert workspace.inside("..", info) == b""


# --- what a terminal gets


def test_to_a_terminal_goes_nothing_that_it_would_interpret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    look._write([b"line\n\ttab \x1b[31m red\r\xff\x07", "caf\xe9\x9b".encode()])
    assert out.getvalue() == "line\n\ttab \\x1b[31m red\\r\\xff\\x07caf\xe9\\x9b"


def test_to_a_file_bytes_go_as_they_are(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(1, "w", closefd=False) as out:
        monkeypatch.setattr(sys, "stdout", out)
        look._write([b"\x1b\xff", b"\0"])
    assert capfdbinary.readouterr().out == b"\x1b\xff\0"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (Change(ADDED, b"a\x1b", after=rec()), "A  a\\x1b  (5 B)"),
        (Change(ADDED, b"d", after=rec(mode=stat.S_IFDIR | 0o755)), "A  d/"),
        (Change(ADDED, b"a", after=rec(), is_link=True), "A  a  (a link)"),
        (
            Change(ADDED, b"l", after=rec(mode=stat.S_IFLNK | 0o777, target=b"t\n")),
            "A  l  (symlink to t\\n)",
        ),
        (Change(DELETED, b"p", before=rec(mode=stat.S_IFIFO | 0o644)), "D  p  (fifo)"),
        (
            Change(
                MODIFIED, b"", rec(mode=0o40755), rec(mode=0o40700, uid=3), None, (MODE, "owner")
            ),
            "M  .  (mode 0755 -> 0700; owner 0:0 -> 3:0)",
        ),
        (
            Change(MODIFIED, b"f", rec(), rec(size=2048), None, (CONTENT, TIMES, "xattrs")),
            "M  f  (5 B -> 2.0 KiB; xattrs)",
        ),
        (Change(MODIFIED, b"f", rec(), rec(), None, (CONTENT,)), "M  f  (5 B)"),
        (Change(MODIFIED, b"f", rec(), rec(), None, (TIMES,)), "M  f  (times)"),
        (Change(RENAMED, b"new", rec(), rec(), b"o\xff"), "R  o\\xff -> new"),
        (
            Change(RENAMED, b"new", rec(), rec(3), b"old", (), is_copy=True),
            "R  old -> new  (by its bytes)",
        ),
    ],
)
def test_a_change_is_a_line(change: Change, text: str) -> None:
    assert changes.line(change) == text
    document = to_json(change)
    assert document["kind"] == change.kind and (document["before"] is None) == (
        change.before is None
    )


def some() -> list[Change]:
    return [
        Change(ADDED, b"a/b/c/d", after=rec(size=100)),
        Change(ADDED, b"a/b/e", after=rec(size=3), is_link=True),
        Change(DELETED, b"a/b/c/f", before=rec(size=30)),
        Change(MODIFIED, b"a/g", rec(size=10), rec(size=4), None, (CONTENT,)),
        Change(RENAMED, b"h", rec(), rec(), b"i"),
    ]


@pytest.mark.parametrize(
    ("path", "git_dir"),
    [
        (b".git/index", b".git"),
        (b"a/b/.git/objects/.git/x", b"a/b/.git"),
        (b".git", None),
        (b"a/.gitignore", None),
        (b".github/x", None),
        (b"", None),
    ],
)
def test_what_is_within_gits_own_directory(path: bytes, git_dir: bytes | None) -> None:
    assert changes.git_dir_of(path) == git_dir


def test_gits_own_files_are_a_line() -> None:
    """A commit buried what the turn had done under its objects."""
    mine = [
        Change(ADDED, b"a", after=rec()),
        Change(ADDED, b".git", after=rec()),
        Change(RENAMED, b".git/got-in", rec(), rec(), b"mine"),
        Change(RENAMED, b"got-out", rec(), rec(), b".git/x"),
    ]
    gits = [
        Change(ADDED, b".git/objects/1", after=rec()),
        Change(DELETED, b".git/ORIG_HEAD", before=rec()),
        Change(RENAMED, b".git/b", rec(), rec(), b".git/a"),
        Change(MODIFIED, b"sub\xff/.git/index", rec(), rec(), None, (CONTENT,)),
    ]
    outside, lines = changes.folded([*mine, *gits])
    assert outside == mine
    assert lines == [
        "M  .git/  (1 added, 1 deleted, 1 renamed; --all names them)",
        "M  sub\\xff/.git/  (1 modified; --all names them)",
    ]
    assert changes.folded(mine[:1]) == (mine[:1], [])


def test_totals() -> None:
    found = counts(some())
    assert found == {
        "added": 2, "deleted": 1, "modified": 1, "renamed": 1,
        "bytes_added": 100, "bytes_removed": 36,
    }  # fmt: skip
    assert changes.summary(found) == "2 added, 1 deleted, 1 modified, 1 renamed; +100 B -36 B"
    assert changes.summary(counts([])) == "no changes"
    assert list(changes.stat_lines(some(), 2)) == [
        ".  1 renamed; +0 B -0 B",
        "a/  1 modified; +0 B -6 B",
        "a/b/  2 added, 1 deleted; +100 B -30 B",
        "5 changes: 2 added, 1 deleted, 1 modified, 1 renamed; +100 B -36 B",
    ]


# --- log


def test_of_a_seal_some_changes_are_told_and_all_are_counted() -> None:
    kept = Kept(2, 3)
    for number in (1, 2, 3):
        kept.add(header(number), 0, some())
    assert [told.header.number for told in kept.told] == [2, 3]
    told = kept.told[-1]
    assert (len(told.changes), told.omitted) == (3, 2)
    lines = list(changes.told_lines(told))
    assert lines[0].startswith("#3  generation 30  ") and "2 added, 1 deleted" in lines[0]
    assert "host\\x1b[31m" in lines[0] and lines[-1] == "    and 2 more" and len(lines) == 5
    document = told_json(told)
    assert (document["omitted"], document["counts"]["added"]) == (2, 2)
    assert len(document["changes"]) == 3 and document["host"] == "host\\x1b[31m"


def test_the_oldest_lose_their_changes_first() -> None:
    kept = Kept(10, 5, total=12)
    for number in range(1, 6):
        kept.add(header(number), 0, some())
        assert sum(len(told.changes) for told in kept.told) <= 12
    assert [len(told.changes) for told in kept.told] == [0, 0, 0, 5, 5]
    assert [told.counts["added"] for told in kept.told] == [2] * 5
    # Seals that are not kept at all take nothing of the room.
    few = Kept(2, 5, total=10)
    for number in range(1, 6):
        few.add(header(number), 0, some())
    assert [len(told.changes) for told in few.told] == [5, 5]
