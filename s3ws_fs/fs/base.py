"""What all filesystem operations share: the cache, the limits, and finding things.

Invariants
1. Every operation is one transaction and raises FsError or succeeds whole.
2. No kernel types, no awaits, no clock of its own (the transaction carries the time).

Called by the modules of fs only.
"""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Callable
from typing import Final

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.following import drop_quietly
from s3ws_fs.cache.tx import Tx
from s3ws_fs.cache.view import View
from s3ws_fs.core.errors import FsError, GoneError
from s3ws_fs.core.keys import unpack_u64
from s3ws_fs.core.limits import NAME_BYTES_MAX
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.types import Attr, Outdated

META_OUTDATED: Final = "outdated"
"""What the kernel was not told of yet: if we die before it was, the next daemon tells it."""


class FsBase:
    """The state of a FileSystem: only what can be rebuilt from the cache, and open counts."""

    def __init__(
        self,
        cache: Cache,
        *,
        quota_bytes: int,
        quota_inodes: int,
        on_change: Callable[[], None] = lambda: None,
        on_forgotten: Callable[[], None] = lambda: None,
        is_following: bool = False,
    ) -> None:
        self.cache = cache
        self.quota_bytes = quota_bytes
        self.quota_inodes = quota_inodes
        self.on_change = on_change
        self.on_forgotten = on_forgotten
        """Called when an orphan waits to be dropped: `reap` is then due soon."""
        self.is_following = is_following
        """Whether the cache follows the bucket: files change and go without being asked here."""
        self._open_counts: dict[int, int] = {}
        self._orphans: set[int] = set()
        self._forgotten: set[int] = set()
        self._took_over = False
        self._doubtful: set[int] = set()
        """Orphans of which only the kernel knows whether somebody has them open."""

    def awaits_forget(self) -> bool:
        """Whether a deleted file that nobody has open waits for the kernel to let go of it."""
        return any(
            ino not in self._open_counts for ino in self._orphans if ino not in self._forgotten
        )

    def finish_batch(self) -> None:
        """Others are going to run: have in the database what was acknowledged."""
        self.cache.settle()

    def take_over_orphans(self) -> None:
        """The mount stands already: what is open was opened under another daemon, and not counted.

        So the kernel has to be asked about every orphan: see `doubtful`.
        """
        with self.cache.read() as view:
            keys = [unpack_u64(key) for key, _ in view.txn.cursor(db=view.db.orphans)]
        self._took_over = True
        self._orphans.update(keys)
        self._doubtful.update(keys)
        if keys:
            self.on_forgotten()

    def doubtful(self) -> list[int]:
        """Orphans that may go, if the kernel does not know them; then comes `settle`."""
        return sorted(self._doubtful)

    def settle(self, asked: list[int], unknown: list[int]) -> None:
        """Of the orphans `asked` the kernel does not know `unknown`: they go with the next `reap`.

        The others are in use still, and come up again by `forget`.
        """
        self._doubtful.difference_update(asked)
        self._forgotten.update(ino for ino in unknown if ino in self._orphans)

    def reap(self, limit: int | None = None) -> bool:
        """Drop the forgotten orphans now (`limit` of them); whether there were any."""
        gone = self._forgotten
        if limit is not None and len(gone) > limit:
            gone = set(itertools.islice(gone, limit))
        if gone:
            self._drop_orphans(sorted(gone))
            # Only now: what could not be dropped (disk full) waits for the next time.
            self._forgotten = self._forgotten - gone
            self._orphans -= gone
        return bool(gone)

    def is_open(self, ino: int) -> bool:
        """Whether somebody here has a handle on it, or may have."""
        return ino in self._open_counts or self._took_over

    def note_orphans(self, inos: list[int]) -> None:
        """These lost their last name in the bucket, and are open here."""
        self._orphans.update(inos)
        if self._took_over and inos:
            self._doubtful.update(inos)
            self.on_forgotten()

    def will_outdate(self, outdated: Outdated) -> None:
        """Note it before a change that does not come through the kernel is committed.

        One note at a time: this one takes the place of that before.
        """
        self.cache.put_json(META_OUTDATED, outdated.to_json())

    def outdated(self) -> Outdated | None:
        """What the kernel was not told of, as far as is noted. Raises FormatError."""
        noted = self.cache.get_json(META_OUTDATED)
        return None if noted is None else Outdated.from_json(noted)

    def told(self) -> None:
        """The kernel has forgotten what was noted."""
        self.cache.put_json(META_OUTDATED, None)

    def _drop_orphans(self, inos: list[int]) -> None:
        if self.is_following:
            drop_quietly(self.cache, inos)
            return
        with self.cache.write() as tx:
            tx.is_housekeeping = True
            for ino in inos:
                rec = tx.inode(ino)
                if rec is not None and rec.nlink == 0:
                    tx.drop_inode(rec)
        self.on_change()


def note_outdated(tx: Tx, outdated: Outdated) -> Outdated:
    """As `will_outdate`, within the change itself."""
    tx.put_meta(META_OUTDATED.encode(), json.dumps(outdated.to_json()).encode())
    return outdated


def need(view: View, ino: int) -> InodeRec:
    """The inode, or GoneError (ENOENT)."""
    rec = view.inode(ino)
    if rec is None:
        raise GoneError(ino)
    return rec


def need_attr(view: View, ino: int) -> Attr:
    """What stat(2) shows of the inode, or GoneError (ENOENT)."""
    attr = view.attr(ino)
    if attr is None:
        raise GoneError(ino)
    return attr


def need_dir(view: View, ino: int) -> InodeRec:
    """The directory, or ENOENT, ENOTDIR; ENOENT also for one that was removed."""
    rec = need(view, ino)
    if not rec.is_dir:
        raise FsError(errno.ENOTDIR)
    if rec.nlink == 0:
        raise FsError(errno.ENOENT, "directory was removed")
    return rec


def need_entry(view: View, parent: int, name: bytes) -> InodeRec:
    """The inode that a name stands for, or ENOENT."""
    ino = view.dentry(parent, name)
    if ino is None:
        raise FsError(errno.ENOENT)
    return need(view, ino)


def check_name(name: bytes) -> None:
    """Refuse names no directory can hold: ENAMETOOLONG, EINVAL."""
    if len(name) > NAME_BYTES_MAX:
        raise FsError(errno.ENAMETOOLONG)
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise FsError(errno.EINVAL, "not a name")


def touch_dir(tx: Tx, rec: InodeRec) -> None:
    """A directory's entries changed: mtime and ctime, stored."""
    rec.mtime_ns = rec.ctime_ns = tx.now_ns
    tx.put_inode(rec)
