"""Restore: the records of the newest checkpoint and of the segments above it, into the spool.

Invariants
1. Restored records are verified (header, records digest, chain of hashes) before anyone sees them.

Called by requests.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from s3ws_fs.core import journal, layout
from s3ws_fs.core.errors import FormatError, NotFoundError
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.journaling import JournalState, check_place, fetch_records, numbers, survey
from s3ws_fs.transfer.spool import RecordsFile

RESTORE_TRIES_MAX: Final = 3
"""How often a restore begins anew when what it listed was collected as garbage meanwhile."""


@dataclass(frozen=True, slots=True)
class Restored:
    """Files in order of replay; `damaged`: an object that could be done without, and why."""

    state: JournalState
    files: list[RecordsFile]
    damaged: tuple[str, str] | None = None


def restore(
    store: ScopedStore,
    directory: Path,
    pool: Executor,
    progress: Callable[[int, int], None],
    known: JournalState | None = None,
) -> Restored:
    """Bring checkpoint and later segments into the spool, verified, in order of replay.

    A newest checkpoint that is damaged is done without, when the one before it and all segments
    above that still stand. `known`: what stands, if somebody looked since nobody else may write.
    """
    for tries in range(1, RESTORE_TRIES_MAX + 1):
        state = survey(store) if known is None or tries > 1 else known
        try:
            wanted = range(state.checkpoint, state.newest + 1)
            files = fetch_all(store, state.workspace, wanted, directory, pool, progress)
            return Restored(state, files)
        except NotFoundError:
            # Collected as garbage since it was listed: the journal went on.
            if tries == RESTORE_TRIES_MAX:
                raise
        except FormatError as exc:
            older = None
            if exc.where == layout.ckpt_key(state.checkpoint):
                older = _older_base(store, state)
            if older is None:
                raise
            wanted = range(older, state.newest + 1)
            files = fetch_all(store, state.workspace, wanted, directory, pool, progress)
            return Restored(state, files, (exc.where, exc.why))
    raise AssertionError("unreachable: the last try returns or raises")


def _older_base(store: ScopedStore, state: JournalState) -> int | None:
    """A checkpoint before the newest (0: none at all) above which every segment stands."""
    older = [n for n, _, _ in numbers(store, layout.CKPT_PREFIX) if n < state.checkpoint]
    standing = {n for n, _, _ in numbers(store, layout.SEG_PREFIX)}
    for base in (*sorted(older, reverse=True), 0):
        if standing.issuperset(range(base + 1, state.newest + 1)):
            return base
    return None


def fetch_all(
    store: ScopedStore,
    workspace: str | None,
    wanted: range,
    directory: Path,
    pool: Executor,
    progress: Callable[[int, int], None],
) -> list[RecordsFile]:
    """The checkpoint of the first number (0: none), and the segments of the others.

    Raises StoreError, FormatError.
    """
    base, above = wanted.start, wanted[1:]
    jobs = [(layout.seg_key(n), n, journal.KIND_SEGMENT) for n in above]
    if base:
        jobs.insert(0, (layout.ckpt_key(base), base, journal.KIND_CHECKPOINT))
    futures = [
        pool.submit(fetch_records, store, key, directory, f"restore-{kind}-{n:016x}")
        for key, n, kind in jobs
    ]
    files: list[RecordsFile] = []
    before = ""
    try:
        for (key, number, kind), future in zip(jobs, futures, strict=True):
            file = future.result()
            header = file.header
            check_place(header, key, workspace, number)
            if header.kind != kind:
                raise FormatError(key, f"is a {header.kind}")
            if kind == journal.KIND_SEGMENT and before and header.prev_hash != before:
                raise FormatError(key, "does not continue the segment before it")
            before = header.prev_hash if kind == journal.KIND_CHECKPOINT else file.header_hash
            files.append(file)
            progress(len(files), len(jobs))
    finally:
        # None of them may go on writing where a second try writes.
        for future in futures:
            future.exception()
    return files
