"""Patches: git applies them, to the tree before, and has the tree after."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from s3ws_fs.cache.tableset import TableSet
from s3ws_fs.core import keys
from s3ws_fs.core import patch as patching
from s3ws_fs.core.patch import Patch, quoted
from s3ws_fs.core.records import InodeRec, encode_location
from s3ws_fs.core.treediff import Change, by_files, compare
from s3ws_fs.core.treeview import TreeView
from s3ws_fs.core.types import BLOB_BIT, ROOT_INO, Location

GIT = shutil.which("git")
Files = dict[bytes, tuple[int, bytes, int]]
"""Inode, bytes and mode by path."""
Dirs = dict[bytes, int]

ODD = (
    b"plain", b"with blank", b"tab\there", b"line\nfeed", b'quote"d', b"back\\slash", b"bell\x07",
    b"escape\x1b[31m", b"caf\xc3\xa9", b"latin\xe9",
)  # fmt: skip


def tables(files: Files, dirs: Dirs) -> TableSet:
    """Records of a tree of these files; `dirs`: inode of each directory."""
    made = TableSet(is_local=False)
    dirs = {b"": ROOT_INO, **dirs}

    def put(path: bytes, ino: int, mode: int, data: bytes) -> None:
        above, _, name = path.rpartition(b"/")
        is_link = stat.S_ISLNK(mode)
        if path:
            made.dentries[keys.dentry_key(dirs[above], name)] = keys.pack_u64(ino)
        rec = InodeRec(
            ino, mode, 0, 0, 2 if stat.S_ISDIR(mode) else 1, 0, len(data), 0, 0, 0, 0, 0,
            dirs[above], name, data if is_link else b"",
        )  # fmt: skip
        made.inodes[keys.pack_u64(ino)] = rec.encode()
        if data and not is_link:
            loc = Location(BLOB_BIT, 0, len(data), xxhash.xxh3_128_digest(data))
            made.chunks[keys.chunk_key(ino, 0)] = encode_location(loc)

    for path, ino in dirs.items():
        put(path, ino, stat.S_IFDIR | 0o755, b"")
    for path, (ino, data, mode) in files.items():
        put(path, ino, mode, data)
    return made


def patch_of(before: Files, after: Files, old_dirs: Dirs, new_dirs: Dirs) -> bytes:
    sides = tables(before, old_dirs), tables(after, new_dirs)
    views = TreeView(sides[0]), TreeView(sides[1])

    def read(change: Change, is_after: bool) -> bytes:
        if is_after:
            return after[change.path][1]
        return before[change.old_path or change.path][1]

    made = Patch(read)
    changes = by_files(compare(*sides), *views)
    return b"".join(line for change in changes for line in made.of(change))


def lay(top: Path, files: Files) -> None:
    for path, (_, data, mode) in files.items():
        at = os.path.join(os.fsencode(top), path)
        os.makedirs(os.path.dirname(at), exist_ok=True)
        if stat.S_ISLNK(mode):
            os.symlink(data, at)
        else:
            with open(at, "wb") as out:
                out.write(data)
            os.chmod(at, stat.S_IMODE(mode))


def found(top: Path) -> dict[bytes, tuple[bytes, int]]:
    seen = {}
    root = os.fsencode(top)
    for above, _, names in os.walk(root):
        for name in names:
            at = os.path.join(above, name)
            mode = os.lstat(at).st_mode
            if stat.S_ISLNK(mode):
                data = os.readlink(at)
            else:
                with open(at, "rb") as source:
                    data = source.read()
            seen[os.path.relpath(at, root)] = (data, mode & (stat.S_IFMT(mode) | stat.S_IXUSR))
    return seen


def apply(top: Path, patch: bytes) -> None:
    if not patch:
        return
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "GIT_CEILING_DIRECTORIES": str(top.parent),
    }
    done = subprocess.run(
        [str(GIT), "apply", "--whitespace=nowarn", "-"], cwd=top, input=patch, env=environ,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stderr, patch)


FILE, RUN, LINK = stat.S_IFREG | 0o644, stat.S_IFREG | 0o755, stat.S_IFLNK | 0o777


def check(
    tmp_path: Path,
    before: Files,
    after: Files,
    old_dirs: Dirs,
    new_dirs: Dirs,
) -> bytes:
    patch = patch_of(before, after, old_dirs, new_dirs)
    one, two = tmp_path / "one", tmp_path / "two"
    for top, files in ((one, before), (two, after)):
        shutil.rmtree(top, ignore_errors=True)
        top.mkdir()
        lay(top, files)
    apply(one, patch)
    assert found(one) == found(two), patch
    return patch


@pytest.mark.skipif(GIT is None, reason="git is not installed")
def test_git_takes_changes_of_every_kind(tmp_path: Path) -> None:
    text = b"".join(b"line %d\n" % number for number in range(60))
    before: Files = {
        b"edit": (2, text, FILE),
        b"run": (3, b"#!/bin/sh\n", FILE),
        b"gone": (4, b"x", FILE),
        b"empty-gone": (5, b"", FILE),
        b"d/moved": (6, text + b"m", FILE),
        b"d/stays": (7, b"stays\n", FILE),
        b"link": (8, b"edit", LINK),
        b"no-end": (9, b"a\nb", FILE),
    }
    after: Files = {
        b"edit": (2, text.replace(b"line 3\n", b"").replace(b"line 44", b"LINE 44"), FILE),
        b"run": (3, b"#!/bin/sh\nexit\n", RUN),
        b"e/moved": (6, text + b"n", RUN),
        b"e/stays": (7, b"stays\n", FILE),
        b"e/new": (10, b"new\n", FILE),
        b"link": (11, b"e/new", LINK),
        b"no-end": (9, b"a\nc", FILE),
        b"empty": (12, b"", FILE),
        b"cr": (13, b"one\r\ntwo\x0cthree\x85\n", FILE),
    }
    patch = check(tmp_path, before, after, {b"d": 20}, {b"e": 20})
    assert b"rename from d/stays\nrename to e/stays\n" in patch
    assert b"old mode 100644\nnew mode 100755\n" in patch


@pytest.mark.skipif(GIT is None, reason="git is not installed")
@pytest.mark.parametrize("name", ODD)
def test_git_takes_odd_names(tmp_path: Path, name: bytes) -> None:
    before: Files = {name: (2, b"one\n", FILE), b"to": (3, b"to be\n" * 5, FILE)}
    after: Files = {name: (2, b"two\n", FILE), name + b".2": (3, b"to be\n" * 5, FILE)}
    patch = check(tmp_path, before, after, {}, {})
    assert all(0x20 <= byte < 0x7F or byte in b"\t\n" for byte in patch)


lines = st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n", b"\n", b"a", b" "]), max_size=30).map(
    b"".join
)


@pytest.mark.skipif(GIT is None, reason="git is not installed")
@settings(max_examples=60)
@given(lines, lines)
@example(b"a\n" * 5, b"b\n" + b"a\n" * 4)
@example(b"a\n" * 9 + b"c\n", b"a\n" * 5 + b"b\n" + b"a\n" * 4 + b"c\n")
def test_git_takes_whatever_differs(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, new: bytes
) -> None:
    tmp_path = tmp_path_factory.mktemp("apply")
    check(tmp_path, {b"f": (2, old, FILE)}, {b"f": (2, new, FILE)}, {}, {})


def test_what_is_no_text_or_too_much_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def one(old: bytes, new: bytes) -> bytes:
        return patch_of({b"f": (2, old, FILE)}, {b"f": (2, new, FILE)}, {}, {})

    assert one(b"a\n", b"\0") == b"diff --git a/f b/f\nBinary files a/f and b/f differ\n"
    monkeypatch.setattr(patching, "FILE_BYTES_MAX", 8)
    assert b"longer than 8 bytes\nBinary files" in one(b"a\n", b"b" * 9)
    assert b"+bbbbbbbb\n" in one(b"a\n", b"b" * 8)
    monkeypatch.setattr(patching, "LINES_MAX", 4)
    assert b"-b\n" in one(b"a\nb\nc\nd", b"a\nx\nd")
    assert b"more than 4 lines differ\nBinary files" in one(b"a\nb\nc", b"x\ny")
    monkeypatch.setattr(patching, "TOTAL_BYTES_MAX", 3)
    assert b"0 bytes were before\nBinary" in one(b"ab", b"cd")
    assert b"+c\n" in one(b"ab", b"c")


def test_a_long_equal_beginning_and_end_cost_nothing() -> None:
    same = b"".join(b"%d\n" % number for number in range(60_000))
    patch = patch_of(
        {b"f": (2, same + b"old\n" + same, FILE)}, {b"f": (2, same + b"new\n" + same, FILE)}, {}, {}
    )
    assert b"@@ -59998,7 +59998,7 @@\n 59997\n 59998\n 59999\n-old\n+new\n 0\n 1\n 2\n" in patch


def test_names_are_quoted_as_git_does() -> None:
    assert quoted(b"a/", b"plain name") == b"a/plain name"
    assert quoted(b"a/", b'x"\\\n\t\x1b\xe9') == b'"a/x\\"\\\\\\n\\t\\033\\351"'
