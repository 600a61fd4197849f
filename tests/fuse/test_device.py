"""The descriptor that libfuse serves at first: INIT, and what was never answered."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from s3ws_fs.cache.tx import Tx
from s3ws_fs.core.errors import UserError
from s3ws_fs.fuse.device import Device
from s3ws_fs.fuse.once import Once
from s3ws_fs.holder import memory
from s3ws_fs.holder.memory import Memory
from tests.support.scripted_daemon import init_request

RESENT = 1 << 63
MKDIR, FORGET, INIT = 9, 2, 26
NOTIFY_RESEND = struct.pack("=IiQ", 16, 7, 0)


def request(opcode: int, unique: int, body: bytes = b"") -> bytes:
    return struct.pack("=IIQ24x", 40 + len(body), opcode, unique) + body


def answer(unique: int, body: bytes = b"") -> bytes:
    return struct.pack("=IiQ", 16 + len(body), 0, unique) + body


INIT_RAW = request(INIT, 2, init_request(can_resend=True)[40:])
INIT_BODY = struct.pack("=IIIIHHI", 7, 39, 0, 0, 12, 9, 1 << 20) + bytes(40)


class Kernel:
    """The other end of a connection, and libfuse's reads and writes."""

    def __init__(self) -> None:
        self.end, self.fd = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory_fd = memory.create()
        self.memory = Memory(memory_fd)
        os.close(memory_fd)
        self.once = Once(self.memory, 0)
        self.through = 0

    def device(self, *, adopted: bool) -> Device:
        return Device(
            self.fd.fileno(), self.memory, self.once, adopted=adopted, through=self._through
        )

    def _through(self) -> None:
        self.through += 1

    def got(self) -> list[bytes]:
        """What was written to the kernel since."""
        messages = []
        while select.select([self.end], [], [], 0)[0]:
            messages.append(self.end.recv(1 << 20))
        return messages

    def close(self) -> None:
        self.end.close()
        self.fd.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


def serve(device: Device, reply: bytes | None) -> bytes:
    """libfuse reads one request and answers it."""
    raw = os.read(device.number, 1 << 21)
    if reply is not None:
        os.write(device.number, reply)
    return raw


def test_the_first_daemon(kernel: Kernel) -> None:
    device = kernel.device(adopted=False)
    assert not device.step(), "INIT has not come"
    kernel.end.send(INIT_RAW)
    assert device.step()
    assert serve(device, answer(2, INIT_BODY)) == INIT_RAW
    assert not device.step() and device.is_direct and kernel.through == 1
    assert kernel.got() == [answer(2, INIT_BODY)]
    assert kernel.memory.init_request == INIT_RAW
    assert kernel.memory.init_reply == answer(2, INIT_BODY)
    kernel.end.send(request(MKDIR, 4))
    assert serve(device, answer(4)) == request(MKDIR, 4)
    assert kernel.got() == [answer(4)]


def begun(kernel: Kernel, reply_body: bytes = INIT_BODY) -> Device:
    """A later daemon that has answered the INIT played to it."""
    kernel.memory.set_init(INIT_RAW, answer(2, INIT_BODY))
    device = kernel.device(adopted=True)
    assert device.step()
    assert serve(device, answer(2, reply_body)) == INIT_RAW
    return device


def test_libfuse_is_not_offered_what_it_is_not_to_take(kernel: Kernel) -> None:
    """See fuse.greeting; what is noted is what the kernel said."""
    flags_at = slice(40 + 12, 40 + 16)
    offer, shown = bytearray(INIT_RAW), bytearray(INIT_RAW)
    offer[flags_at] = (1 << 12 | 1 << 30).to_bytes(4, "little")
    shown[flags_at] = (1 << 30).to_bytes(4, "little")
    device = kernel.device(adopted=False)
    kernel.end.send(offer)
    assert device.step()
    assert serve(device, answer(2, INIT_BODY)) == shown
    device.step()
    assert kernel.got() == [answer(2, INIT_BODY)]
    assert kernel.memory.init_request == bytes(offer)
    later = kernel.device(adopted=True)
    assert later.step()
    assert serve(later, answer(2, INIT_BODY)) == shown
    assert not later.step() and later.is_direct


def test_a_later_one_with_nothing_to_answer(kernel: Kernel) -> None:
    device = begun(kernel)
    assert not device.step() and device.is_direct and kernel.through == 1
    assert kernel.got() == [NOTIFY_RESEND], "its answer to INIT is not the kernel's"


def test_another_protocol_is_refused(kernel: Kernel) -> None:
    device = begun(kernel, INIT_BODY[:-1] + b"\1")
    with pytest.raises(UserError, match="another protocol"):
        device.step()
    assert kernel.got() == []


def test_what_was_sent_again_is_known(kernel: Kernel) -> None:
    device = begun(kernel)
    for raw in (request(MKDIR, RESENT | 4), request(MKDIR, RESENT | 6), request(MKDIR, 8)):
        kernel.end.send(raw)
    seen = []
    while device.step():
        is_resent = kernel.once.resent is not None
        raw = serve(device, None)
        unique = struct.unpack_from("=Q", raw, 8)[0]
        os.write(device.number, answer(unique))
        seen.append((unique & ~RESENT, is_resent))
    assert seen == [(4, True), (6, True), (8, False)]
    assert kernel.once.resent is None and device.is_direct
    assert kernel.got() == [NOTIFY_RESEND, answer(RESENT | 4), answer(RESENT | 6), answer(8)]


def test_a_forget_between_does_not_end_it(kernel: Kernel) -> None:
    device = begun(kernel)
    kernel.end.send(request(FORGET, 3))
    kernel.end.send(request(MKDIR, RESENT | 4))
    assert device.step() and kernel.once.resent is None
    serve(device, None)
    assert device.step() and kernel.once.resent is not None


def test_an_init_whose_answer_got_lost_is_answered(kernel: Kernel) -> None:
    device = begun(kernel)
    kernel.end.send(request(INIT, RESENT | 2))
    assert not device.step()
    assert kernel.got() == [NOTIFY_RESEND, answer(RESENT | 2, INIT_BODY)]


def test_a_large_request_and_an_answer_that_comes_late(kernel: Kernel) -> None:
    for end in (kernel.end, kernel.fd):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    device = begun(kernel)
    large = request(16, RESENT | 4, bytes(150_000))
    kernel.end.send(large)
    assert device.step()
    assert serve(device, None) == large
    assert not device.step(), "nothing else came: it is direct"
    os.write(device.number, answer(RESENT | 4))
    assert kernel.got() == [NOTIFY_RESEND, answer(RESENT | 4)]


def test_what_nobody_waits_for_any_more_is_owed_no_more(kernel: Kernel) -> None:
    """Done, and whoever asked was killed with the daemon: the kernel does not ask again."""
    kernel.once.start(1)
    kernel.once.committing(cast(Tx, SimpleNamespace(generation=5, answer=0, is_housekeeping=False)))
    kernel.once = Once(kernel.memory, 5)
    assert kernel.once.owed == 1
    assert not begun(kernel).step()
    assert kernel.once.owed == Once(kernel.memory, 5).owed == 0
