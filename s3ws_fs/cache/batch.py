"""Operations that share a commit of the database, each acknowledged when its frame is in the log.

Invariants
1. `txn` ... `commit` or `undo` is one operation. Acknowledged (that is: `commit` returned) it is in
   the redo log or in the database; what failed is in neither.
2. A batch is for one turn of the loop: `settle` commits it before anybody else runs. What is put
   past the log (`Tx.is_unlogged`, large changes) is committed at once, with all before it.
3. A batch that can't be committed (its disk is full) stays: it stands in the log, and is put anew
   for who reads, and for each further try. Until one succeeds no operation begins.
4. Bounded by BATCH_OPERATIONS_MAX and BATCH_BYTES_MAX.

Called by cache.cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import lmdb

from s3ws_fs.cache.redo import (
    FRAME_BYTES_MAX,
    LoggedTxn,
    Record,
    Redo,
    apply,
    numbered,
)
from s3ws_fs.cache.tables import Tables
from s3ws_fs.cache.tx import Tx
from s3ws_fs.core import failpoints

BATCH_OPERATIONS_MAX: Final = 256
BATCH_BYTES_MAX: Final = 2 << 20


class Batch:
    """The open transaction of a cache with a log, and what was acknowledged in it.

    on_settled(): pages were committed. make_room(): after a commit that failed; whether it is worth
    another try.
    """

    def __init__(
        self,
        env: lmdb.Environment,
        tables: Tables,
        log: Redo,
        *,
        on_settled: Callable[[], None],
        make_room: Callable[[], bool],
    ) -> None:
        self._env = env
        self._tables = tables
        self._log = log
        self._on_settled = on_settled
        self._make_room = make_room
        self._numbers = numbered(tables)
        self._txn: LoggedTxn | None = None
        self._done: list[list[Record]] = []
        self._bytes = 0
        self._is_busy = False
        self.is_sharing = False
        """Whether the next operations may share a commit: somebody is going to settle it."""
        self.error: lmdb.Error | None = None
        """Why the batch could not be committed."""

    @property
    def operations(self) -> int:
        """How many are acknowledged and not in the database."""
        return len(self._done)

    def txn(self) -> LoggedTxn:
        """The transaction for one operation. Raises lmdb.Error."""
        if self.error is not None and not self.settle():
            raise self.error
        txn = self.opened()
        txn.records = []
        self._is_busy = True
        return txn

    def opened(self) -> LoggedTxn:
        """The open transaction, with all that is acknowledged: what to read from while there are
        `operations`. Raises lmdb.Error.
        """
        txn = self._txn
        if txn is None:
            raw = self._env.begin(write=True)
            try:
                for records in self._done:
                    apply(raw, self._tables, records)
            except BaseException:
                raw.abort()
                raise
            txn = self._txn = LoggedTxn(raw, self._numbers)
        return txn

    def commit(self, tx: Tx, txn: LoggedTxn) -> None:
        """The operation is complete. Raises lmdb.Error: then comes `undo`."""
        log = self._log
        # Before anything is encoded: a large change would be copied for nothing.
        is_small = not tx.is_unlogged and tx.put_bytes <= FRAME_BYTES_MAX
        if self.is_sharing and is_small and log.append(tx.generation, txn.records):
            self._is_busy = False
            self._done.append(txn.records)
            self._bytes += tx.put_bytes
            if len(self._done) >= BATCH_OPERATIONS_MAX or self._bytes > BATCH_BYTES_MAX:
                self._commit()
            return
        txn.txn.commit()
        self._is_busy = False
        self._forget()
        if tx.is_unlogged:
            log.break_off(tx.generation)
        else:
            log.note(tx.generation, txn.records, tx.put_bytes)

    def undo(self, tx: Tx, *, is_broken: bool) -> None:
        """The operation failed. is_broken: the engine may have left the transaction unusable."""
        self._is_busy = False
        txn = self._txn
        if txn is None:
            return
        is_clean = not (txn.records or tx.is_unlogged or is_broken)
        if self._done and is_clean:
            return
        txn.txn.abort()
        self._txn = None
        if self._done:
            # At once, so that the next failure does not have to do it again.
            self._commit()

    def settle(self) -> bool:
        """Commit what is open, and share no more; whether the database has it all."""
        self.is_sharing = False
        if not self._done:
            return True
        assert not self._is_busy, "an operation settles in its middle"
        return self._commit()

    def _commit(self) -> bool:
        for is_last in (False, True):
            try:
                txn = self.opened()
                failpoints.hit(failpoints.BATCH_BEFORE)
                txn.txn.commit()
            except lmdb.Error as exc:
                if self._txn is not None:
                    self._txn.txn.abort()
                self._txn = None
                self.error = exc
                if is_last or not self._make_room():
                    return False
                continue
            break
        self._forget()
        self._on_settled()
        failpoints.hit(failpoints.BATCH_AFTER)
        return True

    def _forget(self) -> None:
        self._txn = None
        self._done = []
        self._bytes = 0
        self.error = None

    def close(self) -> None:
        """As the end of a killed process: what is open stays in the log alone."""
        if self._txn is not None:
            self._txn.txn.abort()
            self._txn = None
