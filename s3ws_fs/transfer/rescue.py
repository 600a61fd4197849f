"""What a cache holds and the bucket never got, as files in a plain directory.

For the cache of a writer that was fenced, or whose workspace went on elsewhere: its changes are
nowhere else, and must not be merged silently. Every changed file is exported whole; what was
removed or moved is listed.

Invariants
1. Nothing in the cache or the bucket is changed; it works beside a dead or a living daemon. No read
   transaction is open while the store is asked.
2. Nothing that stands in the directory is overwritten, and nothing outside of it is touched: every
   step is made from a directory's descriptor, follows no symlink, and takes single names only,
   which come from an untrusted workspace.
3. What could not be exported, or not whole, is in the report with its path and the reason.
4. Nothing exported has more rights than a file of its owner: no setuid, no setgid, no extended
   attribute but user's and access control lists.

Called by the cli.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from s3ws_fs.core import keys
from s3ws_fs.core.errors import FormatError, StoreError
from s3ws_fs.core.extents import extent_count
from s3ws_fs.core.limits import EXTENT_BYTES
from s3ws_fs.core.records import InodeRec
from s3ws_fs.core.types import ROOT_INO, Location
from s3ws_fs.transfer.freeze import Readable

EXTENTS_AT_ONCE: Final = 64
"""Extents that are read in one transaction, so that it is short and memory is bounded."""
DEPTH_MAX: Final = 4096

Fetch = Callable[[Location], bytes]
"""Bytes of a location. Raises StoreError, FormatError."""

XATTRS: Final = (b"user.", b"system.posix_acl_")

_OF_FILES: Final = (keys.T_INODES, keys.T_CHUNKS, keys.T_XATTRS)
_DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class Rescued:
    """The report. Paths are those in the workspace."""

    exported: list[bytes] = field(default_factory=list)
    deleted: list[bytes] = field(default_factory=list)
    moved: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Old and new path, as far as the mirror's rows tell the old one."""
    incomplete: dict[bytes, str] = field(default_factory=dict)
    """Exported with holes where bytes could not be had."""
    left: dict[bytes, str] = field(default_factory=dict)
    """Not exported at all."""
    notes: dict[bytes, str] = field(default_factory=dict)
    """Exported, but for some attribute."""

    @property
    def is_whole(self) -> bool:
        """Whether everything unsealed is in the directory."""
        return not self.incomplete and not self.left


@dataclass(slots=True)
class _Plan:
    files: list[tuple[InodeRec, list[bytes]]] = field(default_factory=list)
    deleted: list[bytes] = field(default_factory=list)
    moved: list[tuple[bytes, bytes]] = field(default_factory=list)


class _RefusedNameError(Exception):
    """A path that is none."""


def rescue(reader: Readable, top_fd: int, fetch: Fetch | None) -> Rescued:
    """Export what is unsealed below the directory `top_fd`. Raises FormatError, OSError."""
    plan = _plan(reader)
    done = Rescued(deleted=plan.deleted, moved=plan.moved)
    for rec, paths in plan.files:
        first: bytes | None = None
        for path in paths:
            try:
                with _parent(top_fd, path) as (parent, name):
                    if first is None:
                        _make(reader, parent, name, rec, path, fetch, done)
                        first = path
                    else:
                        _link(top_fd, first, parent, name)
            except _RefusedNameError:
                done.left[path] = "not a name that a directory may hold"
            except FileExistsError:
                done.left[path] = "something stands there already"
            except OSError as exc:
                done.left[path] = os.strerror(exc.errno or 0)
            else:
                done.exported.append(path)
    exported = set(done.exported)
    # A directory's last, and from the deepest up: it may not be writable, and has its time then.
    for rec, paths in reversed(plan.files):
        if rec.is_dir and paths[0] in exported:
            with _parent(top_fd, paths[0]) as (parent, name):
                fd = os.open(name, _DIR_FLAGS, dir_fd=parent)
                try:
                    _attributes(reader, fd, rec, paths[0], done)
                finally:
                    os.close(fd)
    return done


# --- what


def _plan(reader: Readable) -> _Plan:
    plan = _Plan()
    with reader.read() as view:
        inos: set[int] = set()
        placed: set[int] = set()
        for table, key, _, _ in view.dirty():
            if table in _OF_FILES:
                inos.add(keys.unpack_u64(key[:8]))
            elif table == keys.T_DENTRIES:
                parent, _, name = keys.split_dentry_key(key)
                found = view.dentry(parent, name)
                if found is not None:
                    placed.add(found)
                    continue
                above = b"" if parent == ROOT_INO else view.dir_path(parent)
                if above is not None:
                    plan.deleted.append(above + b"/" + name if above else name)
        for ino in sorted(placed | inos):
            rec = view.inode(ino)
            if rec is None or rec.nlink == 0:
                continue
            paths = view.paths_of(rec)
            known = [row.path.rstrip(b"/") for row in view.mirror_of(ino)]
            plan.moved += [(old, paths[0]) for old in known if paths and old not in paths]
            # A directory is of itself nothing to save, unless it is new; its entries are.
            if ino in inos and paths != [b""] and (not rec.is_dir or not known):
                plan.files.append((rec, sorted(paths)))
    plan.deleted.sort()
    # A directory before what is below it.
    plan.files.sort(key=lambda item: item[1])
    return plan


# --- where


def _check_name(name: bytes) -> bytes:
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise _RefusedNameError
    return name


@contextlib.contextmanager
def _parent(top_fd: int, path: bytes) -> Iterator[tuple[int, bytes]]:
    """A descriptor of the directory that holds `path`, made when missing; and the last name."""
    *above, name = [_check_name(part) for part in path.split(b"/")]
    if len(above) > DEPTH_MAX:
        raise _RefusedNameError
    fd = os.dup(top_fd)
    try:
        for part in above:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=fd)
            below = os.open(part, _DIR_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd, name
    finally:
        os.close(fd)


def _link(top_fd: int, first: bytes, parent: int, name: bytes) -> None:
    with _parent(top_fd, first) as (from_fd, from_name):
        os.link(from_name, name, src_dir_fd=from_fd, dst_dir_fd=parent, follow_symlinks=False)


# --- how


def _make(
    reader: Readable,
    parent: int,
    name: bytes,
    rec: InodeRec,
    path: bytes,
    fetch: Fetch | None,
    done: Rescued,
) -> None:
    if rec.is_dir:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent)
        # One that stands there and is no directory is refused here.
        os.close(os.open(name, _DIR_FLAGS, dir_fd=parent))
        return
    if stat.S_ISLNK(rec.mode):
        os.symlink(rec.target, name, dir_fd=parent)
        _own(lambda: os.chown(name, rec.uid, rec.gid, dir_fd=parent, follow_symlinks=False))
        os.utime(name, ns=(rec.atime_ns, rec.mtime_ns), dir_fd=parent, follow_symlinks=False)
        return
    if stat.S_ISREG(rec.mode):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
    else:
        raise OSError(errno.ENOTSUP, "a fifo, socket or device")
    try:
        if stat.S_ISREG(rec.mode):
            _write(reader, fd, rec, path, fetch, done)
        _attributes(reader, fd, rec, path, done)
    finally:
        os.close(fd)


def _write(
    reader: Readable, fd: int, rec: InodeRec, path: bytes, fetch: Fetch | None, done: Rescued
) -> None:
    os.ftruncate(fd, rec.size)
    count = extent_count(rec.size)
    for at in range(0, count, EXTENTS_AT_ONCE):
        for index, data, where in _extents(reader, rec.ino, at, min(count, at + EXTENTS_AT_ONCE)):
            if data is None and where is not None:
                try:
                    data = _fetched(fetch, where)
                except (StoreError, FormatError) as exc:
                    offset = index * EXTENT_BYTES
                    done.incomplete.setdefault(path, f"bytes from {offset} on: {exc}")
            if data:
                room = rec.size - index * EXTENT_BYTES
                os.pwrite(fd, data[:room], index * EXTENT_BYTES)


def _extents(
    reader: Readable, ino: int, start: int, end: int
) -> list[tuple[int, bytes | None, Location | None]]:
    with reader.read() as view:
        return [
            (index, view.extent(ino, index), view.chunk(ino, index)) for index in range(start, end)
        ]


def _fetched(fetch: Fetch | None, where: Location) -> bytes:
    if fetch is None:
        raise FormatError("the bucket", "they are only there, and it was not asked")
    return fetch(where)


def _own(change: Callable[[], None]) -> None:
    """Owners are kept where we may (as root)."""
    with contextlib.suppress(PermissionError):
        change()


def _attributes(reader: Readable, fd: int, rec: InodeRec, path: bytes, done: Rescued) -> None:
    with reader.read() as view:
        xattrs = list(islice(view.xattrs(rec.ino), 10_000))
    _own(lambda: os.chown(fd, rec.uid, rec.gid))
    os.chmod(fd, stat.S_IMODE(rec.mode) & 0o1777)
    if rec.mode & (stat.S_ISUID | stat.S_ISGID):
        done.notes[path] = "without setuid and setgid"
    for name, value in xattrs:
        if not name.startswith(XATTRS):
            done.notes[path] = f"without xattr {name!r}"
            continue
        try:
            os.setxattr(fd, name, value)
        except OSError as exc:
            done.notes[path] = f"xattr {name!r}: {os.strerror(exc.errno or 0)}"
    os.utime(fd, ns=(rec.atime_ns, rec.mtime_ns))
