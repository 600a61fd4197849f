"""Looking on: every change is noted for those who watch, as it is committed.

Invariants
1. While nobody watches, nothing of this is in the way: transactions are plain `Tx`.
2. What is noted was committed: marks wait until the cache has their generation, and those of a
   transaction that failed are replaced by those of the next one, which has the same number.
3. Marks are bounded (core/changefeed.py), one set for each who watches.

Called by daemon, and by cache itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import lmdb

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.tables import Tables
from s3ws_fs.cache.tx import Tx
from s3ws_fs.core.changefeed import (
    ATTRIBUTES,
    BULK,
    CONTENT,
    GONE,
    NAME,
    NEW,
    Marks,
    Noted,
    tidy,
)
from s3ws_fs.core.records import Head, InodeRec

STAGED_MAX: Final = 64
"""Transactions that wait to be handed on: many at once cost less than each by itself."""


class Feed:
    """The watchers of one cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._watchers: list[Marks] = []
        self._staged: list[tuple[int, Sequence[Noted]]] = []
        self.on_marks: Callable[[], None] = lambda: None
        """Told of each change while somebody watches."""

    def watch(self) -> Marks:
        """From now on changes are noted there."""
        marks = Marks()
        self._watchers.append(marks)
        self._cache.tx_type = partial(WatchedTx, self)
        self._cache.on_followed = self._followed
        return marks

    def unwatch(self, marks: Marks) -> None:
        """Nobody looks at these any more."""
        self._watchers = [each for each in self._watchers if each is not marks]
        if not self._watchers:
            self._cache.tx_type = Tx
            self._cache.on_followed = None
            self._staged = []

    def _followed(self, generation: int, marks: list[Noted]) -> None:
        """What was taken over from another's seal."""
        for watcher in self._watchers:
            watcher.add(generation, tidy(marks))
        self.on_marks()

    def stage(self, generation: int, marks: Sequence[Noted]) -> None:
        """What a transaction is about to commit (invariant 2); it may be nothing."""
        staged = self._staged
        if staged and staged[-1][0] == generation:
            staged.pop()
        if marks:
            if len(staged) >= STAGED_MAX:
                self.settle()
            self._staged.append((generation, marks))
            self.on_marks()

    def settle(self) -> None:
        """Hand on what was committed: to be called before marks are taken."""
        staged, self._staged = self._staged, []
        if staged and staged[-1][0] > self._cache.generation:
            self._staged.append(staged.pop())
        for marks in self._watchers:
            for generation, noted in staged:
                marks.add(generation, noted)


class WatchedTx(Tx):
    """A transaction that notes what it does."""

    __slots__ = ("_feed", "_seen")

    def __init__(
        self, feed: Feed, txn: lmdb.Transaction[bytes], tables: Tables, head: Head, now_ns: int
    ) -> None:
        super().__init__(txn, tables, head, now_ns)
        self._feed = feed
        self._seen: list[Noted] = []

    def finish(self) -> None:
        """See Tx.finish."""
        super().finish()
        marks = tidy(self._seen)
        if self.is_housekeeping and marks and marks[0][0] != BULK:
            marks = ()
        self._feed.stage(self.generation, marks)

    def add_inode(self, rec: InodeRec) -> None:
        """See Tx.add_inode."""
        super().add_inode(rec)
        # In place of the mark of its content.
        self._seen[-1] = (NEW, rec.ino, 0, b"")

    def put_inode(self, rec: InodeRec) -> None:
        """See Tx.put_inode."""
        super().put_inode(rec)
        kind = CONTENT if rec.data_gen == self.generation and not rec.is_dir else ATTRIBUTES
        self._seen.append((kind, rec.ino, 0, b""))

    def put_dentry(self, parent: int, name: bytes, ino: int) -> None:
        """See Tx.put_dentry."""
        self._seen.append((NAME, ino, parent, name))
        super().put_dentry(parent, name, ino)

    def drop_dentry(self, parent: int, name: bytes) -> None:
        """See Tx.drop_dentry."""
        ino = self.dentry(parent, name)
        if ino is not None:
            self._seen.append((GONE, ino, parent, name))
        super().drop_dentry(parent, name)

    def put_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        """See Tx.put_xattr."""
        self._seen.append((ATTRIBUTES, ino, 0, b""))
        super().put_xattr(ino, name, value)

    def drop_xattr(self, ino: int, name: bytes) -> None:
        """See Tx.drop_xattr."""
        self._seen.append((ATTRIBUTES, ino, 0, b""))
        super().drop_xattr(ino, name)

    def bulk(self) -> None:
        """See Tx.bulk."""
        super().bulk()
        self._seen.append((BULK, 0, 0, b""))
