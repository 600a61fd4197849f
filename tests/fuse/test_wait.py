"""The adaptive wait: who listens, when it spins, and that others get their turn."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pyfuse3
import pytest
import trio
import trio.testing

from s3ws_fs.fuse import wait as wait_module
from s3ws_fs.fuse.wait import MISSES_MAX, AdaptiveWait, installed


@contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


async def test_returns_at_once_when_a_request_is_there() -> None:
    with _pair() as (ours, theirs):
        theirs.send(b"x")
        with trio.fail_after(5):
            await AdaptiveWait(0).wait_readable(ours.fileno())


async def test_sleeps_until_a_request_comes() -> None:
    with _pair() as (ours, theirs), trio.fail_after(5):
        wait = AdaptiveWait(0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait.wait_readable, ours.fileno())
            await trio.testing.wait_all_tasks_blocked()
            theirs.send(b"x")


async def test_one_request_wakes_one_of_many_waiters() -> None:
    with _pair() as (ours, theirs), trio.fail_after(5):
        wait = AdaptiveWait(0)
        served = []

        async def serve(name: int) -> None:
            await wait.wait_readable(ours.fileno())
            ours.recv(1)  # would block the whole loop if there were nothing
            served.append(name)

        async with trio.open_nursery() as nursery:
            for name in range(5):
                nursery.start_soon(serve, name)
            for count in range(1, 6):
                await trio.testing.wait_all_tasks_blocked()
                assert len(served) == count - 1
                theirs.send(b"x")
        assert sorted(served) == [0, 1, 2, 3, 4]


async def test_somebody_listens_while_a_request_is_waiting_for_something() -> None:
    with _pair() as (ours, theirs), trio.fail_after(5):
        wait = AdaptiveWait(0)
        second = trio.Event()

        async def slow() -> None:
            await wait.wait_readable(ours.fileno())
            ours.recv(1)
            await second.wait()

        async def quick() -> None:
            await wait.wait_readable(ours.fileno())
            ours.recv(1)
            second.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(quick)
            await trio.testing.wait_all_tasks_blocked()
            theirs.send(b"x")
            await trio.testing.wait_all_tasks_blocked()
            theirs.send(b"x")


async def test_the_end_of_the_stream_wakes_everybody() -> None:
    with _pair() as (ours, theirs), trio.fail_after(5):
        wait = AdaptiveWait(0)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(wait.wait_readable, ours.fileno())
            await trio.testing.wait_all_tasks_blocked()
            theirs.close()


async def test_closing_ends_all_waiters_with_an_error() -> None:
    with _pair() as (ours, _theirs), trio.fail_after(5):
        wait = AdaptiveWait(0)
        closed = []

        async def waiter() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await wait.wait_readable(ours.fileno())
            closed.append(1)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(waiter)
            await trio.testing.wait_all_tasks_blocked()
            wait.notify_closing(ours.fileno())
        assert len(closed) == 3


async def test_a_cancelled_sleeper_leaves_another_one_listening() -> None:
    with _pair() as (ours, theirs), trio.fail_after(5):
        wait = AdaptiveWait(0)
        scope = trio.CancelScope()

        async def cancelled() -> None:
            with scope:
                await wait.wait_readable(ours.fileno())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancelled)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(wait.wait_readable, ours.fileno())
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            theirs.send(b"x")


async def test_other_tasks_run_and_cancellation_arrives_although_requests_never_cease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wait_module, "SLICE_NS", 100_000)
    with _pair() as (ours, theirs), trio.fail_after(5):
        theirs.send(b"x")
        wait = AdaptiveWait(0)
        ran = trio.Event()
        async with trio.open_nursery() as nursery:

            async def busy() -> None:
                while True:
                    await wait.wait_readable(ours.fileno())

            async def other() -> None:
                ran.set()
                nursery.cancel_scope.cancel()

            nursery.start_soon(busy)
            nursery.start_soon(other)
        assert ran.is_set()


async def test_spinning_stops_when_it_does_not_pay(
    monkeypatch: pytest.MonkeyPatch, two_cpus: None
) -> None:
    spins = []
    wait = AdaptiveWait(10)
    real = wait._spin

    def counted(poller: object, now_ns: int) -> bool:
        before = wait._misses
        found = real(poller, now_ns)  # type: ignore[arg-type]
        if wait._misses != before:
            spins.append(1)
        return found

    monkeypatch.setattr(wait, "_spin", counted)
    with _pair() as (ours, theirs), trio.fail_after(5):
        for _ in range(3 * MISSES_MAX):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait.wait_readable, ours.fileno())
                await trio.testing.wait_all_tasks_blocked(0.001)
                theirs.send(b"x")
            ours.recv(1)
    assert len(spins) == MISSES_MAX


def test_no_spinning_on_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert AdaptiveWait(40)._spin_ns == 0


def test_installing_is_undone_also_after_an_error() -> None:
    before = pyfuse3.trio  # type: ignore[attr-defined]
    with pytest.raises(KeyError), installed(AdaptiveWait(40)):
        assert pyfuse3.trio is not before  # type: ignore[attr-defined]
        raise KeyError
    assert pyfuse3.trio is before  # type: ignore[attr-defined]


def test_nothing_is_installed_when_none_is_given() -> None:
    before = pyfuse3.trio  # type: ignore[attr-defined]
    with installed(None):
        assert pyfuse3.trio is before  # type: ignore[attr-defined]


async def test_no_request_is_taken_while_held() -> None:
    with _pair() as (ours, theirs), trio.fail_after(5):
        held = trio.Event()
        wait = AdaptiveWait(0, hold=held.wait)
        taken = trio.Event()

        async def serve() -> None:
            await wait.wait_readable(ours.fileno())
            taken.set()

        theirs.send(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            await trio.testing.wait_all_tasks_blocked()
            assert not taken.is_set()
            held.set()
            await taken.wait()


class Told:
    """What a turn is told, and by whom others' runs are seen."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def begin_batch(self) -> None:
        self.said.append("begin")

    def settle(self) -> None:
        self.said.append("settle")


async def test_a_turn_lasts_while_requests_keep_coming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wait_module, "SLICE_NS", 10**12)
    with _pair() as (ours, theirs), trio.fail_after(5):
        turn = Told()
        wait = AdaptiveWait(0, turn=turn)
        theirs.send(b"xxx")
        await wait.wait_readable(ours.fileno())
        turn.said.clear()
        for _ in range(2):
            await wait.wait_readable(ours.fileno())
            ours.recv(1)
        assert turn.said == ["begin", "begin"]


async def test_a_turn_is_settled_before_the_loop_sleeps() -> None:
    with _pair() as (ours, theirs), trio.fail_after(5):
        turn = Told()
        wait = AdaptiveWait(0, turn=turn)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait.wait_readable, ours.fileno())
            await trio.testing.wait_all_tasks_blocked()
            assert set(turn.said) == {"settle"}
            theirs.send(b"x")
        assert turn.said[-1] == "begin"


async def test_a_turn_is_settled_before_others_get_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wait_module, "SLICE_NS", -1)
    with _pair() as (ours, theirs), trio.fail_after(5):
        turn = Told()

        async def hold() -> None:
            turn.said.append("others")

        wait = AdaptiveWait(0, hold, turn=turn)
        theirs.send(b"xx")
        for _ in range(2):
            await wait.wait_readable(ours.fileno())
            ours.recv(1)
        assert turn.said == ["settle", "others", "begin"] * 2


async def test_who_is_woken_while_all_are_stopped_takes_no_request() -> None:
    """As many handlers as slept would otherwise take a request each."""
    over = trio.Event()
    is_stopped = False
    served = []

    async def hold() -> None:
        if is_stopped:
            await over.wait()

    with _pair() as (ours, theirs), trio.fail_after(5):
        wait = AdaptiveWait(0, hold)

        async def serve() -> None:
            await wait.wait_readable(ours.fileno())
            served.append(ours.recv(1))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(serve)
            await trio.testing.wait_all_tasks_blocked()
            is_stopped = True
            theirs.send(b"xyz")
            await trio.testing.wait_all_tasks_blocked()
            assert served == []
            is_stopped = False
            over.set()
        assert sorted(served) == [b"x", b"y", b"z"]
