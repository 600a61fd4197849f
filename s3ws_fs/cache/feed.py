"""Looking on: every change is noted for those who watch, as it is committed.

Invariants
1. While nobody watches, nothing of this is in the way: transactions are plain `Tx`.
2. What is noted was committed: marks wait until the cache has their generation, and those of a
   transaction that failed are replaced by those of the next one, which has the same number.
3. Marks are bounded (core/changefeed.py), one set for each who watches.

Called by daemon, and by cache itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
    Mark,
    Marks,
    tidy,
)
from s3ws_fs.core.records import Head, InodeRec


class Feed:
    """The watchers of one cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._watchers: list[Marks] = []
        self._staged: tuple[int, list[Mark]] | None = None
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
            self._staged = None

    def _followed(self, generation: int, marks: list[Mark]) -> None:
        """What was taken over from another's seal."""
        for watcher in self._watchers:
            watcher.add(generation, tidy(marks))
        self.on_marks()

    def stage(self, generation: int, marks: list[Mark]) -> None:
        """What a transaction does that is about to be committed (invariant 2)."""
        self.settle()
        self._staged = (generation, marks)
        self.on_marks()

    def settle(self) -> None:
        """Hand on what was committed: to be called before marks are taken."""
        staged = self._staged
        if staged is not None and staged[0] <= self._cache.generation:
            for marks in self._watchers:
                marks.add(*staged)
            self._staged = None


class WatchedTx(Tx):
    """A transaction that notes what it does."""

    __slots__ = ("_feed", "_seen")

    def __init__(
        self, feed: Feed, txn: lmdb.Transaction[bytes], tables: Tables, head: Head, now_ns: int
    ) -> None:
        super().__init__(txn, tables, head, now_ns)
        self._feed = feed
        self._seen: list[Mark] = []

    def finish(self) -> None:
        """See Tx.finish."""
        super().finish()
        marks = tidy(self._seen)
        if marks and (not self.is_housekeeping or marks[0].kind == BULK):
            self._feed.stage(self.generation, marks)

    def add_inode(self, rec: InodeRec) -> None:
        """See Tx.add_inode."""
        self._seen.append(Mark(NEW, rec.ino))
        super().add_inode(rec)

    def put_inode(self, rec: InodeRec) -> None:
        """See Tx.put_inode."""
        super().put_inode(rec)
        kind = CONTENT if rec.data_gen == self.generation and not rec.is_dir else ATTRIBUTES
        self._seen.append(Mark(kind, rec.ino))

    def put_dentry(self, parent: int, name: bytes, ino: int) -> None:
        """See Tx.put_dentry."""
        self._seen.append(Mark(NAME, ino, parent, name))
        super().put_dentry(parent, name, ino)

    def drop_dentry(self, parent: int, name: bytes) -> None:
        """See Tx.drop_dentry."""
        ino = self.dentry(parent, name)
        if ino is not None:
            self._seen.append(Mark(GONE, ino, parent, name))
        super().drop_dentry(parent, name)

    def put_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        """See Tx.put_xattr."""
        self._seen.append(Mark(ATTRIBUTES, ino))
        super().put_xattr(ino, name, value)

    def drop_xattr(self, ino: int, name: bytes) -> None:
        """See Tx.drop_xattr."""
        self._seen.append(Mark(ATTRIBUTES, ino))
        super().drop_xattr(ino, name)

    def bulk(self) -> None:
        """See Tx.bulk."""
        self._seen.append(Mark(BULK, 0))
