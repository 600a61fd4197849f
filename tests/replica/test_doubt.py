"""An object of ours whose bytes come spoilt: never taken for somebody else's for good.

It stands where no file is, as after a put that came late, so only its mark says whose it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from s3ws_fs.core.bounds import BUCKET_WINS, KEEP_BOTH, WORKSPACE_WINS
from s3ws_fs.core.layout import FILES_PREFIX
from s3ws_fs.replica.cycle import LOOK_AGAIN_S, LOOKS_MAX
from s3ws_fs.store.memory import MemoryStore
from s3ws_fs.transfer.whose import READINGS
from tests.replica.conftest import Mount
from tests.support.faulty_store import Fault, FaultyStore, Request
from tests.support.inline import inline_config, inline_mount

KEY = inline_config(Path("/")).workspace.prefix + FILES_PREFIX + "f"
POLICIES = (KEEP_BOTH, BUCKET_WINS, WORKSPACE_WINS)


class Spoiling:
    """Flips a byte of the next `count` readings of the object."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, request: Request) -> Fault | None:
        if request.op == "get" and request.key == KEY and self.count:
            self.count -= 1
            return Fault.FLIPPED
        return None


Scenario = Callable[[Mount, MemoryStore, Spoiling], Awaitable[None]]


def run(base: Path, policy: str, scenario: Scenario) -> None:
    """The scenario, with our object standing where no file is."""
    store, spoiling = MemoryStore(), Spoiling()

    async def work() -> None:
        config = replace(inline_config(base), outside_changes=policy)
        async with inline_mount(config, FaultyStore(store, spoiling)) as mount:
            mount.write("f", b"ours")
            await mount.sync()
            late, info = store.get(KEY), store.head(KEY)
            mount.unlink("f")
            await mount.sync()
            store.put(KEY, late.data, metadata=info.metadata)
            await scenario(mount, store, spoiling)

    trio.run(work, clock=MockClock(autojump_threshold=0))


def _stands(store: MemoryStore) -> bool:
    return KEY in {entry.key for entry in store.list(KEY)}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_next_sync_looks_again(tmp_path: Path, policy: str) -> None:
    async def scenario(mount: Mount, store: MemoryStore, spoiling: Spoiling) -> None:
        spoiling.count = READINGS
        await mount.sync(outside=True)
        assert not spoiling.count and _stands(store)
        assert await mount.files() == {}, "an object of ours is no file of somebody else's"
        assert mount.replica.status()["outside"]["left"]
        await mount.sync()
        assert not _stands(store), "what no file has is deleted"
        assert not mount.replica.status()["outside"]["left"]
        assert mount.replica.status()["outside"]["events"] == []

    run(tmp_path, policy, scenario)


def test_it_is_looked_at_again_by_itself_and_not_for_ever(tmp_path: Path) -> None:
    async def scenario(mount: Mount, store: MemoryStore, spoiling: Spoiling) -> None:
        spoiling.count = READINGS * (LOOKS_MAX + 3)
        await mount.sync(outside=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.replica.run)
            for look in range(LOOKS_MAX):
                await trio.sleep(LOOK_AGAIN_S * 2**look + 1)
                assert spoiling.count == READINGS * (LOOKS_MAX + 1 - look)
            await trio.sleep(LOOK_AGAIN_S * 2 ** (LOOKS_MAX + 2))
            assert spoiling.count == READINGS * 2, "then only when it is asked for"
            spoiling.count = 0
            assert _stands(store)
            await mount.sync()
            assert not _stands(store)
            nursery.cancel_scope.cancel()

    run(tmp_path, WORKSPACE_WINS, scenario)


def test_one_that_was_changed_in_place_is_somebody_elses(tmp_path: Path) -> None:
    """The control: it keeps our mark, and has other bytes whenever it is read."""

    async def scenario(mount: Mount, store: MemoryStore, spoiling: Spoiling) -> None:
        store.put(KEY, b"edited by a tool", metadata=store.head(KEY).metadata)
        await mount.sync(outside=True)
        assert await mount.files() == {"f": b"edited by a tool"}
        assert not mount.replica._cycle.is_doubtful

    run(tmp_path, KEEP_BOTH, scenario)
