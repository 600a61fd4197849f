"""Looking into a cache from outside: what `s3ws ls` shows, beside a live or a dead daemon.

Invariants
1. Read-only; one short transaction a call. 2. Works on a cache whose daemon died.
3. A cache that may be torn (recovery.is_due) is refused: the engine would trust what it reads.

Called by the commands and the status page.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from s3ws_fs.cache import recovery, syncpoint
from s3ws_fs.cache.reader import open_reader
from s3ws_fs.cache.syncpoint import current_boot_id
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.cache.view import View
from s3ws_fs.core import keys
from s3ws_fs.core.changes import TYPES
from s3ws_fs.core.errors import CacheError
from s3ws_fs.core.plaintext import json_name
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.types import Attr, Location

DirPath = Callable[[int], bytes | None]
PathsOf = Callable[[int], list[bytes]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One file as it stands in the cache.

    `dirty`: it has changes that are not sealed. `mirrored`: its object under files/ is up to date
    (directories have none and count as mirrored once sealed). `warmth`: "warm" all bytes here,
    "cold" none, "partial" some.
    """

    name: bytes
    attr: Attr
    target: bytes
    dirty: bool
    mirrored: bool
    warmth: str

    @property
    def state(self) -> str:
        """dirty, sealed or mirrored."""
        if self.dirty:
            return "dirty"
        return "mirrored" if self.mirrored else "sealed"

    def to_json(self, directory: bytes = b"") -> dict[str, Any]:
        """For a program; `name` is the path below what was asked for."""
        attr = self.attr
        document: dict[str, Any] = {
            **json_name(directory + b"/" + self.name if directory else self.name),
            "type": TYPES.get(stat.S_IFMT(attr.mode), "unknown"),
            "mode": f"{stat.S_IMODE(attr.mode):04o}",
            "uid": attr.uid,
            "gid": attr.gid,
            "nlink": attr.nlink,
            "size": attr.size,
            "mtime_ns": attr.mtime_ns,
            "ino": attr.ino,
            "state": self.state,
            "warmth": self.warmth,
        }
        if stat.S_ISLNK(attr.mode):
            document["target"] = json_name(self.target)
        return document


class Inspector:
    """A cache opened for looking."""

    def __init__(self, directory: Path) -> None:
        recovery.settle_dead(directory, current_boot_id())
        self._reader = open_reader(directory)

    def listdir(self, path: bytes) -> list[Entry]:
        """Entries of the directory at `path` (relative to the root) by name, or the file itself.

        Raises FileNotFoundError.
        """
        with self._reader.read() as view:
            rec = _resolved(view, path)
            if not rec.is_dir:
                return [_entry(view, path.rsplit(b"/", 1)[-1], rec)]
            found = []
            for _, name, child in view.entries(rec.ino):
                child_rec = view.inode(child)
                if child_rec is not None:
                    found.append(_entry(view, name, child_rec))
        return sorted(found, key=lambda entry: entry.name)

    def page(self, path: bytes, start: int, count: int) -> tuple[int, list[Entry]]:
        """How many entries a directory has, and some of them in the order of their names: those
        from number `start` on. Raises FileNotFoundError, NotADirectoryError.
        """
        with self._reader.read() as view:
            rec = _resolved(view, path)
            if not rec.is_dir:
                raise NotADirectoryError(path)
            names = sorted((name, child) for _, name, child in view.entries(rec.ino))
            found = []
            for name, child in names[start : start + count]:
                child_rec = view.inode(child)
                if child_rec is not None:
                    found.append(_entry(view, name, child_rec))
        return len(names), found

    def entry(self, path: bytes) -> Entry:
        """What stands at a path. Raises FileNotFoundError."""
        with self._reader.read() as view:
            return _entry(view, path.rsplit(b"/", 1)[-1], _resolved(view, path))

    def extents(self, ino: int, first: int, count: int) -> list[tuple[int, bytes | Location]]:
        """Bytes of `count` extents of a file from number `first` on, or where they stand in the
        bucket; holes are left out. Raises FileNotFoundError when the file is gone.
        """
        found: list[tuple[int, bytes | Location]] = []
        with self._reader.read() as view:
            if view.inode(ino) is None:
                raise FileNotFoundError(ino)
            for index in range(first, first + count):
                piece = view.extent(ino, index) or view.chunk(ino, index)
                if piece is not None:
                    found.append((index, piece))
        return found

    @contextlib.contextmanager
    def names(self) -> Iterator[tuple[DirPath, PathsOf]]:
        """Where directories and inodes stand at one moment: (path of a directory or None, paths of
        an inode). For a moment only: a read that lasts makes the cache's file grow.
        """
        with self._reader.read() as view:

            def paths_of(ino: int) -> list[bytes]:
                rec = view.inode(ino)
                return [] if rec is None else view.paths_of(rec)

            yield view.dir_path, paths_of

    def dirty_summary(self) -> tuple[int, int, int | None]:
        """(dirty records, dirty files, first dirt in ns or None): for a mount whose daemon died."""
        with self._reader.read() as view:
            inodes: set[int] = set()
            count, oldest = 0, None
            for table, key, _, first_ns in view.dirty():
                count += 1
                if table in (keys.T_INODES, keys.T_CHUNKS, keys.T_XATTRS):
                    inodes.add(keys.unpack_u64(key))
                oldest = first_ns if oldest is None else min(oldest, first_ns)
        return count, len(inodes), oldest

    def close(self) -> None:
        """Close it."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_readonly(directory: Path, boot_id: str | None = None) -> Inspector:
    """Open the cache of a workspace for looking. Raises CacheError."""
    boot = syncpoint.current_boot_id() if boot_id is None else boot_id
    if (directory / DATA_DIR / DATA_FILE).exists() and recovery.is_due(directory, boot):
        raise CacheError(
            f"the cache in {directory} has to go back to its sync point first: this machine went "
            "down while it was in use",
            remedy="Mount the workspace: that does it, and saves what is not in the bucket.",
        )
    return Inspector(directory)


def _resolved(view: View, path: bytes) -> InodeRec:
    ino = view.resolve(path)
    rec = None if ino is None else view.inode(ino)
    if rec is None:
        raise FileNotFoundError(path)
    return rec


def _entry(view: View, name: bytes, rec: InodeRec) -> Entry:
    key = keys.pack_u64(rec.ino)
    dirty = view.is_dirty(keys.T_INODES, key) or _any_dirty_chunk(view, key)
    behind = view.txn.get(key, db=view.db.mtodo) is not None
    return Entry(
        name=name,
        attr=rec.attr(),
        target=rec.target,
        dirty=dirty,
        mirrored=not dirty and not behind,
        warmth=_warmth(view, rec),
    )


def _any_dirty_chunk(view: View, key: bytes) -> bool:
    prefix = keys.dirty_key(keys.T_CHUNKS, key)
    with view.txn.cursor(db=view.db.dirty) as cursor:
        return cursor.set_range(prefix) and cursor.key().startswith(prefix)


def _warmth(view: View, rec: InodeRec) -> str:
    if not stat.S_ISREG(rec.mode):
        return "warm"
    warm = set(view.extent_indexes(rec.ino))
    cold = any(index not in warm for index, _ in view.chunks(rec.ino))
    if not cold:
        return "warm"
    return "partial" if warm else "cold"
