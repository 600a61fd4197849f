"""The tree: lookup, create, link, unlink, rename, readdir.

Invariants
1. A directory's nlink is 2 plus its subdirectories; a file's is the number of its names.
2. An inode whose last name went becomes an orphan and keeps its bytes until nobody can reach it.
3. Every change of a name is a change of the inode it stands for (ctime): what is dirty as an inode
   is all the mirror has to look at.
4. readdir is stateless: an entry that stays is shown exactly once, whatever comes and goes.

Called by fuse (through FileSystem).
"""

from __future__ import annotations

import errno
import stat

from s3ws_fs.cache.tx import Tx
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.keys import unpack_u64
from s3ws_fs.core.limits import LINKS_MAX, SYMLINK_BYTES_MAX
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.types import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT_INO,
    Attr,
    Cred,
    DirEntry,
)
from s3ws_fs.fs import acls
from s3ws_fs.fs.base import (
    FsBase,
    check_name,
    need,
    need_attr,
    need_dir,
    need_entry,
    touch_dir,
)

REAP_BATCH = 64
"""Forgotten orphans that are kept for one transaction: a crash leaves them to the next mount."""


class NameOps(FsBase):
    """Everything that reads or changes the tree."""

    def lookup(self, parent: int, name: bytes) -> Attr:
        """Attributes of an entry. Raises ENOENT, ENOTDIR, ENAMETOOLONG."""
        with self.cache.read() as view:
            if name == b".":
                # Of a file too: so the kernel finds what a file handle stands for.
                rec = need(view, parent)
                if rec.nlink == 0:
                    raise FsError(errno.ENOENT, "was removed")
                return rec.attr()
            if name == b"..":
                return need(view, need_dir(view, parent).parent).attr()
            check_name(name)
            ino = view.dentry(parent, name)
            if ino is None:
                need_dir(view, parent)
                raise FsError(errno.ENOENT)
            return need_attr(view, ino)

    def parent_of(self, ino: int) -> int:
        """The directory above a directory (the root's is the root)."""
        with self.cache.read() as view:
            return need(view, ino).parent or ROOT_INO

    def _make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        cred: Cred,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Attr:
        check_name(name)
        if self.cache.head.inodes >= self.quota_inodes:
            self.reap()
        with self.cache.write() as tx:
            above = need_dir(tx, parent)
            if tx.dentry(parent, name) is not None:
                raise FsError(errno.EEXIST)
            if tx.head_rec.inodes >= self.quota_inodes:
                raise FsError(errno.EDQUOT, "inode limit")
            gid = cred.gid
            if above.mode & stat.S_ISGID:
                gid = above.gid
                if stat.S_ISDIR(mode):
                    mode |= stat.S_ISGID
            lists: dict[bytes, bytes] = {}
            if not stat.S_ISLNK(mode):
                mode, lists = acls.inherited(tx, parent, mode, cred.umask)
            is_dir = stat.S_ISDIR(mode)
            if is_dir and above.nlink >= LINKS_MAX:
                raise FsError(errno.EMLINK)
            now = tx.now_ns
            rec = InodeRec(
                ino=tx.new_ino(),
                mode=mode,
                uid=cred.uid,
                gid=gid,
                nlink=2 if is_dir else 1,
                rdev=rdev,
                size=len(target),
                alloc=0,
                atime_ns=now,
                mtime_ns=now,
                ctime_ns=now,
                data_gen=tx.generation,
                parent=parent,
                name=name,
                target=target,
            )
            tx.add_inode(rec)
            for list_name, value in lists.items():
                tx.put_xattr(rec.ino, list_name, value)
            tx.put_dentry(parent, name, rec.ino)
            if is_dir:
                above.nlink += 1
            touch_dir(tx, above)
        self.on_change()
        return rec.attr()

    def create(self, parent: int, name: bytes, mode: int, cred: Cred) -> Attr:
        """Make a regular file. Raises EEXIST, ENOENT, ENOTDIR, EDQUOT, ENOSPC, ENAMETOOLONG."""
        return self._make(parent, name, stat.S_IFREG | stat.S_IMODE(mode), cred)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, cred: Cred) -> Attr:
        """Make a file, fifo, socket or device node of the type in `mode`. Raises as create."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind in (stat.S_IFDIR, stat.S_IFLNK):
            raise FsError(errno.EINVAL)
        return self._make(parent, name, kind | stat.S_IMODE(mode), cred, rdev=rdev)

    def mkdir(self, parent: int, name: bytes, mode: int, cred: Cred) -> Attr:
        """Make a directory. Raises as create, and EMLINK."""
        return self._make(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), cred)

    def symlink(self, parent: int, name: bytes, target: bytes, cred: Cred) -> Attr:
        """Make a symbolic link. Raises as create, and ENAMETOOLONG for the target."""
        if len(target) > SYMLINK_BYTES_MAX:
            raise FsError(errno.ENAMETOOLONG)
        return self._make(parent, name, stat.S_IFLNK | 0o777, cred, target=target)

    def readlink(self, ino: int) -> bytes:
        """Target of a symbolic link. Raises ENOENT, EINVAL."""
        with self.cache.read() as view:
            rec = need(view, ino)
        if not stat.S_ISLNK(rec.mode):
            raise FsError(errno.EINVAL)
        return rec.target

    def link(self, ino: int, new_parent: int, new_name: bytes) -> Attr:
        """Give an inode one more name. Raises EPERM, EEXIST, EMLINK, ENOENT, ENOTDIR."""
        check_name(new_name)
        with self.cache.write() as tx:
            rec = need(tx, ino)
            above = need_dir(tx, new_parent)
            if rec.is_dir:
                raise FsError(errno.EPERM)
            if rec.nlink == 0:
                raise FsError(errno.ENOENT)
            if rec.nlink >= LINKS_MAX:
                raise FsError(errno.EMLINK)
            if tx.dentry(new_parent, new_name) is not None:
                raise FsError(errno.EEXIST)
            tx.add_link(rec, new_parent, new_name)
            rec.ctime_ns = tx.now_ns
            tx.put_inode(rec)
            tx.put_dentry(new_parent, new_name, ino)
            touch_dir(tx, above)
        self.on_change()
        return rec.attr()

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of a non-directory. Raises ENOENT, EISDIR, ENOTDIR."""
        check_name(name)
        with self.cache.write() as tx:
            above = need_dir(tx, parent)
            rec = need_entry(tx, parent, name)
            if rec.is_dir:
                raise FsError(errno.EISDIR)
            tx.drop_dentry(parent, name)
            self._lose_name(tx, rec, parent, name)
            touch_dir(tx, above)
        self._note_orphan(rec)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory. Raises ENOENT, ENOTDIR, ENOTEMPTY."""
        check_name(name)
        with self.cache.write() as tx:
            above = need_dir(tx, parent)
            rec = need_entry(tx, parent, name)
            if not rec.is_dir:
                raise FsError(errno.ENOTDIR)
            if not tx.is_empty(rec.ino):
                raise FsError(errno.ENOTEMPTY)
            tx.drop_dentry(parent, name)
            self._lose_name(tx, rec, parent, name)
            above.nlink -= 1
            touch_dir(tx, above)
        self._note_orphan(rec)

    def _note_orphan(self, rec: InodeRec | None) -> None:
        """After the commit: remember an inode that lost its last name, for `forget`."""
        if rec is not None and rec.nlink == 0:
            self._orphans.add(rec.ino)
        self.on_change()

    @staticmethod
    def _lose_name(tx: Tx, rec: InodeRec, parent: int, name: bytes) -> None:
        if rec.is_dir:
            rec.nlink = 1
        tx.remove_link(rec, parent, name)
        rec.ctime_ns = tx.now_ns
        tx.put_inode(rec)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """Move an entry, replacing, not replacing or exchanging as `flags` say (renameat2(2)).

        Raises ENOENT, EEXIST, EINVAL, ENOTDIR, EISDIR, ENOTEMPTY, EMLINK.
        """
        check_name(name)
        check_name(new_name)
        exchange = bool(flags & RENAME_EXCHANGE)
        if flags & ~(RENAME_EXCHANGE | RENAME_NOREPLACE) or flags == 3:
            raise FsError(errno.EINVAL)
        with self.cache.write() as tx:
            above = need_dir(tx, parent)
            new_above = above if new_parent == parent else need_dir(tx, new_parent)
            rec = need_entry(tx, parent, name)
            there = tx.dentry(new_parent, new_name)
            if there is None and exchange:
                raise FsError(errno.ENOENT)
            if there is not None and flags & RENAME_NOREPLACE:
                raise FsError(errno.EEXIST)
            if there == rec.ino:
                return
            old = None if there is None else need(tx, there)
            if rec.is_dir:
                _check_not_below(tx, rec.ino, new_parent)
            if exchange and old is not None:
                if old.is_dir:
                    _check_not_below(tx, old.ino, parent)
                self._place(tx, old, (new_parent, new_name), (parent, name))
                _move_dir_link(old, new_above, above)
            else:
                if old is not None:
                    self._replace(tx, rec, old, new_parent, new_name, new_above)
                tx.drop_dentry(parent, name)
            self._place(tx, rec, (parent, name), (new_parent, new_name))
            _move_dir_link(rec, above, new_above)
            if new_above.nlink > LINKS_MAX or above.nlink > LINKS_MAX:
                raise FsError(errno.EMLINK)
            touch_dir(tx, above)
            if new_above is not above:
                touch_dir(tx, new_above)
        self._note_orphan(old)

    @staticmethod
    def _place(tx: Tx, rec: InodeRec, old: tuple[int, bytes], new: tuple[int, bytes]) -> None:
        tx.move_link(rec, old, new)
        rec.ctime_ns = tx.now_ns
        tx.put_inode(rec)
        tx.put_dentry(*new, rec.ino)

    def _replace(
        self,
        tx: Tx,
        rec: InodeRec,
        old: InodeRec,
        new_parent: int,
        new_name: bytes,
        new_above: InodeRec,
    ) -> None:
        if old.is_dir:
            if not rec.is_dir:
                raise FsError(errno.EISDIR)
            if not tx.is_empty(old.ino):
                raise FsError(errno.ENOTEMPTY)
            new_above.nlink -= 1
        elif rec.is_dir:
            raise FsError(errno.ENOTDIR)
        self._lose_name(tx, old, new_parent, new_name)

    def readdir(self, ino: int, cookie: int, limit: int) -> list[DirEntry]:
        """Up to `limit` entries beyond `cookie` (0: from the start), without "." and ".."."""
        with self.cache.read() as view:
            rec = need(view, ino)
            if not rec.is_dir:
                raise FsError(errno.ENOTDIR)
            return view.listing(ino, cookie, limit)

    def open(self, ino: int) -> None:
        """Somebody holds the inode open (counted in memory). Raises ENOENT."""
        self._open_counts[ino] = self._open_counts.get(ino, 0) + 1

    def release(self, ino: int) -> None:
        """One handle less."""
        count = self._open_counts.get(ino, 0) - 1
        if count > 0:
            self._open_counts[ino] = count
        else:
            self._open_counts.pop(ino, None)
            if self.is_following:
                # The kernel's FORGET may be far: it keeps names until it looks at them again.
                self.forget(ino)

    def forget(self, ino: int) -> None:
        """The kernel dropped an inode: if it is an orphan nobody has open, it goes (in batches)."""
        if ino in self._orphans and ino not in self._open_counts:
            if self._took_over:
                self._doubtful.add(ino)
                self.on_forgotten()
                return
            self._forgotten.add(ino)
            if len(self._forgotten) >= REAP_BATCH:
                self.reap()
            elif len(self._forgotten) == 1:
                self.on_forgotten()

    def drop_orphans_unmounted(self) -> int:
        """Before and after a mount nothing is open: every orphan goes. Returns how many."""
        with self.cache.read() as view:
            left = [unpack_u64(key) for key, _ in view.txn.cursor(db=view.db.orphans)]
        for start in range(0, len(left), REAP_BATCH):
            self._drop_orphans(left[start : start + REAP_BATCH])
        return len(left)


def _check_not_below(tx: Tx, moved: int, new_parent: int) -> None:
    """EINVAL when a directory would be moved into itself."""
    at = new_parent
    while at != ROOT_INO:
        if at == moved:
            raise FsError(errno.EINVAL, "into itself")
        at = need(tx, at).parent


def _move_dir_link(rec: InodeRec, above: InodeRec, new_above: InodeRec) -> None:
    """A moved directory's ".." counts for its new parent."""
    if rec.is_dir and above is not new_above:
        above.nlink -= 1
        new_above.nlink += 1
