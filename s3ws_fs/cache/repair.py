"""Makes good in a cache what can be made good without guessing.

What counts is what can't be made up: entries are the truth of links and link counts, extents that
of bytes held, inodes that of the counters. What the bucket or the mirror lacks is marked, so that
the next mount ships it again: nothing is written to the bucket here.

Invariants
1. Only under the cache's lock; a cache in use, or one that has to go back to its sync point first,
   is refused and untouched.
2. No bytes and no names are removed. (Bytes that are not those of their digest are made cold when
   the caller has seen the right ones in the bucket.)
3. One transaction: all of it or nothing. What changes a shipped record marks it dirty.
4. Afterwards everything is judged again: repaired is what is not found any more.

Called by the cli.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from s3ws_fs.cache import recovery, syncpoint
from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.checking import Checked, Progress, check_records
from s3ws_fs.cache.following import FOLLOWING
from s3ws_fs.cache.ownership import IDENTITY_FILE
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.cache.tx import Tx
from s3ws_fs.cache.verify import TreeCheck
from s3ws_fs.core import jsontext, keys
from s3ws_fs.core.errors import CacheError, FormatError
from s3ws_fs.core.extents import alloc_bytes
from s3ws_fs.core.findings import Finding, Report
from s3ws_fs.core.records import InodeRec, decode_inode, decode_location
from s3ws_fs.core.types import Location

CHECKPOINT_DUE: Final = "checkpoint_due"
"""Meta value (see replica.position): the next flush makes a checkpoint."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What an audit of the bucket asks of the cache: see `transfer.audit`.

    `reship` are chunk keys whose bytes the bucket lost, `remirror` (inode, mirror path) of objects
    to be put anew, `relist` that the mirror has to be listed, `checkpoint` that segments are
    unreadable, `sound` locations whose bytes were seen to be right.
    """

    reship: frozenset[bytes] = frozenset()
    remirror: frozenset[tuple[int, bytes]] = frozenset()
    relist: bool = False
    checkpoint: bool = False
    sound: Collection[Location] = field(default_factory=frozenset)

    def __bool__(self) -> bool:
        return bool(self.reship or self.remirror or self.relist or self.checkpoint)


def repair_cache(
    directory: Path,
    found: Checked,
    progress: Progress,
    needs: Needs = Needs(),
    *,
    now_ns: Callable[[], int] = time.time_ns,
    boot_id: str | None = None,
) -> Report:
    """Repair, and judge again; what is repaired is marked so. Raises CacheError, untouched then."""
    boot = syncpoint.current_boot_id() if boot_id is None else boot_id
    if found.tables is None or recovery.is_due(directory, boot):
        raise CacheError(
            f"the cache in {directory} can't be repaired as it is",
            remedy="Mount it once: the mount goes back to the sync point, or says what to do.",
        )
    if (found.values or {}).get(FOLLOWING):
        # What repair marks dirty, nobody would ever ship from there.
        raise CacheError(
            f"the cache in {directory} is of a read-only mount: there is nothing to repair in it",
            remedy="Remove that directory while it is not mounted: the next mount makes it anew.",
        )
    identity = _identity(directory)
    quota_bytes = (directory / DATA_DIR / DATA_FILE).stat().st_size
    progress({"phase": "repairing"})
    with open_cache(
        directory, identity, quota_bytes=quota_bytes, now_ns=now_ns, boot_id=boot
    ) as cache:
        # Anew: a daemon may have been at it since.
        checked = _judged(cache, identity)
        assert checked.tree is not None
        before = checked.report
        _Repair(cache, checked.tree, before.findings, needs).run()
        after = _judged(cache, identity).report
    left = {(finding.code, finding.where) for finding in after.findings}
    after.note_repaired(
        finding for finding in before.findings if (finding.code, finding.where) not in left
    )
    return after


def _identity(directory: Path) -> Identity:
    try:
        path = directory / IDENTITY_FILE
        return Identity(**jsontext.object_of(path.read_bytes(), IDENTITY_FILE))
    except (OSError, FormatError, TypeError) as exc:
        raise CacheError(
            f"{directory / IDENTITY_FILE} is not readable: {exc}",
            remedy="Nothing was changed.",
        ) from exc


def _judged(cache: Cache, identity: Identity) -> Checked:
    done = Checked(Report(), prefix=identity.prefix)
    check_records(cache, done, lambda _: None)
    return done


class _Repair:
    def __init__(
        self, cache: Cache, tree: TreeCheck, findings: Iterable[Finding], needs: Needs
    ) -> None:
        self._cache = cache
        self._tree = tree
        self._needs = needs
        self._by_code: dict[str, list[Finding]] = {}
        for finding in findings:
            if finding.repairable or finding.code == "extent-digest":
                self._by_code.setdefault(finding.code, []).append(finding)

    def _inos(self, *codes: str) -> list[int]:
        return sorted({f.ino for code in codes for f in self._by_code.get(code, ())})

    def run(self) -> None:
        """Everything, in one transaction; then the mirror's bookkeeping."""
        if not self._by_code and not self._needs:
            return
        with self._cache.write() as tx:
            # Counters alone are a change too.
            tx.changed = True
            self._relink(tx)
            self._orphans(tx)
            self._extents(tx)
            self._recount(tx)
            self._index(tx)
            self._reship(tx)
        self._mirror()

    def _relink(self, tx: Tx) -> None:
        entries: dict[int, list[tuple[int, bytes]]] = {}
        for key, raw in self._tree.tables.dentries.items():
            parent, _, name = keys.split_dentry_key(key)
            entries.setdefault(keys.unpack_u64(raw), []).append((parent, name))
        for ino in self._inos("nlink", "link"):
            rec = tx.inode(ino)
            if rec is None:
                continue
            if rec.is_dir:
                rec.nlink = 2 + self._tree.nodes[ino].subdirs
            else:
                self._set_links(tx, rec, entries.get(ino, []))
            tx.put_inode(rec)

    @staticmethod
    def _set_links(tx: Tx, rec: InodeRec, links: list[tuple[int, bytes]]) -> None:
        wanted = set(links) if len(links) > 1 else set()
        noted = set(tx.links(rec.ino))
        for parent, name in noted - wanted:
            tx._drop_link(rec.ino, parent, name)
        for parent, name in wanted - noted:
            tx._put_link(rec.ino, parent, name)
        rec.nlink = len(links)
        rec.parent, rec.name = links[0] if len(links) == 1 else (0, b"")

    def _orphans(self, tx: Tx) -> None:
        for ino in self._inos("orphan"):
            rec, key = tx.inode(ino), keys.pack_u64(ino)
            if rec is not None and rec.nlink == 0:
                tx.txn.put(key, b"", db=tx.db.orphans)
            else:
                tx.txn.delete(key, db=tx.db.orphans)

    def _extents(self, tx: Tx) -> None:
        for finding in self._by_code.get("extent-unshipped", ()):
            tx.mark(keys.T_CHUNKS, finding.key)
        for finding in self._by_code.get("extent-digest", ()):
            raw = tx.txn.get(finding.key, db=tx.db.chunks)
            if raw is not None and decode_location(raw) in self._needs.sound:
                tx.txn.delete(finding.key, db=tx.db.extents)

    def _recount(self, tx: Tx) -> None:
        for ino in self._inos("alloc"):
            rec = tx.inode(ino)
            if rec is not None:
                rec.alloc = sum(alloc_bytes(length) for length in _held(tx, ino))
                tx.put_inode(rec)
        used = count = highest = 0
        with tx.txn.cursor(db=tx.db.inodes) as cursor:
            for key, raw in cursor:
                try:
                    rec = decode_inode(keys.unpack_u64(key), raw)
                except FormatError:
                    # What it holds is unknown: the counters stay as they are.
                    return
                used += rec.alloc
                count += 1
                highest = rec.ino
        head = tx.head_rec
        head.used_bytes, head.inodes = used, count
        head.next_ino = max(head.next_ino, highest + 1)

    def _index(self, tx: Tx) -> None:
        for finding in self._by_code.get("mirror-index", ()):
            if len(finding.key) == 16:
                tx.txn.put(keys.pack_u64(finding.ino) + finding.key, b"", db=tx.db.mirrori)
            else:
                tx.txn.delete(finding.key, db=tx.db.mirrori)

    def _reship(self, tx: Tx) -> None:
        for key in sorted(self._needs.reship):
            if tx.txn.get(key, db=tx.db.extents) is not None:
                # A freeze ships what is not where it stood; there these bytes are no more.
                tx.txn.delete(key, db=tx.db.chunks)
                tx.mark(keys.T_CHUNKS, key)
        # A generation of its own, so that the mirror pass does not take what stands for its own.
        touched = {ino for ino, _ in self._needs.remirror}
        if self._needs.checkpoint:
            touched.add(1)
        for ino in sorted(touched):
            rec = tx.inode(ino)
            if rec is not None:
                tx.put_inode(rec)

    def _mirror(self) -> None:
        cache, needs = self._cache, self._needs
        # Without a row, what stands there is looked at, and replaced if it is ours.
        cache.record_mirrored((), [path for _, path in needs.remirror], ())
        behind = self._inos("mirror-lacking", "mirror-stale")
        if behind:
            cache.add_mirror_todo(behind, cache.generation)
        if behind or needs.relist:
            cache.put_json("mirror_known", False)
        if needs.checkpoint:
            cache.put_json(CHECKPOINT_DUE, True)


def _held(tx: Tx, ino: int) -> Iterator[int]:
    """Length of each extent, warm or cold."""
    warm = {index: len(data) for index, data in tx.extents(ino)}
    yield from warm.values()
    for index, location in tx.chunks(ino):
        if index not in warm:
            yield location.length
