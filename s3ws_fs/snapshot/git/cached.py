"""The cache's tree as git state sees it: all names, and the bytes of what may be needed only.

Objects that the shadow holds already, files that the last look found unchanged or ignored, and
whatever is in no repository, are not copied out: the spool stays small, and the transaction short.

Invariants
1. A file that was not copied is never read as anything else: NotCopiedError, and whoever looks does
   so again with everything (`take(…, whole=True)`).
2. Everything is of one instant, as of snapshot.tree, on which this stands.

Called by snapshot.git.job.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from s3ws_fs.cache.view import View
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.types import ROOT_INO
from s3ws_fs.snapshot import tree as snapshot_tree
from s3ws_fs.snapshot.git.memory import Memory
from s3ws_fs.snapshot.git.tree import Node, join
from s3ws_fs.transfer.freeze import Readable
from s3ws_fs.transfer.spool import create

_BARE: Final = {b"HEAD", b"objects", b"refs"}
_ALWAYS: Final = (b".gitignore", b".gitattributes")


class NotCopiedError(Exception):
    """A file is wanted that was thought not to be. No S3wsError: no repository is broken by it."""


class LeanTree(snapshot_tree.Tree):
    """A tree of which only some files' bytes were copied."""

    wants: Callable[[LeanTree], set[int]] | None = None
    _wanted: set[int] | None = None

    def _copy_extents(self, view: View) -> None:
        if self.wants is not None:
            self._wanted = self.wants(self)
        self._with_wanted(super()._copy_extents, view)

    def _note_cold(self, view: View) -> None:
        self._with_wanted(super()._note_cold, view)

    def _with_wanted(self, copy: Callable[[View], None], view: View) -> None:
        whole = self._inodes
        if self._wanted is not None:
            self._inodes = {ino: raw for ino, raw in whole.items() if ino in self._wanted}
        try:
            copy(view)
        finally:
            self._inodes = whole

    def blocks(self, ino: int) -> Iterator[tuple[int, bytes]]:
        """See Tree.blocks. Raises NotCopiedError."""
        if self._wanted is not None and ino not in self._wanted:
            raise NotCopiedError(f"inode {ino} was not copied")
        return super().blocks(ino)


class CachedTree:
    """A LeanTree by paths (snapshot.git.tree.Tree)."""

    def __init__(self, held: LeanTree) -> None:
        self._held = held
        self._inos: dict[bytes, int] = {b"": ROOT_INO}

    def children(self, path: bytes) -> dict[bytes, Node]:
        """See Tree."""
        ino = self._inos.get(path)
        if ino is None:
            ino = self._held.lookup(path)
            if ino is None:
                return {}
        found = {}
        for name, child in self._held.children(ino):
            self._inos[join(path, name)] = child
            found[name] = _node(self._held.node(child))
        return found

    def read(self, path: bytes) -> Iterator[bytes]:
        """See Tree."""
        ino = self._inos.get(path)
        if ino is None:
            ino = self._held.lookup(path)
        if ino is None:
            raise FormatError(repr(path), "there is no such file")
        size = self._held.node(ino).size
        at = 0
        for offset, data in self._held.blocks(ino):
            yield from _zeros(offset - at)
            yield data
            at = offset + len(data)
        yield from _zeros(size - at)


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        piece = min(count, snapshot_tree.READ_BYTES_MAX)
        yield bytes(piece)
        count -= piece


def _node(rec: InodeRec) -> Node:
    size = len(rec.target) if stat.S_ISLNK(rec.mode) else rec.size
    return Node(
        rec.mode, rec.ino, size, rec.mtime_ns, rec.ctime_ns, rec.data_gen, bytes(rec.target)
    )


def take(
    reader: Readable,
    directory: Path,
    open_store: snapshot_tree.OpenStore,
    memory: Memory,
    *,
    limit_bytes: int,
    whole: bool = False,
) -> LeanTree:
    """The workspace now. Raises FormatError, SpoolFullError, OSError."""
    path = directory / snapshot_tree.SPOOL_FILE
    path.unlink(missing_ok=True)
    held = LeanTree(create(path), open_store, limit_bytes)
    held.wants = lambda tree: wanted(tree, memory, whole=whole)
    try:
        path.unlink()
        with reader.read() as view:
            held.copy(view, None)
        held.flush()
    except BaseException:
        held.close()
        raise
    return held


def wanted(tree: LeanTree, memory: Memory, *, whole: bool) -> set[int]:
    """The files whose bytes may be needed."""
    found: set[int] = set()
    # Path, inode, and how it is seen: in no repository, in a work tree, in a git directory.
    waiting: list[tuple[bytes, int, bool, bool]] = [(b"", ROOT_INO, False, False)]
    while waiting:
        path, ino, in_work_tree, in_git_dir = waiting.pop()
        entries = tree.children(ino)
        names = {name for name, _ in entries}
        in_work_tree = in_work_tree or b".git" in names
        # A submodule's is below another one's; a bare one may be anywhere.
        in_git_dir = in_git_dir or names >= _BARE
        for name, child in entries:
            at = join(path, name)
            rec = tree.node(child)
            if rec.is_dir:
                # Below one that is ignored there may be a repository all the same.
                is_seen = in_work_tree and (whole or not memory.is_ignored_dir(at))
                waiting.append((at, child, is_seen, in_git_dir or name == b".git"))
            elif in_git_dir or name == b".git":
                if whole or not memory.is_object(child, rec.data_gen, rec.size):
                    found.add(child)
            elif in_work_tree and (
                whole or name in _ALWAYS or not memory.is_known(at, child, rec.data_gen)
            ):
                found.add(child)
    return found
