"""Carrying out the mirror's plan: early deletes, writes in parallel, late deletes.

Invariants
1. Results are streamed while the work goes on, so that a crash loses a batch, not the pass.
2. Whatever was begun is waited for: when `run` returns, nothing reads the freeze's files any more.
3. A file whose new place could not be written keeps its old object.
4. Done with is an inode when nothing of it is left to do: also not at a path that is another's now,
   and where that one's object could not be written.
5. The row of a directory that moved goes before anything below is touched. A pass that is cut off
   leaves some objects at the old place and some at the new; when the directory is then moved back,
   a row of its old place would say that nothing happened.
6. A store that refuses everything is not asked for everything. Where REFUSED_ROW_MAX in a row are
   refused, the pass goes on from another place, REFUSED_PLACES_MAX in all, and then ends. The place
   is another one each time, so that what may be written comes to be, wherever it stands.

Called by worker. How one object is written safely: objects.py.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from s3ws_fs.core import failpoints
from s3ws_fs.core.errors import (
    ConflictError,
    PermanentError,
    S3wsError,
    TransientError,
)
from s3ws_fs.core.layout import FILES_PREFIX
from s3ws_fs.core.mirrorplan import Op
from s3ws_fs.core.records import MirrorRow
from s3ws_fs.store.scoped import ScopedStore
from s3ws_fs.transfer.fetch import ExtentSource
from s3ws_fs.transfer.freeze import Frozen
from s3ws_fs.transfer.layouts import Layouts
from s3ws_fs.transfer.objects import ForeignObjectError, MirrorObjects, StaleSourceError
from s3ws_fs.transfer.wire import FencedError

RESULTS_BATCH: Final = 200
SUBMIT_WINDOW: Final = 64
"""Operations under way or waiting at once: bounds memory and how long a stop takes."""
DELETE_BATCH: Final = 200
"""Objects deleted at once: for so many a stop waits at most."""
TRANSIENT_STOP: Final = 8
"""So many transient failures end a pass: the store is down, trying the rest is pointless."""

REFUSED_ROW_MAX: Final = 32
"""So many objects in a row that the store refuses (a right that is missing) are enough of them."""
REFUSED_PLACES_MAX: Final = 4
"""At so many places of the plan is this tried before the pass ends."""

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(slots=True)
class Batch:
    """Results since the last report: rows that stand now, and mirror paths that are gone."""

    rows: list[MirrorRow] = field(default_factory=list)
    removed: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows) + len(self.removed)


@dataclass(slots=True)
class Outcome:
    """How the pass ended. `conflicts` are {mirror path: reason}.

    `missed` are paths at which our object was gone, and was put anew.
    """

    conflicts: dict[str, str] = field(default_factory=dict)
    conflict_inos: dict[str, set[int]] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    failed_inos: set[int] = field(default_factory=set)
    stale_inos: set[int] = field(default_factory=set)
    error: Exception | None = None
    transient: int = 0
    refused_row: int = 0
    """Refused objects since the last one that was not."""
    is_uncertain: bool = False
    """Objects may stand that no row knows, ours or not: a listing has to tell."""
    stopped: bool = False
    written: int = 0


class MirrorPass:
    """One pass over the plan of a freeze."""

    def __init__(
        self,
        store: ScopedStore,
        source: ExtentSource,
        frozen: Frozen,
        *,
        workspace: str,
        directory: Path,
        layouts: Layouts,
        pool: Executor,
        report: Callable[[Batch], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._store = store
        self._todo = frozen.todo
        self._flush_id = frozen.flush_id
        self._objects = MirrorObjects(
            store, source, frozen, workspace=workspace, directory=directory, layouts=layouts
        )
        self._pool = pool
        self._report = report
        self._is_asked_to_stop = stopped
        self._batch = Batch()
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Early deletes, ops, late deletes. Failures are in the outcome, not raised."""
        plan = self._todo.plan
        outcome = self.outcome
        if self._todo.is_cut_off:
            outcome.stopped = True
            return outcome
        self._forget_dirs()
        outcome.stopped = not self._delete(plan.early)
        if not outcome.stopped:
            outcome.stopped = not self._places(plan.ops, self._run_ops) or self._stopped()
        if not outcome.stopped:
            # Invariant 3.
            late = [row for row in plan.late if row.ino not in outcome.failed_inos]
            outcome.stopped = not self._delete(late)
        self._flush(0)
        self.outcome.missed = self._objects.missed
        return self.outcome

    def done(self) -> Iterator[tuple[int, int]]:
        """(ino, generation) of what is finished after `run`."""
        clean = self._clean()
        for file in self._todo.files.values():
            is_dir = file.rec is not None and file.rec.is_dir
            if is_dir and not clean:
                continue
            if not self.outcome.stopped and file.ino not in self.outcome.failed_inos:
                yield file.ino, self._todo.generation

    def _forget_dirs(self) -> None:
        """Invariant 5."""
        for path in self._todo.old_dir_rows:
            self._batch.removed.append(path)
            self._flush(RESULTS_BATCH)
        self._flush(0)

    def finish_dirs(self) -> None:
        """Report directory rows, once everything below stands."""
        if self._clean():
            for row in self._todo.dir_rows:
                self._batch.rows.append(row)
                self._flush(RESULTS_BATCH)
        self._flush(0)

    def _clean(self) -> bool:
        outcome = self.outcome
        return outcome.error is None and not outcome.stopped

    def _stopped(self) -> bool:
        return self._is_asked_to_stop() or self.outcome.transient >= TRANSIENT_STOP

    def _refused(self) -> bool:
        """Whether there is nothing to be had here."""
        return self._stopped() or self.outcome.refused_row >= REFUSED_ROW_MAX

    def _places(self, items: Sequence[_T], work: Callable[[Sequence[_T]], list[_T]]) -> bool:
        """Do them, from another place on where many in a row are refused (invariant 6). `work`
        returns those that it did not come to. False: ended early, and some are left."""
        outcome = self.outcome
        left = list(items)
        for place in range(REFUSED_PLACES_MAX):
            outcome.refused_row = 0
            left = work(left)
            if self._stopped() or not left:
                return not left
            at = zlib.crc32(f"{self._flush_id} {place}".encode()) % len(left)
            left = left[at:] + left[:at]
        return False

    def _flush(self, at_least: int) -> None:
        if len(self._batch) > at_least:
            self._report(self._batch)
            self._batch = Batch()

    def _fail(
        self, ino: int, path: str, exc: Exception, *, standing: MirrorRow | None = None
    ) -> None:
        """What was to be done for an inode failed; `standing` is what would have been replaced."""
        outcome = self.outcome
        inos = {ino} if standing is None else {ino, standing.ino}
        outcome.failed_inos |= inos
        if isinstance(exc, ForeignObjectError):
            outcome.conflicts[path] = str(exc)
            outcome.conflict_inos[path] = inos
            return
        if isinstance(exc, StaleSourceError):
            # The next pass puts its bytes, when the listing has said what stands there.
            outcome.stale_inos |= inos
            outcome.is_uncertain = True
            self._batch.removed.append(exc.path)
            return
        outcome.error = outcome.error or exc
        if isinstance(exc, FencedError):
            outcome.transient = TRANSIENT_STOP
        if isinstance(exc, TransientError):
            outcome.transient += 1
            # Perhaps only the answer was lost.
            outcome.is_uncertain = True

    def _note_answer(self, exc: Exception | None) -> None:
        if isinstance(exc, PermanentError):
            self.outcome.refused_row += 1
        elif not isinstance(exc, TransientError):
            self.outcome.refused_row = 0

    def _run_ops(self, ops: Sequence[Op]) -> list[Op]:
        met = set()
        for op, done in _windowed(self._pool, self._objects.write, ops, self._refused):
            met.add(id(op))
            error: Exception | None = None
            try:
                row = done()
            except Exception as exc:
                error = exc
                self._fail(op.target.ino, op.target.path, exc, standing=op.row)
            else:
                self.outcome.written += 1
                self._batch.rows.append(row)
            self._note_answer(error)
            self._flush(RESULTS_BATCH)
        return [op for op in ops if id(op) not in met]

    def _delete(self, rows: Sequence[MirrorRow]) -> bool:
        """False: ended early, and some are left."""
        return self._places(rows, self._delete_all)

    def _delete_all(self, rows: Sequence[MirrorRow]) -> list[MirrorRow]:
        for at in range(0, len(rows), DELETE_BATCH):
            if self._refused():
                return list(rows[at:])
            self._delete_some(rows[at : at + DELETE_BATCH])
            self._flush(0)
        return []

    def _delete_some(self, rows: Sequence[MirrorRow]) -> None:
        checked: list[MirrorRow] = []
        for row, done in _windowed(self._pool, self._objects.to_delete, rows, lambda: False):
            try:
                found = done()
            except ForeignObjectError:
                self._was_replaced(row)
                continue
            except (S3wsError, OSError) as exc:
                self._fail(row.ino, row.path.decode(), exc)
                self._note_answer(exc)
                continue
            if found is None:
                self._batch.removed.append(row.path)
            else:
                checked.append(found)
        by_key = {FILES_PREFIX + row.path.decode(): row for row in checked}
        if not by_key:
            return
        failpoints.hit(failpoints.MIRROR_DELETE_BEFORE)
        try:
            failures = self._store.delete_many(
                (key, row.etag) if row.etag else key for key, row in by_key.items()
            )
        except (S3wsError, OSError) as exc:
            for row in checked:
                self._fail(row.ino, row.path.decode(), exc)
                self._note_answer(exc)
            return
        failpoints.hit(failpoints.MIRROR_DELETE_AFTER)
        for failure in failures:
            row = by_key.pop(failure.key)
            if isinstance(failure.error, ConflictError):
                self._was_replaced(row)
            else:
                self._fail(row.ino, row.path.decode(), failure.error)
                self._note_answer(failure.error)
        if by_key:
            self._note_answer(None)
        self._batch.removed += (row.path for row in by_key.values())

    def _was_replaced(self, row: MirrorRow) -> None:
        """Somebody else's object now: it stays, is ours no more, and the next listing tells."""
        self.outcome.is_uncertain = True
        self._batch.removed.append(row.path)


def _windowed(
    pool: Executor,
    work: Callable[[_T], _R],
    items: Iterable[_T],
    stopped: Callable[[], bool],
) -> Iterator[tuple[_T, Callable[[], _R]]]:
    """Run `work` on all items in the pool, SUBMIT_WINDOW at a time, yielding in order.

    Once `stopped`, no more is begun (on a slow store a window takes long, and a seal may be due),
    but all that was is waited for.
    """
    waiting: deque[tuple[_T, Future[_R]]] = deque()
    for item in items:
        if stopped():
            break
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) >= SUBMIT_WINDOW:
            item, future = waiting.popleft()
            yield item, future.result
    while waiting:
        if stopped():
            begun = [entry for entry in waiting if not entry[1].cancel()]
            waiting = deque(begun)
            if not waiting:
                return
        item, future = waiting.popleft()
        yield item, future.result
