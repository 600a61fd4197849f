"""The command `changes`: answers as soon as there is something, misses nothing, and is bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from s3ws_fs.cache.cache import Cache, open_cache
from s3ws_fs.cache.tx import Tx
from s3ws_fs.core import changefeed
from s3ws_fs.core.changefeed import NAME
from s3ws_fs.core.config import MountConfig
from s3ws_fs.core.errors import ExitCode, UserError
from s3ws_fs.core.types import ROOT_INO, Cred
from s3ws_fs.daemon.parts import identity
from s3ws_fs.daemon.watching import FORGET_S, GATHER_S, WAIT_S, WATCHERS_MAX, Watchers
from s3ws_fs.fs.filesystem import FileSystem

CRED = Cred(0, 0)


@pytest.fixture
def cache(config: MountConfig) -> Iterator[Cache]:
    opened = open_cache(
        Path(config.workspace_cache_dir), identity(config), quota_bytes=1 << 20, now_ns=lambda: 1
    )
    yield opened
    opened.close()


@pytest.fixture
def fs(cache: Cache) -> FileSystem:
    made = FileSystem(cache, quota_bytes=1 << 20, quota_inodes=100_000)
    made.make_root(uid=0, gid=0, mode=0o755)
    return made


@pytest.fixture
def watchers(cache: Cache) -> Watchers:
    return Watchers(cache)


def names(answer: dict[str, Any]) -> list[str]:
    return [mark[4] for mark in answer["marks"] if mark[1] == NAME]


async def test_the_first_answer_says_from_where_on(
    cache: Cache, fs: FileSystem, watchers: Watchers, autojump_clock: MockClock
) -> None:
    fs.create(ROOT_INO, b"before", 0o644, CRED)
    first = await watchers.changes({"watcher": None})
    assert (first["from"], first["generation"]) == (cache.generation, cache.generation)
    assert first["marks"] == [] and trio.current_time() == 0
    fs.create(ROOT_INO, b"after", 0o644, CRED)
    second = await watchers.changes({"watcher": first["watcher"]})
    assert second["watcher"] == first["watcher"] and names(second) == ["after"]
    assert second["from"] == first["generation"] < second["generation"]


async def test_it_comes_a_moment_after_the_change_with_what_gathered(
    fs: FileSystem, watchers: Watchers, autojump_clock: MockClock
) -> None:
    name = (await watchers.changes({}))["watcher"]
    answers: list[dict[str, Any]] = []

    async def ask() -> None:
        answers.append(await watchers.changes({"watcher": name}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(5)
        fs.create(ROOT_INO, b"a", 0o644, CRED)
        await trio.sleep(GATHER_S / 2)
        fs.create(ROOT_INO, b"b", 0o644, CRED)
    assert trio.current_time() == pytest.approx(5 + GATHER_S)
    assert names(answers[0]) == ["a", "b"]


async def test_without_changes_it_answers_after_a_while(
    watchers: Watchers, autojump_clock: MockClock
) -> None:
    name = (await watchers.changes({}))["watcher"]
    answer = await watchers.changes({"watcher": name})
    assert answer["marks"] == [] and trio.current_time() == WAIT_S


async def test_nothing_is_missed_between_two_questions_but_what_does_not_fit(
    fs: FileSystem, watchers: Watchers, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changefeed, "MARKS_MAX", 30)
    name = (await watchers.changes({}))["watcher"]
    for number in range(20):
        fs.create(ROOT_INO, b"%d" % number, 0o644, CRED)
    answer = await watchers.changes({"watcher": name})
    assert len(answer["marks"]) == 30 and answer["lost"] > 0
    fs.create(ROOT_INO, b"next", 0o644, CRED)
    answer = await watchers.changes({"watcher": name})
    assert names(answer) == ["next"] and answer["lost"] == 0


async def test_who_does_not_ask_again_is_forgotten_and_the_mount_is_as_before(
    cache: Cache, watchers: Watchers, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchers.run)
        await wait_all_tasks_blocked()
        first = await watchers.changes({})
        assert cache.tx_type is not Tx
        await trio.sleep(FORGET_S * 2 + 1)
        assert cache.tx_type is Tx
        again = await watchers.changes({"watcher": first["watcher"]})
        assert again["watcher"] != first["watcher"]
        nursery.cancel_scope.cancel()


async def test_who_hangs_up_before_the_answer_is_forgotten_at_once(
    cache: Cache, watchers: Watchers, autojump_clock: MockClock
) -> None:
    name = (await watchers.changes({}))["watcher"]
    other = (await watchers.changes({}))["watcher"]
    with trio.CancelScope() as hung_up:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watchers.changes, {"watcher": name})
            await wait_all_tasks_blocked()
            hung_up.cancel()
    assert hung_up.cancelled_caught and trio.current_time() == 0
    assert (await watchers.changes({"watcher": other}))["watcher"] == other
    with trio.move_on_after(1):
        await watchers.changes({"watcher": other})
    assert cache.tx_type is Tx


async def test_one_who_is_slow_holds_up_no_other(
    fs: FileSystem, watchers: Watchers, autojump_clock: MockClock
) -> None:
    slow = (await watchers.changes({}))["watcher"]
    quick = (await watchers.changes({}))["watcher"]
    for number in range(8):
        fs.create(ROOT_INO, b"%d" % number, 0o644, CRED)
        assert names(await watchers.changes({"watcher": quick})) == [str(number)]
    watchers.forget()
    assert len(names(await watchers.changes({"watcher": slow}))) == 8


async def test_no_more_than_so_many(watchers: Watchers, autojump_clock: MockClock) -> None:
    for _ in range(WATCHERS_MAX):
        await watchers.changes({})
    with pytest.raises(UserError, match="watch this mount already") as error:
        await watchers.changes({})
    assert error.value.exit_code is ExitCode.BUSY
    await trio.sleep(FORGET_S)
    assert (await watchers.changes({}))["marks"] == []
