"""Walks from a root directory to a key's place by descriptors, so that no symlink is ever followed.

Invariants
1. Below the root every step is openat with O_NOFOLLOW: a symlink in the tree, also one that appears
   at this moment, ends in PermanentError and never leads out of the root.
2. Directories are made 0700 and pruned when empty; a put that loses its directory to a concurrent
   prune makes it again.

Called by local.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from s3ws_fs.core.errors import NotFoundError, PermanentError, StoreError, TransientError

DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_TRANSIENT: Final = frozenset(
    {errno.EINTR, errno.EAGAIN, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ENFILE}
    | {errno.EMFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY}
)
_DETAILS: Final = {
    errno.ELOOP: "a symlink or a special file stands there; the store does not follow it",
    errno.ENOTDIR: "a file (or symlink) stands where this key needs a directory",
    errno.EISDIR: "a directory stands there: the key is a prefix of other keys",
    errno.EEXIST: "a directory stands there: the key is a prefix of other keys",
    errno.ENOTEMPTY: "a directory stands there: the key is a prefix of other keys",
    errno.ENAMETOOLONG: "a segment is longer than the filesystem allows",
    errno.EOPNOTSUPP: "the filesystem of the store has no user extended attributes",
}


def map_os_error(op: str, key: str, exc: OSError) -> StoreError:
    """The StoreError that stands for `exc`."""
    detail = _DETAILS.get(exc.errno or 0) or os.strerror(exc.errno or 0)
    if exc.errno == errno.ENOENT:
        return NotFoundError(op, key, "there is no such object")
    if exc.errno in _TRANSIENT:
        return TransientError(op, key, detail)
    return PermanentError(op, key, detail)


@contextlib.contextmanager
def parent_of(root_fd: int, key: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
    """Descriptor of the directory of `key`, and its last segment. Raises OSError.

    With `create`, missing directories are made and their entries made durable.
    """
    *pieces, name = key.split("/")
    fd = os.open(".", DIR_FLAGS, dir_fd=root_fd)
    try:
        for piece in pieces:
            child = _open_dir(fd, piece, create)
            os.close(fd)
            fd = child
        yield fd, name
    finally:
        os.close(fd)


def open_file(parent_fd: int, name: str) -> tuple[int, os.stat_result]:
    """Open a regular file for reading. Raises OSError: ENOENT for a directory (a prefix is no
    object), ELOOP for a symlink or a special file."""
    fd = os.open(name, FILE_FLAGS, dir_fd=parent_fd)
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not stat.S_ISREG(info.st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    except BaseException:
        os.close(fd)
        raise
    return fd, info


def is_dir(parent_fd: int, name: str) -> bool:
    """Whether a directory stands there."""
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def remove_hollow(parent_fd: int, name: str) -> bool:
    """Remove a directory without any file below: a process that was killed left it.

    False when something stands below. Raises OSError.
    """
    fd = os.open(name, DIR_FLAGS, dir_fd=parent_fd)
    try:
        with os.scandir(fd) as entries:
            below = list(entries)
        for entry in below:
            if not entry.is_dir(follow_symlinks=False) or not remove_hollow(fd, entry.name):
                return False
        os.rmdir(name, dir_fd=parent_fd)
    except OSError as exc:
        if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    finally:
        os.close(fd)
    return True


def prune(root_fd: int, key: str) -> None:
    """Remove the directories of `key` that are empty, from the deepest up; never the root."""
    pieces = key.split("/")[:-1]
    while pieces:
        try:
            with parent_of(root_fd, "/".join(pieces)) as (fd, name):
                os.rmdir(name, dir_fd=fd)
        except OSError as exc:
            if exc.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR):
                return
            raise
        pieces.pop()


def walk(root_fd: int, prefix: str, hidden: str) -> Iterator[tuple[str, os.stat_result]]:
    """Key and stat of every regular file whose key starts with `prefix`, in byte order of keys.

    `hidden` is a directory of the root that is left out. Left out too: symlinks, special files and
    names that are not UTF-8, none of which can be an object.
    """
    base = prefix[: prefix.rfind("/") + 1]
    try:
        with parent_of(root_fd, base + "x") as (fd, _):
            start = os.dup(fd)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return
        raise
    yield from _walk(start, base, prefix, hidden if not base else None)


def directories(root_fd: int, prefix: str, hidden: str) -> list[str]:
    """Names of the directories right below `prefix` (empty, or ending in a slash), sorted."""
    try:
        with parent_of(root_fd, prefix + "x") as (fd, _), os.scandir(fd) as entries:
            found = [
                entry.name
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and (prefix or entry.name != hidden)
            ]
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []
        raise
    return sorted(filter(_is_utf8, found), key=str.encode)


def hollow(root_fd: int, prefix: str, hidden: str) -> Iterator[tuple[str, os.stat_result]]:
    """Key (with a slash) and stat of the empty directories below `prefix`, which ends in one."""
    pending = [prefix]
    while pending:
        base = pending.pop()
        try:
            with parent_of(root_fd, base + "x") as (fd, _):
                with os.scandir(fd) as entries:
                    found = [
                        (entry.name, entry.is_dir(follow_symlinks=False))
                        for entry in entries
                        if base or entry.name != hidden
                    ]
                info = os.fstat(fd)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                continue
            raise
        if not found and base != prefix:
            yield base, info
        pending += [f"{base}{name}/" for name, is_dir in found if is_dir and _is_utf8(name)]


def _walk(
    fd: int, base: str, prefix: str, hidden: str | None
) -> Iterator[tuple[str, os.stat_result]]:
    try:
        with os.scandir(fd) as entries:
            found = [
                (entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name)
                for entry in entries
                if entry.name != hidden
            ]
        # A directory sorts as its name with a slash: then keys come in byte order.
        for name in sorted(filter(_is_utf8, found), key=str.encode):
            key = base + name
            deeper = name.endswith("/") and prefix.startswith(key)
            if not deeper and not key.startswith(prefix):
                continue
            try:
                if name.endswith("/"):
                    yield from _walk(os.open(name[:-1], DIR_FLAGS, dir_fd=fd), key, prefix, None)
                    continue
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                raise
            if stat.S_ISREG(info.st_mode):
                yield key, info
    finally:
        os.close(fd)


def _open_dir(fd: int, piece: str, create: bool) -> int:
    try:
        return os.open(piece, DIR_FLAGS, dir_fd=fd)
    except FileNotFoundError:
        if not create:
            raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(piece, 0o700, dir_fd=fd)
        os.fsync(fd)
    return os.open(piece, DIR_FLAGS, dir_fd=fd)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
