"""What stands in a work tree, as git would see it: which files, which bytes, which are ignored.

Invariants
1. Bytes are raw: no clean filter, no conversion of line ends. A file is taken to hold what its
   index entry names only when its stat data are those of the entry, the entry is not racy, the blob
   has the file's size, and nothing in the repository converts; else its bytes are hashed.
2. Ignored are the files that git ignores by `.gitignore` and `info/exclude`, in the words of
   `git check-ignore`. A repository below is not part of this one.
3. What can't be held by a tree of git (sockets, devices), or is too large, is named in `left_out`.

Called by snapshot.git.state.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from s3ws_fs.core.errors import FormatError
from s3ws_fs.snapshot.git.memory import Seen
from s3ws_fs.snapshot.git.objects import (
    EXECUTABLE,
    FILE,
    GITLINK,
    SYMLINK,
    ObjectWriter,
    hash_blob,
)
from s3ws_fs.snapshot.git.running import Git
from s3ws_fs.snapshot.git.tree import Node, Places, join

FILE_BYTES_MAX: Final = 1 << 30
"""A modified or untracked file that is larger is left out."""
NEW_BYTES_MAX: Final = 4 << 30
"""Bytes of modified and untracked files together; what comes after is left out."""
UNTRACKED_MAX: Final = 200_000
IGNORE_BYTES_MAX: Final = 1 << 20
IN_MEMORY_BYTES_MAX: Final = 4 << 20

INTENT_TO_ADD: Final = 1 << 29
SKIP_WORKTREE: Final = 1 << 30

_ENTRY: Final = re.compile(
    rb"([0-7]+) ([0-9a-f]+) ([0-3])\t([^\0]+)\0"
    rb"  ctime: (\d+):(\d+)\n  mtime: (\d+):(\d+)\n  dev: \d+\tino: (\d+)\n"
    rb"  uid: \d+\tgid: \d+\n  size: (\d+)\tflags: ([0-9a-f]+)\n"
)
_CONVERTS: Final = re.compile(rb"\b(text|crlf|eol|ident|filter|working-tree-encoding)\b")


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the index, with the stat data that git compares."""

    path: bytes
    mode: int
    oid: str
    stage: int
    ctime_ns: int
    mtime_ns: int
    ino: int
    size: int
    flags: int


@dataclass(slots=True)
class WorkTree:
    """What was found. `files`: by path, mode and object of all that is there and not ignored."""

    files: dict[bytes, tuple[int, str]] = field(default_factory=dict)
    modes: dict[bytes, int] = field(default_factory=dict)
    """Permissions of those that a tree does not tell."""
    empty_dirs: list[bytes] = field(default_factory=list)
    left_out: list[tuple[bytes, str]] = field(default_factory=list)
    modified: int = 0
    deleted: int = 0
    untracked: int = 0
    new_bytes: int = 0


def read_index(git: Git, index: Path) -> list[Entry]:
    """All entries of an index file, those of a conflict too. Raises GitError, FormatError."""
    out = git.run("ls-files", "--stage", "--debug", "-z", env={"GIT_INDEX_FILE": str(index)})
    entries, at = [], 0
    while at < len(out):
        found = _ENTRY.match(out, at)
        if found is None:
            raise FormatError("index", "git lists it in a way that is not known here")
        at = found.end()
        numbers = [int(found[n]) for n in range(5, 11)]
        entries.append(
            Entry(
                path=found[4],
                mode=int(found[1], 8),
                oid=found[2].decode(),
                stage=int(found[3]),
                ctime_ns=numbers[0] * 10**9 + numbers[1],
                mtime_ns=numbers[2] * 10**9 + numbers[3],
                ino=numbers[4],
                size=numbers[5],
                flags=int(found[11], 16),
            )
        )
    return entries


class Looking:
    """One look at the work tree of a repository."""

    def __init__(
        self,
        places: Places,
        top: bytes,
        writer: ObjectWriter,
        *,
        nested: frozenset[bytes],
        index_mtime_ns: int,
        converts: bool,
        blob_sizes: dict[str, int],
        before: Seen,
    ) -> None:
        """`nested`: work trees and bare repositories below, as paths of the workspace. `before`:
        what the last look learned."""
        self._places = places
        self._top = top
        self._writer = writer
        self._nested = nested
        self._index_mtime_ns = index_mtime_ns
        self._converts = converts
        self._blob_sizes = blob_sizes
        self._before = before
        self.seen = Seen()
        """What this look learned. Paths are of the workspace."""
        self._gitlinks: set[bytes] = set()
        self.found = WorkTree()

    def tracked(self, entries: list[Entry]) -> None:
        """The files that the index names."""
        for entry in entries:
            if entry.path in self.found.files:
                continue
            node = self._places.node(join(self._top, entry.path))
            if entry.mode == GITLINK:
                if node is not None and node.is_dir:
                    self.found.files[entry.path] = (GITLINK, entry.oid)
                continue
            if node is None or node.is_dir:
                self.found.deleted += not entry.flags & SKIP_WORKTREE
                continue
            is_known = self._before.clean.get(node.ino) == (node.version, entry.oid)
            if is_known or self._is_unchanged(entry, node):
                self._take(entry.path, node, entry.oid)
            elif self._take_bytes(entry.path, node, entry.oid) or entry.stage:
                self.found.modified += 1
                continue
            if node.is_file:
                self.seen.clean[node.ino] = (node.version, entry.oid)

    def _is_unchanged(self, entry: Entry, node: Node) -> bool:
        return (
            entry.stage == 0
            and not entry.flags & INTENT_TO_ADD
            and not self._converts
            and stat.S_IFMT(entry.mode) == stat.S_IFMT(node.mode)
            and entry.size == node.size & 0xFFFFFFFF
            and self._blob_sizes.get(entry.oid) == node.size
            and entry.mtime_ns == node.mtime_ns
            and entry.ctime_ns == node.ctime_ns
            and entry.ino == node.ino & 0xFFFFFFFF
            and entry.mtime_ns < self._index_mtime_ns
        )

    def _take(self, path: bytes, node: Node, oid: str) -> None:
        if node.is_link:
            self.found.files[path] = (SYMLINK, oid)
            return
        permissions = node.mode & 0o7777
        is_executable = bool(permissions & 0o100)
        self.found.files[path] = (EXECUTABLE if is_executable else FILE, oid)
        if permissions != (0o755 if is_executable else 0o644):
            self.found.modes[path] = permissions

    def _take_bytes(self, path: bytes, node: Node, known: str | None) -> bool:
        """Hash a file and write what is not `known`; whether its bytes differ from that."""
        if node.is_link:
            oid = hash_blob(self._writer.object_format, len(node.target), (node.target,))
            if oid != known:
                self._writer.data(node.target)
            self._take(path, node, oid)
            return oid != known
        if not node.is_file:
            self.found.left_out.append((path, "neither a file nor a link"))
            return True
        if node.size > FILE_BYTES_MAX or self.found.new_bytes + node.size > NEW_BYTES_MAX:
            self.found.left_out.append((path, f"too large ({node.size >> 20} MiB)"))
            return True
        full = join(self._top, path)
        if node.size <= IN_MEMORY_BYTES_MAX:
            pieces = list(self._places.read(full))
            oid = hash_blob(self._writer.object_format, node.size, pieces)
            if oid != known:
                self._writer.blob(node.size, pieces)
        else:
            oid = hash_blob(self._writer.object_format, node.size, self._places.read(full))
            if oid != known:
                self._writer.blob(node.size, self._places.read(full))
        self._take(path, node, oid)
        if oid != known:
            self.found.new_bytes += node.size
        return oid != known

    # --- untracked -------------------------------------------------------------------------

    def untracked(self, git: Git, skeleton: Path, entries: list[Entry]) -> None:
        """The files that the index does not name and git does not ignore.

        `skeleton` is the work tree of `git`: of the real one it gets the `.gitignore` files only.
        """
        tracked = {entry.path for entry in entries}
        tracked_dirs = _directories(tracked)
        self._gitlinks = {entry.path for entry in entries if entry.mode == GITLINK}
        level = [b""]
        while level:
            files: list[bytes] = []
            directories: list[bytes] = []
            for directory in level:
                self._list(directory, skeleton, tracked, files, directories)
            asked = [path for path in directories if path not in tracked_dirs]
            for path in asked:
                # That it is a directory is seen there.
                _below(skeleton, path).mkdir(parents=True, exist_ok=True)
            ignored = _ignored(git, files + asked)
            for path in files:
                if path in ignored:
                    self.seen.ignored.add(join(self._top, path))
                else:
                    self._take_untracked(path)
            self.seen.ignored_dirs |= {join(self._top, path) for path in asked if path in ignored}
            level = [path for path in directories if path not in ignored]
            for path in asked:
                if path not in ignored and not self._places.children(join(self._top, path)):
                    self.found.empty_dirs.append(path)

    def _list(
        self,
        directory: bytes,
        skeleton: Path,
        tracked: set[bytes],
        files: list[bytes],
        directories: list[bytes],
    ) -> None:
        children = self._places.children(join(self._top, directory))
        self._copy_ignore(directory, children.get(b".gitignore"), skeleton)
        for name, node in children.items():
            path = join(directory, name)
            if name == b".git":
                continue
            if not node.is_dir:
                if path not in tracked:
                    files.append(path)
            elif path not in self._gitlinks and join(self._top, path) not in self._nested:
                directories.append(path)

    def _copy_ignore(self, directory: bytes, node: Node | None, skeleton: Path) -> None:
        if node is None or not node.is_file or node.size > IGNORE_BYTES_MAX:
            return
        place = _below(skeleton, directory)
        place.mkdir(parents=True, exist_ok=True)
        content = b"".join(self._places.read(join(self._top, join(directory, b".gitignore"))))
        (place / ".gitignore").write_bytes(content)

    def _take_untracked(self, path: bytes) -> None:
        node = self._places.node(join(self._top, path))
        assert node is not None
        if self.found.untracked >= UNTRACKED_MAX:
            if self.found.untracked == UNTRACKED_MAX:
                self.found.left_out.append((path, f"more than {UNTRACKED_MAX} untracked files"))
                self.found.untracked += 1
            return
        self.found.untracked += 1
        self._take_bytes(path, node, None)


def _below(directory: Path, path: bytes) -> Path:
    return directory / os.fsdecode(path)


def _directories(paths: set[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    for path in paths:
        above = path.rpartition(b"/")[0]
        while above and above not in found:
            found.add(above)
            above = above.rpartition(b"/")[0]
    return found


def _ignored(git: Git, paths: list[bytes]) -> set[bytes]:
    if not paths:
        return set()
    # A path that begins with a colon would be taken for magic.
    out = git.run(
        "check-ignore",
        "--no-index",
        "--stdin",
        "-z",
        stdin=b"".join(b"./%b\0" % path for path in paths),
        ok=(0, 1),
    )
    return {path.removeprefix(b"./") for path in out.split(b"\0")}


def converts(places: Places, top: bytes, git_dirs: Iterable[bytes], config: dict[str, str]) -> bool:
    """Whether git may hold other bytes for a file than the work tree does."""
    if config.get("core.autocrlf", "false").lower() not in ("false", "no", "off", "0"):
        return True
    if "core.eol" in config or "core.attributesfile" in config:
        return True
    for git_dir in git_dirs:
        content = places.content(join(git_dir, b"info/attributes"), IGNORE_BYTES_MAX)
        if content and _CONVERTS.search(content):
            return True
    pending = [top]
    while pending:
        directory = pending.pop()
        for name, node in places.children(directory).items():
            path = join(directory, name)
            if node.is_dir and name != b".git":
                pending.append(path)
            elif name == b".gitattributes" and node.is_file:
                content = places.content(path, IGNORE_BYTES_MAX)
                if content is None or _CONVERTS.search(content):
                    return True
    return False
