"""The page that outlives daemons."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from s3ws_fs.holder import memory
from s3ws_fs.holder.memory import Memory
from tests.support.scripted_daemon import init_request


@pytest.fixture
def fd() -> Iterator[int]:
    made = memory.create()
    yield made
    os.close(made)


def test_what_one_notes_another_reads(fd: int) -> None:
    one, other = Memory(fd), Memory(fd)
    assert (other.connection, other.init_request, other.init_reply) == (None, b"", b"")
    one.set_connection(0)
    assert other.connection == 0
    one.set_connection(57)
    one.set_init(b"asked", b"answered")
    one.close()
    assert (other.connection, other.init_request, other.init_reply) == (57, b"asked", b"answered")
    other.set_connection(None)
    assert Memory(fd).connection is None


def test_at_its_limits(fd: int) -> None:
    held = Memory(fd)
    longest = bytes(memory.INIT_BYTES_MAX), bytes(memory.REPLY_BYTES_MAX)
    held.set_init(*longest)
    assert (held.init_request, held.init_reply) == longest
    for lengths in ((1, 0), (0, 1)):
        with pytest.raises(ValueError, match="longer"):
            held.set_init(longest[0] + bytes(lengths[0]), longest[1] + bytes(lengths[1]))
    assert memory.SLOTS_AT + memory.SLOTS * memory.SLOT_BYTES <= memory.BYTES


def test_whether_the_kernel_sends_again(fd: int) -> None:
    held = Memory(fd)

    def sends_again(request: bytes, reply: bytes) -> bool:
        held.set_init(request, reply)
        return held.can_resend

    new, old = init_request(can_resend=True), init_request(can_resend=False)
    assert not sends_again(b"", b"")
    assert not sends_again(new, b""), "INIT was not answered"
    assert sends_again(new, bytes(80))
    assert not sends_again(old, bytes(80))
    assert not sends_again(new[:56], bytes(80)), "before Linux 5.17 there is no second word"


def test_another_memory_is_refused() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, memory.BYTES)
    try:
        with pytest.raises(ValueError, match="memory"):
            Memory(fd)
    finally:
        os.close(fd)
