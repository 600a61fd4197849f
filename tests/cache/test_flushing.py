"""The thread that flushes: what it does, what fails in it, and that a slow disk stops nobody."""

from __future__ import annotations

import errno
import threading

import pytest
import trio
import trio.testing

from s3ws_fs.cache.flushing import FlushThread


async def test_it_is_done_when_it_returns() -> None:
    done: list[list[int]] = []
    thread = FlushThread(done.append)
    for number in range(20):
        await thread.flush([number])
        assert done[-1] == [number]


async def test_what_fails_is_raised_and_the_next_one_is_done() -> None:
    error: list[OSError] = [OSError(errno.EIO, "bad disk")]

    def work(_: list[int]) -> None:
        if error:
            raise error.pop()

    thread = FlushThread(work)
    with pytest.raises(OSError, match="bad disk"):
        await thread.flush([1])
    await thread.flush([1])


async def test_others_run_while_the_disk_is_slow() -> None:
    began, may_end = threading.Event(), threading.Event()

    def slow(_: list[int]) -> None:
        began.set()
        assert may_end.wait(30)

    thread = FlushThread(slow)
    ended = trio.Event()

    async def flush() -> None:
        await thread.flush([1])
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flush)
        await trio.to_thread.run_sync(began.wait)
        assert not ended.is_set()
        may_end.set()
    assert ended.is_set()


async def test_who_is_cancelled_waits_for_its_end() -> None:
    began, may_end = threading.Event(), threading.Event()
    done = []

    def slow(_: list[int]) -> None:
        began.set()
        assert may_end.wait(30)
        done.append(1)

    thread = FlushThread(slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread.flush, [1])
        await trio.to_thread.run_sync(began.wait)
        nursery.cancel_scope.cancel()
        may_end.set()
    assert done == [1]
    # And what it left is not taken for the next one's end.
    may_end.clear()
    began.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread.flush, [1])
        await trio.to_thread.run_sync(began.wait)
        assert done == [1]
        may_end.set()
    assert done == [1, 1]
