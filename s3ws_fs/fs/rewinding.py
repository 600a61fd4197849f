"""Many records at once: the tree goes back to an earlier state, as one operation.

Invariants
1. All of it is one transaction and one generation, made only while the cache is at the generation
   for which the changes were planned: nothing that came between is overwritten unseen.
2. Files that lost their last name stay for those who have them open. Nobody's FORGET may come for
   those that the kernel never heard of, so it is asked about each (`doubtful`).
3. Quota and inode limit hold for the tree as it will be; what is dropped soon counts as dropped.

Called by replica (through FileSystem).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from s3ws_fs.cache.rewinding import BulkChanges
from s3ws_fs.core import failpoints
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.journal import Frame
from s3ws_fs.fs.base import FsBase

REWOUND: Final = "rewound"
"""Meta value: generation of a change of which the kernel has not forgotten everything yet."""


@dataclass(frozen=True, slots=True)
class Rewind:
    """Changes that were planned. `base` is the generation of the cache they start from.

    `warm`: (key of an extent, key under which its bytes are wanted too).
    """

    base: int
    next_ino: int
    new_inodes: int
    new_bytes: int
    orphan_inodes: int
    orphan_bytes: int
    warm: tuple[tuple[bytes, bytes], ...] = ()


class RewindOps(FsBase):
    """Mixed into FileSystem."""

    def room_to_rewind(self, change: Rewind) -> str:
        """Why the tree as it will be is too large; "" when it is not, or no larger than now."""
        head = self.cache.head
        used_bytes = head.used_bytes + change.new_bytes - change.orphan_bytes
        if used_bytes > max(self.quota_bytes, head.used_bytes):
            return f"it needs {used_bytes} bytes, and the quota is {self.quota_bytes}"
        inodes = head.inodes + change.new_inodes - change.orphan_inodes
        if inodes > max(self.quota_inodes, head.inodes):
            return f"it has {inodes} files, and the limit is {self.quota_inodes}"
        return ""

    def rewind(self, change: Rewind, frames: Iterable[Frame]) -> list[int] | None:
        """Make the changes; the inodes that lost their last name. None: it moved on meanwhile.

        Raises FsError (EDQUOT, ENOSPC, EIO), FormatError; then nothing was changed.
        """
        if self.cache.generation != change.base:
            return None
        why = self.room_to_rewind(change)
        if why:
            raise FsError(errno.EDQUOT, why)
        failpoints.hit(failpoints.REWIND_BEFORE)
        with self.cache.write() as tx:
            tx.is_housekeeping = True
            tx.is_freeing = change.new_bytes == 0
            bulk = BulkChanges(tx)
            for frame in frames:
                bulk.add(frame)
            bulk.keep_warm(change.warm)
            tx.put_meta(REWOUND.encode(), str(tx.generation).encode())
            # What came back is in the bucket only.
            tx.put_meta(b"hydrated", b"false")
            tx.head_rec.next_ino = change.next_ino
            tx.head_rec.inodes += change.new_inodes
            tx.head_rec.used_bytes += change.new_bytes
        failpoints.hit(failpoints.REWIND_AFTER)
        self._orphans.update(bulk.orphans)
        self._doubtful.update(bulk.orphans)
        self.on_change()
        return bulk.orphans

    def look_at_orphans(self) -> None:
        """After the kernel forgot their names: those it does not know go soon."""
        if self._doubtful:
            self.on_forgotten()
