"""Progress for onlookers, and how an end is told."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from s3ws_fs.control.wire import ReplyError
from s3ws_fs.core.errors import ExitCode
from s3ws_fs.daemon.commands import (
    FENCED_REMEDY,
    FOLLOW_QUEUE_MAX,
    UNSAVED_LISTED_MAX,
    UNSAVED_REMEDY,
    Followers,
    Outcome,
    only_error,
)


async def test_every_follower_sees_every_event_in_order() -> None:
    followers = Followers()
    seen: list[tuple[int, Any]] = []

    async def follower(number: int) -> None:
        async def emit(event: dict[str, Any]) -> None:
            seen.append((number, event["n"]))

        await followers.follow(emit)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower, 0)
        nursery.start_soon(follower, 1)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(3):
            followers.say({"n": number})
        followers.close()
    for number in (0, 1):
        assert [n for who, n in seen if who == number] == [0, 1, 2]
    await followers.follow(lambda _: trio.lowlevel.checkpoint())  # returns: there is no more


async def test_a_slow_follower_misses_events_and_delays_nobody() -> None:
    followers = Followers()
    seen = []
    go_on = trio.Event()

    async def emit(event: dict[str, Any]) -> None:
        await go_on.wait()
        seen.append(event["n"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(followers.follow, emit)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(FOLLOW_QUEUE_MAX + 50):
            followers.say({"n": number})
        go_on.set()
        followers.close()
    assert seen == list(range(FOLLOW_QUEUE_MAX + 1)), "one in its hands, the rest in the queue"


def test_a_good_end_is_an_answer_and_a_bad_one_an_error_with_a_bounded_list() -> None:
    assert Outcome(ExitCode.OK).answer() == {"saved": True}
    paths = [str(number) for number in range(UNSAVED_LISTED_MAX + 1)]
    with pytest.raises(ReplyError) as caught:
        Outcome(ExitCode.NOT_SAVED, "not all", paths).answer()
    assert caught.value.exit_code is ExitCode.NOT_SAVED
    assert caught.value.details["unsaved"] == paths[:-1]
    assert caught.value.details["unsaved_count"] == len(paths)
    assert caught.value.remedy == UNSAVED_REMEDY


def test_who_is_fenced_is_not_told_that_a_mount_would_go_on_saving() -> None:
    with pytest.raises(ReplyError) as caught:
        Outcome(ExitCode.FENCED, "fenced", ["a"]).answer()
    assert caught.value.remedy == FENCED_REMEDY


def test_groups_of_one_are_opened() -> None:
    error = ValueError()
    assert only_error(ExceptionGroup("a", [ExceptionGroup("b", [error])])) is error
    two = ExceptionGroup("c", [error, error])
    assert only_error(two) is two
