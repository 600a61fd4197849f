"""From our types to the kernel's and back: attributes, ids, access lists, errors.

Invariants
1. Stored ids become shown ids, and shown become stored, only here (`IdMap`).
2. A handler made by `atomic` or `awaiting` raises nothing but `pyfuse3.FUSEError` (and trio's
   cancellation): pyfuse3 ends the mount on anything else. An exception that nobody foresaw is
   counted, logged (rate-limited, with its traceback) and answered with EIO.
3. `atomic` wraps a plain function: it can't await, so nothing else runs between its first and its
   last line, and its reply leaves before the next request is read. `awaiting` wraps a coroutine:
   other requests are served while it waits. Both count in `tally` what was asked, and of some how
   long it took.
4. The kernel may keep what we say for `KERNEL_CACHE_S`: every change passes through the kernel that
   caches it, which updates or drops what the change made stale (tests/fuse/test_kernel_cache.py);
   one that did not is told to the kernel (`invalidate`). On a read-only mount, whose files change
   by themselves, it keeps nothing: each answer is of the one point that is shown.

Called by `fuse.operations` alone.
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import pyfuse3

from s3ws_fs.core import acl, failpoints
from s3ws_fs.core.errors import FormatError, FsError, GoneError
from s3ws_fs.core.types import Attr, Cred, StatFs
from s3ws_fs.fuse import tally
from s3ws_fs.fuse.tally import Tally

log = logging.getLogger(__name__)

KERNEL_CACHE_S: Final = 86_400.0
"""How long the kernel may keep attributes, names and absences without asking again."""

IO_BLOCK_BYTES: Final = 128 * 1024
"""st_blksize: the buffer size that programs take. Large, for each request is a round trip."""

FAULT_LOG_INTERVAL_S: Final = 60.0
"""A fault with the same handler and exception type is logged at most once in this time."""

FAULT_KINDS_MAX: Final = 256
"""How many kinds of fault are told apart; beyond it they are counted, not logged."""


class IdMap:
    """Which user or group id is shown for a stored one. Ids that are not named stay as they are.

    pairs: (stored, shown). Where two stored ids are shown as one, new files get the first.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._shown: dict[int, int] = {}
        self._stored: dict[int, int] = {}
        for stored, shown in pairs:
            self._shown.setdefault(stored, shown)
            self._stored.setdefault(shown, stored)

    def __bool__(self) -> bool:
        return bool(self._shown)

    def shown(self, stored: int) -> int:
        return self._shown.get(stored, stored)

    def stored(self, shown: int) -> int:
        return self._stored.get(shown, shown)


class Translator:
    """Makes pyfuse3's structures from ours, with the ids of this mount."""

    def __init__(self, uids: IdMap, gids: IdMap, kernel_cache_s: float = KERNEL_CACHE_S) -> None:
        self._kernel_cache_s = kernel_cache_s
        self._uids = uids
        self._gids = gids
        self._mapping = bool(uids) or bool(gids)
        self._absent = pyfuse3.EntryAttributes()
        self._absent.st_ino = 0
        self._absent.entry_timeout = kernel_cache_s

    def blank(self) -> pyfuse3.EntryAttributes:
        """A structure for `fill`, with all that is the same for every inode."""
        entry = pyfuse3.EntryAttributes()
        entry.attr_timeout = self._kernel_cache_s
        entry.entry_timeout = self._kernel_cache_s
        entry.st_blksize = IO_BLOCK_BYTES
        return entry

    def entry(self, attr: Attr) -> pyfuse3.EntryAttributes:
        entry = self.blank()
        self.fill(entry, attr)
        return entry

    def fill(self, entry: pyfuse3.EntryAttributes, attr: Attr) -> None:
        """Make `entry` (from `blank`, filled before or not) show this inode."""
        (
            entry.st_ino,
            entry.st_mode,
            uid,
            gid,
            entry.st_nlink,
            entry.st_rdev,
            entry.st_size,
            entry.st_blocks,
            entry.st_atime_ns,
            entry.st_mtime_ns,
            entry.st_ctime_ns,
        ) = attr
        if self._mapping:
            uid, gid = self._uids.shown(uid), self._gids.shown(gid)
        entry.st_uid = uid
        entry.st_gid = gid

    def absent(self) -> pyfuse3.EntryAttributes:
        """The answer to a lookup that the kernel may remember: no such name (inode number 0)."""
        return self._absent

    def cred(self, ctx: pyfuse3.RequestContext) -> Cred:
        return Cred(self._uids.stored(ctx.uid), self._gids.stored(ctx.gid), ctx.umask)

    def stored_uid(self, shown: int) -> int:
        return self._uids.stored(shown)

    def stored_gid(self, shown: int) -> int:
        return self._gids.stored(shown)

    def shown_gid(self, stored: int) -> int:
        return self._gids.shown(stored)

    def stored_value(self, name: bytes, value: bytes) -> bytes:
        """An extended attribute to store: the ids within an access control list are the stored."""
        if not self._mapping or name not in acl.NAMES:
            return value
        try:
            given = acl.decode(value)
        except FormatError as exc:
            raise FsError(errno.EINVAL, str(exc)) from None
        return acl.encode(acl.with_ids(given, self._uids.stored, self._gids.stored))

    def shown_value(self, name: bytes, value: bytes) -> bytes:
        """A stored extended attribute: the ids within an access control list are the shown."""
        if not self._mapping or name not in acl.NAMES:
            return value
        kept = acl.decode(value)
        return acl.encode(acl.with_ids(kept, self._uids.shown, self._gids.shown))

    def statvfs(self, statfs: StatFs) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = statfs.block_bytes
        data.f_frsize = statfs.block_bytes
        data.f_blocks = statfs.blocks
        data.f_bfree = data.f_bavail = statfs.blocks_free
        data.f_files = statfs.files
        data.f_ffree = data.f_favail = statfs.files_free
        data.f_namemax = statfs.name_max
        return data


class Faults:
    """Counts and logs the exceptions that no handler should have raised."""

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        gone_errno: int = errno.ENOENT,
    ) -> None:
        self.count = 0
        self.gone_errno = gone_errno
        """What is answered for an inode that there is none of."""
        self._monotonic = monotonic
        self._logged_at: dict[tuple[str, type[Exception]], float] = {}

    def note(self, handler: str, exc: Exception) -> None:
        self.count += 1
        kind = (handler, type(exc))
        now = self._monotonic()
        last = self._logged_at.get(kind)
        if last is not None and now - last < FAULT_LOG_INTERVAL_S:
            return
        if last is None and len(self._logged_at) >= FAULT_KINDS_MAX:
            return
        self._logged_at[kind] = now
        log.error("%s failed, the caller got EIO (%d so far)", handler, self.count, exc_info=exc)


class HasFaults(Protocol):
    """What a class with wrapped handlers provides."""

    faults: Faults
    tally: Tally


class MakesRoom(HasFaults, Protocol):
    """What a class with `creating` handlers provides."""

    async def has_room_now(self, exc: FsError) -> bool:
        """After this error: whether room was made, so that trying again makes sense."""


S = TypeVar("S", bound=HasFaults)
M = TypeVar("M", bound=MakesRoom)
P = ParamSpec("P")
R = TypeVar("R")


def _errno_for(handler: str, faults: Faults, exc: Exception) -> int:
    if isinstance(exc, GoneError):
        return faults.gone_errno
    if isinstance(exc, FsError):
        return exc.errno
    faults.note(handler, exc)
    return errno.EIO


def _refusal(handler: str, at: HasFaults, exc: Exception) -> pyfuse3.FUSEError:
    number = _errno_for(handler, at.faults, exc)
    at.tally.failed(number)
    return pyfuse3.FUSEError(number)


def atomic(
    function: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Make a handler of a plain function: it never awaits (invariants 2 and 3)."""
    name = function.__name__
    tally.declare(name)

    @functools.wraps(function)
    async def handler(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        kind = self.tally.kinds[name]
        kind.left = left = kind.left - 1
        begun_ns = 0 if left else kind.begin()
        try:
            result = function(self, *args, **kwargs)
            failpoints.hit(failpoints.ANSWER_BEFORE)
            return result
        except pyfuse3.FUSEError:
            raise
        except Exception as exc:
            raise _refusal(name, self, exc) from None
        finally:
            if begun_ns:
                kind.end(begun_ns)

    return handler


def creating(
    function: Callable[Concatenate[M, P], R],
) -> Callable[Concatenate[M, P], Coroutine[Any, Any, R]]:
    """Like `atomic`; when it was refused for want of room, it is tried once more if there is some.

    It awaits only then: nothing was done yet, and nothing else runs between the second try and its
    reply.
    """

    async def handler(self: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(self, *args, **kwargs)
        except FsError as exc:
            if not await self.has_room_now(exc):
                raise
        return function(self, *args, **kwargs)

    return awaiting(functools.wraps(function)(handler))


def awaiting(
    function: Callable[Concatenate[S, P], Awaitable[R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Make a handler of a coroutine function that may wait (invariants 2 and 3)."""
    name = getattr(function, "__name__", "handler")
    tally.declare(name)

    @functools.wraps(function)
    async def handler(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        kind = self.tally.kinds[name]
        kind.left = left = kind.left - 1
        begun_ns = 0 if left else kind.begin()
        try:
            result = await function(self, *args, **kwargs)
            failpoints.hit(failpoints.ANSWER_BEFORE)
            return result
        except pyfuse3.FUSEError:
            raise
        except Exception as exc:
            raise _refusal(name, self, exc) from None
        finally:
            if begun_ns:
                kind.end(begun_ns)

    return handler
