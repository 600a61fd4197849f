"""Files that come from outside of the mount: made without a name, filled, then placed at once.

Invariants
1. A file appears whole, in one operation, or not at all: until it is placed it is an orphan, which
   the next start of a mount drops.
2. What a file is placed over is never lost by it: it goes on under another name, or its content is
   known to be in the journal's history and the caller says that it may go.
3. Quota and inode limit hold as for any program; names and parents are checked as in create.
4. A caller's notes (rows of the mirror, a line for status) are part of the same transaction; so is
   the note of what the kernel has to forget, which stands until the caller says `told`.

Called by replica, at most one at a time.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from s3ws_fs.cache.tx import Tx
from s3ws_fs.core import acl
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.extents import alloc_bytes
from s3ws_fs.core.limits import SYMLINK_BYTES_MAX
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.types import ROOT_INO, Cred, Outdated
from s3ws_fs.fs.base import check_name, need, need_dir, note_outdated, touch_dir
from s3ws_fs.fs.data import DataOps
from s3ws_fs.fs.names import NameOps

Notes = Callable[[Tx, InodeRec], None]
"""Called within the transaction with the file's record as it is going to be stored."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """How a file that arrives is to be: `mode` with the type bits."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Placed:
    """Where it is now, and what the kernel has to forget."""

    path_name: bytes
    outdated: Outdated


class ArrivalOps(NameOps, DataOps):
    """Mixed into FileSystem."""

    def room_for(self, size_bytes: int) -> str:
        """Why a file of this size can't arrive; "" when it can."""
        head = self.cache.head
        if head.inodes >= self.quota_inodes:
            return f"the limit of {self.quota_inodes} files is reached"
        if head.used_bytes + alloc_bytes(size_bytes) > self.quota_bytes:
            return f"the quota of {self.quota_bytes} bytes has no room for {size_bytes}"
        return ""

    def begin_arrival(self, wanted: Arriving, target: bytes = b"") -> int:
        """A new file without a name: fill it by `write`. Raises EDQUOT, ENAMETOOLONG."""
        if len(target) > SYMLINK_BYTES_MAX:
            raise FsError(errno.ENAMETOOLONG)
        with self.cache.write() as tx:
            if tx.head_rec.inodes >= self.quota_inodes:
                raise FsError(errno.EDQUOT, "inode limit")
            now = tx.now_ns
            rec = InodeRec(
                ino=tx.new_ino(),
                mode=wanted.mode,
                uid=wanted.uid,
                gid=wanted.gid,
                nlink=0,
                rdev=0,
                size=len(target),
                alloc=0,
                atime_ns=now,
                mtime_ns=wanted.mtime_ns,
                ctime_ns=now,
                data_gen=tx.generation,
                parent=0,
                name=b"",
                target=target,
            )
            tx.add_orphan(rec)
        return rec.ino

    def drop_arrival(self, ino: int) -> None:
        """Give up a file that was not placed."""
        self._drop_orphans([ino])

    def place_beside(
        self, ino: int, wanted: Arriving, parent: int, names: Iterable[bytes], notes: Notes
    ) -> Placed:
        """Give it the first of these names that is free. Raises EEXIST when none is, ENOENT, …"""
        with self.cache.write() as tx:
            above = need_dir(tx, parent)
            name = self._free_name(tx, parent, names)
            self._name_it(tx, ino, wanted, above, name, notes)
            touch_dir(tx, above)
            outdated = note_outdated(tx, Outdated(((parent, name),), (parent,)))
        self.on_change()
        return Placed(name, outdated)

    def place_at(
        self,
        ino: int,
        wanted: Arriving,
        parent: int,
        name: bytes,
        notes: Notes,
        *,
        keep_as: Iterable[bytes] | None = None,
    ) -> Placed:
        """Give it this name. A file that has it gets the first free name of `keep_as`, or is
        removed when that is None; its extended attributes stay with the name. `path_name` of the
        answer is the name kept, or this one. Raises EISDIR, EEXIST, ENOENT, ENOTDIR.
        """
        check_name(name)
        old: InodeRec | None = None
        with self.cache.write() as tx:
            above = need_dir(tx, parent)
            there = tx.dentry(parent, name)
            names, inodes = [(parent, name)], [parent]
            kept = name
            if there is not None:
                old = need(tx, there)
                if old.is_dir:
                    raise FsError(errno.EISDIR)
                if stat.S_ISREG(old.mode) and stat.S_ISREG(wanted.mode):
                    for xattr, value in list(tx.xattrs(old.ino)):
                        # A list would contradict the mode that arrives.
                        if xattr not in acl.NAMES:
                            tx.put_xattr(ino, xattr, value)
                if keep_as is None:
                    self._lose_name(tx, old, parent, name)
                else:
                    kept = self._free_name(tx, parent, keep_as)
                    self._place(tx, old, (parent, name), (parent, kept))
                    names.append((parent, kept))
                inodes.append(old.ino)
            self._name_it(tx, ino, wanted, above, name, notes)
            touch_dir(tx, above)
            outdated = note_outdated(tx, Outdated(tuple(names), tuple(inodes)))
        self._note_orphan(old)
        return Placed(kept, outdated)

    def directory_for(self, names: Iterable[bytes]) -> tuple[int, Outdated]:
        """The directory at this path, made where it is missing. Raises ENOTDIR, EDQUOT, …"""
        ino = ROOT_INO
        made: list[tuple[int, bytes]] = []
        parents: list[int] = []
        for name in names:
            with self.cache.read() as view:
                above = need_dir(view, ino)
                found = view.dentry(ino, name)
            if found is None:
                owner = Cred(above.uid, above.gid, umask=0)
                made.append((ino, name))
                parents.append(ino)
                self.will_outdate(Outdated(tuple(made), tuple(parents)))
                found = self.mkdir(ino, name, stat.S_IMODE(above.mode) & 0o777, owner).ino
            ino = found
        with self.cache.read() as view:
            need_dir(view, ino)
        return ino, Outdated(tuple(made), tuple(parents))

    @staticmethod
    def _free_name(tx: Tx, parent: int, names: Iterable[bytes]) -> bytes:
        for name in names:
            check_name(name)
            if tx.dentry(parent, name) is None:
                return name
        raise FsError(errno.EEXIST, "all names for a copy are taken")

    @staticmethod
    def _name_it(
        tx: Tx, ino: int, wanted: Arriving, above: InodeRec, name: bytes, notes: Notes
    ) -> None:
        rec = need(tx, ino)
        rec.mode, rec.uid, rec.gid = wanted.mode, wanted.uid, wanted.gid
        rec.mtime_ns, rec.ctime_ns = wanted.mtime_ns, tx.now_ns
        tx.keep_orphan(ino)
        tx.add_link(rec, above.ino, name)
        tx.put_inode(rec)
        tx.put_dentry(above.ino, name, ino)
        notes(tx, rec)
