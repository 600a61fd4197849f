"""Somebody else: a function run in a forked child with another user, group and groups.

Invariants
1. The caller's own ids, directory and umask never change; the child never returns into the caller.
2. What the function returns or raises arrives in the caller, an OSError with its errno.
3. The child is reaped, also when it died without an answer.

The caller must be root to become another user. Directories that pytest makes can't be entered by
others: give `cwd` and use relative names. Called by the tests of e2e and fuse.
"""

from __future__ import annotations

import os
import pickle
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


def require_root() -> None:
    """Skip the test, saying why, where nobody else can be played."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as another user")


def as_user(
    uid: int,
    gid: int,
    groups: Sequence[int],
    function: Callable[[], T],
    *,
    cwd: str | bytes | os.PathLike[str] | None = None,
) -> T:
    """What `function` returns as user `uid` in group `gid` and the supplementary `groups`.

    It runs in `cwd` (entered before the privileges go), with the caller's umask; the result must
    be picklable. Raises what it raised; ChildProcessError when it died without an answer.
    """
    ours, theirs = os.pipe()
    with warnings.catch_warnings():
        # The child only makes system calls and ends: it needs no lock that a thread may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(ours)
            answer = _answer(uid, gid, groups, function, cwd)
            with os.fdopen(theirs, "wb") as out:
                out.write(answer)
            status = 0
        finally:
            os._exit(status)
    os.close(theirs)
    try:
        with os.fdopen(ours, "rb") as answers:
            answer = answers.read()
    finally:
        _, status = os.waitpid(pid, 0)
    if status != 0 or not answer:
        code = os.waitstatus_to_exitcode(status)
        raise ChildProcessError(f"no answer from user {uid}: exit code {code}")
    error, result = pickle.loads(answer)
    if error is not None:
        raise error
    found: T = result
    return found


def errno_as_user(
    uid: int,
    gid: int,
    groups: Sequence[int],
    function: Callable[[], object],
    *,
    cwd: str | bytes | os.PathLike[str] | None = None,
) -> int:
    """The errno that `function` gets as that user; 0 when it succeeds."""
    return as_user(uid, gid, groups, lambda: errno_of(function), cwd=cwd)


def errno_of(function: Callable[[], object]) -> int:
    """The errno that a call raises; 0 when it succeeds."""
    try:
        function()
    except OSError as exc:
        assert exc.errno is not None, exc
        return exc.errno
    return 0


def _answer(
    uid: int,
    gid: int,
    groups: Sequence[int],
    function: Callable[[], Any],
    cwd: str | bytes | os.PathLike[str] | None,
) -> bytes:
    """In the child: become that user, call, and pickle (error, result)."""
    try:
        if cwd is not None:
            os.chdir(cwd)
        os.setgroups(list(groups))
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        return pickle.dumps((None, function()))
    except BaseException as exc:
        try:
            answer = pickle.dumps((exc, None))
            pickle.loads(answer)
        except Exception:
            answer = pickle.dumps((RuntimeError(traceback.format_exc()), None))
        return answer
