"""Judges what a cache remembers of the mirror: rows, their index, and what is forgotten.

Invariants
1. A file is behind when it, or a directory above it, is dirty or on the mirror's to-do; what is
   behind may have any row, or none. All others have a current row at each of their mirror paths.
2. Rows are judged for completeness only while the cache says that it knows them all
   (`mirror_known`): not after a restore, and not during a pass.

Called by cache.checking; `Behind` also by transfer.audit_mirror.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from s3ws_fs.cache.tableset import TableSet
from s3ws_fs.cache.verify import TreeCheck
from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError
from s3ws_fs.core.findings import Finding, damage
from s3ws_fs.core.layout import mirror_path, unescape_path
from s3ws_fs.core.mirrorplan import Target, is_current
from s3ws_fs.core.records import InodeRec, MirrorRow, decode_mirror
from s3ws_fs.core.types import ROOT_INO

MIRROR_HOLES_BYTES_MAX: Final = 1 << 30
"""Files with more holes are in the journal only (transfer.todo has the same limit)."""
_INDEX_KEY_BYTES: Final = 24


class Behind:
    """Which inodes the mirror may legitimately show as they were before."""

    def __init__(self, tree: TreeCheck, changed: Iterable[int]) -> None:
        self._tree = tree
        self._known: dict[int, bool] = dict.fromkeys(changed, True)
        self._known.setdefault(ROOT_INO, False)
        self._dirs: dict[int, bool] = {ROOT_INO: False}

    def __contains__(self, ino: int) -> bool:
        return self._known.get(ino, False)

    def covers(self, rec: InodeRec, parents: Iterable[int]) -> bool:
        """Whether this inode, or a directory above one of its links, is behind."""
        return rec.ino in self or any(self._directory(parent) for parent in parents)

    def _directory(self, ino: int) -> bool:
        chain: list[int] = []
        verdict = False
        while ino not in self._dirs:
            chain.append(ino)
            self._dirs[ino] = False
            node = self._tree.nodes.get(ino)
            # The root's own attributes are nobody's path.
            if node is None or ino in self:
                verdict = True
                break
            ino = node.rec.parent
        verdict = verdict or self._dirs[ino]
        self._dirs.update(dict.fromkeys(chain, verdict))
        return verdict


def changed_inodes(tables: TableSet) -> set[int]:
    """Inodes that are dirty or on the mirror's to-do."""
    found = {keys.unpack_u64(key) for key in tables.mtodo if len(key) == 8}
    for mark in tables.dirty:
        if mark and mark[0] in (keys.T_INODES, keys.T_CHUNKS) and len(mark) >= 9:
            found.add(keys.unpack_u64(mark[1:]))
    return found


def targets_of(
    tree: TreeCheck, rec: InodeRec, links: Iterable[tuple[int, bytes]], prefix_bytes: int
) -> Iterator[tuple[str, int, bytes]]:
    """(mirror path, parent, path) for each link of a file that the mirror can show."""
    if rec.size - rec.alloc > MIRROR_HOLES_BYTES_MAX:
        return
    for parent, name in links:
        above = tree.paths.directory(parent)
        if above is None:
            continue
        path = above + b"/" + name if above else name
        try:
            text, _ = mirror_path(path, prefix_bytes)
        except ValueError:
            # No name at all: reported by the tree's check.
            continue
        if text:
            yield text, parent, path


class MirrorCheck:
    """The tables mirror and mirrori of a TableSet whose tree was looked at."""

    def __init__(self, tree: TreeCheck, values: dict[str, Any], prefix_bytes: int) -> None:
        self._tree = tree
        self._tables = tree.tables
        self._values = values
        self._prefix_bytes = prefix_bytes
        self._rows: dict[bytes, MirrorRow] = {}

    def run(self) -> Iterator[Finding]:
        """All findings."""
        yield from self._all_rows()
        yield from self._index()
        if self._values.get("mirror_known") is True and self._prefix_bytes:
            yield from self._complete()

    def _all_rows(self) -> Iterator[Finding]:
        for key, raw in self._tables.mirror.items():
            where = f"mirror {key.hex()}"
            try:
                row = decode_mirror(raw)
            except FormatError as exc:
                yield damage("record", where, str(exc), key=key)
                continue
            self._rows[key] = row
            if why := self._fault(key, row):
                yield damage(
                    "mirror-row", where, why, key=key, ino=row.ino, paths=(row.path,)
                )  # fmt: skip

    def _fault(self, key: bytes, row: MirrorRow) -> str:
        head = self._tree.head
        if keys.mirror_key(row.path) != key:
            return "it stands under the hash of another path"
        is_dir = row.path.endswith(b"/")
        try:
            if not is_dir and unescape_path(row.path.decode()) is None:
                return f"{row.path!r} is the mirror path of nothing"
        except UnicodeDecodeError:
            return f"{row.path!r} is no mirror path"
        if not is_dir and not row.etag:
            return "it has no ETag"
        if head is not None and row.ino >= head.next_ino:
            return f"inode {row.ino} was not given out yet"
        if head is not None and row.generation > head.generation:
            return f"generation {row.generation} is beyond the head, {head.generation}"
        return ""

    def _index(self) -> Iterator[Finding]:
        for key, row in self._rows.items():
            if keys.pack_u64(row.ino) + key not in self._tables.mirrori:
                message = f"inode {row.ino}'s row is not in the index"
                yield damage(
                    "mirror-index", f"mirror {key.hex()}", message, key=key, ino=row.ino,
                    paths=(row.path,), repairable=True,
                )  # fmt: skip
        for key in self._tables.mirrori:
            where = f"mirrori {key.hex()}"
            if len(key) != _INDEX_KEY_BYTES:
                yield damage("record", where, "the key has a wrong length", key=key)
                continue
            found = self._rows.get(key[8:])
            if found is None or found.ino != keys.unpack_u64(key):
                yield damage(
                    "mirror-index", where, "it leads to no row of this inode", key=key,
                    ino=keys.unpack_u64(key), repairable=True,
                )  # fmt: skip

    def _complete(self) -> Iterator[Finding]:
        behind = Behind(self._tree, changed_inodes(self._tables))
        by_ino = self._tables.links_by_ino()
        wanted: set[bytes] = set()
        for ino, node in self._tree.nodes.items():
            rec = node.rec
            if rec.is_dir or rec.nlink == 0:
                continue
            links = [(rec.parent, rec.name)] if rec.nlink == 1 else by_ino.get(ino, [])
            for text, parent, path in targets_of(self._tree, rec, links, self._prefix_bytes):
                key = keys.mirror_key(text.encode())
                wanted.add(key)
                if behind.covers(rec, (parent,)):
                    continue
                row = self._rows.get(key)
                if row is None or not is_current(row, Target(text, ino, 0, rec.data_gen)):
                    message = "its mirror object is not known to be current, and not on the to-do"
                    yield damage(
                        "mirror-lacking", f"inode {ino}", message, ino=ino, paths=(path,),
                        key=key, repairable=True,
                    )  # fmt: skip
        for key, row in self._rows.items():
            if key in wanted or row.path.endswith(b"/"):
                continue
            found = self._tree.nodes.get(row.ino)
            links = by_ino.get(row.ino, [])
            if found is not None and found.rec.nlink == 1:
                links = [(found.rec.parent, found.rec.name)]
            is_moving = found is not None and behind.covers(found.rec, (p for p, _ in links))
            if row.ino in behind or is_moving:
                continue
            yield damage(
                "mirror-stale", f"files/{row.path.decode('utf-8', 'replace')}",
                f"inode {row.ino} does not stand there", key=key, ino=row.ino, repairable=True,
            )  # fmt: skip
