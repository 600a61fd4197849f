"""Judges what hangs on the tree: extents, locations, attributes, dirty marks, mirror, bookkeeping.

Invariants
1. As in verify.py: clean records are clean, single damage is found, nothing raises.
2. Bytes are compared with their digest in transactions of BATCH_EXTENTS each (`Content`), so that
   nobody's pages are held for long; what changed since the records were copied is judged by what
   stands in that same transaction.

Called by cache.checking and transfer.audit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

import xxhash

from s3ws_fs.cache.cache import ReadContext
from s3ws_fs.cache.verify import Node, TreeCheck
from s3ws_fs.cache.view import META_HEAD, View
from s3ws_fs.core import jsontext, keys
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.extents import alloc_bytes
from s3ws_fs.core.findings import Finding, damage
from s3ws_fs.core.limits import EXTENT_BYTES, XATTR_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from s3ws_fs.core.records import CHUNK_RECORD_BYTES, decode_dirty, decode_location
from s3ws_fs.core.types import BLOB_BIT, SELF_OBJECT, Location

BATCH_EXTENTS: Final = 128
"""Extents (4 MiB) compared with their digests in one read transaction."""
_KEY_BYTES: Final = {keys.T_INODES: (8, 8), keys.T_CHUNKS: (12, 12), keys.T_DENTRIES: (17, 511)}
_KEY_BYTES_ELSE: Final = (9, 511)
META_RESTORED: Final = b"restored"


class Readable(Protocol):
    """What can be read in transactions."""

    def read(self) -> ReadContext:
        """`with x.read() as view:` one point in time."""


class DataCheck:
    """Extents, attributes and marks of a TableSet whose tree was looked at."""

    def __init__(self, tree: TreeCheck) -> None:
        self.tree = tree
        self.tables = tree.tables
        self.values: dict[str, Any] = {}
        self.cold_bytes = 0

    def run(self) -> Iterator[Finding]:
        """All findings; afterwards `tree.totals` can be asked."""
        yield from self._meta()
        yield from self._extents()
        yield from self._xattrs()
        if self.tables.is_local:
            yield from self._dirty()
            yield from self._mtodo()

    @property
    def sealed_number(self) -> int | None:
        """Number of the newest segment that the cache knows sealed; None when it does not say."""
        sealed = self.values.get("sealed")
        number = sealed.get("number") if isinstance(sealed, dict) else None
        return number if isinstance(number, int) else None

    # --- bookkeeping values

    def _meta(self) -> Iterator[Finding]:
        for key, raw in self.tables.meta.items():
            if key in (META_HEAD, META_RESTORED):
                continue
            try:
                self.values[key.decode("ascii")] = jsontext.value_of(raw, "meta")
            except (FormatError, UnicodeDecodeError):
                where = f"meta {key!r}"
                yield damage("meta", where, f"{raw[:40]!r} is no JSON", key=key)
        if self.tables.is_local:
            yield from self._position()

    def _position(self) -> Iterator[Finding]:
        head = self.tree.head
        sealed = self.values.get("sealed")
        if sealed is not None and not _is_position(sealed):
            yield damage("meta", "meta 'sealed'", f"{sealed!r} is no position in the journal")
            sealed = None
        mirrored = self.values.get("mirrored")
        if mirrored is not None and type(mirrored) is not int:
            yield damage("meta", "meta 'mirrored'", f"{mirrored!r} is no generation")
            mirrored = None
        if head is None:
            return
        noted = {"sealed": sealed and sealed["generation"], "mirrored": mirrored}
        for name, generation in noted.items():
            if generation is not None and generation > head.generation:
                message = f"generation {generation} is noted, the head is {head.generation}"
                yield damage("position", f"meta {name!r}", message)

    # --- extents

    def _extents(self) -> Iterator[Finding]:
        tables = self.tables
        for key in sorted(tables.chunks.keys() | tables.extents):
            if len(key) != 12:
                yield damage("record", f"extent {key.hex()}", "the key is not 12 bytes long")
                continue
            ino, _ = keys.split_chunk_key(key)
            location: Location | None = None
            raw = tables.chunks.get(key)
            if raw is not None:
                try:
                    location = decode_location(raw)
                except FormatError as exc:
                    yield self._wrong("record", key, str(exc))
            is_held = key in tables.extents
            if not is_held and location is not None:
                self.cold_bytes += location.length
            node = self.tree.nodes.get(ino)
            if node is None or node.rec.mode & 0o170000 != 0o100000:
                yield self._wrong("extent-owner", key, f"inode {ino} is no file of this tree")
                continue
            if location is not None:
                yield from self._location(key, location)
            yield from self._extent(key, node, location, is_held)

    def _extent(
        self, key: bytes, node: Node, location: Location | None, is_held: bool
    ) -> Iterator[Finding]:
        is_dirty = self.tables.is_dirty(keys.T_CHUNKS, key)
        is_orphan = node.rec.nlink == 0
        if is_held and (location is None or is_dirty or is_orphan):
            # Only the bytes themselves tell: see Content.
            node.is_alloc_known = False
        elif location is not None:
            node.alloc += alloc_bytes(location.length)
            if why := end_fault(key, location.length, node.rec.size):
                yield self._wrong("extent-end", key, why)
        # What was written to an orphan is never shipped, and loses its mark all the same.
        if is_held and key not in self.tables.chunks and not is_dirty and not is_orphan:
            message = "its bytes are neither dirty nor in the bucket: no flush would ship them"
            yield self._wrong("extent-unshipped", key, message, repairable=True)

    def _location(self, key: bytes, location: Location) -> Iterator[Finding]:
        sealed = self.sealed_number
        is_segment = not location.object_id & BLOB_BIT
        if location.object_id == SELF_OBJECT:
            yield self._wrong("location", key, "it names no object")
        # The newest seal is noted after its locations.
        elif is_segment and sealed is not None and location.object_id > sealed + 1:
            message = f"it names segment {location.object_id}, only {sealed} are sealed"
            yield self._wrong("location", key, message)

    def _wrong(self, code: str, key: bytes, message: str, **more: Any) -> Finding:
        return extent_finding(self.tree, code, key, message, **more)

    # --- attributes and marks

    def _xattrs(self) -> Iterator[Finding]:
        for key, value in self.tables.xattrs.items():
            if len(key) < 9:
                yield damage("record", f"xattrs {key.hex()}", "the key is too short", key=key)
                continue
            ino = keys.unpack_u64(key)
            where = f"attribute {key[8:]!r} of inode {ino}"
            if ino not in self.tree.nodes:
                yield damage("xattr", where, "the inode does not exist", key=key)
            elif len(key) - 8 > XATTR_NAME_BYTES_MAX or len(value) > XATTR_VALUE_BYTES_MAX:
                paths = self.tree.name_of(ino)
                yield damage("xattr", where, "it is beyond the limits", key=key, paths=paths)

    def _dirty(self) -> Iterator[Finding]:
        head = self.tree.head
        for mark, raw in self.tables.dirty.items():
            where = f"dirty {mark.hex()}"
            table, key = mark[0] if mark else 0, mark[1:]
            least, most = _KEY_BYTES.get(table, _KEY_BYTES_ELSE)
            if table not in keys.JOURNAL_TABLES or not least <= len(key) <= most:
                yield damage("dirty", where, "it is of no table, or its key is none", key=mark)
                continue
            try:
                generation, _ = decode_dirty(raw)
            except FormatError as exc:
                yield damage("record", where, str(exc), key=mark)
                continue
            if head is not None and not 0 < generation <= head.generation:
                message = f"it is of generation {generation}, the head is {head.generation}"
                yield damage("dirty", where, message, key=mark)
            hangs = table in (keys.T_CHUNKS, keys.T_XATTRS)
            ino = keys.unpack_u64(key) if table != keys.T_DENTRIES else 0
            if head is not None and ino >= head.next_ino:
                message = f"inode {ino} was not given out yet"
                yield damage("dirty", where, message, key=mark)
            elif hangs and ino not in self.tree.nodes:
                yield damage("dirty", where, f"inode {ino} does not exist", key=mark)

    def _mtodo(self) -> Iterator[Finding]:
        head = self.tree.head
        for key, raw in self.tables.mtodo.items():
            where = f"mtodo {key.hex()}"
            if len(key) != 8 or len(raw) != 8:
                yield damage("record", where, "key or value has a wrong length", key=key)
            elif head is not None and keys.unpack_u64(key) >= head.next_ino:
                yield damage("mtodo", where, "the inode was not given out yet", key=key)
            elif head is not None and keys.unpack_u64(raw) > head.generation:
                message = f"generation {keys.unpack_u64(raw)} is beyond the head"
                yield damage("mtodo", where, message, key=key)


def _is_position(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"number", "hash", "generation"}:
        return False
    return (
        type(value["number"]) is int
        and type(value["generation"]) is int
        and isinstance(value["hash"], str)
    )


def extent_finding(tree: TreeCheck, code: str, key: bytes, message: str, **more: Any) -> Finding:
    """Damage of one extent, with the paths of its file."""
    ino, index = keys.split_chunk_key(key)
    where = f"extent {index} of inode {ino}"
    return damage(code, where, message, paths=tree.name_of(ino), ino=ino, key=key, **more)


def end_fault(key: bytes, length: int, size: int) -> str:
    """Why an extent of `length` bytes can't be at this key of a file of `size` bytes."""
    if not 0 < length <= EXTENT_BYTES:
        return f"it has {length} bytes"
    end = keys.split_chunk_key(key)[1] * EXTENT_BYTES + length
    return f"it ends at {end}, the file at {size}" if end > size else ""


@dataclass(slots=True)
class _File:
    """The inode whose extents are being looked at. `raw`: None when it changed meanwhile."""

    node: Node
    raw: bytes | None
    held_bytes: int = 0


class Content:
    """Warm bytes: their digests, their ends, and how many an inode holds; a batch a transaction."""

    def __init__(self, reader: Readable, tree: TreeCheck) -> None:
        self._reader = reader
        self._tree = tree
        self._tables = tree.tables
        self.checked = 0

    def run(self, progress: Callable[[int, int], None] = lambda _a, _b: None) -> Iterator[Finding]:
        """All findings. Keys come from the TableSet, bytes from the cache as it is now."""
        wanted = sorted(
            key
            for key in self._tables.extents
            if len(key) == 12 and keys.unpack_u64(key) in self._tree.nodes
        )
        file: _File | None = None
        for at in range(0, len(wanted), BATCH_EXTENTS):
            progress(at, len(wanted))
            found: list[Finding] = []
            with self._reader.read() as view:
                for key in wanted[at : at + BATCH_EXTENTS]:
                    node = self._tree.nodes[keys.unpack_u64(key)]
                    if file is None or file.node is not node:
                        found += self._finish(file)
                        file = _File(node, self._tables.inodes[key[:8]])
                    found += self._look(view, key, file)
            yield from found
        yield from self._finish(file)

    def _look(self, view: View, key: bytes, file: _File) -> Iterator[Finding]:
        data = view.txn.get(key, db=view.db.extents)
        raw = view.txn.get(key, db=view.db.chunks)
        is_same = view.txn.get(key[:8], db=view.db.inodes) == file.raw
        if not is_same:
            file.raw = None
        try:
            location = None if raw is None else decode_location(raw)
        except FormatError:
            return
        if data is None:
            # Evicted since: as long as its location says.
            file.held_bytes += alloc_bytes(location.length) if location else 0
            return
        file.held_bytes += alloc_bytes(len(data))
        is_own = view.is_dirty(keys.T_CHUNKS, key) or file.node.rec.nlink == 0
        if not is_own and location is not None:
            self.checked += 1
            if why := _content_fault(data, location):
                yield self._wrong("extent-digest", key, why)
        elif is_same and (why := end_fault(key, len(data), file.node.rec.size)):
            yield self._wrong("extent-end", key, why)

    def _finish(self, file: _File | None) -> Iterator[Finding]:
        """The file's count of bytes, if all its extents were seen while it stood still."""
        if file is None or file.raw is None or file.node.is_alloc_known:
            return
        prefix = keys.pack_u64(file.node.rec.ino)
        cold = self._cold.get(prefix, 0)
        yield from self._tree.alloc(file.node, file.held_bytes + cold)

    @cached_property
    def _cold(self) -> dict[bytes, int]:
        """Bytes held by cold extents, by inode key."""
        found: dict[bytes, int] = {}
        for key, raw in self._tables.chunks.items():
            if key not in self._tables.extents and len(raw) == CHUNK_RECORD_BYTES:
                held = alloc_bytes(decode_location(raw).length)
                found[key[:8]] = found.get(key[:8], 0) + held
        return found

    def _wrong(self, code: str, key: bytes, message: str, **more: Any) -> Finding:
        return extent_finding(self._tree, code, key, message, **more)


def _content_fault(data: bytes, location: Location) -> str:
    if len(data) != location.length:
        return f"{len(data)} bytes are held, the location has {location.length}"
    if xxhash.xxh3_128_digest(data) != location.digest:
        return "the bytes held are not those of the digest"
    return ""
