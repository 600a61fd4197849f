"""The workspace at one instant: a tree that can be walked, and whose files can be read.

`take` copies all records and all warm bytes out of the cache in one read transaction, to a file of
its own, and closes it; whatever is done with them afterwards takes as long as it takes. Cold bytes
are fetched later, by their locations, into the same file (`bring`), or when they are read.

Invariants
1. Everything is as of one generation. While the transaction stands, nothing is fetched, compressed
   or waited for: pages that the living mount frees can't serve again until it ends.
2. Nothing but the spool directory is written, never more than `limit_bytes`; the file has no name
   any more when `take` returns: whatever becomes of this process, its room comes back.
3. Cold bytes are used only when their digest is their location's (transfer.fetch).
4. Names and numbers come from an untrusted workspace: a walk ends whatever the records say, and
   damaged ones are a FormatError.

Called by the snapshot child: backup.py and the git state.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import BinaryIO, Final, Self

from s3ws_fs.cache.view import PATH_DEPTH_MAX, View
from s3ws_fs.core import failpoints, keys, layout
from s3ws_fs.core.errors import FormatError, NotFoundError, UserError
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import InodeRec, decode_inode, decode_location
from s3ws_fs.core.types import ROOT_INO, Location
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.fetch import coalesce, fetch_from_mirror, fetch_group
from s3ws_fs.transfer.freeze import Readable
from s3ws_fs.transfer.spool import create
from s3ws_fs.transfer.windowed import windowed

READ_BYTES_MAX: Final = 1 << 20
"""Most bytes of one piece that `blocks` yields."""
SPOOL_FILE: Final = "tree.data"
GETS_AHEAD: Final = 8
"""GETs that are under way or wait to be written, while cold bytes are brought."""

_MODE: Final = struct.Struct(">I")
_IS_DIR: Final = 0o040000
_TYPE: Final = 0o170000

LeftOut = Callable[[bytes, bool], bool]
"""Whether a path (relative to the root; and is it a directory) is left out, with all below it."""
OpenStore = Callable[[], ScopedStore]
Progress = Callable[[int, int], None]


class SpoolFullError(UserError):
    """There is no room to copy the workspace out."""


class Tree:
    """One instant of a workspace. Made by `take`; `close` gives its room back."""

    def __init__(self, file: BinaryIO, open_store: OpenStore, limit_bytes: int) -> None:
        self.generation = 0
        self.left_out: list[bytes] = []
        """Paths that were left out, each standing for all below it."""
        self._file = file
        self._end = 0
        self._limit_bytes = limit_bytes
        self._open_store = open_store
        self._store: ScopedStore | None = None
        self._inodes: dict[int, bytes] = {}
        self._children: dict[int, list[tuple[bytes, int]]] = {}
        self._xattrs: dict[int, list[tuple[bytes, bytes]]] = {}
        self._extents: dict[int, list[tuple[int, int, int]]] = {}
        self._cold: dict[int, list[tuple[int, Location]]] = {}
        self._paths: dict[int, list[bytes]] = {}

    # --- the tree --------------------------------------------------------------------------

    def node(self, ino: int) -> InodeRec:
        """An inode. Raises FormatError when there is none, or it is damaged."""
        raw = self._inodes.get(ino)
        if raw is None:
            raise FormatError(f"inode {ino}", "a name stands for it, and it is not there")
        return decode_inode(ino, raw)

    def children(self, ino: int) -> list[tuple[bytes, int]]:
        """(name, inode) of a directory's entries, by name."""
        return self._children.get(ino, [])

    def lookup(self, path: bytes) -> int | None:
        """The inode at a path below the root (b"": the root), without following symlinks."""
        at = ROOT_INO
        for part in path.split(b"/"):
            if part:
                found = dict(self._children.get(at, [])).get(part)
                if found is None:
                    return None
                at = found
        return at

    def walk(self, path: bytes = b"") -> Iterator[tuple[bytes, int]]:
        """(path, inode) of everything at and below `path`: a directory before what is in it."""
        start = self.lookup(path)
        if start is None:
            return
        waiting = [(path, start)]
        while waiting:
            at, ino = waiting.pop()
            yield at, ino
            below = at + b"/" if at else b""
            waiting += [(below + name, child) for name, child in reversed(self.children(ino))]

    def xattrs(self, ino: int) -> list[tuple[bytes, bytes]]:
        """(name, value) of an inode's extended attributes, access control lists among them."""
        return self._xattrs.get(ino, [])

    def paths_of(self, ino: int) -> list[bytes]:
        """All paths of an inode that were not left out."""
        if not self._paths:
            for path, found in self.walk():
                self._paths.setdefault(found, []).append(path)
        return self._paths.get(ino, [])

    @property
    def inos(self) -> Iterable[int]:
        """Every inode that has a path."""
        return self._inodes.keys()

    # --- bytes -----------------------------------------------------------------------------

    def spans(self, ino: int) -> list[tuple[int, int]]:
        """(offset, length) of the pieces of a file that hold data; between them are zeros.

        None reaches beyond the file's size. Raises FormatError.
        """
        places = [(index, length) for index, _, length in self._extents.get(ino, [])]
        places += [(index, loc.length) for index, loc in self._cold.get(ino, [])]
        found: list[tuple[int, int]] = []
        for index, length in sorted(places):
            start = index * EXTENT_BYTES
            if found and sum(found[-1]) == start:
                found[-1] = (found[-1][0], found[-1][1] + length)
            else:
                found.append((start, length))
        if found and sum(found[-1]) > self.node(ino).size:
            raise FormatError(f"inode {ino}", "an extent reaches beyond the file's size")
        return found

    def blocks(self, ino: int) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of what `spans` says, in pieces. Raises StoreError, FormatError."""
        if ino in self._cold:
            self.bring((ino,))
        start, held = 0, 0
        parts: list[bytes] = []
        for index, at, length in sorted(self._extents.get(ino, [])):
            offset = index * EXTENT_BYTES
            if parts and (offset != start + held or held + length > READ_BYTES_MAX):
                yield start, b"".join(parts)
                parts, held = [], 0
            if not parts:
                start = offset
            parts.append(self._at(at, length))
            held += length
        if parts:
            yield start, b"".join(parts)

    def read(self, ino: int, limit_bytes: int = -1) -> bytes:
        """A file's bytes, or its first ones. Raises StoreError, FormatError."""
        size = self.node(ino).size
        whole = bytearray(size if limit_bytes < 0 else min(size, limit_bytes))
        for offset, data in self.blocks(ino):
            if offset >= len(whole):
                break
            piece = data[: len(whole) - offset]
            whole[offset : offset + len(piece)] = piece
        return bytes(whole)

    def copy_to(self, ino: int, fd: int) -> None:
        """A file's bytes into an open one, its holes left as holes."""
        for offset, data in self.blocks(ino):
            os.pwrite(fd, data, offset)
        os.ftruncate(fd, self.node(ino).size)

    def _at(self, at: int, length: int) -> bytes:
        data = os.pread(self._file.fileno(), length, at)
        if len(data) != length:
            raise FormatError("spool file", "shorter than it should be")
        return data

    # --- cold bytes ------------------------------------------------------------------------

    @property
    def cold_bytes(self) -> int:
        """Bytes that are only in the bucket still."""
        return sum(loc.length for items in self._cold.values() for _, loc in items)

    def leave_cold(self) -> int:
        """Leave out the files that are not all here; returns how many. The store is not asked."""
        gone = set(self._cold)
        self.left_out = sorted(
            [*self.left_out, *(path for path, ino in self.walk() if ino in gone)]
        )
        self._children = {
            parent: [item for item in items if item[1] not in gone]
            for parent, items in self._children.items()
        }
        for ino in gone:
            del self._inodes[ino]
        self._cold = {}
        self._paths = {}
        return len(gone)

    def bring(
        self,
        inos: Iterable[int] | None = None,
        pool: Executor | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Fetch the cold bytes of these files, or of all. Raises StoreError, FormatError."""
        wanted = list(self._cold if inos is None else inos)
        places: dict[Location, list[tuple[int, int]]] = {}
        for ino in wanted:
            for index, loc in self._cold.get(ino, []):
                places.setdefault(loc, []).append((ino, index))
        if not places:
            return
        if self._store is None:
            self._store = self._open_store()
        groups, fetch = coalesce(places), self._fetch(places)
        fetched = map(fetch, groups) if pool is None else windowed(pool, fetch, groups, GETS_AHEAD)
        done, total = 0, sum(loc.length for loc in places)
        brought: list[tuple[int, tuple[int, int, int]]] = []
        for found in fetched:
            for loc, data in found.items():
                at = self._append(data)
                brought += [(ino, (index, at, loc.length)) for ino, index in places[loc]]
                done += loc.length
            if progress is not None:
                progress(done, total)
        self.flush()
        for ino, extent in brought:
            self._extents.setdefault(ino, []).append(extent)
        for ino in wanted:
            self._cold.pop(ino, None)

    def _fetch(
        self, places: dict[Location, list[tuple[int, int]]]
    ) -> Callable[[list[Location]], dict[Location, bytes]]:
        store = self._store
        assert store is not None

        def fetch(group: list[Location]) -> dict[Location, bytes]:
            try:
                return fetch_group(store, group)
            except FormatError:
                # One after the other: the damaged ones may stand in the mirror still.
                return {loc: self._fetch_one(store, loc, places[loc]) for loc in group}

        return fetch

    def _fetch_one(self, store: ScopedStore, loc: Location, places: list[tuple[int, int]]) -> bytes:
        try:
            return fetch_group(store, [loc])[loc]
        except FormatError as damage:
            for ino, index in places:
                for path in self.paths_of(ino):
                    text, _ = layout.mirror_path(path, len(store.prefix))
                    if not text:
                        continue
                    try:
                        return fetch_from_mirror(store, text, index, loc)
                    except (NotFoundError, FormatError):
                        continue
            named = self.paths_of(places[0][0])
            raise FormatError(repr(named[0] if named else b"")[1:], str(damage)) from damage

    def _append(self, data: bytes) -> int:
        at = self._end
        if at + len(data) > self._limit_bytes:
            raise SpoolFullError(
                f"the workspace's bytes do not fit the {self._limit_bytes >> 20} MiB that may be "
                "used beside the cache",
                remedy="Make room on the disk of the cache, or leave more out "
                "(WORKSPACE_BACKUP_EXCLUDE). The workspace itself is saved as always.",
            )
        self._file.write(data)
        self._end = at + len(data)
        return at

    def flush(self) -> None:
        """Written bytes can be read."""
        self._file.flush()

    def close(self) -> None:
        """Give the room back."""
        self._file.close()
        if self._store is not None:
            self._store.close()
            self._store = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- taking it -------------------------------------------------------------------------

    def copy(self, view: View, left_out: LeftOut | None) -> None:
        """Everything of one read transaction. Raises FormatError, SpoolFullError, OSError."""
        self.generation = view.head().generation
        with view.txn.cursor(db=view.db.inodes) as cursor:
            self._inodes = {keys.unpack_u64(key): value for key, value in cursor}
        with view.txn.cursor(db=view.db.dentries) as cursor:
            for key, value in cursor:
                parent, _, name = keys.split_dentry_key(key)
                self._children.setdefault(parent, []).append((name, keys.unpack_u64(value)))
        self._keep_reachable(left_out)
        with view.txn.cursor(db=view.db.xattrs) as cursor:
            for key, value in cursor:
                ino = keys.unpack_u64(key)
                if ino in self._inodes:
                    self._xattrs.setdefault(ino, []).append((key[8:], value))
        self._copy_extents(view)
        self._note_cold(view)

    def _keep_reachable(self, left_out: LeftOut | None) -> None:
        """Drop what has no path (orphans), or only paths that are left out."""
        children: dict[int, list[tuple[bytes, int]]] = {}
        reached = {ROOT_INO}
        waiting = [(b"", ROOT_INO, 0)]
        while waiting:
            path, parent, depth = waiting.pop()
            below = path + b"/" if path else b""
            kept = []
            for name, ino in sorted(self._children.get(parent, [])):
                raw = self._inodes.get(ino)
                if raw is None or len(raw) < _MODE.size:
                    raise FormatError(f"inode {ino}", f"{below + name!r} stands for it: damaged")
                is_dir = _MODE.unpack_from(raw)[0] & _TYPE == _IS_DIR
                if left_out is not None and left_out(below + name, is_dir):
                    self.left_out.append(below + name)
                    continue
                if is_dir:
                    if ino in reached or depth >= PATH_DEPTH_MAX:
                        raise FormatError(f"inode {ino}", "a directory within itself")
                    waiting.append((below + name, ino, depth + 1))
                reached.add(ino)
                kept.append((name, ino))
            if kept:
                children[parent] = kept
        self._children = children
        self._inodes = {ino: raw for ino, raw in self._inodes.items() if ino in reached}
        self.left_out.sort()

    def _copy_extents(self, view: View) -> None:
        with view.txn.cursor(db=view.db.extents) as cursor:
            more = cursor.first()
            while more:
                key, data = cursor.item()
                ino, index = keys.split_chunk_key(key)
                if ino not in self._inodes:
                    more = cursor.set_range(keys.pack_u64(ino + 1))
                    continue
                at = self._append(data)
                self._extents.setdefault(ino, []).append((index, at, len(data)))
                more = cursor.next()

    def _note_cold(self, view: View) -> None:
        warm_of, warm = -1, set()
        with view.txn.cursor(db=view.db.chunks) as cursor:
            for key, raw in cursor:
                ino, index = keys.split_chunk_key(key)
                if ino not in self._inodes:
                    continue
                if ino != warm_of:
                    warm_of = ino
                    warm = {index for index, _, _ in self._extents.get(ino, [])}
                if index not in warm:
                    self._cold.setdefault(ino, []).append((index, decode_location(raw)))


def take(
    reader: Readable,
    directory: Path,
    open_store: OpenStore,
    *,
    limit_bytes: int,
    left_out: LeftOut | None = None,
) -> Tree:
    """The workspace as it is now. `open_store` is called when cold bytes are wanted, and only then.

    Raises FormatError (damaged records), SpoolFullError, OSError (a full disk).
    """
    path = directory / SPOOL_FILE
    path.unlink(missing_ok=True)
    failpoints.hit(failpoints.SPOOL_BEFORE)
    file = create(path)
    tree = Tree(file, open_store, limit_bytes)
    try:
        path.unlink()
        with reader.read() as view:
            tree.copy(view, left_out)
        tree.flush()
        failpoints.hit(failpoints.SPOOL_AFTER)
    except BaseException:
        tree.close()
        raise
    return tree
