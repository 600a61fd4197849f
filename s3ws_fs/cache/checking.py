"""The check of one cache directory, beside a living daemon, a dead one, or none.

Steps: the files beside the database, the structure of the database file, a copy of all records
(tableset), judging that copy (verify, verify_data, verify_mirror), and the warm bytes in batches.

Invariants
1. Nothing is changed (repair.py does that, under the cache's lock). No lock is tried.
2. A database that is structurally wrong is reported and not read any further.
3. Read transactions: one for the walk, one for the copy, one a batch of bytes. None spans judging.
4. A cache whose restore was not finished is not judged: nobody reads it, nothing is flushed from
   it, and the next mount makes it anew.

Called by the cli, by tests after a crash, and by repair.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from s3ws_fs.cache import engine, recovery, syncpoint
from s3ws_fs.cache.ownership import IDENTITY_FILE
from s3ws_fs.cache.reader import open_reader
from s3ws_fs.cache.tables import DATA_DIR, DATA_FILE
from s3ws_fs.cache.tableset import TableSet, copy_out
from s3ws_fs.cache.verify import TreeCheck, counted
from s3ws_fs.cache.verify_data import META_RESTORED, Content, DataCheck, Readable
from s3ws_fs.cache.verify_mirror import MirrorCheck
from s3ws_fs.core import jsontext
from s3ws_fs.core.errors import CacheError, FormatError
from s3ws_fs.core.findings import Finding, Report, Severity, damage, make
from s3ws_fs.core.limits import FORMAT_VERSION

Progress = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Checked:
    """A cache's report, and what further checks go on with (None: it could not be read)."""

    report: Report
    prefix: str = ""
    """The workspace prefix that it belongs to; empty when it does not say."""
    is_copy: bool = False
    """What was judged is not the cache as it stands, but as the next mount makes it."""
    is_whole: bool = True
    """False when its restore was not finished."""
    tree: TreeCheck | None = None
    values: dict[str, Any] | None = None

    @property
    def tables(self) -> TableSet | None:
        """The records that were judged."""
        return None if self.tree is None else self.tree.tables


def check_cache(
    directory: Path, progress: Progress, *, boot_id: str | None = None, quick: bool = False
) -> Checked:
    """Check the cache of one workspace; `quick` leaves out structure and bytes.

    Raises CacheError when there is no cache. Everything else is a finding.
    """
    if not (directory / DATA_DIR / DATA_FILE).exists():
        raise CacheError(
            f"there is no cache in {directory}",
            remedy="Name a mount point, or a workspace's own directory below WORKSPACE_CACHE_DIR.",
        )
    done = Checked(Report())
    report = done.report
    done.prefix = _identity(directory, report)
    boot = syncpoint.current_boot_id() if boot_id is None else boot_id
    report.extend(_beside(directory, boot))
    with contextlib.ExitStack() as stack:
        place: Path | None = directory
        if recovery.is_due(directory, boot):
            done.is_copy = True
            report.extend(_recovery(directory))
            place = stack.enter_context(engine.recovered(directory))
        else:
            report.extend(_left_in_log(directory, boot))
        if place is not None:
            in_use = place is directory and engine.holder(directory) is not None
            if quick or _structure(place, report, progress, in_use=in_use):
                _records(place, done, progress, quick=quick)
    if done.is_whole and not any(syncpoint.read_slots(directory)):
        message = "neither slot is valid: a power cut now would cost what is not sealed"
        report.add(damage("sync-point", syncpoint.SIDE_FILE, message))
    return done


def _identity(directory: Path, report: Report) -> str:
    """The workspace prefix that the cache belongs to; empty when it does not say."""
    path = directory / IDENTITY_FILE
    try:
        found = jsontext.object_of(path.read_bytes(), IDENTITY_FILE)
        prefix, version = found["prefix"], found["format"]
    except (OSError, FormatError, KeyError) as exc:
        report.add(damage("identity", IDENTITY_FILE, f"{type(exc).__name__}: {exc}"))
        return ""
    if version != FORMAT_VERSION or not isinstance(prefix, str):
        report.add(damage("identity", IDENTITY_FILE, f"it is of format {version!r}"))
        return ""
    return prefix


def _beside(directory: Path, boot_id: str) -> Iterator[Finding]:
    for path in sorted(directory.glob(recovery.QUARANTINES)):
        message = "kept because it could not be trusted; remove it when nobody needs it"
        yield make(Severity.NOTE, "quarantine", str(path), message)
    if syncpoint.read_boot(directory) is None:
        message = "the next mount takes it for an unclean end and goes back to the sync point"
        yield make(Severity.NOTE, "boot-file", syncpoint.BOOT_FILE, message)
    if syncpoint.read_spoilt(directory, boot_id):
        message = f"{syncpoint.SPOILT}; {recovery.REMEDY}"
        yield damage("spoilt", syncpoint.BOOT_FILE, message)


def _left_in_log(directory: Path, boot_id: str) -> Iterator[Finding]:
    """What a killed daemon left in its log is put into the database, and checked there."""
    try:
        recovery.settle_dead(directory, boot_id)
    except CacheError as exc:
        yield make(Severity.NOTE, "log-left", str(directory), f"{exc.message}; not checked")


def _recovery(directory: Path) -> Iterator[Finding]:
    slots = [slot for slot in syncpoint.read_slots(directory) if slot is not None]
    if not slots:
        message = "and there is no sync point: the next mount puts this cache into quarantine"
        yield damage("recovery-due", str(directory), message)
        return
    newest = max(slots, key=lambda slot: slot.sequence)
    message = f"the next mount goes back to generation {newest.generation}; that was checked"
    yield make(Severity.NOTE, "recovery-due", str(directory), message)


def _structure(place: Path, report: Report, progress: Progress, *, in_use: bool) -> bool:
    """Whether the engine may read the file."""
    progress({"phase": "walking the database"})
    try:
        wrong = engine.walk(place, in_use=in_use)
    except (OSError, CacheError) as exc:
        wrong = [str(exc)]
    if wrong is None:
        message = f"it is in use and larger than {engine.IN_USE_BYTES_MAX >> 30} GiB"
        report.add(make(Severity.NOTE, "engine-skipped", DATA_FILE, message))
        return True
    for text in wrong:
        report.add(damage("engine", DATA_FILE, text))
    return not wrong


def _records(place: Path, done: Checked, progress: Progress, *, quick: bool) -> None:
    report = done.report
    # Before the records: a sync point made since may be newer than they are.
    newest = _newest_slot(place)
    try:
        with open_reader(place) as reader:
            check_records(reader, done, progress, quick=quick)
    except (lmdb.Error, CacheError) as exc:
        text = exc.message if isinstance(exc, CacheError) else str(exc)
        report.add(damage("engine", DATA_FILE, text))
        return
    if done.tree is not None:
        report.extend(_late(done.tree, newest))


def check_records(
    reader: Readable, done: Checked, progress: Progress, *, quick: bool = False
) -> None:
    """The records and bytes of an open cache. Raises lmdb.Error."""
    progress({"phase": "copying the records"})
    with reader.read() as view:
        tables = copy_out(view)
    if META_RESTORED not in tables.meta:
        done.is_whole = False
        message = "its restore was not finished: the next mount starts it anew"
        done.report.add(make(Severity.NOTE, "not-restored", "meta", message))
        return
    progress({"phase": "judging the records"})
    done.tree, done.values = judge(tables, done.report, len(done.prefix))
    if quick:
        return
    content = Content(reader, done.tree)

    def step(at: int, total: int) -> None:
        progress({"phase": "comparing bytes", "done": at, "total": total})

    done.report.extend(content.run(step))
    done.report.checked["digests"] = content.checked


def judge(
    tables: TableSet, report: Report, prefix_bytes: int = 0
) -> tuple[TreeCheck, dict[str, Any]]:
    """Every invariant of a set of records, from a cache or a journal."""
    report.checked.update(counted(tables))
    tree = TreeCheck(tables)
    report.extend(tree.run())
    data = DataCheck(tree)
    report.extend(data.run())
    report.extend(tree.totals())
    if tables.is_local:
        report.extend(MirrorCheck(tree, data.values, prefix_bytes).run())
    report.checked["cold_bytes" if tables.is_local else "file_bytes"] = data.cold_bytes
    return tree, data.values


def _newest_slot(place: Path) -> int | None:
    slots = [slot.generation for slot in syncpoint.read_slots(place) if slot is not None]
    return max(slots, default=None)


def _late(tree: TreeCheck, newest: int | None) -> Iterator[Finding]:
    """What only the head can tell."""
    head = tree.head
    if newest is not None and head is not None and newest > head.generation:
        message = f"it is of generation {newest}, the cache of {head.generation}"
        yield damage("sync-point", syncpoint.SIDE_FILE, message)
