"""POSIX access control lists of inodes: kept as extended attributes, in step with the mode.

Invariants
1. Whoever changes the mode changes the list, and the other way round, in one transaction.
2. Only lists that say more than the mode are stored, and default lists only of directories.
3. Who may change a list, and what a list allows, is the kernel's to decide.

Called by the modules of fs only.
"""

from __future__ import annotations

import errno
import stat

from s3ws_fs.cache.tx import Tx
from s3ws_fs.core import acl
from s3ws_fs.core.errors import FormatError, FsError
from s3ws_fs.core.records import InodeRec


def chmod(tx: Tx, rec: InodeRec) -> None:
    """The mode of `rec` was set: so is the access list, if there is one."""
    value = tx.xattr(rec.ino, acl.ACCESS)
    if value is None:
        return
    changed = acl.encode(acl.chmod(_stored(value), rec.mode))
    if changed != value:
        tx.put_xattr(rec.ino, acl.ACCESS, changed)


def inherited(tx: Tx, parent: int, mode: int, umask: int) -> tuple[int, dict[bytes, bytes]]:
    """Mode and lists of what is made in a directory, not of a symbolic link.

    The umask counts only where the directory has no default list.
    """
    value = tx.xattr(parent, acl.DEFAULT)
    if value is None:
        return mode & ~umask, {}
    bits, access = acl.inherit(_stored(value), mode)
    lists = {acl.ACCESS: acl.encode(access)} if access else {}
    if stat.S_ISDIR(mode):
        lists[acl.DEFAULT] = value
    return mode & ~0o777 | bits, lists


def put(tx: Tx, rec: InodeRec, name: bytes, value: bytes, *, keep_setgid: bool) -> None:
    """Set a list. The caller stores the record. Raises EINVAL, E2BIG, EACCES, EOPNOTSUPP."""
    if len(value) > acl.ACL_BYTES_MAX:
        raise FsError(errno.E2BIG)
    try:
        given = acl.decode(value)
    except FormatError as exc:
        raise FsError(errno.EINVAL, str(exc)) from None
    if stat.S_ISLNK(rec.mode):
        raise FsError(errno.EOPNOTSUPP, "list of a symbolic link")
    if not given:
        remove(tx, rec, name)
    elif name == acl.DEFAULT:
        if not rec.is_dir:
            raise FsError(errno.EACCES, "default list of a file")
        tx.put_xattr(rec.ino, name, acl.encode(given))
    else:
        rec.mode = rec.mode & ~0o777 | acl.mode_bits(given)
        if not keep_setgid:
            rec.mode &= ~stat.S_ISGID
        if acl.is_minimal(given):
            remove(tx, rec, name)
        else:
            tx.put_xattr(rec.ino, name, acl.encode(given))


def remove(tx: Tx, rec: InodeRec, name: bytes) -> bool:
    """Remove a list; the mode stays. Whether there was one: that there is none is no error."""
    if tx.xattr(rec.ino, name) is None:
        return False
    tx.drop_xattr(rec.ino, name)
    return True


def _stored(value: bytes) -> acl.Acl:
    try:
        return acl.decode(value)
    except FormatError as exc:
        raise FsError(errno.EIO, str(exc)) from None
