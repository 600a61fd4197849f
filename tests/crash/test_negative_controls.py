"""Negative controls: with a promise broken on purpose, the tests of this directory must fail.

Each control breaks one thing in this process and runs the same workload under the same looks. That
a look fails is what is asserted; which, and where, is printed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s3ws_fs.cache.cache import Cache
from s3ws_fs.cache.durability import Durability
from s3ws_fs.cache.tx import Tx
from s3ws_fs.core import keys
from s3ws_fs.core.records import Head
from s3ws_fs.replica import position, restore
from s3ws_fs.replica.flusher import Flusher
from s3ws_fs.transfer.spool import open_records
from tests.crash import every
from tests.crash.every import Trial
from tests.crash.rig import Crash, Rig, fast_directory
from tests.crash.workloads import FIRST, SECOND
from tests.support.inline import InlineClient

Broken = Callable[[pytest.MonkeyPatch], None]


def forget_before_the_seal(patch: pytest.MonkeyPatch) -> None:
    """Marks go, and only then the segment is put."""
    ask, forget = InlineClient.ask, Flusher._forget
    frozen: dict[str, Any] = {}
    flushers: list[Flusher] = []
    make = Flusher.__init__

    def remember(self: Flusher, *args: Any, **more: Any) -> None:
        make(self, *args, **more)
        flushers[:] = [self]

    async def early(self: InlineClient, cmd: str, *args: Any, **more: Any) -> dict[str, Any]:
        if cmd == "seal":
            path = Path(frozen["segment"])
            request = frozen["request"]
            segment = open_records(path, "early", whole=True)
            numbers = (request["number"], frozen["generation"], request["created_ns"])
            await forget(flushers[0], segment, *numbers)
        answer = await ask(self, cmd, *args, **more)
        if cmd == "freeze":
            frozen.update(answer, request=more["freeze"])
        return answer

    async def done_already(*_: object) -> None:
        pass

    patch.setattr(Flusher, "__init__", remember)
    patch.setattr(Flusher, "_forget", done_already)
    patch.setattr(InlineClient, "ask", early)


def a_dirty_mark_is_dropped(patch: pytest.MonkeyPatch) -> None:
    """A name that is removed is not marked: the bucket never hears of it."""
    mark = Tx.mark

    def careless(self: Tx, table: int, key: bytes) -> None:
        if table == keys.T_DENTRIES and self.txn.get(key, db=self.db.dentries) is None:
            self.changed = True
        else:
            mark(self, table, key)

    patch.setattr(Tx, "mark", careless)


def no_sync_point_before_the_seal(patch: pytest.MonkeyPatch) -> None:
    """The bucket may get ahead of what a power cut leaves."""

    async def at_once(self: Durability, generation: int | None = None) -> None:
        pass

    patch.setattr(Durability, "ensure", at_once)


def half_a_restore_is_whole(patch: pytest.MonkeyPatch) -> None:
    """A cache is marked as whole before it is filled: half of it may be mounted, and pushed."""
    load = restore._load

    async def marked_first(cache: Cache, worker: Any, progress: Any) -> dict[str, Any]:
        state = await worker.ask("survey")
        header = state["header"]
        cache.put_json("workspace", state["workspace"])
        sealed = position.Sealed(state["newest"], state["header_hash"], header["generation"])
        position.remember(cache, sealed)
        cache.set_head(Head(header["generation"], header["next_ino"], 0, 0))
        cache.set_restore_complete()
        return await load(cache, worker, progress)

    patch.setattr(restore, "_load", marked_first)


def killed(rig: Rig, crash: Crash) -> None:
    rig.killed(crash)


def least(rig: Rig, crash: Crash) -> None:
    rig.power_cut(crash, least=True)


@contextlib.contextmanager
def rigs() -> Iterator[tuple[Rig, Rig]]:
    """The rigs of both workloads, not run yet but for the first's when the second is asked for."""
    with fast_directory("s3ws-control-") as base:
        first = Rig(Path(base) / "first", is_watching=False)
        first.run(FIRST)
        yield Rig(Path(base) / "again"), Rig.after(first, Path(base) / "second")


@pytest.mark.parametrize(
    ("broken", "host", "look"),
    [
        (forget_before_the_seal, "first", killed),
        (a_dirty_mark_is_dropped, "first", killed),
        (no_sync_point_before_the_seal, "first", least),
        (half_a_restore_is_whole, "second", killed),
    ],
)
def test_a_crash_is_noticed(
    broken: Broken,
    host: str,
    look: Callable[[Rig, Crash], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with rigs() as (first, second), monkeypatch.context() as patch:
        rig, steps = (first, FIRST) if host == "first" else (second, SECOND)
        broken(patch)
        if broken is not a_dirty_mark_is_dropped:
            rig.run(steps)
        else:
            # The workload's own last look would notice it: here it is the crash that has to.
            patch.setattr(rig, "step", without_looking(rig))
            rig.run(steps)
        failed = []
        for crash in rig.crashes:
            try:
                look(rig, crash)
            except AssertionError as exc:
                failed.append(f"{exc}: {exc.__cause__}")
                break
        assert failed, "nobody noticed"
        print(failed[0][:400])


def without_looking(rig: Rig) -> Callable[..., Any]:
    """A rig's step that does not assert what a sync says."""
    step = rig.step

    async def quietly(*args: Any) -> None:
        with contextlib.suppress(AssertionError):
            await step(*args)

    return quietly


def our_segment_is_another_writers(patch: pytest.MonkeyPatch) -> None:
    """Our own segment, whose answer was lost, is taken for somebody else's."""
    compare = position.compare

    def suspicious(cache: Cache, state: dict[str, Any], writer: str) -> str:
        return compare(cache, state, f"not {writer}")

    patch.setattr(position, "compare", suspicious)


@pytest.mark.parametrize("broken", [our_segment_is_another_writers])
def test_a_lost_answer_is_noticed(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    with fast_directory("s3ws-control-") as directory:
        base = every.Base(Path(directory))
        numbers = range(1, base.counts["first", every.REQUEST] + 1)
        for number in numbers:
            if "lost" not in base.faults["first", number]:
                continue
            trial = Trial("first", every.REQUEST, number, "lost")
            base.attempt(trial)
            with monkeypatch.context() as patch:
                broken(patch)
                try:
                    base.attempt(trial)
                except AssertionError as exc:
                    print(f"{exc}: {exc.__cause__}"[:400])
                    return
    pytest.fail("nobody noticed")
