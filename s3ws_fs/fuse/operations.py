"""The kernel's requests, translated into calls of `FileSystem` and back.

Invariants
1. No handler holds state about files: a file handle is the inode number. So a daemon that died can
   be replaced, and nothing here has to be restored.
2. Every handler is `atomic` (never awaits), `creating` (only before it is tried again), or
   `awaiting` (may wait), see `translate`. A call of `FileSystem` is one committed transaction; the
   reply follows without an await in between, so at most one operation is committed and
   unanswered at any time.
3. A call that needs bytes which are only in the bucket returns `NeedExtents`. The handler fetches
   them and calls again: at most `FETCH_ROUNDS_MAX` times, each at most `FETCH_DEADLINE_S`, then
   EIO. A request that was read can't be abandoned by its caller, so no wait is without end.
4. Permissions are the kernel's work (mount option default_permissions), access lists included
   (`enable_acl`: it reads and keeps them), so are locks, mmap and copy_file_range. pyfuse3 exposes
   no fallocate, ioctl, or O_TMPFILE.
5. Lookup counts are not kept: inode numbers are never reused, and an inode may go only when it has
   no name and no open handle, of which the kernel's FORGET is then the last word.
6. `flush` (every close(2)) and `access` answer ENOSYS, once each: the kernel then stops asking.
7. After `refuse_changes()` nothing that changes the workspace succeeds (EIO); reads go on.
8. A filesystem that follows the bucket (`is_following`) changes between two requests. Nothing of it
   is changed here (EROFS, which the kernel says itself unless somebody remounted it), names and
   attributes are not cached, and an inode that went is ESTALE, upon which the kernel looks its
   path up once more. Pages of files whose bytes changed are dropped when they are opened.
9. Every request that changes something begins with `_start`, whose arguments are all that tells it
   from others: what a daemon that died had done for it already is answered, and not done again
   (see fuse.once; without a holder `_start` says None).

Called by the daemon, which passes in what lies above this layer: `fetch` and `wait_durable`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import pyfuse3
import trio

from s3ws_fs.core import acl
from s3ws_fs.core.errors import FsError, GoneError
from s3ws_fs.core.types import Attr, Cred, NeedExtents
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.fuse.caller import keeps_setgid
from s3ws_fs.fuse.once import SETXATTR, Once, digest
from s3ws_fs.fuse.tally import Tally
from s3ws_fs.fuse.translate import (
    KERNEL_CACHE_S,
    Faults,
    IdMap,
    Translator,
    atomic,
    awaiting,
    creating,
)
from s3ws_fs.fuse.waiting import FETCH_DEADLINE_S, FETCH_ROUNDS_MAX, Fetch, Waiting

COOKIE_DOT: Final = 1
COOKIE_DOTDOT: Final = 2
COOKIE_ENTRY_MIN: Final = 3
"""Cookies of "." and ".." and the smallest of an entry (0 means: from the start)."""

READDIR_BATCH: Final = 32
"""Entries asked of the filesystem at once: a reply holds about 25 when the kernel gives a page for
it, about 200 when it gives as much as the program did (newer ones). What does not fit was read for
nothing, and each batch costs as much as two entries.
"""

REWRITTEN_MAX: Final = 100_000
"""Inodes remembered whose pages may be old; with more, those of all files may."""

ROOM_TRIES_MAX: Final = 3
"""How often one write has room made for it: others may take it meanwhile."""


_CREATE, _MKNOD, _MKDIR, _SYMLINK, _LINK, _UNLINK, _RMDIR, _RENAME, _SETATTR = range(1, SETXATTR)
_REMOVEXATTR, _OPEN, _WRITE = range(SETXATTR + 1, SETXATTR + 4)
"""What a key of `_start` begins with."""
_SETATTR_KEY: Final = ("mode", "uid", "gid", "size")


def _never_done(*_: object) -> int | None:
    return None


def _who(cred: Cred) -> tuple[int, int, int]:
    return cred.uid, cred.gid, cred.umask


class Operations(pyfuse3.Operations):
    """pyfuse3's handlers over one `FileSystem`.

    fetch(need): brings the extents into the cache, or raises. wait_durable(): returns when all that
    was committed before the call survives a power loss. make_room(): after ENOSPC, whether it is
    worth trying again. settled(time): the time to store for one that came with setattr.
    on_access(): somebody looks up a name or opens a directory. once: what the daemons before left
    to answer, with a holder.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        fs: FileSystem,
        *,
        fetch: Fetch,
        wait_durable: Callable[[], Awaitable[None]],
        make_room: Callable[[], Awaitable[bool]] | None = None,
        settled: Callable[[int], int] = int,
        once: Once | None = None,
        uids: IdMap | None = None,
        gids: IdMap | None = None,
        fetch_deadline_s: float = FETCH_DEADLINE_S,
        is_following: bool = False,
        on_access: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.faults = Faults(gone_errno=errno.ESTALE if is_following else errno.ENOENT)
        self.tally = Tally()
        self._fs = fs
        self._waiting = Waiting(fs, fetch, make_room, fetch_deadline_s, self.tally)
        self._wait_durable = wait_durable
        self._settled = settled
        self._is_following = is_following
        self._on_access = on_access
        kernel_cache_s = 0.0 if is_following else KERNEL_CACHE_S
        self._to = Translator(uids or IdMap(), gids or IdMap(), kernel_cache_s)
        self._once = once
        self._start: Callable[..., int | None] = _never_done if once is None else once.start
        self._refusing = False
        self._rewritten: set[int] | None = set()
        """Inodes whose pages may be old (None: any)."""
        self.started = trio.Event()
        """The kernel and we have agreed on the protocol: requests come from now on."""

    def init(self) -> None:
        """pyfuse3 calls this when the kernel has greeted."""
        self.started.set()

    def refuse_changes(self) -> None:
        """From now on every change fails with EIO: nothing is acknowledged that can't be saved."""
        self._refusing = True

    def note_rewritten(self, inodes: Sequence[int] | None) -> None:
        """Bytes of these changed without the kernel (None: of any)."""
        if inodes is None or self._rewritten is None:
            self._rewritten = None
            return
        self._rewritten.update(inodes)
        if len(self._rewritten) > REWRITTEN_MAX:
            self._rewritten = None

    def _keeps_pages(self, inode: int) -> bool:
        return self._rewritten is not None and inode not in self._rewritten

    async def has_room_now(self, exc: FsError) -> bool:
        """See Waiting.has_room_now; `creating` asks for it."""
        return await self._waiting.has_room_now(exc)

    def _changing(self) -> None:
        if self._is_following:
            raise FsError(errno.EROFS)
        if self._refusing:
            raise FsError(errno.EIO, "the workspace is being unmounted")

    # --- names ---------------------------------------------------------------------------------

    @atomic
    def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if self._on_access is not None:
            self._on_access()
        try:
            return self._to.entry(self._fs.lookup(parent_inode, name))
        except FsError as exc:
            if exc.errno != errno.ENOENT or (self._is_following and isinstance(exc, GoneError)):
                raise
            return self._to.absent()

    @creating
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        self._changing()
        cred = self._to.cred(ctx)
        if self._start(_CREATE, parent_inode, digest(name), mode, flags, *_who(cred)) is None:
            attr = self._fs.create(parent_inode, name, mode, cred)
        else:
            attr = self._fs.lookup(parent_inode, name)
        self._fs.open(attr.ino)
        return pyfuse3.FileInfo(fh=attr.ino, keep_cache=True), self._to.entry(attr)

    @creating
    def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._changing()
        cred = self._to.cred(ctx)
        if self._start(_MKNOD, parent_inode, digest(name), mode, rdev, *_who(cred)) is not None:
            return self._to.entry(self._fs.lookup(parent_inode, name))
        return self._to.entry(self._fs.mknod(parent_inode, name, mode, rdev, cred))

    @creating
    def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._changing()
        cred = self._to.cred(ctx)
        if self._start(_MKDIR, parent_inode, digest(name), mode, *_who(cred)) is not None:
            return self._to.entry(self._fs.lookup(parent_inode, name))
        return self._to.entry(self._fs.mkdir(parent_inode, name, mode, cred))

    @creating
    def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._changing()
        cred = self._to.cred(ctx)
        key = (_SYMLINK, parent_inode, digest(name), digest(target), *_who(cred))
        if self._start(*key) is not None:
            return self._to.entry(self._fs.lookup(parent_inode, name))
        return self._to.entry(self._fs.symlink(parent_inode, name, target, cred))

    @atomic
    def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        self._changing()
        if self._start(_LINK, inode, new_parent_inode, digest(new_name)) is not None:
            return self._to.entry(self._fs.lookup(new_parent_inode, new_name))
        return self._to.entry(self._fs.link(inode, new_parent_inode, new_name))

    @atomic
    def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._changing()
        if self._start(_UNLINK, parent_inode, digest(name)) is None:
            self._fs.unlink(parent_inode, name)

    @atomic
    def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._changing()
        if self._start(_RMDIR, parent_inode, digest(name)) is None:
            self._fs.rmdir(parent_inode, name)

    @atomic
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        self._changing()
        names = digest(name_old), digest(name_new)
        if self._start(_RENAME, parent_inode_old, parent_inode_new, *names, flags) is None:
            self._fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @atomic
    def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._fs.readlink(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Atomic. Has no reply, so even a FUSEError would end the mount: nothing is raised."""
        for inode, _ in inode_list:
            try:
                self._fs.forget(inode)
            except Exception as exc:
                self.faults.note("forget", exc)

    # --- attributes ----------------------------------------------------------------------------

    @atomic
    def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._to.entry(self._fs.getattr(inode))

    @awaiting
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Waits only when a cut goes through an extent that is in the bucket alone."""
        wanted: dict[str, int | None] = {
            "mode": attr.st_mode if fields.update_mode else None,
            "uid": self._to.stored_uid(attr.st_uid) if fields.update_uid else None,
            "gid": self._to.stored_gid(attr.st_gid) if fields.update_gid else None,
            "size": attr.st_size if fields.update_size else None,
            "atime_ns": self._settled(attr.st_atime_ns) if fields.update_atime else None,
            "mtime_ns": self._settled(attr.st_mtime_ns) if fields.update_mtime else None,
        }
        # Which times, not what times: "now" is another one when it is asked again.
        key = (
            *(-1 if wanted[name] is None else wanted[name] for name in _SETATTR_KEY),
            *(fields.update_atime, fields.update_mtime),
        )
        for rounds in range(FETCH_ROUNDS_MAX + 1):
            self._changing()
            if self._start(_SETATTR, inode, *key) is not None:
                return self._to.entry(self._fs.getattr(inode))
            result = self._fs.setattr(inode, **wanted)
            if isinstance(result, Attr):
                return self._to.entry(result)
            await self._waiting.warm(result, rounds)
        raise AssertionError("unreachable: warm raises after the last round")

    @atomic
    def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """pyfuse3 calls this before `setxattr` to see to XATTR_CREATE and XATTR_REPLACE.

        Atomic as it is, nothing comes between the two. One that was done already found nothing.
        """
        if self._once is not None and self._once.owed_setxattr(inode, name):
            raise FsError(errno.ENODATA)
        return self._to.shown_value(name, self._fs.getxattr(inode, name))

    @atomic
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._changing()
        if self._start(SETXATTR, inode, digest(name), digest(value)) is not None:
            return
        keep_setgid = name != acl.ACCESS or self._keeps_setgid(inode, ctx)
        value = self._to.stored_value(name, value)
        self._fs.setxattr(inode, name, value, keep_setgid=keep_setgid)

    def _keeps_setgid(self, inode: int, ctx: pyfuse3.RequestContext) -> bool:
        attr = self._fs.getattr(inode)
        return not attr.mode & stat.S_ISGID or keeps_setgid(
            ctx.pid, ctx.uid, ctx.gid, self._to.shown_gid(attr.gid)
        )

    @atomic
    def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """The kernel checks who may read `trusted.`, but leaves it to us who sees its names."""
        names = self._fs.listxattr(inode)
        if ctx.uid == 0:
            return names
        return [name for name in names if not name.startswith(b"trusted.")]

    @atomic
    def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._changing()
        if self._start(_REMOVEXATTR, inode, digest(name)) is None:
            self._fs.removexattr(inode, name)

    @atomic
    def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        raise FsError(errno.ENOSYS)

    # --- files ---------------------------------------------------------------------------------

    @awaiting
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Never waits: cutting a file to nothing needs no bytes.

        libfuse asks the kernel to leave O_TRUNC to us (FUSE_CAP_ATOMIC_O_TRUNC).
        """
        if flags & os.O_TRUNC:
            self._changing()
            if self._start(_OPEN, inode) is None:
                self._fs.setattr(inode, size=0, mode=self._mode_after_truncation(inode, ctx))
        if self._is_following:
            # It may have gone since its name was looked up.
            self._fs.getattr(inode)
        self._fs.open(inode)
        return pyfuse3.FileInfo(fh=inode, keep_cache=self._keeps_pages(inode))

    def _mode_after_truncation(self, inode: int, ctx: pyfuse3.RequestContext) -> int | None:
        """Without setuid and setgid, unless it is root's; None for no change.

        The kernel sees to it itself at every other change of the bytes.
        """
        mode = self._fs.getattr(inode).mode
        if ctx.uid == 0 or not mode & (stat.S_ISUID | stat.S_ISGID):
            return None
        mode &= ~stat.S_ISUID
        return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode

    @awaiting
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Waits when bytes are in the bucket alone."""
        for rounds in range(FETCH_ROUNDS_MAX + 1):
            result = self._fs.read(fh, off, size)
            if not isinstance(result, NeedExtents):
                self.tally.read_bytes += len(result)
                return result
            await self._waiting.warm(result, rounds)
        raise AssertionError("unreachable: warm raises after the last round")

    @awaiting
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Waits when it changes part of an extent that is in the bucket alone, or for room."""
        for rounds in range(FETCH_ROUNDS_MAX + 1):
            self._changing()
            done = self._start(_WRITE, fh, off, len(buf))
            if done is not None:
                return done
            try:
                result = self._fs.write(fh, off, buf)
            except FsError as exc:
                if rounds >= ROOM_TRIES_MAX or not await self.has_room_now(exc):
                    raise
                continue
            if not isinstance(result, NeedExtents):
                self.tally.written_bytes += result
                return result
            await self._waiting.warm(result, rounds)
        raise AssertionError("unreachable: warm raises after the last round")

    @atomic
    def flush(self, fh: int) -> None:
        """Every write is in the cache when it returns, so close(2) has nothing to wait for."""
        raise FsError(errno.ENOSYS)

    @atomic
    def release(self, fh: int) -> None:
        self._fs.release(fh)

    @awaiting
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Waits for a sync point that covers all that was committed so far."""
        await self._wait_durable()

    # --- directories ---------------------------------------------------------------------------

    @atomic
    def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        if self._on_access is not None:
            self._on_access()
        if self._is_following:
            self._fs.getattr(inode)
            self._fs.open(inode)
        return inode

    @atomic
    def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if start_id < COOKIE_DOT and not pyfuse3.readdir_reply(
            token, b".", self._to.entry(self._fs.getattr(fh)), COOKIE_DOT
        ):
            return
        if start_id < COOKIE_DOTDOT and not pyfuse3.readdir_reply(
            token,
            b"..",
            self._to.entry(self._fs.getattr(self._fs.parent_of(fh))),
            COOKIE_DOTDOT,
        ):
            return
        cookie = start_id if start_id >= COOKIE_ENTRY_MIN else 0
        # pyfuse3 copies what it is given into the reply at once, so one structure serves for all.
        shown = self._to.blank()
        fill, reply = self._to.fill, pyfuse3.readdir_reply
        while entries := self._fs.readdir(fh, cookie, READDIR_BATCH):
            for name, cookie, attr in entries:
                fill(shown, attr)
                if not reply(token, name, shown, cookie):
                    return
            if len(entries) < READDIR_BATCH:
                return

    @atomic
    def releasedir(self, fh: int) -> None:
        if self._is_following:
            self._fs.release(fh)

    @awaiting
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Waits for a sync point that covers all that was committed so far."""
        await self._wait_durable()

    # --- the whole -----------------------------------------------------------------------------

    @atomic
    def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return self._to.statvfs(self._fs.statfs())

    def stacktrace(self) -> None:
        """pyfuse3 calls this when somebody sets the xattr fuse_stacktrace on the root: nothing."""
