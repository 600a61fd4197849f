"""The file tree that git state is taken from: one point in time, as little as is needed of it.

Invariants
1. No symbolic link is ever followed: a path leads through directories only.
2. Paths are bytes below the workspace's root, b"" for the root, without a slash at either end.
3. A Node's `version` changes when the file's bytes do.

Called by snapshot.git. `DirectoryTree` serves tests and whoever has a directory at rest.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Node:
    """One file, directory or link. `mode` has the type bits; `target` is a symbolic link's."""

    mode: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    version: int
    target: bytes = b""

    @property
    def is_dir(self) -> bool:
        """A directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """A symbolic link."""
        return stat.S_ISLNK(self.mode)


class Tree(Protocol):
    """What can be asked of the workspace. Raises OSError, and what the cold reader raises."""

    def children(self, path: bytes) -> dict[bytes, Node]:
        """What a directory holds; {} when there is no such directory."""

    def read(self, path: bytes) -> Iterator[bytes]:
        """A regular file's bytes, in pieces."""


class Places:
    """A Tree with its listings remembered."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._known: dict[bytes, dict[bytes, Node]] = {}

    def children(self, path: bytes) -> dict[bytes, Node]:
        """See Tree."""
        found = self._known.get(path)
        if found is None:
            found = self._known[path] = self.tree.children(path)
        return found

    def node(self, path: bytes) -> Node | None:
        """What stands at a path; None for nothing, and for the root itself."""
        above, _, name = path.rpartition(b"/")
        if above and not self.is_dir(above):
            return None
        return self.children(above).get(name)

    def is_dir(self, path: bytes) -> bool:
        """Whether a directory stands there (the root is one)."""
        if not path or path in self._known:
            return not path or bool(self._known[path]) or self._is_dir(path)
        return self._is_dir(path)

    def _is_dir(self, path: bytes) -> bool:
        node = self.node(path)
        return node is not None and node.is_dir

    def is_file(self, path: bytes) -> bool:
        """Whether a regular file stands there."""
        node = self.node(path)
        return node is not None and node.is_file

    def read(self, path: bytes) -> Iterator[bytes]:
        """See Tree."""
        return self.tree.read(path)

    def content(self, path: bytes, limit: int) -> bytes | None:
        """A small regular file's bytes; None when it is none, or longer than `limit`."""
        node = self.node(path)
        if node is None or not node.is_file or node.size > limit:
            return None
        return b"".join(self.tree.read(path))

    def walk(
        self, top: bytes, skip: frozenset[bytes] = frozenset()
    ) -> Iterator[tuple[bytes, Node]]:
        """Everything below `top` but what is below the directories `skip`; parents first."""
        pending = [top]
        while pending:
            directory = pending.pop()
            for name, node in sorted(self.children(directory).items()):
                path = join(directory, name)
                if path in skip:
                    continue
                yield path, node
                if node.is_dir:
                    pending.append(path)


def join(directory: bytes, name: bytes) -> bytes:
    """A path from its directory's and its name (or path below it)."""
    return directory + b"/" + name if directory and name else directory or name


def normal(path: bytes) -> bytes | None:
    """A relative path without `.`, `..` and doubled slashes; None when it leads out."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if not parts:
                return None
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


class DirectoryTree:
    """A directory of this machine, which nobody changes meanwhile."""

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)

    def children(self, path: bytes) -> dict[bytes, Node]:
        """See Tree."""
        found = {}
        try:
            with os.scandir(join(self._root, path)) as entries:
                for entry in entries:
                    found[entry.name] = _node(entry)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return found

    def read(self, path: bytes) -> Iterator[bytes]:
        """See Tree."""
        fd = os.open(join(self._root, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece


def _node(entry: os.DirEntry[bytes]) -> Node:
    st = entry.stat(follow_symlinks=False)
    target = os.readlink(entry.path) if entry.is_symlink() else b""  # noqa: PTH115
    return Node(
        st.st_mode, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ctime_ns, target
    )
