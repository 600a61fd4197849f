"""The audit of a workspace in its bucket: is everything there that is named, whole, and right?

Order: listing, journal (headers, records, chain), replay, the replayed records under the same
judgement as a cache, bytes of all objects, the mirror, and, where there is a cache, whether both
agree.

Invariants
1. Nothing is written to the bucket or the cache. What repair needs from the cache is in `needs`.
2. It may run beside a mount that writes: what is looked at is the state sealed when the listing
   was made. When an object vanishes because the journal went on, it starts anew, TRIES_MAX times.
3. Everything below the prefix is either named by the format or reported.
4. A store that does not answer is an error (StoreError), never a finding.

Called by the cli.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, Final

from s3ws_fs.cache.checking import judge
from s3ws_fs.cache.repair import Needs
from s3ws_fs.cache.tableset import PathFinder, TableSet
from s3ws_fs.cache.verify import TreeCheck
from s3ws_fs.cache.verify_mirror import Behind, changed_inodes
from s3ws_fs.core import history, layout
from s3ws_fs.core.errors import FormatError, NotFoundError, UserError
from s3ws_fs.core.findings import Finding, Report, Severity, damage, make
from s3ws_fs.core.lease import decode_lease
from s3ws_fs.core.records import MirrorRow
from s3ws_fs.core.types import Location
from s3ws_fs.store.base import ListEntry
from s3ws_fs.store.scoped import PROBE_PREFIX, ScopedStore
from s3ws_fs.transfer import journaling
from s3ws_fs.transfer.audit_history import HistoryAudit
from s3ws_fs.transfer.audit_journal import Chain, Replayed, journal_objects, read_all, replay
from s3ws_fs.transfer.audit_mirror import MirrorAudit, own_hashes
from s3ws_fs.transfer.audit_places import JOURNAL_PREFIXES, LocalSide, Places, differences

__all__ = ["Audited", "LocalSide", "audit"]

Progress = Callable[[dict[str, Any]], None]

TRIES_MAX: Final = 3
LISTING_STEP: Final = 1000
UNNAMED: Final = ("compressed/", "git/", PROBE_PREFIX, layout.FILES_PREFIX)
"""Prefixes of ours whose objects the journal does not name."""
SINGLE: Final = (
    layout.WORKSPACE_KEY,
    layout.MIRRORED_KEY,
    layout.LEASE_KEY,
    layout.HISTORY_KEY,
    layout.FORK_KEY,
    layout.DELETED_KEY,
)


@dataclass(slots=True)
class Audited:
    """What came of it."""

    report: Report = field(default_factory=Report)
    needs: Needs = field(default_factory=Needs)


def audit(
    store: ScopedStore,
    pool: Executor,
    progress: Progress,
    *,
    local: LocalSide | None = None,
    quick: bool = False,
) -> Audited:
    """Audit the workspace behind `store`; `quick` reads no file bytes. Raises StoreError."""
    for tries in range(1, TRIES_MAX + 1):
        attempt = _Attempt(store, pool, progress, local, quick)
        done = attempt.run()
        if tries == TRIES_MAX or not attempt.must_repeat:
            break
    return done


class _Attempt:
    """One audit of one listing."""

    def __init__(
        self,
        store: ScopedStore,
        pool: Executor,
        progress: Progress,
        local: LocalSide | None,
        quick: bool,
    ) -> None:
        self._store = store
        self._pool = pool
        self._progress = progress
        self._local = local
        self._quick = quick
        self._report = Report()
        self._listing: dict[str, ListEntry] = {}
        self._chain = Chain([])
        self._older: set[Location] = set()
        """Places that records beside those of the newest state name."""
        self._history: HistoryAudit | None = None
        self._of_history: list[Finding] = []
        self._of_objects: list[Finding] = []
        """What is wrong with journal objects: how bad that is, is known when it is known whether
        anything needs them."""
        self.must_repeat = False

    def run(self) -> Audited:
        """Everything, in order."""
        self._list()
        workspace = self._workspace()
        self._lease()
        self._journal(workspace)
        self._points(workspace)
        mirrored = self._mirrored(workspace)
        replayed, tree = self._replay(mirrored)
        tables = replayed.tables if tree is not None else TableSet()
        if tree is None and self._local is not None:
            # The journal can't say whose the bytes are; the cache can.
            tables = self._local.tables
        reader = None if self._local is None else self._local.reader
        places = Places(tables, self._listing, reader)
        for each in self._chain.broken:
            places.give_up(each.number)
        self._bytes(places)
        is_known = tree is not None or self._local is not None
        self._report.extend(self._weighed(places.named if is_known else None))
        self._unknown(places)
        has_moved = self._newest_now() > self._chain.newest
        part: MirrorAudit | None = None
        if tree is not None:
            part = self._mirror(workspace or "", tree, replayed.changed, mirrored, has_moved)
            if self._local is not None:
                self._compare(self._local, tree)
        elif not self._quick:
            mirror = [e for k, e in self._listing.items() if k.startswith(layout.FILES_PREFIX)]
            self._report.extend(own_hashes(self._store, self._pool, workspace or "", mirror))
        is_gone = any(f.code == "object-missing" for f in self._report.findings)
        self.must_repeat = has_moved and is_gone
        return Audited(self._report, self._needs(places, part))

    # --- what is there

    def _list(self) -> None:
        for entry in self._store.list():
            self._listing[entry.key] = entry
            if len(self._listing) % LISTING_STEP == 0:
                self._progress({"phase": "listing", "done": len(self._listing)})
        self._report.checked["objects"] = len(self._listing)

    def _workspace(self) -> str | None:
        try:
            uuid = journaling.read_workspace(self._store)
        except UserError as exc:
            self._report.add(damage("workspace-file", layout.WORKSPACE_KEY, exc.message))
            return None
        has_journal = any(key.startswith(JOURNAL_PREFIXES) for key in self._listing)
        if uuid is None and has_journal:
            message = "it is missing beside a journal"
            if layout.DELETED_KEY in self._listing:
                message = "a deletion was not finished (`s3ws delete` again finishes it)"
            elif layout.FORK_KEY in self._listing:
                message = "a fork was not finished: no workspace yet (`s3ws fork` again makes it)"
            self._report.add(damage("workspace-file", layout.WORKSPACE_KEY, message))
        return uuid

    def _lease(self) -> None:
        if layout.LEASE_KEY not in self._listing:
            return
        try:
            decode_lease(self._store.get(layout.LEASE_KEY).data, layout.LEASE_KEY)
        except NotFoundError:
            return
        except FormatError as exc:
            message = f"{exc.why}: the next mount needs --take-over"
            self._report.add(damage("lease-file", layout.LEASE_KEY, message))

    def _journal(self, workspace: str | None) -> None:
        objects = journal_objects(self._listing)
        self._chain = Chain(objects)
        needed = {each.key for each in self._chain.needed}
        for number, each in enumerate(read_all(self._store, self._pool, objects, workspace)):
            event = {"phase": "reading the journal", "done": number + 1, "total": len(objects)}
            self._progress(event)
            if each.key not in needed:
                self._older.update(each.locations())
                each.let_go()
        for each in objects:
            self._of_objects += each.problems
        self._of_objects += self._chain.run()
        self._report.checked["segments"] = len(self._chain.segments)
        self._report.checked["checkpoints"] = len(self._chain.checkpoints)

    def _points(self, workspace: str | None) -> None:
        if workspace is None or not self._chain.newest:
            return
        self._history = HistoryAudit(self._store, self._pool, workspace, self._listing, self._chain)
        self._of_history = list(self._history.run(self._progress))
        self._report.checked["points"] = self._history.points

    def _mirrored(self, workspace: str | None) -> int:
        """Up to which generation the mirror is said to be complete."""
        header = self._chain.newest_header
        noted = 0
        if layout.MIRRORED_KEY in self._listing:
            noted = journaling.read_mirrored(self._store, workspace)
            newest = header.generation if header is not None else 0
            message = ""
            if workspace is not None and noted <= 0:
                message = "it does not decode, or is of another workspace: it counts for nothing"
            elif header is not None and noted > newest and not self._has_moved():
                message = f"generation {noted} is noted, {newest} is sealed"
            if message:
                self._report.add(damage("mirrored-file", layout.MIRRORED_KEY, message))
        return max(noted, header.mirrored if header is not None else 0)

    def _newest_now(self) -> int:
        """Number of the newest segment at this moment."""
        after = layout.seg_key(self._chain.newest) if self._chain.newest else ""
        numbers = (
            layout.key_number(entry.key, layout.SEG_PREFIX)
            for entry in self._store.list(layout.SEG_PREFIX, after)
        )
        return max((number for number in numbers if number), default=self._chain.newest)

    def _has_moved(self) -> bool:
        return self._newest_now() > self._chain.newest

    def _replay(self, mirrored: int) -> tuple[Replayed, TreeCheck | None]:
        self._progress({"phase": "judging the records"})
        if not self._chain.newest or not self._chain.is_whole:
            return Replayed(TableSet(is_local=False), set()), None
        replayed = replay(self._chain.needed, mirrored)
        tree, _ = judge(replayed.tables, self._report)
        return replayed, tree

    def _bytes(self, places: Places) -> None:
        self._of_objects += places.exist()
        if self._quick:
            return
        for each in self._chain.needed:
            self._older.update(each.locations())
        streams = places.streams(self._older)
        total_mib = 1 + sum(stream.size_bytes for stream in streams) // (1 << 20)
        done_bytes = 0
        known = {f.where for f in self._of_objects if f.code.startswith("object-")}
        for streamed, findings in places.read(self._store, self._pool, streams):
            done_bytes += streamed.stream.size_bytes
            event = {"phase": "reading MiB", "done": done_bytes >> 20, "total": total_mib}
            self._progress(event)
            for finding in findings:
                if finding.code != "object-damaged" or finding.where not in known:
                    self._of_objects.append(finding)
        self._report.checked["bytes"] = done_bytes

    def _weighed(self, named: set[int] | None) -> Iterator[Finding]:
        """What is wrong with journal objects; what nothing needs any more is but a note.

        `named` are the objects that the state names, None when that is not known.
        """
        chain = self._chain
        needed = {each.key for each in chain.needed}
        needed.update(layout.seg_key(number) for number in chain.missing)
        old_keys, old_ids = self._of_points()
        known = {(finding.code, finding.where) for finding in self._of_objects}
        self._of_objects += (f for f in self._of_history if (f.code, f.where) not in known)
        for finding in self._of_objects:
            number = layout.key_number(finding.where, layout.SEG_PREFIX)
            blob = layout.key_number(finding.where, layout.BLOB_PREFIX)
            is_named = named is None or (number or blob) in named or (number or blob) in old_ids
            is_kept = finding.where in old_keys or not finding.where.startswith(JOURNAL_PREFIXES)
            if finding.where not in needed and not is_named and not is_kept:
                message = f"{finding.message}; nothing needs it any more"
                yield replace(finding, severity=Severity.NOTE, message=message)
            elif finding.where in needed and self._can_bridge():
                yield replace(finding, repairable=True)
            else:
                yield finding

    def _of_points(self) -> tuple[set[str], set[int]]:
        """What kept points need: keys of journal objects, and ids of those that these name."""
        if self._history is None:
            return set(), set()
        return self._history.needed, self._history.named

    def _can_bridge(self) -> bool:
        """Whether a checkpoint made from the cache would make up for what a restore can't read."""
        local, chain = self._local, self._chain
        needed = {each.key for each in chain.needed}
        is_hurt = bool(chain.missing) or any(f.where in needed for f in self._of_objects)
        if local is None or not is_hurt:
            return False
        # A mount begins by reading the newest header.
        return chain.newest_header is not None and local.sealed_number == chain.newest

    def _unknown(self, places: Places) -> None:
        old_keys, old_ids = self._of_points()
        named, garbage = places.named | old_ids, 0
        for key in self._listing:
            if key in SINGLE or key.startswith(UNNAMED) or history.split_snap_key(key):
                continue
            segment, checkpoint, blob = (layout.key_number(key, p) for p in JOURNAL_PREFIXES)
            if segment is None and checkpoint is None and blob is None:
                message = "nothing in the format is called so"
                self._report.add(make(Severity.FOREIGN, "unknown-object", key, message))
            is_old = segment is not None and segment < self._chain.base
            is_free = is_old or blob is not None
            if is_free and (segment or blob) not in named and key not in old_keys:
                garbage += 1
        if garbage and self._chain.is_whole:
            message = f"{garbage} objects that nothing names any more, or not yet"
            self._report.add(make(Severity.NOTE, "garbage", "journal/", message))

    # --- the mirror, and the cache

    def _mirror(
        self, workspace: str, tree: TreeCheck, changed: set[int], mirrored: int, has_moved: bool
    ) -> MirrorAudit:
        assert tree.head is not None
        self._progress({"phase": "comparing the mirror"})
        is_complete = mirrored >= tree.head.generation
        rows: dict[bytes, MirrorRow] = {}
        if self._local is not None:
            changed = changed | changed_inodes(self._local.tables)
            is_known = self._local.values.get("mirror_known") is True
            is_complete = is_complete and is_known
            rows = self._local.mirror_rows() if is_known else {}
        part = MirrorAudit(
            store=self._store,
            pool=self._pool,
            workspace=workspace,
            listing={k: e for k, e in self._listing.items() if k.startswith(layout.FILES_PREFIX)},
            tree=tree,
            behind=Behind(tree, changed),
            is_complete=is_complete,
            rows=rows,
            quick=self._quick,
        )
        self._report.extend(part.run(has_moved))
        self._report.checked["mirrored"] = part.objects
        return part

    def _compare(self, local: LocalSide, tree: TreeCheck) -> None:
        """What is not dirty in the cache is what was sealed."""
        number, newest = local.sealed_number, self._chain.newest
        if number > newest and number > self._newest_now():
            message = f"the cache sealed it; the bucket ends at {newest}"
            self._report.add(damage("object-missing", layout.seg_key(number), message))
            return
        header = self._chain.newest_header
        if number < newest and (header is None or header.writer != local.writer):
            message = f"it knows segment {number}, {newest} are sealed"
            severity = Severity.FOREIGN if local.tables.dirty else Severity.NOTE
            message += ", and it has own changes" if local.tables.dirty else ""
            self._report.add(make(severity, "cache-behind", "cache", message))
            return
        states = [
            replay([each for each in self._chain.needed if each.number <= upto], 0).tables
            for upto in (number, number + 1)
            if self._chain.base <= upto <= newest
        ]
        if states and number >= self._chain.base:
            self._report.extend(differences(local.tables, states, PathFinder(local.tables)))

    def _needs(self, places: Places, part: MirrorAudit | None) -> Needs:
        return Needs(
            reship=frozenset(places.reship),
            remirror=frozenset(part.remirror if part is not None else ()),
            relist=part is not None and part.relist,
            checkpoint=self._can_bridge(),
            sound=frozenset() if self._quick else frozenset(places.owners.keys() - places.lost),
        )
