"""The filesystem: attributes, extended attributes, statfs, and all operations under one name.

Invariants
1. Times are set as asked; ctime is always the transaction's. atime changes only when it is set
   (noatime): reading changes nothing.
2. Extended attributes of the namespaces user, trusted and security are kept, and access control
   lists (see acls); others are refused.
3. statfs shows the quota as the disk's size, so that df and programs that look ahead are right.

Called by fuse and daemon.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from s3ws_fs.core import acl
from s3ws_fs.core.errors import FsError
from s3ws_fs.core.limits import (
    NAME_BYTES_MAX,
    TIME_NS_MAX,
    TIME_NS_MIN,
    XATTR_LIST_BYTES_MAX,
    XATTR_NAME_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
)
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.types import ROOT_INO, Attr, NeedExtents, StatFs
from s3ws_fs.fs import acls
from s3ws_fs.fs.arrivals import ArrivalOps
from s3ws_fs.fs.base import need, need_attr
from s3ws_fs.fs.data import ColdError
from s3ws_fs.fs.rewinding import RewindOps

STATFS_BLOCK_BYTES: Final = 4096
_XATTR_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")


class FileSystem(ArrivalOps, RewindOps):
    """One workspace's filesystem over its cache."""

    def make_root(self, *, uid: int, gid: int, mode: int) -> None:
        """Make the root directory of a new workspace; leaves an existing one alone."""
        with self.cache.write() as tx:
            tx.is_housekeeping = True
            if tx.inode(ROOT_INO) is not None:
                return
            now = tx.now_ns
            tx.add_inode(
                InodeRec(
                    ino=ROOT_INO,
                    mode=stat.S_IFDIR | stat.S_IMODE(mode),
                    uid=uid,
                    gid=gid,
                    nlink=2,
                    rdev=0,
                    size=0,
                    alloc=0,
                    atime_ns=now,
                    mtime_ns=now,
                    ctime_ns=now,
                    data_gen=tx.generation,
                    parent=ROOT_INO,
                    name=b"",
                    target=b"",
                )
            )
        self.on_change()

    def getattr(self, ino: int) -> Attr:
        """Attributes of an inode. Raises ENOENT."""
        with self.cache.read() as view:
            return need_attr(view, ino)

    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> Attr | NeedExtents:
        """Change what is given. Raises ENOENT, EISDIR, EINVAL, EFBIG, ENOSPC."""
        try:
            with self.cache.write() as tx:
                rec = need(tx, ino)
                if size is not None:
                    self._truncate(tx, rec, size)
                if mode is not None:
                    rec.mode = stat.S_IFMT(rec.mode) | stat.S_IMODE(mode)
                    acls.chmod(tx, rec)
                if uid is not None:
                    rec.uid = uid
                if gid is not None:
                    rec.gid = gid
                if atime_ns is not None:
                    rec.atime_ns = _kept_ns(atime_ns)
                if mtime_ns is not None:
                    rec.mtime_ns = _kept_ns(mtime_ns)
                rec.ctime_ns = tx.now_ns
                tx.put_inode(rec)
        except ColdError as cold:
            return cold.need
        self.on_change()
        return rec.attr()

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """Value of an extended attribute. Raises ENODATA, EOPNOTSUPP, ENOENT."""
        _check_xattr_name(name)
        with self.cache.read() as view:
            value = view.xattr(ino, name)
            if value is None:
                need(view, ino)
                raise FsError(errno.ENODATA)
            return value

    def listxattr(self, ino: int) -> list[bytes]:
        """Names of an inode's extended attributes. Raises ENOENT."""
        with self.cache.read() as view:
            need(view, ino)
            return [name for name, _ in view.xattrs(ino)]

    def setxattr(
        self, ino: int, name: bytes, value: bytes, flags: int = 0, *, keep_setgid: bool = True
    ) -> None:
        """Set an extended attribute; `flags` as XATTR_CREATE, XATTR_REPLACE.

        An access control list sets the mode too, and clears setgid unless `keep_setgid`.
        Raises EEXIST, ENODATA, EOPNOTSUPP, ERANGE (name), E2BIG (value), ENOSPC (all names); for
        a list EINVAL, EACCES.
        """
        _check_xattr_name(name)
        if len(value) > XATTR_VALUE_BYTES_MAX:
            raise FsError(errno.E2BIG)
        with self.cache.write() as tx:
            rec = need(tx, ino)
            names = [found for found, _ in tx.xattrs(ino)]
            if name in names and flags & os.XATTR_CREATE:
                raise FsError(errno.EEXIST)
            if name not in names:
                if flags & os.XATTR_REPLACE:
                    raise FsError(errno.ENODATA)
                if sum(len(found) + 1 for found in (*names, name)) > XATTR_LIST_BYTES_MAX:
                    raise FsError(errno.ENOSPC)
            if name in acl.NAMES:
                acls.put(tx, rec, name, value, keep_setgid=keep_setgid)
            elif name in names and tx.xattr(ino, name) == value:
                # As ext4 does: nothing changed, so ctime stays, and nothing has to be flushed.
                return
            else:
                tx.put_xattr(ino, name, value)
            rec.ctime_ns = tx.now_ns
            tx.put_inode(rec)
        self.on_change()

    def removexattr(self, ino: int, name: bytes) -> None:
        """Remove an extended attribute. Raises ENODATA (but for a list), EOPNOTSUPP, ENOENT."""
        _check_xattr_name(name)
        with self.cache.write() as tx:
            rec = need(tx, ino)
            if name in acl.NAMES:
                if not acls.remove(tx, rec, name):
                    return
            elif tx.xattr(ino, name) is None:
                raise FsError(errno.ENODATA)
            else:
                tx.drop_xattr(ino, name)
            rec.ctime_ns = tx.now_ns
            tx.put_inode(rec)
        self.on_change()

    def statfs(self) -> StatFs:
        """Quota and use in blocks and inodes."""
        head = self.cache.head
        blocks = self.quota_bytes // STATFS_BLOCK_BYTES
        used = -(-head.used_bytes // STATFS_BLOCK_BYTES)
        return StatFs(
            block_bytes=STATFS_BLOCK_BYTES,
            blocks=blocks,
            blocks_free=max(0, blocks - used),
            files=self.quota_inodes,
            files_free=max(0, self.quota_inodes - head.inodes),
            name_max=NAME_BYTES_MAX,
        )


def _kept_ns(asked_ns: int) -> int:
    """The nearest time that a record can hold."""
    return min(max(asked_ns, TIME_NS_MIN), TIME_NS_MAX)


def _check_xattr_name(name: bytes) -> None:
    if len(name) > XATTR_NAME_BYTES_MAX:
        raise FsError(errno.ERANGE)
    if name in _XATTR_NAMESPACES:
        raise FsError(errno.EINVAL, "a namespace without a name")
    if not name.startswith(_XATTR_NAMESPACES) and name not in acl.NAMES:
        raise FsError(errno.EOPNOTSUPP, "namespace")
