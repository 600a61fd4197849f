"""Every error the project raises on purpose, and the exit codes of the command.

Invariants
1. `FsError` carries an errno the kernel understands; only fs raises it, and cache when the
   engine fails (full, or an I/O error).
2. `StoreError` has four kinds that tell a caller what to do next: try again (`TransientError`),
   give up (`PermanentError`), it is not there (`NotFoundError`), somebody else was first
   (`ConflictError`).
3. `UserError` is what a person reads: what happened, and what to do; it has an exit code.
4. No message of these classes ever holds a secret.

Called by every layer.
"""

from __future__ import annotations

import enum
import errno as _errno
import os


class ExitCode(enum.IntEnum):
    """Exit codes of `s3ws` and of the daemon (documented in docs/exit-codes.md).

    RESTART is between daemon and holder: start the next one. GAVE_UP is the holder's own.
    """

    OK = 0
    INTERNAL = 1
    USAGE = 2
    BAD_SETTINGS = 3
    NOT_MOUNTED = 4
    ALREADY_MOUNTED = 5
    STORE = 6
    NOT_SAVED = 7
    BAD_CACHE = 8
    FENCED = 9
    NO_FUSE = 10
    BUSY = 11
    DAMAGED = 12
    CHANGED_OUTSIDE = 13
    GAVE_UP = 14
    CANT_RESTART = 15
    HELD = 16
    NO_SUCH_POINT = 17
    EXISTS = 18
    RESTART = 75


class S3wsError(Exception):
    """Base of all errors raised on purpose."""


class FsError(S3wsError):
    """A filesystem operation failed with `errno` (a positive number of the errno module)."""

    def __init__(self, errno: int, detail: str = "") -> None:
        self.errno = errno
        self.detail = detail
        super().__init__(errno, detail)

    def __str__(self) -> str:
        name = _errno.errorcode.get(self.errno, str(self.errno))
        text = f"{name}: {os.strerror(self.errno)}"
        return f"{text} ({self.detail})" if self.detail else text


class GoneError(FsError):
    """There is no inode of this number (any more): not a name that is missing."""

    def __init__(self, ino: int) -> None:
        super().__init__(_errno.ENOENT, f"inode {ino}")


class StoreError(S3wsError):
    """An object store operation failed: `op` on `key`, with a person-readable `detail`."""

    def __init__(self, op: str, key: str, detail: str) -> None:
        self.op = op
        self.key = key
        self.detail = detail
        super().__init__(op, key, detail)

    def __str__(self) -> str:
        return f"{self.op} {self.key}: {self.detail}"


class TransientError(StoreError):
    """It may work later: network, timeout, throttling, 5xx."""


class StartOverError(TransientError):
    """What was under way is lost, or how it ended is unknown, by no fault of the store: the process
    that talks to it died, or a seal of ours whose answer was lost stands. Try again at once.
    """


class PermanentError(StoreError):
    """It will not work by itself: credentials, missing bucket, refused request, bad name."""


class NotFoundError(StoreError):
    """The object does not exist."""


class ConflictError(StoreError):
    """A condition did not hold: the object exists already, or its ETag is another one."""


class FormatError(S3wsError):
    """Bytes that should be ours do not decode. `where` names the object, record or file."""

    def __init__(self, where: str, why: str) -> None:
        self.where = where
        self.why = why
        super().__init__(where, why)

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class UserError(S3wsError):
    """Something a person has to know about: `message` says what and where, `remedy` what to do."""

    def __init__(
        self, message: str, *, remedy: str = "", exit_code: ExitCode = ExitCode.INTERNAL
    ) -> None:
        self.message = message
        self.remedy = remedy
        self.exit_code = exit_code
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class CacheError(UserError):
    """The cache can't be used: damaged, of another workspace, of another format, or locked."""

    def __init__(
        self, message: str, *, remedy: str = "", exit_code: ExitCode = ExitCode.BAD_CACHE
    ) -> None:
        super().__init__(message, remedy=remedy, exit_code=exit_code)
