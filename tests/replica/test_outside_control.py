"""Negative control: what keeps others' objects is the mirror's conditions, and nothing else.

The same scenario runs on a store as it is, where what others put survives, and on one that drops
every condition, where it is lost without a word. If it survived there too, the tests of outside
changes would prove nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from s3ws_fs.core.errors import UserError
from s3ws_fs.core.layout import FILES_PREFIX
from s3ws_fs.store.base import DeleteFailure, Fetched, ListEntry, ObjectInfo, ObjectStore
from s3ws_fs.store.body import Body
from s3ws_fs.store.memory import MemoryStore
from tests.replica.conftest import Mount
from tests.support.inline import inline_config, inline_mount

THEIRS = b"somebody else's work"
PREFIX = inline_config(Path("/")).workspace.prefix + FILES_PREFIX


class Careless(ObjectStore):
    """A store that does as it is told, on no condition."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__()
        self._inner = inner

    def get(
        self, key: str, offset: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> Fetched:
        return self._inner.get(key, offset, length)

    def head(self, key: str) -> ObjectInfo:
        return self._inner.head(key)

    def put(self, key: str, body: Body, **more: Any) -> str:
        return self._inner.put(key, body, **_careless(more))

    def copy(self, src: str, dst: str, **more: Any) -> str:
        return self._inner.copy(src, dst, **_careless(more))

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        self._inner.delete(key)

    def delete_many(self, keys: Iterable[str | tuple[str, str]]) -> list[DeleteFailure]:
        return self._inner.delete_many(key if isinstance(key, str) else key[0] for key in keys)

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListEntry]:
        return self._inner.list(prefix, start_after)

    def check(self, prefix: str = "") -> None:
        self._inner.check(prefix)


def _careless(more: Mapping[str, Any]) -> dict[str, Any]:
    conditions = ("if_match", "if_none_match", "src_if_match")
    return {name: value for name, value in more.items() if name not in conditions}


async def changed_by_both(m: Mount, store: MemoryStore) -> None:
    m.write("f", b"ours")
    await m.sync()
    store.put(PREFIX + "f", THEIRS)
    m.write("f", b"ours, later")
    await m.sync()


async def made_by_both(m: Mount, store: MemoryStore) -> None:
    store.put(PREFIX + "f", THEIRS)
    m.write("f", b"ours")
    await m.sync()


async def deleted_here_and_changed_there(m: Mount, store: MemoryStore) -> None:
    m.write("f", b"ours")
    await m.sync()
    store.put(PREFIX + "f", THEIRS)
    m.unlink("f")
    await m.sync()


async def moved_over_one_that_was_changed(m: Mount, store: MemoryStore) -> None:
    m.write("f", b"ours")
    m.write("g", b"ours too")
    await m.sync()
    store.put(PREFIX + "g", THEIRS)
    m.rename("f", "g")
    await m.sync()


async def new_mode_for_one_that_was_changed(m: Mount, store: MemoryStore) -> None:
    m.write("f", b"ours")
    await m.sync()
    store.put(PREFIX + "f", THEIRS)
    m.fs.setattr(m.ino("f"), mode=0o755)
    await m.sync()


SCENARIOS = (
    changed_by_both,
    made_by_both,
    deleted_here_and_changed_there,
    moved_over_one_that_was_changed,
)


def survives(
    base: Path, scenario: Callable[[Mount, MemoryStore], Awaitable[None]], *, careless: bool
) -> bool:
    """Whether what somebody else put is anywhere: in the workspace or in the mirror."""
    config = inline_config(base)
    config = replace(config, store=replace(config.store, allow_unconditional=careless))
    store = MemoryStore()

    async def work() -> bool:
        async with inline_mount(config, Careless(store) if careless else store) as m:
            # The listing at the mount is another way to find out: here it is the conditions' turn.
            await m.sync()
            await scenario(m, store)
            events = m.replica.status()["outside"]["events"]
            there = {store.get(entry.key).data for entry in store.list(PREFIX)}
            found = THEIRS in there or THEIRS in (await m.files()).values()
            assert found == bool(events), "lost, and told; or kept, and not told"
            return found

    return trio.run(work, clock=MockClock(autojump_threshold=0))


# New metadata alone puts no bytes: without conditions they stay, under our name.
@pytest.mark.parametrize("scenario", [*SCENARIOS, new_mode_for_one_that_was_changed])
def test_with_conditions_it_survives(
    tmp_path: Path, scenario: Callable[[Mount, MemoryStore], Awaitable[None]]
) -> None:
    assert survives(tmp_path, scenario, careless=False)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_without_conditions_it_is_lost(
    tmp_path: Path, scenario: Callable[[Mount, MemoryStore], Awaitable[None]]
) -> None:
    assert not survives(tmp_path, scenario, careless=True)


def test_such_a_store_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with inline_mount(inline_config(tmp_path), Careless(MemoryStore())):
            pass

    with pytest.raises(UserError, match="conditional"):
        trio.run(work, clock=MockClock(autojump_threshold=0))
