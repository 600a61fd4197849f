"""Exactly once: what is noted before a commit, and who is answered by it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from s3ws_fs.cache.cache import Cache, Identity, open_cache
from s3ws_fs.cache.tx import Tx
from s3ws_fs.fs.filesystem import FileSystem
from s3ws_fs.fuse.once import SETXATTR, SETXATTR_OPCODE, Once, digest
from s3ws_fs.holder import memory
from s3ws_fs.holder.memory import Memory

NAME = digest(b"name")
MKDIR = (3, 1, NAME, 0o755, 0, 0, 0o22)
WRITE = 12


def tx(generation: int, *, answer: int = 0, is_housekeeping: bool = False) -> Tx:
    made = SimpleNamespace(generation=generation, answer=answer, is_housekeeping=is_housekeeping)
    return cast(Tx, made)


@pytest.fixture
def held() -> Iterator[Memory]:
    fd = memory.create()
    yield Memory(fd)
    os.close(fd)


def raw(opcode: int, body: bytes = b"") -> bytes:
    return struct.pack("=IIQ24x", 40 + len(body), opcode, 7) + body


def resent(held: Memory, head: int) -> Once:
    """The next daemon, handling a request that was sent again."""
    once = Once(held, head)
    once.resent = raw(9)
    return once


def died_after(held: Memory, generation: int, *key: Any, answer: int = 0) -> None:
    once = Once(held, generation - 1)
    assert once.start(*key) is None
    once.committing(tx(generation, answer=answer))


def test_done_and_not_answered(held: Memory) -> None:
    died_after(held, 5, *MKDIR)
    once = resent(held, 5)
    assert once.owed == 1
    assert once.start(*MKDIR) == 0
    assert once.start(*MKDIR) is None, "once"


def test_the_result_of_a_write_comes_back(held: Memory) -> None:
    died_after(held, 5, WRITE, 3, 0, 4096, answer=1000)
    assert resent(held, 5).start(WRITE, 3, 0, 4096) == 1000


def test_noted_and_not_committed(held: Memory) -> None:
    died_after(held, 5, *MKDIR)
    once = resent(held, 4)
    assert once.owed == 0
    assert once.start(*MKDIR) is None


def test_answered_is_not_owed(held: Memory) -> None:
    once = Once(held, 4)
    once.start(*MKDIR)
    once.committing(tx(5))
    once.reading()
    assert resent(held, 5).start(*MKDIR) is None


@pytest.mark.parametrize(
    "other",
    [
        (3, 2, NAME, 0o755, 0, 0, 0o22),
        (3, 1, digest(b"nam"), 0o755, 0, 0, 0o22),
        (3, 1, NAME, 0o700, 0, 0, 0o22),
        (3, 1, NAME, 0o755, 1, 0, 0o22),
        (2, 1, NAME, 0o755, 0, 0, 0o22),
    ],
)
def test_another_request_is_done(held: Memory, other: tuple[int, ...]) -> None:
    died_after(held, 5, *MKDIR)
    assert resent(held, 5).start(*other) is None


def test_a_new_request_is_done_however_equal(held: Memory) -> None:
    died_after(held, 5, *MKDIR)
    once = Once(held, 5)
    assert once.resent is None
    assert once.start(*MKDIR) is None


def test_housekeeping_is_nobodys(held: Memory) -> None:
    once = Once(held, 4)
    once.start(*MKDIR)
    once.committing(tx(5, is_housekeeping=True))
    assert resent(held, 5).start(*MKDIR) is None


def test_a_failed_commit_followed_by_housekeeping_is_not_taken_for_it(held: Memory) -> None:
    once = Once(held, 4)
    once.start(*MKDIR)
    once.committing(tx(5))  # and the engine refused
    once.committing(tx(5, is_housekeeping=True))
    assert resent(held, 5).start(*MKDIR) is None


def test_owed_stays_owed_while_daemons_die(held: Memory) -> None:
    died_after(held, 5, *MKDIR)
    # The second answers something else first, and dies over it.
    second = resent(held, 5)
    assert second.start(WRITE, 9, 0, 1) is None
    second.committing(tx(6, answer=1))
    third = resent(held, 6)
    assert third.owed == 2
    # It finds the mkdir, and dies before the answer is out.
    assert third.start(*MKDIR) == 0
    fourth = resent(held, 6)
    assert fourth.start(*MKDIR) == 0
    fourth.reading()
    fifth = resent(held, 6)
    assert fifth.start(*MKDIR) is None, "that was answered"
    assert fifth.start(WRITE, 9, 0, 1) == 1


def test_nothing_is_owed_when_all_came(held: Memory) -> None:
    died_after(held, 5, *MKDIR)
    resent(held, 5).all_came()
    once = resent(held, 5)
    assert once.owed == 0 and once.start(*MKDIR) is None


def test_whether_anything_new_was_done(held: Memory) -> None:
    """What the daemon before had begun does not count: it may be what kills them all."""
    once = resent(held, 4)
    once.start(*MKDIR)
    once.committing(tx(5))
    once.reading()
    assert not held.has_worked
    once.all_came()
    once.reading()
    assert not held.has_worked
    once.start(6, 1, NAME)
    once.committing(tx(6))
    assert not held.has_worked, "it is not answered"
    once.reading()
    assert held.has_worked


def test_at_most_as_many_as_there_are_slots(held: Memory) -> None:
    for generation in range(5, 5 + 2 * memory.SLOTS):
        died_after(held, generation, WRITE, generation, 0, 1, answer=1)
    last = 4 + 2 * memory.SLOTS
    assert Once(held, last).owed == memory.SLOTS - 1


def test_a_setxattr_that_was_to_make_the_attribute(held: Memory) -> None:
    """pyfuse3 looks whether it is there before it calls setxattr; it is, for it was done."""
    died_after(held, 5, SETXATTR, 3, digest(b"user.a"), digest(b"value"))
    once = Once(held, 5)

    def looks(opcode: int, flags: int, value: bytes) -> bool:
        body = struct.pack("=II", len(value), flags) + b"user.a\0" + value
        once.resent = raw(opcode, body)
        return once.owed_setxattr(3, b"user.a")

    assert looks(SETXATTR_OPCODE, os.XATTR_CREATE, b"value")
    assert not looks(SETXATTR_OPCODE, os.XATTR_REPLACE, b"value")
    assert not looks(SETXATTR_OPCODE, os.XATTR_CREATE, b"other")
    assert not looks(22, os.XATTR_CREATE, b"value")
    once.resent = None
    assert not once.owed_setxattr(3, b"user.a")
    once.resent = raw(SETXATTR_OPCODE)
    assert once.start(SETXATTR, 3, digest(b"user.a"), digest(b"value")) == 0


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    opened = open_cache(tmp_path / "c", Identity("p/", "s"), quota_bytes=1 << 20, now_ns=lambda: 1)
    with opened:
        yield opened


def test_the_caches_commits_are_noted(held: Memory, cache: Cache) -> None:
    fs = FileSystem(cache, quota_bytes=1 << 20, quota_inodes=100)
    once = Once(held, cache.generation)
    cache.before_commit = once.committing
    once.start(1)
    fs.make_root(uid=0, gid=0, mode=0o755)
    assert Once(held, cache.generation).owed == 0, "housekeeping"
    from s3ws_fs.core.types import Cred

    once.start(1, 1)
    attr = fs.create(1, b"f", 0o600, Cred(0, 0))
    assert Once(held, cache.generation).owed == 1
    once.start(WRITE, attr.ino, 0, 5)
    fs.write(attr.ino, 0, b"12345")
    assert resent(held, cache.generation).start(WRITE, attr.ino, 0, 5) == 5
